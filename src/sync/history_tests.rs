//! Versions, differences and restores on one device over a real folder.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::history::{At, Change, Counts, Kind};
use super::{Engine, Heads, Journal, SyncError};
use crate::base::types::{Caller, DirEntry, FileKind, OpenMode, RenameMode, SetAttr};
use crate::base::{BlockId, DeviceId, StoreId};
use crate::folder::Folder;
use crate::folder::keep::Keep;
use crate::folder::state::StateDir;
use crate::keys::{RootSecret, VolumeKeys};
use crate::object::map;
use crate::object::record::Record;
use crate::store::{BlockStore, MemoryStore, NoFetch, Tiered};
use crate::volume::{ROOT_INO, Volume, VolumeOptions, Wait};

const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0,
};
const RW: OpenMode = OpenMode {
    read: true,
    write: true,
    append: false,
    truncate: false,
    sync: false,
    note_access: false,
};

/// The head of another device, which says nothing else.
#[derive(Default)]
struct Other(Mutex<Option<BlockId>>);

impl Heads for Other {
    fn known(&self) -> Vec<(DeviceId, BlockId)> {
        let head = *self.0.lock();
        head.map(|head| (DeviceId([2; 32]), head)).into_iter().collect()
    }

    fn publish(&self, _: BlockId) {}
}

pub(super) struct One {
    _temp: tempfile::TempDir,
    pub(super) store: Arc<MemoryStore>,
    other: Arc<Other>,
    volume: Arc<Volume>,
    pub(super) engine: Engine,
}

/// What is at a path, as a user sees it.
pub(super) type Shown = BTreeMap<PathBuf, String>;

impl One {
    pub(super) fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("folder")).unwrap();
        let state = StateDir::create(&temp.path().join("state")).unwrap();
        let keys = VolumeKeys::from_root(&RootSecret::from_bytes([7; 32]), 1).unwrap();
        let store = Arc::new(MemoryStore::new(StoreId([1; 16])));
        let blocks = Arc::clone(&store) as Arc<dyn BlockStore>;
        let volume = Volume::start(
            Folder::open(&temp.path().join("folder")).unwrap(),
            Arc::new(keys),
            Tiered::new(blocks, Arc::new(NoFetch), Duration::from_secs(2)),
            VolumeOptions {
                sync_interval: Duration::from_secs(3600),
                retained: Some(Vec::new()),
                ..VolumeOptions::default()
            },
        )
        .unwrap();
        let journal = Journal::default();
        let (other, device) = (Arc::<Other>::default(), DeviceId([1; 32]));
        let heads = Arc::clone(&other) as Arc<dyn Heads>;
        let engine =
            Engine::new(&volume, &state, journal, heads, device, true).keeping(Keep::Rules(Vec::new()));
        Self {
            _temp: temp,
            store,
            other,
            volume,
            engine,
        }
    }

    fn find(&self, path: &str) -> Option<u64> {
        let mut ino = ROOT_INO;
        for name in Path::new(path) {
            ino = self.volume.lookup(ino, name).ok()?.ino;
        }
        Some(ino)
    }

    fn at<'p>(&self, path: &'p str) -> (u64, &'p OsStr) {
        let path = Path::new(path);
        let parent = path.parent().unwrap().to_str().unwrap();
        (self.find(parent).unwrap(), path.file_name().unwrap())
    }

    pub(super) fn mkdir(&self, path: &str) {
        let (dir, name) = self.at(path);
        self.volume.mkdir(dir, name, 0o755, &CALLER).unwrap();
    }

    pub(super) fn write(&self, path: &str, data: &[u8]) {
        let (dir, name) = self.at(path);
        let fh = match self.volume.lookup(dir, name) {
            Ok(attr) => {
                let mode = OpenMode { truncate: true, ..RW };
                self.volume.open(attr.ino, mode, Wait::Bounded).unwrap().fh
            }
            Err(_) => self.volume.create(dir, name, 0o644, RW, &CALLER).unwrap().1.fh,
        };
        self.volume.write(fh, 0, data, Wait::Bounded).unwrap();
        self.volume.flush(fh).unwrap();
        self.volume.release(fh);
    }

    pub(super) fn rename(&self, from: &str, to: &str) {
        let ((a, from), (b, to)) = (self.at(from), self.at(to));
        self.volume
            .rename(a, from, b, to, RenameMode::Replace, Wait::Bounded)
            .unwrap();
    }

    pub(super) fn link(&self, from: &str, to: &str) {
        let (dir, name) = self.at(to);
        self.volume.link(self.find(from).unwrap(), dir, name).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        let ino = self.find(path).unwrap();
        let (dir, name) = self.at(path);
        if self.volume.getattr(ino, None).unwrap().kind != FileKind::Directory {
            self.volume.unlink(dir, name).unwrap();
            return;
        }
        for (below, _) in self.names(ino) {
            self.remove(&format!("{path}/{}", below.to_str().unwrap()));
        }
        self.volume.rmdir(dir, name).unwrap();
    }

    fn names(&self, ino: u64) -> Vec<(OsString, FileKind)> {
        let fh = self.volume.opendir(ino).unwrap();
        let mut names = Vec::new();
        let mut each = |entry: DirEntry| {
            if entry.name != "." && entry.name != ".." {
                names.push((entry.name.clone(), entry.kind));
            }
            true
        };
        self.volume.readdir(fh, 0, &mut each).unwrap();
        self.volume.releasedir(fh);
        names
    }

    fn read(&self, path: &str) -> Vec<u8> {
        let mode = OpenMode { write: false, ..RW };
        let ino = self.find(path).unwrap();
        let fh = self.volume.open(ino, mode, Wait::Bounded).unwrap().fh;
        let (mut all, mut part) = (Vec::new(), Vec::new());
        while all.is_empty() || !part.is_empty() {
            self.volume
                .read(fh, all.len() as u64, 1 << 20, &mut part, Wait::Bounded)
                .unwrap();
            if part.is_empty() {
                break;
            }
            all.extend_from_slice(&part);
        }
        self.volume.release(fh);
        all
    }

    pub(super) fn shown(&self) -> Shown {
        let mut shown = Shown::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(path) = todo.pop() {
            for (name, kind) in self.names(self.find(path.to_str().unwrap()).unwrap()) {
                let below = path.join(name);
                let text = below.to_str().unwrap();
                let attr = self.volume.getattr(self.find(text).unwrap(), None).unwrap();
                let what = match kind {
                    FileKind::Directory => format!("directory {:o}", attr.mode),
                    FileKind::Symlink => format!("link {:?}", self.volume.readlink(attr.ino).unwrap()),
                    _ => {
                        let hash = blake3::hash(&self.read(text));
                        format!("file {:o} {:?} {hash}", attr.mode, attr.mtime)
                    }
                };
                if kind == FileKind::Directory {
                    todo.push(below.clone());
                }
                shown.insert(below, what);
            }
        }
        shown
    }

    pub(super) fn commit(&self) -> BlockId {
        self.engine.commit().unwrap();
        self.engine.journal().head.unwrap()
    }

    /// What is committed is what the folder has, and it is said once.
    pub(super) fn check(&self) {
        self.volume.note_everything();
        let head = self.engine.journal().head;
        if self.engine.commit().unwrap() {
            let now = self.engine.journal().head;
            let (was, is) = (self.records(head), self.records(now));
            let differ: Vec<_> = was.symmetric_difference(&is).collect();
            panic!("the folder is not what was committed: {differ:#?}");
        }
    }

    fn records(&self, at: Option<BlockId>) -> BTreeSet<String> {
        let root = self.engine.snapshot(&at.unwrap()).unwrap().root;
        let mut records = BTreeSet::new();
        map::scan(&self.volume.tree_nodes(), &root, b"", |key, value| {
            records.insert(format!("{:?}", Record::decode_entry(key, value).unwrap()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        records
    }

    fn restore(&self, path: &str, at: BlockId) -> usize {
        let restored = self
            .engine
            .restore(Path::new(path), Some(&At::Id(at.to_string())))
            .unwrap();
        self.check();
        restored.changes
    }

    /// The versions of a path, newest first.
    fn log(&self, path: &str) -> Vec<(Change, String, Option<String>, Option<u64>)> {
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let log = self.engine.log(Path::new(path), 100).unwrap();
        log.iter()
            .map(|one| {
                let other = one.other.as_ref().map(text);
                (one.change, text(&one.path), other, one.size)
            })
            .collect()
    }

    fn differences(&self, from: BlockId, to: BlockId, path: &str) -> Vec<(Change, String, Option<String>)> {
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let all = self
            .engine
            .differences(Some(&from), &to, Path::new(path))
            .unwrap();
        all.iter()
            .map(|one| (one.change, text(&one.path), one.from.as_ref().map(text)))
            .collect()
    }
}

#[test]
fn the_versions_of_a_file_are_told_and_come_back() {
    let one = One::new();
    one.write("a", b"one");
    let first = one.commit();
    let long = vec![7; 200_000];
    one.write("a", &long);
    let second = one.commit();
    one.write("b", b"unrelated");
    one.commit();
    one.rename("a", "c");
    let moved = one.commit();
    one.remove("c");
    one.commit();

    let of = |change, path: &str, other: Option<&str>, size| {
        (change, path.to_owned(), other.map(str::to_owned), size)
    };
    let expected = [
        of(Change::Deleted, "c", None, None),
        of(Change::Moved, "c", Some("a"), Some(200_000)),
        of(Change::Changed, "a", None, Some(200_000)),
        of(Change::There, "a", None, Some(3)),
    ];
    assert_eq!(one.log("c"), expected);
    assert_eq!(one.log("a")[0], of(Change::Deleted, "a", Some("c"), None));
    assert_eq!(one.engine.log(Path::new("c"), 2).unwrap().len(), 2);
    assert!(one.log("never").is_empty());

    // A deleted file comes back in its newest version without being asked for one.
    let back = one.engine.restore(Path::new("c"), None).unwrap();
    assert_eq!(back.from.id, moved);
    assert!(one.read("c") == long);
    one.check();
    assert!(one.restore("a", first) > 0);
    assert_eq!(one.read("a"), b"one");
    assert!(one.read("c") == long, "what is elsewhere stays");
    one.restore("a", second);
    assert!(one.read("a") == long);
    // And what the restore replaced is not lost either.
    let before = one.engine.journal().kept.iter().rev().nth(1).unwrap().id;
    one.restore("a", before);
    assert_eq!(one.read("a"), b"one");
    assert_eq!(one.restore("a", before), 0, "it is like that already");
}

#[test]
fn a_directory_comes_back_with_what_was_in_it_and_nothing_else() {
    let one = One::new();
    one.mkdir("d");
    one.mkdir("d/in");
    one.write("d/in/x", b"x of then");
    one.write("d/y", b"y");
    one.write("outside", b"outside");
    one.link("d/y", "d/in/y2");
    let then = one.shown();
    let first = one.commit();
    one.write("d/in/x", b"x of now");
    one.write("d/new", b"new");
    one.remove("d/y");
    one.write("outside", b"changed");
    let second = one.commit();
    let now = one.shown();

    let all = one.engine.log(Path::new("d"), 9).unwrap();
    let counts = Counts {
        created: 1,
        changed: 1,
        deleted: 1,
        moved: 0,
    };
    assert_eq!(all[0].counts, Some(counts), "{all:?}");
    assert_eq!(
        (all[0].kind, all[1].change),
        (Some(Kind::Directory), Change::There)
    );

    one.restore("d", first);
    let mut expected = then.clone();
    expected.insert("outside".into(), now[Path::new("outside")].clone());
    assert_eq!(one.shown(), expected);
    assert_eq!(
        one.volume.getattr(one.find("d/y").unwrap(), None).unwrap().nlink,
        2
    );
    // The volume as a whole, forth and back.
    one.restore("", second);
    assert_eq!(one.shown(), now);
    one.remove("d");
    one.commit();
    one.restore("", first);
    assert_eq!(one.shown(), then);
}

#[test]
fn what_is_elsewhere_now_stays_there() {
    let one = One::new();
    one.mkdir("d");
    one.mkdir("d/sub");
    one.write("d/sub/x", b"x");
    one.write("d/y", b"y");
    one.link("d/y", "z");
    let then = one.commit();
    one.mkdir("e");
    one.rename("d/sub", "e/sub");
    one.write("z", b"z of now");
    one.remove("d");
    one.commit();

    one.restore("d/sub/x", then);
    assert_eq!(one.read("d/sub/x"), b"x");
    assert_eq!(one.find("d/y"), None, "only what was named comes back");
    one.restore("d", then);
    assert_eq!(one.read("d/y"), b"y");
    assert_eq!(one.read("z"), b"z of now");
    assert_eq!(one.read("e/sub/x"), b"x");
    one.write("e/sub/x", b"another");
    one.commit();
    assert_eq!(one.read("d/sub/x"), b"x", "two files, not one of two names");
    // A link to what did not change since is a link again.
    one.remove("d");
    one.commit();
    one.write("d2", b"");
    one.restore("d", one.engine.journal().kept.iter().rev().nth(1).unwrap().id);
    assert_eq!(one.read("d/y"), b"y");
}

#[test]
fn a_file_takes_the_place_of_a_directory_and_the_other_way_round() {
    let one = One::new();
    one.write("p", b"a file");
    let file = one.commit();
    one.remove("p");
    one.mkdir("p");
    one.write("p/in", b"in");
    let directory = one.commit();
    one.restore("p", file);
    assert_eq!(one.read("p"), b"a file");
    let refused = one
        .engine
        .restore(Path::new("p/in"), Some(&At::Id(directory.to_string())));
    assert!(matches!(refused, Err(SyncError::NotADirectory(at)) if at == Path::new("p")));
    one.restore("p", directory);
    assert_eq!(one.read("p/in"), b"in");
    let difference = one.differences(file, directory, "");
    let of = |change, path: &str| (change, path.to_owned(), None);
    assert_eq!(
        difference,
        [of(Change::Changed, "p"), of(Change::Created, "p/in")]
    );
}

#[test]
fn differences_are_told_by_path() {
    let one = One::new();
    one.mkdir("d");
    one.write("d/a", b"a");
    one.write("d/b", b"b");
    one.write("mode", b"mode");
    let first = one.commit();
    one.rename("d", "e");
    one.write("e/a", b"other");
    one.rename("e/b", "b");
    one.write("new", b"new");
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    one.volume
        .setattr(one.find("mode").unwrap(), None, &set, &CALLER)
        .unwrap();
    let second = one.commit();
    let of = |change, path: &str, from: Option<&str>| (change, path.to_owned(), from.map(str::to_owned));
    let all = [
        of(Change::Moved, "b", Some("d/b")),
        of(Change::Moved, "e", Some("d")),
        of(Change::Changed, "e/a", None),
        of(Change::Attributes, "mode", None),
        of(Change::Created, "new", None),
    ];
    assert_eq!(one.differences(first, second, ""), all);
    assert_eq!(one.differences(first, second, "e"), all[1..3]);
    assert_eq!(one.differences(first, second, "new"), all[4..]);
    let back = one.differences(second, first, "new");
    assert_eq!(back, [of(Change::Deleted, "new", None)]);
    assert!(one.differences(second, second, "").is_empty());
}

#[test]
fn what_cannot_be_restored_is_told_and_nothing_changes() {
    let one = One::new();
    let no_snapshot = one.engine.restore(Path::new("a"), Some(&At::Time(u64::MAX)));
    assert!(matches!(no_snapshot, Err(SyncError::NoSnapshot)));
    one.write("a", b"a");
    let first = one.commit();
    let at = |text: &str| one.engine.kept_at(&At::Id(text.into()));
    assert!(matches!(at("zz"), Err(SyncError::NotOne(_, 0))));
    assert_eq!(at(&first.short().to_uppercase()).unwrap().id, first);
    assert!(matches!(
        one.engine.kept_at(&At::Time(5)),
        Err(SyncError::Older(_))
    ));
    let restore = |path: &str, at: Option<At>| one.engine.restore(Path::new(path), at.as_ref());
    let now = || Some(At::Time(u64::MAX));
    assert!(matches!(restore("a", None), Err(SyncError::StillThere(_))));
    assert!(matches!(restore("b", None), Err(SyncError::NeverThere(_))));
    assert!(matches!(restore("b", now()), Err(SyncError::NotThereThen(_))));
    assert!(matches!(restore("a/../b", now()), Err(SyncError::NoPath(_))));
    assert_eq!(one.engine.journal().head, Some(first));
}

#[test]
fn an_open_file_is_in_the_way_and_the_rest_comes_back() {
    let one = One::new();
    one.mkdir("d");
    for name in ["d/a", "d/b"] {
        one.write(name, b"then");
    }
    let then = one.commit();
    for name in ["d/a", "d/b"] {
        one.write(name, b"now");
    }
    one.commit();
    let fh = one
        .volume
        .open(one.find("d/a").unwrap(), RW, Wait::Bounded)
        .unwrap()
        .fh;
    let refused = one
        .engine
        .restore(Path::new("d"), Some(&At::Id(then.to_string())));
    assert!(
        matches!(refused, Err(SyncError::InTheWay { left: 1, done: 1 })),
        "{refused:?}"
    );
    assert_eq!(one.read("d/b"), b"then");
    one.volume.write(fh, 0, b"more", Wait::Bounded).unwrap();
    one.volume.release(fh);
    assert_eq!(one.read("d/a"), b"more");
    one.commit();
    one.check();
    one.restore("d", then);
    assert_eq!(one.read("d/a"), b"then");
}

#[test]
fn what_is_not_kept_any_more_goes_but_for_who_came_from_whom() {
    let one = One::new();
    let noise = |n: u8| {
        let mut bytes = vec![0; 300_000];
        blake3::Hasher::new().update(&[n]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let heads: Vec<BlockId> = (0..5)
        .map(|n| {
            one.write("a", &noise(n));
            one.commit()
        })
        .collect();
    let bytes = || one.store.stats().unwrap().bytes;
    let thinned = || {
        one.engine.round(true, true).unwrap();
        one.engine.thin(u64::MAX).unwrap();
        one.volume.collect().unwrap();
        one.engine
            .journal()
            .kept
            .iter()
            .map(|kept| kept.id)
            .collect::<Vec<_>>()
    };
    // Another device is at the second: with it begins the merge of what it does next.
    *one.other.0.lock() = Some(heads[1]);
    let before = bytes();
    assert_eq!(thinned(), [heads[1], heads[4]]);
    assert!(
        before - bytes() > 800_000,
        "{} of {before} went",
        before - bytes()
    );
    one.restore("a", heads[1]);
    assert!(one.read("a") == noise(1));
    // It came to where this one is.
    *one.other.0.lock() = one.engine.journal().head;
    assert_eq!(thinned().len(), 1);
    assert!(bytes() < 400_000);
    let gone = one
        .engine
        .restore(Path::new("a"), Some(&At::Id(heads[4].to_string())));
    assert!(matches!(gone, Err(SyncError::NotOne(_, 0))));
    for pair in heads.windows(2) {
        assert_eq!(one.volume.snapshot(&pair[1]).unwrap().parents, [pair[0]]);
    }
}
