//! Random operations on the volume and on a plain map of names to bytes, with the daemon dying in between.
//!
//! A few sequences in a quick run, thousands with `tests/run --long`, any number with `PROPTEST_CASES`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;

use proptest::prelude::*;

use super::pieces::Source;
use super::tests::{Bench, CALLER, RW, noise, read_all};
use super::{Allocate, ROOT_INO, Synced, Volume, Wait};
use crate::base::types::{FileKind, RenameMode, SetAttr};

#[derive(Debug, Clone)]
enum Op {
    Write {
        file: u8,
        offset: u32,
        len: u32,
        seed: u64,
    },
    Truncate {
        file: u8,
        size: u32,
    },
    Punch {
        file: u8,
        offset: u32,
        len: u32,
    },
    Rename {
        from: u8,
        to: u8,
    },
    Copy {
        from: u8,
        offset: u32,
        to: u8,
        to_offset: u32,
        len: u32,
    },
    Unlink {
        file: u8,
    },
    Flush {
        file: u8,
    },
    /// Short writes all over the file, and an fsync after every third.
    Scatter {
        file: u8,
        count: u8,
        seed: u64,
    },
    Fold {
        file: u8,
    },
    Fsync {
        file: u8,
    },
    /// The daemon dies when every file is closed: all is still there.
    Restart,
    /// The daemon dies with files open: each is what it was when it was flushed, or any whole version since.
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let file = 0u8..4;
    let offset = prop_oneof![0u32..8_000, 0u32..3_000_000];
    let len = prop_oneof![1u32..5_000, 1u32..1_000_000];
    prop_oneof![
        6 => (file.clone(), offset.clone(), len.clone(), any::<u64>())
            .prop_map(|(file, offset, len, seed)| Op::Write { file, offset, len, seed }),
        2 => (file.clone(), offset.clone()).prop_map(|(file, size)| Op::Truncate { file, size }),
        1 => (file.clone(), offset.clone(), len.clone())
            .prop_map(|(file, offset, len)| Op::Punch { file, offset, len }),
        2 => (file.clone(), offset.clone(), 0u8..4, offset, prop_oneof![len, Just(u32::MAX)])
            .prop_map(|(from, offset, to, to_offset, len)| Op::Copy { from, offset, to, to_offset, len }),
        1 => (file.clone(), 0u8..4).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => file.clone().prop_map(|file| Op::Unlink { file }),
        3 => file.clone().prop_map(|file| Op::Flush { file }),
        3 => (file.clone(), 1u8..30, any::<u64>())
            .prop_map(|(file, count, seed)| Op::Scatter { file, count, seed }),
        1 => file.clone().prop_map(|file| Op::Fold { file }),
        1 => file.prop_map(|file| Op::Fsync { file }),
        1 => Just(Op::Restart),
        1 => Just(Op::Crash),
    ]
}

/// A file of the model.
#[derive(Debug, Clone, Default)]
struct Modelled {
    now: Vec<u8>,
    /// Every content since the last flush but the present one: what a crash may leave.
    since: Vec<Vec<u8>>,
}

impl Modelled {
    fn change(&mut self, with: impl FnOnce(&mut Vec<u8>)) {
        self.since.push(self.now.clone());
        with(&mut self.now);
    }
}

type Model = BTreeMap<u8, Modelled>;

fn cases() -> u32 {
    let long = std::env::var("NEXTEST_PROFILE").is_ok_and(|profile| profile == "long");
    let wanted = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok());
    wanted.unwrap_or(if long { 3_000 } else { 24 })
}

/// The mount's side of the comparison: every file is kept open for writing, as a program would.
struct Replay {
    bench: Bench,
    volume: Arc<Volume>,
    open: BTreeMap<u8, u64>,
}

impl Replay {
    fn handle(&mut self, file: u8) -> u64 {
        if let Some(fh) = self.open.get(&file) {
            return *fh;
        }
        let name = file.to_string();
        let fh = match self.volume.lookup(ROOT_INO, OsStr::new(&name)) {
            Ok(attr) => self.volume.open(attr.ino, RW, Wait::Bounded).unwrap().fh,
            Err(_) => {
                self.volume
                    .create(ROOT_INO, OsStr::new(&name), 0o600, RW, &CALLER)
                    .unwrap()
                    .1
                    .fh
            }
        };
        self.open.insert(file, fh);
        fh
    }

    fn close(&mut self, file: u8, model: &mut Model) {
        if let Some(fh) = self.open.remove(&file) {
            self.volume.flush(fh).unwrap();
            self.volume.release(fh);
            model.entry(file).or_default().since.clear();
        }
    }

    fn close_all(&mut self, model: &mut Model) {
        for file in 0..4 {
            self.close(file, model);
        }
    }

    /// Leaves everything as a dead daemon leaves it, and starts another.
    fn die(&mut self) {
        self.open.clear();
        self.volume.background.stop();
        self.volume = self.bench.start();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_volume_is_a_map_of_names_to_bytes(ops in proptest::collection::vec(op(), 1..40)) {
        let bench = Bench::new();
        let volume = bench.start();
        let mut replay = Replay { bench, volume, open: BTreeMap::new() };
        let mut model = Model::new();
        for op in ops {
            match op {
                Op::Write { file, offset, len, seed } => {
                    let data = noise(len as usize, seed);
                    let fh = replay.handle(file);
                    replay.volume.write(fh, u64::from(offset), &data, Wait::Bounded).unwrap();
                    let end = offset as usize + data.len();
                    model.entry(file).or_default().change(|content| {
                        content.resize(content.len().max(end), 0);
                        content[offset as usize..end].copy_from_slice(&data);
                    });
                }
                Op::Truncate { file, size } => {
                    replay.close(file, &mut model);
                    let Ok(attr) = replay.volume.lookup(ROOT_INO, OsStr::new(&file.to_string())) else { continue };
                    let set = SetAttr { size: Some(u64::from(size)), ..SetAttr::default() };
                    replay.volume.setattr(attr.ino, None, &set, &CALLER).unwrap();
                    model.entry(file).or_default().change(|content| content.resize(size as usize, 0));
                }
                Op::Punch { file, offset, len } => {
                    let fh = replay.handle(file);
                    replay.volume.fallocate(fh, u64::from(offset), u64::from(len), Allocate::PunchHole, true).unwrap();
                    model.entry(file).or_default().change(|content| {
                        let end = (offset as usize + len as usize).min(content.len());
                        if (offset as usize) < end { content[offset as usize..end].fill(0); }
                    });
                }
                Op::Copy { from, offset, to, to_offset, len } => {
                    let (source, target) = (replay.handle(from), replay.handle(to));
                    let copied = replay.volume.copy_file_range(
                        source, u64::from(offset), target, u64::from(to_offset), u64::from(len),
                    );
                    let content = &model.entry(from).or_default().now;
                    let end = content.len().min(offset as usize + len as usize);
                    let part = content.get(offset as usize..end).unwrap_or_default().to_vec();
                    let target = model.entry(to).or_default();
                    let to_offset = to_offset as usize;
                    let overlaps = from == to
                        && to_offset < offset as usize + part.len()
                        && (offset as usize) < to_offset + part.len();
                    if overlaps && !part.is_empty() {
                        prop_assert!(copied.is_err());
                    } else {
                        prop_assert_eq!(copied.unwrap(), part.len() as u64);
                        if !part.is_empty() {
                            target.change(|target| {
                                target.resize(target.len().max(to_offset + part.len()), 0);
                                target[to_offset..to_offset + part.len()].copy_from_slice(&part);
                            });
                        }
                    }
                }
                Op::Rename { from, to } => {
                    replay.close(from, &mut model);
                    replay.close(to, &mut model);
                    let (a, b) = (from.to_string(), to.to_string());
                    let moved = replay.volume.rename(ROOT_INO, OsStr::new(&a), ROOT_INO, OsStr::new(&b), RenameMode::Replace, Wait::Bounded);
                    prop_assert_eq!(moved.is_ok(), model.contains_key(&from));
                    if from != to && let Some(content) = model.remove(&from) { model.insert(to, content); }
                }
                Op::Unlink { file } => {
                    replay.close(file, &mut model);
                    let gone = replay.volume.unlink(ROOT_INO, OsStr::new(&file.to_string()));
                    prop_assert_eq!(gone.is_ok(), model.remove(&file).is_some());
                }
                Op::Flush { file } => {
                    if let Some(fh) = replay.open.get(&file) {
                        replay.volume.flush(*fh).unwrap();
                        model.entry(file).or_default().since.clear();
                    }
                }
                Op::Fsync { file } => {
                    if let Some(fh) = replay.open.get(&file) {
                        replay.volume.fsync(*fh, Synced::All).unwrap();
                        model.entry(file).or_default().since.clear();
                    }
                }
                Op::Scatter { file, count, seed } => {
                    let fh = replay.handle(file);
                    let content = model.entry(file).or_default();
                    for n in 0..u64::from(count) {
                        let random = seed.wrapping_add(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                        let size = content.now.len();
                        // The last ones append.
                        let offset = if n > 20 { size } else { random as usize % (size + 1) };
                        let data = noise(1 + random as usize % 5_000, random);
                        replay.volume.write(fh, offset as u64, &data, Wait::Bounded).unwrap();
                        let end = offset + data.len();
                        content.change(|content| {
                            content.resize(size.max(end), 0);
                            content[offset..end].copy_from_slice(&data);
                        });
                        if n % 3 == 2 {
                            replay.volume.fsync(fh, Synced::All).unwrap();
                            content.since.clear();
                        }
                    }
                }
                Op::Fold { file } => {
                    let fh = replay.handle(file);
                    model.entry(file).or_default();
                    let open = replay.volume.handles.file(fh).unwrap();
                    replay.volume.fold(&open, &|| false).unwrap();
                    let state = open.state.lock();
                    let mut loose = state.pieces.iter().filter(|(_, piece)| piece.is_loose());
                    // Only before a hole and at the end is a chunk short.
                    let only_short = loose.all(|(at, piece)| {
                        let next = state.pieces.touching(at + piece.len..u64::MAX).next();
                        next.is_none_or(|(_, piece)| matches!(piece.source, Source::Hole))
                    });
                    prop_assert!(only_short);
                }
                Op::Restart => {
                    replay.close_all(&mut model);
                    replay.die();
                }
                Op::Crash => {
                    replay.die();
                    for (file, content) in &mut model {
                        let attr = replay.volume.lookup(ROOT_INO, OsStr::new(&file.to_string())).unwrap();
                        let found = read_all(&replay.volume, attr.ino);
                        let was = found == content.now || content.since.contains(&found);
                        prop_assert!(was, "file {} is no version of its own: {} bytes", file, found.len());
                        *content = Modelled { now: found, since: Vec::new() };
                    }
                }
            }
        }
        replay.close_all(&mut model);
        for (round, volume) in [Arc::clone(&replay.volume), replay.bench.start()].iter().enumerate() {
            let fh = volume.opendir(ROOT_INO).unwrap();
            let mut names = Vec::new();
            volume.readdir(fh, 0, &mut |entry| {
                if entry.kind == FileKind::Regular { names.push(entry.name.into_string().unwrap()); }
                true
            }).unwrap();
            names.sort();
            prop_assert_eq!(&names, &model.keys().map(|file| file.to_string()).collect::<Vec<_>>());
            for (file, content) in &model {
                let attr = volume.lookup(ROOT_INO, OsStr::new(&file.to_string())).unwrap();
                prop_assert_eq!(attr.size, content.now.len() as u64);
                prop_assert!(read_all(volume, attr.ino) == content.now, "file {} in round {}", file, round);
            }
        }
    }
}
