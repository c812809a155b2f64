//! The same calls, chosen at random, on the host's filesystem (ext4 on a usual machine) and in a mount, side by side: every answer and
//! error, and in the end every file, must be the same. A difference is made as small as it can be, then printed with its seed.
//!
//! Not compared: times of pipes, where holes begin (filesystems round differently), times that no call set, order within a directory, the exchange of a
//! file and a directory (`docs/semantics.md`).

mod calls;
mod side;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::calls::{Call, call};
use self::side::{SET_BEFORE, Side};
use crate::harness::volume::TestVolume;
use crate::harness::{long, tree};

/// Everything below a root, without the times that nobody set.
fn settled(root: &Path) -> BTreeMap<PathBuf, tree::Entry> {
    let mut found = tree::snapshot(root);
    for entry in found.values_mut() {
        let is_pipe = !entry.kind.contains("true");
        entry.mtime = entry
            .mtime
            .filter(|mtime| !is_pipe && *mtime < i128::from(SET_BEFORE) * 1_000_000_000);
    }
    found
}

/// Runs the calls on both sides of a fresh pair of directories. Returns the two.
fn replay(calls: &[Call], plain: PathBuf, ours: PathBuf) -> Result<(PathBuf, PathBuf), TestCaseError> {
    let (mut plain, mut ours) = (Side::new(plain), Side::new(ours));
    for (step, call) in calls.iter().enumerate() {
        let (expected, found) = (plain.run(call), ours.run(call));
        if expected != found {
            let said = format!("step {step}, {call:?}: {expected:?} on the host, {found:?} in the mount");
            return Err(TestCaseError::fail(said));
        }
    }
    let same = |plain: &Side, ours: &Side, when: &str| {
        let (expected, found) = (settled(&plain.root), settled(&ours.root));
        let differs = expected
            .iter()
            .find(|(path, entry)| found.get(*path) != Some(entry));
        match differs {
            Some((path, entry)) => Err(TestCaseError::fail(format!(
                "{when}, {path:?}: {entry:?} on the host, {:?} in the mount",
                found.get(path)
            ))),
            None if found.len() != expected.len() => Err(TestCaseError::fail(format!(
                "{when}: {:?} on the host, {:?} in the mount",
                expected.keys(),
                found.keys()
            ))),
            None => Ok(()),
        }
    };
    same(&plain, &ours, "with files open")?;
    plain.open.clear();
    ours.open.clear();
    same(&plain, &ours, "with all closed")?;
    Ok((plain.root, ours.root))
}

#[test]
fn random_calls_have_the_same_answers_as_on_the_host() {
    let mut volume = TestVolume::mounted();
    let plain = volume.place().join("plain");
    fs::create_dir(&plain).unwrap();
    let (seeds, calls) = if long() { (400, 600) } else { (24, 250) };
    // Another first seed, for a search: the ones after it follow.
    let first: u64 = std::env::var("DFS_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(1);
    let mut pairs = Vec::new();
    for seed in first..first + seeds {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &{
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            bytes
        });
        let config = Config {
            cases: 1,
            max_shrink_iters: 6_000,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let tries = std::cell::Cell::new(0);
        let done = std::cell::RefCell::new(None);
        let outcome = runner.run(&proptest::collection::vec(call(), calls), |calls| {
            tries.set(tries.get() + 1);
            let name = format!("{seed}-{}", tries.get());
            done.replace(Some(replay(&calls, plain.join(&name), volume.at(&name))?));
            Ok(())
        });
        if let Err(TestError::Fail(reason, calls)) = &outcome {
            let calls: String = calls.iter().map(|call| format!("  {call:?}\n")).collect();
            panic!("seed {seed}: {reason}, after\n{calls}");
        }
        outcome.unwrap();
        pairs.extend(done.take());
        if seed % 8 == 0 {
            volume.kill();
            volume.mount();
            for (plain, ours) in pairs.drain(..) {
                tree::assert_same(&settled(&plain), &settled(&ours));
            }
        }
    }
}
