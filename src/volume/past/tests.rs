//! Snapshots looked at without a kernel.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::known::number;
use crate::base::tree::{Meta, Place, ROOT};
use crate::base::types::{Attr, DirEntry, FileKind, OpenMode};
use crate::base::{DeviceId, FileId};
use crate::object::Content;
use crate::object::map::{self, Edits, Root};
use crate::object::record::{Body, directory_entries, file_entries, key, own_key};
use crate::object::snapshot::{Made, Snapshot};
use crate::volume::tests::{Bench, read_all};
use crate::volume::{Moment, ROOT_INO, Volume, VolumeError, Wait, is_past};

const DIR: FileId = FileId([1; 16]);
const READ: OpenMode = OpenMode {
    read: true,
    write: false,
    append: false,
    truncate: false,
    sync: false,
    note_access: false,
};

fn place(parent: FileId, name: &str) -> Place {
    Place {
        parent,
        name: name.as_bytes().into(),
    }
}

fn file(text: &str) -> Body {
    Body::File {
        content: Content::Inline(text.as_bytes().to_vec()),
        size: text.len() as u64,
        author: DeviceId([0; 32]),
    }
}

fn id(n: usize) -> FileId {
    let mut id = [2; 16];
    id[..8].copy_from_slice(&(n as u64).to_be_bytes());
    FileId(id)
}

/// A snapshot with `files` files in a directory `d`, one of which is `twin` at the top as well. Each says who it is.
fn snapshot(volume: &Volume, time: u64, files: usize) -> Moment {
    let mut edits = Edits::new();
    let mut put = |entries: std::collections::BTreeMap<Vec<u8>, crate::object::record::Record>| {
        edits.extend(
            entries
                .into_iter()
                .map(|(key, record)| (key, Some(record.encode()))),
        );
    };
    put(directory_entries(DIR, place(ROOT, "d"), Meta::default()));
    for n in 0..files {
        let mut places = BTreeSet::from([place(DIR, &format!("{n}"))]);
        if n == 0 {
            places.insert(place(ROOT, "twin"));
        }
        put(file_entries(
            id(n),
            places,
            Meta::default(),
            file(&format!("{time} {n}")),
        ));
    }
    let root = map::update(&volume.tree_nodes(), &Root::EMPTY, &edits).unwrap();
    let made = Made {
        device: DeviceId([0; 32]),
        seq: time,
        epoch: 1,
        time: Default::default(),
    };
    let snapshot = Snapshot {
        parents: Vec::new(),
        root,
        made: Some(made),
    };
    let id = volume.put_snapshot(&snapshot).unwrap();
    Moment {
        id,
        time,
        twin: false,
    }
}

fn find(volume: &Volume, path: &str) -> Result<Attr, VolumeError> {
    let mut attr = volume.lookup(ROOT_INO, OsStr::new(".dfs"))?;
    for name in path.split('/') {
        attr = volume.lookup(attr.ino, OsStr::new(name))?;
    }
    Ok(attr)
}

/// All of a directory, so many entries at a time.
fn list(volume: &Volume, ino: u64, plus: bool, at_once: usize) -> Vec<(DirEntry, Option<Attr>)> {
    let fh = volume.opendir(ino).unwrap();
    let mut all: Vec<(DirEntry, Option<Attr>)> = Vec::new();
    loop {
        let (mut part, after) = (Vec::new(), all.last().map_or(0, |(entry, _)| entry.next));
        let mut each = |entry: DirEntry, attr| {
            let has_room = part.len() < at_once;
            if has_room {
                part.push((entry, attr));
            }
            has_room
        };
        match plus {
            true => volume.readdir_plus(fh, after, &mut each).unwrap(),
            false => volume.readdir(fh, after, &mut |entry| each(entry, None)).unwrap(),
        }
        if part.is_empty() {
            volume.releasedir(fh);
            return all;
        }
        all.append(&mut part);
    }
}

#[test]
fn a_listing_is_whole_however_it_is_cut_and_costs_what_the_kernel_holds() {
    let bench = Bench::new();
    let volume = bench.start();
    let moment = snapshot(&volume, 60, 1000);
    volume.retain_snapshots(vec![moment]);
    let dir = find(&volume, "snapshots/1970-01-01T00:01:00Z/d").unwrap();
    assert_eq!(volume.past.len(), 2);
    for at_once in [1, 7, 999, 5000] {
        let plain = list(&volume, dir.ino, false, at_once);
        assert_eq!(plain.len(), 1002);
        assert_eq!(plain[0].0.ino, dir.ino);
        assert_eq!(plain[1].0.ino, number(&moment.id, &own_key(&ROOT)));
        let names: BTreeSet<_> = plain.iter().map(|(entry, _)| entry.name.clone()).collect();
        assert_eq!(names.len(), 1002);
        assert_eq!(volume.past.len(), 2, "a listing without attributes holds nothing");
        let plus = list(&volume, dir.ino, true, at_once);
        assert_eq!(volume.past.len(), 1002);
        for ((entry, attr), (other, _)) in plus.iter().zip(&plain) {
            assert_eq!(
                (&entry.name, entry.ino, entry.next),
                (&other.name, other.ino, other.next)
            );
            let Some(attr) = attr else { continue };
            assert_eq!((attr.ino, attr.kind), (entry.ino, FileKind::Regular));
            let text = format!("60 {}", entry.name.to_str().unwrap());
            assert_eq!(read_all(&volume, entry.ino), text.as_bytes());
            volume.forget(attr.ino, 1);
        }
        assert_eq!(volume.past.len(), 2, "what the kernel forgets is forgotten");
    }
    // From somewhere in the middle, and back again.
    let fh = volume.opendir(dir.ino).unwrap();
    let plain = list(&volume, dir.ino, false, 5000);
    for after in [900, 20, 1001, 2, 0, 500] {
        let mut first = Vec::new();
        volume
            .readdir(fh, after, &mut |entry| {
                first.push(entry.name);
                false
            })
            .unwrap();
        assert_eq!(first, [plain[after as usize].0.name.clone()], "after {after}");
    }
}

#[test]
fn names_of_one_file_have_one_number_and_snapshots_none_in_common() {
    let bench = Bench::new();
    let volume = bench.start();
    let (first, second) = (snapshot(&volume, 60, 3), snapshot(&volume, 61, 3));
    volume.retain_snapshots(vec![first, second]);
    let at = |path: &str| find(&volume, &format!("snapshots/1970-01-01T00:01:{path}")).unwrap();
    let (twin, named) = (at("00Z/twin"), at("00Z/d/0"));
    assert_eq!((twin.ino, twin.nlink), (named.ino, 2));
    assert!(is_past(twin.ino));
    assert_ne!(at("01Z/twin").ino, twin.ino);
    assert_eq!(read_all(&volume, at("01Z/d/0").ino), b"61 0");
    assert_eq!(
        volume.shown_path(at("01Z/d/2").ino),
        ".dfs/snapshots/1970-01-01T00:01:01Z/d/2"
    );
    let missing = find(&volume, "snapshots/1970-01-01T00:01:00Z/d/3");
    assert!(matches!(missing, Err(VolumeError::NotFound)));
    let below_a_file = find(&volume, "snapshots/1970-01-01T00:01:00Z/d/1/x");
    assert!(matches!(below_a_file, Err(VolumeError::NotDirectory)));
}

#[test]
fn a_number_that_something_else_has_got_gives_way() {
    let bench = Bench::new();
    let volume = bench.start();
    let moment = snapshot(&volume, 60, 3);
    volume.retain_snapshots(vec![moment]);
    let dir = find(&volume, "snapshots/1970-01-01T00:01:00Z/d").unwrap();
    let one = volume.lookup(dir.ino, OsStr::new("1")).unwrap();
    // As if the two had the same hash.
    volume
        .past
        .stands_at(one.ino, number(&moment.id, &key(&DIR, b"2")));
    let other = volume.lookup(dir.ino, OsStr::new("2")).unwrap();
    assert_eq!(other.ino, number(&moment.id, &key(&DIR, b"2")) + 1);
    assert_eq!(read_all(&volume, other.ino), b"60 2");
}

#[test]
fn what_is_not_kept_any_more_is_stale_and_may_come_back() {
    let bench = Bench::new();
    let volume = bench.start();
    let (first, second) = (snapshot(&volume, 60, 3), snapshot(&volume, 61, 3));
    volume.retain_snapshots(vec![first, second]);
    let dir = find(&volume, "snapshots/1970-01-01T00:01:00Z/d").unwrap();
    let file = volume.lookup(dir.ino, OsStr::new("1")).unwrap();
    let fh = volume.opendir(dir.ino).unwrap();
    let opened = volume.open(file.ino, READ, Wait::Bounded).unwrap();
    volume.retain_snapshots(vec![second]);
    let stale = |outcome: Result<(), VolumeError>| assert!(matches!(outcome, Err(VolumeError::Stale)));
    stale(volume.lookup(dir.ino, OsStr::new("1")).map(drop));
    stale(volume.getattr(file.ino, None).map(drop));
    stale(volume.readdir(fh, 0, &mut |_| true));
    stale(volume.open(file.ino, READ, Wait::Bounded).map(drop));
    let mut out = Vec::new();
    stale(volume.read(opened.fh, 0, 10, &mut out, Wait::Bounded).map(drop));
    let gone = find(&volume, "snapshots/1970-01-01T00:01:00Z");
    assert!(matches!(gone, Err(VolumeError::NotFound)));
    let listed = list(&volume, find(&volume, "snapshots").unwrap().ino, true, 10);
    assert_eq!(listed.len(), 3);

    volume.retain_snapshots(vec![second, first]);
    assert_eq!(
        find(&volume, "snapshots/1970-01-01T00:01:00Z/d").unwrap().ino,
        dir.ino
    );
    assert_eq!(volume.lookup(dir.ino, OsStr::new("1")).unwrap().ino, file.ino);
    assert_eq!(read_all(&volume, file.ino), b"60 1");
    volume.release(opened.fh);
}
