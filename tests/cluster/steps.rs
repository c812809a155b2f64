//! A computer dies at one of its calls while it commits what changed there, merges, and makes what another one did: the next start goes on.
//!
//! `tests/run` takes some of the calls, other ones every time; `--long` takes many. `DFS_TEST_SEED` repeats the choice.

use std::fs;

use super::trees::{come_together, fall_silent, writers};
use crate::harness::command::Cmd;
use crate::harness::namespaces::Switch;
use crate::harness::tracer::{Call, Fault, Tracer};
use crate::harness::tree::Tree;
use crate::harness::volume::TestVolume;
use crate::harness::{Dice, SOON, noise, seed, wait_for};

#[test]
fn a_death_at_a_call_of_commit_merge_and_apply_loses_nothing() {
    die_at(4);
}

#[test]
#[ignore = "takes half an hour: only with --long"]
fn a_death_at_many_calls_of_commit_merge_and_apply_loses_nothing() {
    die_at(150);
}

fn changes_something(call: &Call) -> bool {
    !matches!(
        call.name,
        "pread64" | "getdents64" | "newfstatat" | "openat" | "openat2"
    )
}

fn die_at(count: u64) {
    let mut dice = Dice::new(seed());
    let switch = Switch::new(2);
    let mut all = writers(&switch, 2);
    // How many calls there are when nothing goes wrong.
    let tracer = attached(&all[1]);
    part(&all, 0, &switch, || tracer.arm(None, changes_something));
    meet(&all, 0);
    let calls = tracer.seen();
    eprintln!("{calls} calls");
    assert!(calls > 100, "{:?}", tracer.calls());
    all[1].remount();
    let step = (calls / count).max(1);
    let mut hits = 0;
    for (round, point) in (dice.below(step)..calls).step_by(step as usize).enumerate() {
        let fault = [Fault::KillBefore, Fault::KillAfter][dice.below(2) as usize];
        let round = round as u64 + 1;
        let tracer = attached(&all[1]);
        part(&all, round, &switch, || {
            tracer.arm(Some((point, fault)), changes_something)
        });
        let mut patience = 200;
        wait_for("it dies, or has nothing more to do", SOON, || {
            patience -= 1;
            tracer.hit().is_some() || patience == 0
        });
        eprintln!("{fault:?} at call {point} of {calls}: {:?}", tracer.hit());
        if tracer.disarm().is_some() {
            hits += 1;
            all[1].wait_for_death();
            Cmd::new("umount")
                .args(["-q", "-l"])
                .arg(all[1].mountpoint())
                .run();
            all[1].mount();
        } else {
            all[1].remount();
        }
        meet(&all, round);
    }
    assert!(hits > 0, "no call was hit");
}

fn attached(volume: &TestVolume) -> Tracer {
    Tracer::attach(volume.pid().unwrap(), &[volume.folder(), volume.state()])
}

/// What both have before they part.
fn prepare(a: &TestVolume, round: u64) {
    let at = |name: &str| a.at(&format!("{round}/{name}"));
    fs::create_dir_all(at("dir/inner")).unwrap();
    fs::create_dir(at("gone")).unwrap();
    for name in [
        "dir/file",
        "dir/inner/deep",
        "both",
        "moved",
        "deleted",
        "gone/file",
        "linked",
    ] {
        fs::write(at(name), format!("{round} {name}")).unwrap();
    }
}

/// Both change what they have without hearing of each other, and then they do.
fn part(all: &[TestVolume], round: u64, switch: &Switch, arm: impl FnOnce()) {
    let [a, b] = all else { unreachable!() };
    prepare(a, round);
    come_together(&[a, b]);
    fall_silent(&[a, b]);
    switch.plug(1, false);
    let at = |name: &str| a.at(&format!("{round}/{name}"));
    fs::write(at("both"), format!("A {round}")).unwrap();
    fs::write(at("dir/file"), noise(round, 150_000)).unwrap();
    fs::rename(at("dir"), at("renamed")).unwrap();
    fs::rename(at("moved"), at("renamed/moved")).unwrap();
    fs::remove_file(at("deleted")).unwrap();
    fs::remove_dir_all(at("gone")).unwrap();
    fs::hard_link(at("linked"), at("other name")).unwrap();
    for n in 0..5 {
        fs::write(at(&format!("new-{n}")), format!("A {n}")).unwrap();
    }
    let at = |name: &str| b.at(&format!("{round}/{name}"));
    fs::write(at("both"), format!("B {round}")).unwrap();
    fs::write(at("dir/inner/deep"), b"B wrote here").unwrap();
    fs::write(at("dir/inner/new"), noise(round + 1000, 100_000)).unwrap();
    fs::write(at("gone/edited"), b"B's").unwrap();
    fs::create_dir(at("dir/made")).unwrap();
    arm();
    switch.plug(1, true);
}

/// Both come to what they did together.
fn meet(all: &[TestVolume], round: u64) {
    let [a, b] = all else { unreachable!() };
    let tree = come_together(&[a, b]);
    let there = |name: &str| tree.contains_key(std::path::Path::new(&format!("{round}/{name}")));
    if !there("renamed/inner/new") || !there("new-4") {
        // One of them had not heard of the other yet.
        wait_for("both did something", SOON, || {
            let tree = come_together(&[a, b]);
            tree.contains_key(std::path::Path::new(&format!("{round}/renamed/inner/new")))
        });
    }
    let tree = fall_silent(&[a, b]);
    judge(a, round, &tree);
}

fn judge(a: &TestVolume, round: u64, tree: &Tree) {
    let prefix = format!("{round}/");
    let names: Vec<String> = tree
        .keys()
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let names: Vec<&str> = names
        .iter()
        .filter_map(|name| name.strip_prefix(&prefix))
        .collect();
    let read = |name: &str| fs::read(a.at(&format!("{prefix}{name}"))).unwrap();
    let (conflicts, names): (Vec<&str>, Vec<&str>) =
        names.into_iter().partition(|name| name.contains(".conflict-"));
    let expected = [
        "both",
        "gone",
        "gone/edited",
        "linked",
        "new-0",
        "new-1",
        "new-2",
        "new-3",
        "new-4",
        "other name",
        "renamed",
        "renamed/file",
        "renamed/inner",
        "renamed/inner/deep",
        "renamed/inner/new",
        "renamed/made",
        "renamed/moved",
    ];
    assert_eq!(names, expected, "and {conflicts:?}");
    let mut contents: Vec<Vec<u8>> = conflicts.iter().chain(&["both"]).map(|name| read(name)).collect();
    contents.sort();
    let both = ["A", "B"].map(|who| format!("{who} {round}").into_bytes());
    assert_eq!(contents, both, "{conflicts:?}");
    assert!(read("renamed/file") == noise(round, 150_000));
    assert!(read("renamed/inner/new") == noise(round + 1000, 100_000));
    for (name, content) in [
        ("renamed/inner/deep", "B wrote here".to_owned()),
        ("gone/edited", "B's".to_owned()),
        ("renamed/moved", format!("{round} moved")),
        ("other name", format!("{round} linked")),
        ("new-4", "A 4".to_owned()),
    ] {
        assert_eq!(read(name), content.as_bytes(), "{name}");
    }
}
