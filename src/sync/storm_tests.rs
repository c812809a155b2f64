//! Several devices over real folders in one process, with a network that is cut now and then: random changes, restarts, and one tree in the end, in
//! which everything is that nobody took away who had seen it.

mod held;
mod year;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::devices_tests::{CALLER, Device, Dice, Net, RW, Settings};
use crate::base::BlockId;
use crate::base::types::{FileKind, RenameMode, SetAttr, SetTime, Timestamp};
use crate::volume::{ROOT_INO, VolumeError, Wait};

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
        Self::with(seed, count, &Settings::default())
    }

    fn with(seed: u64, count: usize, settings: &Settings) -> Self {
        let net = Net::new(count);
        Self {
            seed,
            dice: Dice::new(seed),
            devices: (0..count)
                .map(|n| Device::with(n, &net, settings.clone()))
                .collect(),
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
        self.change_on(device);
    }

    fn change_on(&mut self, device: usize) {
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
    rage(storms(70));
}

#[test]
#[ignore = "thousands of rounds: only with --long"]
fn random_changes_on_three_devices_end_in_one_tree_very_often() {
    rage(storms(1500));
}

fn rage(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut storm = Storm::new(seed, 3);
        for _ in 0..3 {
            storm.blow(40);
            storm.settle();
        }
    }
}
