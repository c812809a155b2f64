//! The volume without a kernel: real folders and a store in memory.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use super::{Allocate, ROOT_INO, SeekTo, Synced, Volume, VolumeError, VolumeOptions, Wait};
use crate::base::types::{Caller, OpenMode, SetAttr, SetTime, Timestamp};
use crate::folder::Folder;
use crate::keys::{RootSecret, VolumeKeys};
use crate::store::{BlockStore, MemoryStore, NoFetch, Tiered};

pub(super) const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0o022,
};
pub(super) const RW: OpenMode = OpenMode {
    read: true,
    write: true,
    append: false,
    truncate: false,
    sync: false,
    note_access: false,
};

pub(super) struct Bench {
    temp: tempfile::TempDir,
    pub(super) keys: Arc<VolumeKeys>,
    pub(super) store: Arc<dyn BlockStore>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// With its folder on another filesystem.
    pub(super) fn below(place: &std::path::Path) -> Self {
        let keys = VolumeKeys::from_root(&RootSecret::from_bytes([7; 32]), 1).unwrap();
        Self {
            temp: tempfile::tempdir_in(place).unwrap(),
            keys: Arc::new(keys),
            store: Arc::new(MemoryStore::new(crate::base::StoreId([1; 16]))),
        }
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.temp.path()
    }

    pub(super) fn write(&self, volume: &Volume, name: &str, data: &[u8]) {
        write_all(volume, name, data);
    }

    pub(super) fn read(&self, volume: &Volume, path: &str) -> Vec<u8> {
        let mut ino = ROOT_INO;
        for name in path.split('/') {
            ino = volume.lookup(ino, OsStr::new(name)).unwrap().ino;
        }
        read_all(volume, ino)
    }

    pub(super) fn start(&self) -> Arc<Volume> {
        let tiered = Tiered::new(Arc::clone(&self.store), Arc::new(NoFetch), Duration::from_secs(1));
        let options = VolumeOptions {
            timeout: Duration::from_secs(5),
            sync_interval: Duration::from_secs(3600),
            status: Some(Arc::new(|| b"all is well".to_vec())),
            ..VolumeOptions::default()
        };
        Volume::start(
            Folder::open(self.temp.path()).unwrap(),
            Arc::clone(&self.keys),
            tiered,
            options,
        )
        .unwrap()
    }
}

pub(super) fn write_all(volume: &Volume, name: &str, data: &[u8]) -> u64 {
    let (attr, opened) = volume
        .create(ROOT_INO, OsStr::new(name), 0o644, RW, &CALLER)
        .unwrap();
    for (index, part) in data.chunks(1 << 20).enumerate() {
        volume
            .write(opened.fh, (index as u64) << 20, part, Wait::Bounded)
            .unwrap();
    }
    volume.flush(opened.fh).unwrap();
    volume.release(opened.fh);
    attr.ino
}

pub(super) fn read_all(volume: &Volume, ino: u64) -> Vec<u8> {
    let opened = volume
        .open(
            ino,
            OpenMode {
                read: true,
                ..OpenMode::default()
            },
            Wait::Bounded,
        )
        .unwrap();
    let (mut all, mut part) = (Vec::new(), Vec::new());
    loop {
        volume
            .read(opened.fh, all.len() as u64, 1 << 20, &mut part, Wait::Bounded)
            .unwrap();
        if part.is_empty() {
            break;
        }
        all.extend_from_slice(&part);
    }
    volume.release(opened.fh);
    all
}

/// Bytes that neither repeat nor compress.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut out);
    out
}

#[test]
fn files_of_every_size_come_back_after_a_restart() {
    let bench = Bench::new();
    let sizes = [
        0,
        1,
        3_900,
        3_901,
        4_096,
        65_536,
        300_000,
        1 << 20,
        9_000_000,
        40_000_000,
    ];
    let volume = bench.start();
    for (seed, size) in sizes.iter().enumerate() {
        write_all(&volume, &format!("f{size}"), &noise(*size, seed as u64));
    }
    volume.shutdown().unwrap();
    drop(volume);
    let volume = bench.start();
    for (seed, size) in sizes.iter().enumerate() {
        let attr = volume.lookup(ROOT_INO, OsStr::new(&format!("f{size}"))).unwrap();
        assert_eq!(attr.size, *size as u64);
        assert!(
            read_all(&volume, attr.ino) == noise(*size, seed as u64),
            "size {size}"
        );
        let host = bench.temp.path().join(format!("f{size}.f"));
        assert!(std::fs::metadata(host).unwrap().len() <= 8192);
    }
}

#[test]
fn one_byte_in_front_of_a_large_file_stores_little_that_is_new() {
    let bench = Bench::new();
    let volume = bench.start();
    let data = noise(32 << 20, 1);
    write_all(&volume, "a", &data);
    let before = bench.store.stats().unwrap().bytes;
    let mut shifted = vec![b'!'];
    shifted.extend_from_slice(&data);
    let ino = write_all(&volume, "b", &shifted);
    let new = bench.store.stats().unwrap().bytes - before;
    assert!(new < 2 << 20, "{new} new bytes");
    assert!(read_all(&volume, ino) == shifted);
}

#[test]
fn a_change_in_the_middle_of_a_large_file_seals_only_around_it() {
    let bench = Bench::new();
    let volume = bench.start();
    let mut data = noise(40 << 20, 2);
    let ino = write_all(&volume, "a", &data);
    let before = bench.store.stats().unwrap().bytes;
    let opened = volume.open(ino, RW, Wait::Bounded).unwrap();
    data[20_000_000..20_000_010].copy_from_slice(b"0123456789");
    volume
        .write(opened.fh, 20_000_000, b"0123456789", Wait::Bounded)
        .unwrap();
    volume.fsync(opened.fh, Synced::All).unwrap();
    volume.release(opened.fh);
    let new = bench.store.stats().unwrap().bytes - before;
    assert!(new < 3 << 20, "{new} new bytes");
    assert!(read_all(&volume, ino) == data);
}

#[test]
fn blocks_that_nothing_refers_to_are_collected_and_the_others_are_not() {
    let bench = Bench::new();
    let volume = bench.start();
    let (kept, gone) = (noise(30 << 20, 3), noise(10 << 20, 4));
    write_all(&volume, "kept", &kept);
    write_all(&volume, "gone", &gone);
    let open = write_all(&volume, "open", &noise(2 << 20, 5));
    let opened = volume.open(open, RW, Wait::Bounded).unwrap();
    volume.unlink(ROOT_INO, OsStr::new("open")).unwrap();
    let before = bench.store.stats().unwrap().bytes;
    assert_eq!(volume.collect().unwrap(), 0, "everything is in use");
    volume.lookup(ROOT_INO, OsStr::new("gone")).unwrap();
    volume.unlink(ROOT_INO, OsStr::new("gone")).unwrap();
    assert!(volume.garbage.load(std::sync::atomic::Ordering::Relaxed) >= 10 << 20);
    assert!(volume.collect().unwrap() > 10);
    let after = bench.store.stats().unwrap().bytes;
    assert!(before - after > 9 << 20, "{before} {after}");
    assert!(bench.read(&volume, "kept") == kept);
    let mut out = Vec::new();
    volume
        .read(opened.fh, 1 << 20, 1 << 20, &mut out, Wait::Bounded)
        .unwrap();
    assert!(out == noise(2 << 20, 5)[1 << 20..]);
    volume.release(opened.fh);
    // A block that is taken up again while it waits to be swept stays: the same content comes back.
    write_all(&volume, "again", &gone);
    volume.collect().unwrap();
    assert!(bench.read(&volume, "again") == gone);
    // A damaged manifest could name anything.
    std::fs::write(bench.path().join("bad.f"), [1; 500]).unwrap();
    assert!(matches!(volume.collect(), Err(VolumeError::Damaged { path, .. }) if path == "bad.f"));
}

#[test]
fn dfs_shows_its_status_without_being_listed() {
    let bench = Bench::new();
    let volume = bench.start();
    let dir = volume.lookup(ROOT_INO, OsStr::new(".dfs")).unwrap();
    let status = volume.lookup(dir.ino, OsStr::new("status")).unwrap();
    assert_eq!(read_all(&volume, status.ino), b"all is well");
    assert!(matches!(
        volume.open(status.ino, RW, Wait::Bounded),
        Err(VolumeError::ReadOnly(_))
    ));
    assert!(matches!(
        volume.mkdir(dir.ino, OsStr::new("x"), 0o755, &CALLER),
        Err(VolumeError::ReadOnly(_))
    ));
    assert!(matches!(
        volume.mkdir(ROOT_INO, OsStr::new(".dfs"), 0o755, &CALLER),
        Err(VolumeError::NotPermitted)
    ));
    let list = |ino| {
        let fh = volume.opendir(ino).unwrap();
        let mut names = Vec::new();
        volume
            .readdir(fh, 0, &mut |entry| {
                names.push(entry.name);
                true
            })
            .unwrap();
        names.sort();
        names
    };
    assert_eq!(list(dir.ino), [".", "..", "snapshots", "status"]);
    assert_eq!(list(ROOT_INO), [".", ".."]);
}

#[test]
fn a_large_file_that_is_flushed_while_it_grows_and_changes_stays_whole() {
    let bench = Bench::new();
    let volume = bench.start();
    let (attr, opened) = volume
        .create(ROOT_INO, OsStr::new("log"), 0o644, RW, &CALLER)
        .unwrap();
    let mut model = Vec::new();
    for step in 0..60u64 {
        // The last chunk of a flush is often a short one, which the next flush cuts anew.
        let part = noise(700_000 + (step as usize * 7_919) % 50_000, step);
        volume
            .write(opened.fh, model.len() as u64, &part, Wait::Bounded)
            .unwrap();
        model.extend_from_slice(&part);
        if step % 7 == 3 {
            let at = model.len() / 3;
            volume
                .write(opened.fh, at as u64, &part[..5_000], Wait::Bounded)
                .unwrap();
            model[at..at + 5_000].copy_from_slice(&part[..5_000]);
        }
        if step % 11 == 5 {
            let size = model.len() - 300_000;
            let set = SetAttr {
                size: Some(size as u64),
                ..SetAttr::default()
            };
            volume.setattr(attr.ino, Some(opened.fh), &set, &CALLER).unwrap();
            model.truncate(size);
        }
        volume.flush(opened.fh).unwrap();
    }
    volume.release(opened.fh);
    assert!(read_all(&volume, attr.ino) == model);
    assert!(bench.read(&bench.start(), "log") == model);
}

#[test]
fn holes_stay_holes() {
    let bench = Bench::new();
    let volume = bench.start();
    let (attr, opened) = volume
        .create(ROOT_INO, OsStr::new("s"), 0o644, RW, &CALLER)
        .unwrap();
    volume.write(opened.fh, 1 << 44, b"end", Wait::Bounded).unwrap();
    volume.fsync(opened.fh, Synced::All).unwrap();
    assert_eq!(volume.lseek(opened.fh, 0, SeekTo::Data).unwrap(), 1 << 44);
    assert_eq!(volume.lseek(opened.fh, 5, SeekTo::Hole).unwrap(), 5);
    volume.release(opened.fh);
    let attr = volume.getattr(attr.ino, None).unwrap();
    assert_eq!((attr.size, attr.blocks), ((1 << 44) + 3, 1));
    assert!(bench.store.stats().unwrap().bytes < 1000);
    let opened = volume.open(attr.ino, RW, Wait::Bounded).unwrap();
    volume
        .fallocate(opened.fh, 1 << 44, 2, Allocate::PunchHole, true)
        .unwrap();
    let mut out = Vec::new();
    volume
        .read(opened.fh, (1 << 44) - 1, 10, &mut out, Wait::Bounded)
        .unwrap();
    assert_eq!(out, b"\0\0\0d");
}

#[test]
fn an_open_file_lives_on_without_a_name() {
    let bench = Bench::new();
    let volume = bench.start();
    let (attr, opened) = volume
        .create(ROOT_INO, OsStr::new("x"), 0o644, RW, &CALLER)
        .unwrap();
    volume.write(opened.fh, 0, b"still here", Wait::Bounded).unwrap();
    volume.unlink(ROOT_INO, OsStr::new("x")).unwrap();
    assert_eq!(volume.getattr(attr.ino, Some(opened.fh)).unwrap().nlink, 0);
    volume.flush(opened.fh).unwrap();
    let mut out = Vec::new();
    volume.read(opened.fh, 0, 100, &mut out, Wait::Bounded).unwrap();
    assert_eq!(out, b"still here");
    volume.release(opened.fh);
    assert!(matches!(
        volume.lookup(ROOT_INO, OsStr::new("x")),
        Err(VolumeError::NotFound)
    ));
    assert_eq!(std::fs::read_dir(bench.temp.path()).unwrap().count(), 0);
}

#[test]
fn times_set_by_hand_outlive_the_write_back() {
    let bench = Bench::new();
    let volume = bench.start();
    let (attr, opened) = volume
        .create(ROOT_INO, OsStr::new("t"), 0o644, RW, &CALLER)
        .unwrap();
    volume.write(opened.fh, 0, b"x", Wait::Bounded).unwrap();
    let time = Timestamp {
        secs: 1_000_000,
        nanos: 7,
    };
    let set = SetAttr {
        mtime: Some(SetTime::At(time)),
        ..SetAttr::default()
    };
    volume.setattr(attr.ino, Some(opened.fh), &set, &CALLER).unwrap();
    volume.flush(opened.fh).unwrap();
    volume.release(opened.fh);
    assert_eq!(volume.getattr(attr.ino, None).unwrap().mtime, time);
}

#[test]
fn a_damaged_newest_slot_gives_the_version_before_it_and_damage_to_both_an_error() {
    let bench = Bench::new();
    let volume = bench.start();
    let ino = write_all(&volume, "d", b"first");
    let opened = volume.open(ino, RW, Wait::Bounded).unwrap();
    volume.write(opened.fh, 0, b"FIRST", Wait::Bounded).unwrap();
    volume.flush(opened.fh).unwrap();
    volume.release(opened.fh);
    assert_eq!(read_all(&volume, ino), b"FIRST");
    let host = bench.temp.path().join("d.f");
    let mut bytes = std::fs::read(&host).unwrap();
    bytes[4096 + 110] ^= 1;
    std::fs::write(&host, &bytes).unwrap();
    assert_eq!(read_all(&volume, ino), b"first");
    bytes[100] ^= 1;
    std::fs::write(&host, &bytes).unwrap();
    let error = volume.open(ino, RW, Wait::Bounded).unwrap_err();
    assert!(
        matches!(&error, VolumeError::Damaged { path, .. } if path == "d"),
        "{error}"
    );
}

#[test]
fn writing_is_refused_where_nothing_may_be_changed() {
    let bench = Bench::new();
    write_all(&bench.start(), "r", b"data");
    let tiered = Tiered::new(
        Arc::clone(&bench.store),
        Arc::new(NoFetch),
        Duration::from_secs(1),
    );
    let options = VolumeOptions {
        read_only: Some("a reader's device"),
        ..VolumeOptions::default()
    };
    let folder = Folder::open(bench.temp.path()).unwrap();
    let volume = Volume::start(folder, Arc::clone(&bench.keys), tiered, options).unwrap();
    let ino = volume.lookup(ROOT_INO, OsStr::new("r")).unwrap().ino;
    assert_eq!(read_all(&volume, ino), b"data");
    assert!(matches!(
        volume.open(ino, RW, Wait::Bounded),
        Err(VolumeError::ReadOnly(_))
    ));
    assert!(matches!(
        volume.unlink(ROOT_INO, OsStr::new("r")),
        Err(VolumeError::ReadOnly(_))
    ));
}
