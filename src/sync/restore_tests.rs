//! Restores at random on one device: what comes back is what was seen then, and the rest is as it was.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::SyncError;
use super::history::At;
use super::history_tests::{One, Shown};
use crate::base::BlockId;

/// Small numbers that follow from a seed.
struct Dice(blake3::OutputReader);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) as usize % below.max(1)
    }
}

/// What is to be seen after a restore of a path: all else as it is, the path as it was, the directories above it.
fn restored(now: &Shown, then: &Shown, path: &Path) -> Shown {
    let mut shown = now.clone();
    shown.retain(|at, _| !at.starts_with(path));
    let back = then.iter().filter(|(at, _)| at.starts_with(path));
    shown.extend(back.map(|(at, what)| (at.clone(), what.clone())));
    for above in path.ancestors().skip(1).filter(|above| *above != Path::new("")) {
        shown
            .entry(above.to_owned())
            .or_insert_with(|| then[above].clone());
    }
    shown
}

#[test]
fn random_restores_bring_back_what_was_seen() {
    for seed in 0..12u64 {
        let mut dice = Dice(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof());
        let one = One::new();
        let mut past: Vec<(BlockId, Shown)> = Vec::new();
        for step in 0..150 {
            let shown = one.shown();
            let dirs: Vec<&Path> = shown
                .iter()
                .filter(|(_, what)| what.starts_with("directory"))
                .map(|(path, _)| path.as_path())
                .chain([Path::new("")])
                .collect();
            let any: Vec<&PathBuf> = shown.keys().collect();
            let path = dirs[dice.roll(dirs.len())].join(["a", "b", "c"][dice.roll(3)]);
            let free = !shown.contains_key(&path);
            let to = path.to_str().unwrap();
            let some = any.get(dice.roll(any.len())).map(|path| path.to_str().unwrap());
            let is_file = |path: &str| shown[Path::new(path)].starts_with("file");
            match (dice.roll(12), some) {
                (0..=2, _) if free => one.write(to, format!("{step}").repeat(dice.roll(4000)).as_bytes()),
                (3, Some(from)) if is_file(from) => one.write(from, format!("again {step}").as_bytes()),
                (4, _) if free => one.mkdir(to),
                (5 | 6, Some(from)) if free && !path.starts_with(from) => one.rename(from, to),
                (7, Some(from)) if dice.roll(2) == 0 => one.remove(from),
                (8, Some(from)) if free && is_file(from) => one.link(from, to),
                (9, _) if !shown.is_empty() || !past.is_empty() => {
                    let head = one.commit();
                    if past.last().is_none_or(|(last, _)| *last != head) {
                        past.push((head, shown));
                    }
                }
                (10 | 11, _) if !past.is_empty() => {
                    let (at, then) = &past[dice.roll(past.len())];
                    let paths: Vec<&PathBuf> = then.keys().collect();
                    let path = match (dice.roll(4), paths.is_empty()) {
                        (0, _) | (_, true) => PathBuf::new(),
                        _ => paths[dice.roll(paths.len())].clone(),
                    };
                    let outcome = one.engine.restore(&path, Some(&At::Id(at.to_string())));
                    match outcome {
                        Ok(_) => assert_eq!(
                            one.shown(),
                            restored(&shown, then, &path),
                            "seed {seed}, step {step}"
                        ),
                        Err(SyncError::NotADirectory(above)) => {
                            assert!(
                                !shown[&above].starts_with("directory"),
                                "seed {seed}, step {step}"
                            );
                        }
                        Err(error) => panic!("seed {seed}, step {step}: {error}"),
                    }
                    one.check();
                }
                _ => {}
            }
        }
        let heads: BTreeSet<BlockId> = past.iter().map(|(head, _)| *head).collect();
        assert!(heads.len() > 3, "seed {seed}: hardly anything was committed");
    }
}
