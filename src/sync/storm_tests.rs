//! Several devices over real folders in one process, with a network that is cut now and then: random changes, restarts, and one tree in the end, in
//! which everything is that nobody took away who had seen it.

mod held;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Engine, Heads, Journal};
use crate::base::tree::ROOT;
use crate::base::types::{Caller, FileKind, OpenMode, RenameMode, SetAttr, SetTime, Timestamp};
use crate::base::{BlockId, DeviceId, StoreId};
use crate::folder::Folder;
use crate::folder::keep::Keep;
use crate::folder::state::StateDir;
use crate::keys::{RootSecret, VolumeKeys};
use crate::object::map;
use crate::object::record::Record;
use crate::store::{BlockStore, CheckedBlock, Fetch, FetchDone, FetchError, MemoryStore, Tiered, Want};
use crate::volume::{ROOT_INO, Volume, VolumeError, VolumeOptions, Wait};

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
    cut: Vec<AtomicBool>,
    published: Mutex<Vec<Option<BlockId>>>,
    /// What each last heard of each.
    heard: Mutex<Vec<Vec<Option<BlockId>>>>,
    /// Heads told, of all devices.
    told: Mutex<u64>,
}

impl Net {
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

pub(super) struct Device {
    n: usize,
    temp: tempfile::TempDir,
    net: Arc<Net>,
    /// What runs; `None` between two lives.
    pub(super) life: Option<(Arc<Volume>, Engine)>,
}

impl Device {
    pub(super) fn new(n: usize, net: &Arc<Net>) -> Self {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("folder")).unwrap();
        StateDir::create(&temp.path().join("state")).unwrap();
        let mut device = Self {
            n,
            temp,
            net: Arc::clone(net),
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
        let engine = Engine::new(&volume, &state, journal, Arc::new(face()), device(self.n), true)
            .keeping(Keep::Rules(Vec::new()));
        self.life = Some((volume, engine));
    }

    pub(super) fn volume(&self) -> &Arc<Volume> {
        &self.life.as_ref().unwrap().0
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.life.as_ref().unwrap().1
    }

    /// Everything below the top, directories before what is in them.
    pub(super) fn listed(&self) -> Vec<(Vec<OsString>, u64, FileKind)> {
        let mut all = Vec::new();
        let mut todo = vec![(Vec::new(), ROOT_INO)];
        while let Some((path, ino)) = todo.pop() {
            let fh = self.volume().opendir(ino).unwrap();
            let mut names = Vec::new();
            self.volume()
                .readdir(fh, 0, &mut |entry| {
                    if entry.name != "." && entry.name != ".." {
                        names.push((entry.name.clone(), entry.kind));
                    }
                    true
                })
                .unwrap();
            self.volume().releasedir(fh);
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
    fn read(&self, ino: u64) -> Option<Vec<u8>> {
        let reading = OpenMode {
            read: true,
            ..OpenMode::default()
        };
        let opened = self.volume().open(ino, reading, Wait::Bounded).unwrap();
        let all = self.read_handle(opened.fh);
        self.volume().release(opened.fh);
        all
    }

    fn read_handle(&self, fh: u64) -> Option<Vec<u8>> {
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

    fn write(&self, ino: u64, data: &[u8]) {
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
                _ => {
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

pub(super) struct Storm {
    seed: u64,
    dice: Dice,
    pub(super) devices: Vec<Device>,
    net: Arc<Net>,
    written: u64,
    /// Contents that were written, and those that somebody took away who had them before him.
    kept: BTreeSet<Vec<u8>>,
    held: Vec<held::Held>,
    /// Whether files are held open. The past is not thinned then.
    holds: bool,
}

impl Storm {
    pub(super) fn new(seed: u64, count: usize) -> Self {
        let net = Arc::new(Net {
            stores: (0..count)
                .map(|n| Arc::new(MemoryStore::new(StoreId([n as u8; 16]))))
                .collect(),
            cut: (0..count).map(|_| AtomicBool::new(false)).collect(),
            published: Mutex::new(vec![None; count]),
            heard: Mutex::new(vec![vec![None; count]; count]),
            told: Mutex::new(0),
        });
        Self {
            seed,
            dice: Dice::new(seed),
            devices: (0..count).map(|n| Device::new(n, &net)).collect(),
            net,
            written: 0,
            kept: BTreeSet::new(),
            held: Vec::new(),
            holds: false,
        }
    }

    fn content(&mut self, device: usize) -> Vec<u8> {
        self.written += 1;
        let mut content = format!("{device}:{} ", self.written).into_bytes();
        let len = [0, 10, 4000, 70_000][self.dice.roll(4)];
        let mut noise = blake3::Hasher::new().update(&content).finalize_xof();
        let begin = content.len();
        content.resize(begin + len, 0);
        noise.fill(&mut content[begin..]);
        content
    }

    /// False when it cannot be seen what would be taken away.
    fn took_away(&mut self, device: usize, ino: u64) -> bool {
        let content = self.devices[device].read(ino);
        if let Some(content) = &content {
            self.kept.remove(content);
        }
        content.is_some()
    }

    /// One change of one device.
    fn change(&mut self) {
        let device = self.dice.roll(self.devices.len());
        let listed = self.devices[device].listed();
        let mut dirs: Vec<u64> = vec![ROOT_INO];
        dirs.extend(
            listed
                .iter()
                .filter(|(_, _, kind)| *kind == FileKind::Directory)
                .map(|(_, ino, _)| *ino),
        );
        let files: Vec<_> = listed
            .iter()
            .filter(|(_, _, kind)| *kind == FileKind::Regular)
            .cloned()
            .collect();
        let parent = dirs[self.dice.roll(dirs.len())];
        let name = OsString::from(["a", "b", "c", "d", "e.txt"][self.dice.roll(5)]);
        let volume = Arc::clone(self.devices[device].volume());
        let there = volume.lookup(parent, &name).ok();
        let any = (!listed.is_empty()).then(|| listed[self.dice.roll(listed.len())].clone());
        let file = (!files.is_empty()).then(|| files[self.dice.roll(files.len())].clone());
        let of = |path: &[OsString]| {
            let mut ino = ROOT_INO;
            for part in &path[..path.len() - 1] {
                ino = volume.lookup(ino, part).unwrap().ino;
            }
            (ino, path[path.len() - 1].clone())
        };
        match (self.dice.roll(20), file, any) {
            (0..=5, _, _) if there.is_none() => {
                let content = self.content(device);
                let (_, opened) = volume.create(parent, &name, 0o644, RW, &CALLER).unwrap();
                volume.write(opened.fh, 0, &content, Wait::Bounded).unwrap();
                volume.flush(opened.fh).unwrap();
                volume.release(opened.fh);
                self.kept.insert(content);
            }
            (6..=9, Some((_, ino, _)), _) => {
                let content = self.content(device);
                if self.took_away(device, ino) {
                    self.devices[device].write(ino, &content);
                    self.kept.insert(content);
                }
            }
            (10 | 11, _, _) if there.is_none() => drop(volume.mkdir(parent, &name, 0o755, &CALLER).unwrap()),
            (12 | 13, _, Some((path, ino, kind))) => {
                let (from, old) = of(&path);
                // What it would replace is taken away by whoever saw it.
                let other = there.filter(|attr| {
                    attr.kind == FileKind::Regular && kind != FileKind::Directory && attr.ino != ino
                });
                let taken = other.map(|attr| self.devices[device].read(attr.ino));
                if taken == Some(None) {
                    return;
                }
                match volume.rename(from, &old, parent, &name, RenameMode::Replace, Wait::Bounded) {
                    Ok(()) => drop(taken.flatten().map(|content| self.kept.remove(&content))),
                    Err(
                        VolumeError::Host { .. }
                        | VolumeError::NotDirectory
                        | VolumeError::IsDirectory
                        | VolumeError::Invalid(_),
                    ) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            (14, Some((path, ino, _)), _) => {
                // Of a file with several names, too: another device may remove the others at the same time.
                if !self.took_away(device, ino) {
                    return;
                }
                let (from, name) = of(&path);
                volume.unlink(from, &name).unwrap();
            }
            (15, Some((_, ino, _)), _) if there.is_none() => drop(volume.link(ino, parent, &name).unwrap()),
            (16, _, Some((_, ino, kind))) if kind != FileKind::Symlink => {
                let set = SetAttr {
                    mode: Some([0o600, 0o640, 0o755, 0o700][self.dice.roll(4)]),
                    ..SetAttr::default()
                };
                volume.setattr(ino, None, &set, &CALLER).unwrap();
            }
            (17, _, _) if there.is_none() => {
                volume.symlink(parent, &name, OsStr::new("to"), &CALLER).unwrap();
            }
            (18, _, Some((_, ino, kind))) if kind != FileKind::Symlink => {
                let value = [b'0' + self.dice.roll(10) as u8];
                volume.setxattr(ino, OsStr::new("user.a"), &value, 0).unwrap();
            }
            (19, Some((_, ino, _)), _) => {
                let at = Timestamp {
                    secs: self.dice.roll(1 << 30) as i64,
                    nanos: 5,
                };
                let set = SetAttr {
                    mtime: Some(SetTime::At(at)),
                    ..SetAttr::default()
                };
                volume.setattr(ino, None, &set, &CALLER).unwrap();
            }
            _ => {}
        }
    }

    fn blow(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.dice.roll(12) {
                0 | 1 => {
                    let device = self.dice.roll(self.devices.len());
                    let round = self.devices[device].engine().round(true, true);
                    round.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
                    self.devices[device].check_head(self.seed);
                }
                2 => {
                    let device = self.dice.roll(self.devices.len());
                    let cut = self.dice.roll(2) == 0;
                    self.net.cut[device].store(cut, Ordering::SeqCst);
                }
                3 if self.dice.roll(6) == 0 => {
                    let device = self.dice.roll(self.devices.len());
                    // Dies without a word.
                    self.forget_held(device);
                    self.devices[device].life = None;
                    self.devices[device].start();
                }
                4 | 5 if self.holds => self.hold(),
                4 if self.dice.roll(4) == 0 => {
                    // What is not needed any more goes, the past as well.
                    let device = &self.devices[self.dice.roll(self.devices.len())];
                    if device.engine().thin(u64::MAX).is_ok() {
                        device.volume().collect().unwrap();
                    }
                }
                _ => self.change(),
            }
        }
    }

    /// The sky clears: all come to one tree and fall silent, whatever is open.
    fn settle(&mut self) {
        self.flush_held();
        self.net
            .cut
            .iter()
            .for_each(|cut| cut.store(false, Ordering::SeqCst));
        let seed = self.seed;
        for round in 0.. {
            let told = *self.net.told.lock();
            let mut waits = false;
            for device in &self.devices {
                device.engine().forget_lost();
                let round = device.engine().round(true, true);
                let round = round.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                assert_eq!(round.failed, None, "seed {seed}");
                device.check_head(seed);
                waits |= round.waiting;
            }
            if told == *self.net.told.lock() && !waits {
                break;
            }
            assert!(
                round < 20,
                "seed {seed}: no end of heads, or something waits for ever: {waits}"
            );
        }
        let heads: BTreeSet<Option<BlockId>> = self
            .devices
            .iter()
            .map(|device| device.engine().journal().head)
            .collect();
        assert_eq!(heads.len(), 1, "seed {seed}: {heads:?}");
        let trees: Vec<_> = self.devices.iter().map(Device::tree).collect();
        for tree in &trees[1..] {
            let differ = |path: &&Vec<OsString>| trees[0].get(*path) != tree.get(*path);
            let all: BTreeSet<&Vec<OsString>> = trees[0].keys().chain(tree.keys()).collect();
            let differ: Vec<_> = all
                .into_iter()
                .filter(differ)
                .map(|path| (path, trees[0].get(path), tree.get(path)))
                .collect();
            assert!(differ.is_empty(), "seed {seed}: {differ:#?}");
        }
        let first = &self.devices[0];
        let contents: BTreeSet<Vec<u8>> = first
            .listed()
            .into_iter()
            .filter(|(_, _, kind)| *kind == FileKind::Regular)
            .filter_map(|(_, ino, _)| first.read(ino))
            .collect();
        for content in &self.kept {
            let told = String::from_utf8_lossy(&content[..content.len().min(8)]);
            assert!(contents.contains(content), "seed {seed}: {told:?} is lost");
        }
    }
}

pub(super) fn storms(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("DFS_STORM").unwrap_or(0);
    first..first + number("DFS_STORMS").unwrap_or(usual)
}

#[test]
fn random_changes_on_three_devices_end_in_one_tree() {
    for seed in storms(30) {
        let mut storm = Storm::new(seed, 3);
        for _ in 0..3 {
            storm.blow(40);
            storm.settle();
        }
    }
}
