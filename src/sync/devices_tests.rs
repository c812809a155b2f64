//! Devices over real folders in one process, with a network between them that can be cut. Used by the tests of this room.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Engine, Heads, Journal};
use crate::base::clock::{Clock, SystemClock};
use crate::base::tree::ROOT;
use crate::base::types::{Caller, FileKind, OpenMode};
use crate::base::{BlockId, DeviceId, StoreId};
use crate::folder::Folder;
use crate::folder::keep::Keep;
use crate::folder::state::StateDir;
use crate::keys::{RootSecret, VolumeKeys};
use crate::object::map;
use crate::object::record::Record;
use crate::store::{BlockStore, CheckedBlock, Fetch, FetchDone, FetchError, MemoryStore, Tiered, Want};
use crate::volume::{ROOT_INO, Volume, VolumeOptions, Wait};

pub(super) const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 0,
    umask: 0,
};
pub(super) const RW: OpenMode = OpenMode {
    read: true,
    write: true,
    append: false,
    truncate: false,
    sync: false,
    note_access: false,
};

/// The devices as they see each other.
pub(super) struct Net {
    stores: Vec<Arc<MemoryStore>>,
    pub(super) cut: Vec<AtomicBool>,
    published: Mutex<Vec<Option<BlockId>>>,
    /// What each last heard of each.
    heard: Mutex<Vec<Vec<Option<BlockId>>>>,
    /// Heads told, of all devices.
    pub(super) told: Mutex<u64>,
}

impl Net {
    pub(super) fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            stores: (0..count)
                .map(|n| Arc::new(MemoryStore::new(StoreId([n as u8; 16]))))
                .collect(),
            cut: (0..count).map(|_| AtomicBool::new(false)).collect(),
            published: Mutex::new(vec![None; count]),
            heard: Mutex::new(vec![vec![None; count]; count]),
            told: Mutex::new(0),
        })
    }

    fn connects(&self, a: usize, b: usize) -> bool {
        a == b || !(self.cut[a].load(Ordering::SeqCst) || self.cut[b].load(Ordering::SeqCst))
    }
}

struct Face(Arc<Net>, usize);

impl Fetch for Face {
    fn start(&self, want: Want, _deadline: Instant, done: FetchDone) {
        let others = (0..self.0.stores.len()).filter(|other| self.0.connects(self.1, *other));
        let found = others
            .filter_map(|other| self.0.stores[other].get(&want.id).ok().flatten())
            .next();
        let checked = found.and_then(|bytes| CheckedBlock::new(want.id, bytes));
        done(checked.ok_or(FetchError::Alone { id: want.id }));
    }
}

fn device(n: usize) -> DeviceId {
    DeviceId([n as u8 + 1; 32])
}

impl Heads for Face {
    fn known(&self) -> Vec<(DeviceId, BlockId)> {
        let published = self.0.published.lock().clone();
        let mut heard = self.0.heard.lock();
        let own = &mut heard[self.1];
        for (other, head) in published.into_iter().enumerate() {
            if self.0.connects(self.1, other) {
                own[other] = head;
            }
        }
        own.iter()
            .enumerate()
            .filter_map(|(n, head)| Some((device(n), (*head)?)))
            .collect()
    }

    fn publish(&self, snapshot: BlockId) {
        self.0.published.lock()[self.1] = Some(snapshot);
        *self.0.told.lock() += 1;
    }
}

/// What may be said of a device.
#[derive(Clone)]
pub(super) struct Settings {
    /// Whether what changes on it is committed.
    pub(super) may_write: bool,
    pub(super) keep: Keep,
    pub(super) clock: Arc<dyn Clock>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            may_write: true,
            keep: Keep::Rules(Vec::new()),
            clock: Arc::new(SystemClock),
        }
    }
}

pub(super) struct Device {
    n: usize,
    temp: tempfile::TempDir,
    net: Arc<Net>,
    settings: Settings,
    /// What runs; `None` between two lives.
    pub(super) life: Option<(Arc<Volume>, Engine)>,
}

impl Device {
    pub(super) fn new(n: usize, net: &Arc<Net>) -> Self {
        Self::with(n, net, Settings::default())
    }

    pub(super) fn reader(n: usize, net: &Arc<Net>) -> Self {
        let settings = Settings {
            may_write: false,
            ..Settings::default()
        };
        Self::with(n, net, settings)
    }

    pub(super) fn with(n: usize, net: &Arc<Net>, settings: Settings) -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("folder")).unwrap();
        StateDir::create(&temp.path().join("state")).unwrap();
        let mut device = Self {
            n,
            temp,
            net: Arc::clone(net),
            settings,
            life: None,
        };
        device.start();
        device
    }

    pub(super) fn start(&mut self) {
        let face = || Face(Arc::clone(&self.net), self.n);
        let store = Arc::clone(&self.net.stores[self.n]) as Arc<dyn BlockStore>;
        let state = StateDir::open_or_create(&self.temp.path().join("state")).unwrap();
        let journal = Journal::load(&state).unwrap();
        let keys = VolumeKeys::from_root(&RootSecret::from_bytes([7; 32]), 1).unwrap();
        let options = VolumeOptions {
            timeout: Duration::from_secs(2),
            sync_interval: Duration::from_secs(3600),
            unclean: true,
            remote: true,
            retained: Some(journal.moments()),
            ..VolumeOptions::default()
        };
        let volume = Volume::start(
            Folder::open(&self.temp.path().join("folder")).unwrap(),
            Arc::new(keys),
            Tiered::new(store, Arc::new(face()), Duration::from_secs(2)),
            options,
        )
        .unwrap();
        volume.remove_leftovers().unwrap();
        let Settings {
            may_write,
            keep,
            clock,
        } = self.settings.clone();
        let heads = Arc::new(face());
        let engine = Engine::new(&volume, &state, journal, heads, device(self.n), may_write)
            .keeping(keep)
            .by_clock(clock);
        self.life = Some((volume, engine));
    }

    pub(super) fn folder(&self) -> PathBuf {
        self.temp.path().join("folder")
    }

    /// It does not know any more where it was.
    pub(super) fn forget_journal(&self) {
        let state = StateDir::open_or_create(&self.temp.path().join("state")).unwrap();
        Journal::default().save(&state).unwrap();
    }

    pub(super) fn volume(&self) -> &Arc<Volume> {
        &self.life.as_ref().unwrap().0
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.life.as_ref().unwrap().1
    }

    /// The names in a directory.
    pub(super) fn listed_in(&self, dir: u64) -> Vec<(OsString, FileKind)> {
        let (fh, mut names) = (self.volume().opendir(dir).unwrap(), Vec::new());
        self.volume()
            .readdir(fh, 0, &mut |entry| {
                if entry.name != "." && entry.name != ".." {
                    names.push((entry.name.clone(), entry.kind));
                }
                true
            })
            .unwrap();
        self.volume().releasedir(fh);
        names
    }

    /// Everything below the top, directories before what is in them.
    pub(super) fn listed(&self) -> Vec<(Vec<OsString>, u64, FileKind)> {
        let mut all = Vec::new();
        let mut todo = vec![(Vec::new(), ROOT_INO)];
        while let Some((path, ino)) = todo.pop() {
            let mut names = self.listed_in(ino);
            names.sort();
            for (name, kind) in names {
                let attr = self.volume().lookup(ino, &name).unwrap();
                let below: Vec<OsString> = path.iter().cloned().chain([name]).collect();
                if kind == FileKind::Directory {
                    todo.push((below.clone(), attr.ino));
                }
                all.push((below, attr.ino, kind));
            }
        }
        all
    }

    /// `None`: only others have it, and nobody is there.
    pub(super) fn read(&self, ino: u64) -> Option<Vec<u8>> {
        let reading = OpenMode {
            read: true,
            ..OpenMode::default()
        };
        let opened = self.volume().open(ino, reading, Wait::Bounded).unwrap();
        let all = self.read_handle(opened.fh);
        self.volume().release(opened.fh);
        all
    }

    pub(super) fn read_handle(&self, fh: u64) -> Option<Vec<u8>> {
        let (mut all, mut part) = (Vec::new(), Vec::new());
        loop {
            let read = self
                .volume()
                .read(fh, all.len() as u64, 1 << 20, &mut part, Wait::Bounded);
            read.ok()?;
            if part.is_empty() {
                return Some(all);
            }
            all.extend_from_slice(&part);
        }
    }

    pub(super) fn write(&self, ino: u64, data: &[u8]) {
        let volume = self.volume();
        let opened = volume
            .open(ino, OpenMode { truncate: true, ..RW }, Wait::Bounded)
            .unwrap();
        volume.write(opened.fh, 0, data, Wait::Bounded).unwrap();
        volume.flush(opened.fh).unwrap();
        volume.release(opened.fh);
    }

    /// The tree of the head says everything once, and by name as by id.
    pub(super) fn check_head(&self, seed: u64) {
        let Some(head) = self.engine().journal().head else {
            return;
        };
        let root = self.engine().snapshot(&head).unwrap().root;
        let (mut nodes, mut named, mut own) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let (mut within, mut dirs) = (BTreeSet::new(), BTreeSet::from([ROOT]));
        map::scan(&self.volume().tree_nodes(), &root, b"", |key, value| {
            let (at, name, record) = Record::decode_entry(key, value).unwrap();
            let place = |name: &[u8]| (at, name.to_vec());
            if !name.is_empty() {
                within.insert(at);
            }
            match record {
                Record::Node { id, .. } => {
                    let other = nodes.insert(id, place(name));
                    assert!(
                        other.is_none(),
                        "seed {seed}: {id:?} at {:?} and {other:?}",
                        place(name)
                    );
                }
                Record::Directory { id } | Record::Link { id } => drop(named.insert((id, place(name)))),
                Record::Own { parent, name, .. } => {
                    dirs.insert(at);
                    own.insert((at, (parent, name.to_vec())));
                }
                Record::Shared { places, .. } => {
                    let other = nodes.insert(at, (at, Vec::new()));
                    assert!(other.is_none(), "seed {seed}: {at:?} at {places:?} and {other:?}");
                    own.extend(
                        places
                            .into_iter()
                            .map(|place| (at, (place.parent, place.name.to_vec()))),
                    );
                }
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        let differs: Vec<_> = named.symmetric_difference(&own).collect();
        assert!(
            differs.is_empty(),
            "seed {seed}, device {}: {differs:?}; by id {:?}",
            self.n,
            own.iter()
                .filter(|(id, _)| differs.iter().any(|(other, _)| id == other))
                .collect::<Vec<_>>()
        );
        let orphans: Vec<_> = within.difference(&dirs).collect();
        assert!(
            orphans.is_empty(),
            "seed {seed}, device {}: something is in {orphans:?}",
            self.n
        );
    }

    /// The tree as a user sees it.
    pub(super) fn tree(&self) -> BTreeMap<Vec<OsString>, String> {
        let mut tree = BTreeMap::new();
        let mut links: BTreeMap<u64, usize> = BTreeMap::new();
        for (path, ino, kind) in self.listed() {
            let attr = self.volume().getattr(ino, None).unwrap();
            let xattrs = self
                .volume()
                .getxattr(ino, OsStr::new("user.a"))
                .unwrap_or_default();
            let text = match kind {
                FileKind::Directory => format!("directory {:o} {xattrs:?}", attr.mode),
                FileKind::Symlink => {
                    format!("link {:?} {:?}", self.volume().readlink(ino).unwrap(), attr.mtime)
                }
                FileKind::Regular => {
                    // Which names are of one file.
                    let first = match attr.nlink {
                        1 => 0,
                        _ => {
                            let count = links.len() + 1;
                            *links.entry(ino).or_insert(count)
                        }
                    };
                    let hash = blake3::hash(&self.read(ino).unwrap());
                    format!(
                        "file {first} {:o} {:?} {} {hash} {xattrs:?}",
                        attr.mode, attr.mtime, attr.nlink
                    )
                }
                kind => format!("{kind:?} {:o} {:?} {}", attr.mode, attr.mtime, attr.rdev),
            };
            tree.insert(path, text);
        }
        tree
    }
}

/// Small numbers that follow from a seed.
pub(super) struct Dice(blake3::OutputReader);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    pub(super) fn roll(&mut self, below: usize) -> usize {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % below.max(1)
    }
}
