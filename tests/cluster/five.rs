//! A group of five computers, two of which are lost for good.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use super::replicas::{disk_bytes, drop_caches, in_zone, lacking, sync};
use super::{ticket, try_join};
use crate::harness::namespaces::Switch;
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{noise, wait_for};

/// Length of a file, in bytes.
const FILE_LEN: usize = 4 << 20;

/// A group of so many computers, the first its admin.
pub(super) fn group(switch: &Switch, computers: usize) -> Vec<TestVolume> {
    let mut first = TestVolume::empty().on(switch.path(0));
    first.init();
    first.configure(&in_zone(ON_CABLE, "0"));
    first.mount();
    let mut all = vec![first];
    for n in 1..computers {
        let mut volume = TestVolume::empty().on(switch.path(n));
        let ran = try_join(&volume, &ticket(&all[0], ["--role", "writer"]));
        assert!(ran.succeeded(), "{ran}");
        let joined = fs::read_to_string(volume.state().join("dfs.toml")).unwrap();
        let quick = "[network]\nlisten = [\"0.0.0.0:8080\"]\nmdns = false\nupnp = false\ntimeout = 5\n";
        volume.configure(&in_zone(&joined.replace("[network]\n", quick), &n.to_string()));
        volume.mount();
        all.push(volume);
    }
    wait_for("all see each other", Duration::from_secs(60), || {
        let connected = |volume: &TestVolume| volume.status()["network"]["connected"].as_u64();
        all.iter()
            .all(|volume| connected(volume) == Some(computers as u64 - 1))
    });
    all
}

fn write_files(volume: &TestVolume, files: u64) {
    for n in 0..files {
        fs::write(volume.at(&format!("{n}")), noise(n, FILE_LEN)).unwrap();
    }
}

/// Reads everything, past the kernel's cache.
fn all_is_right(volume: &TestVolume, files: u64, patience: Duration) {
    drop_caches();
    let is_right = |n: u64, path: &Path| {
        let mut found = Vec::new();
        let read = fs::File::open(path).and_then(|mut file| file.read_to_end(&mut found));
        // Whatever else may go wrong for a while: never other bytes.
        assert!(
            read.is_err() || found == noise(n, FILE_LEN),
            "{n} has other bytes"
        );
        read.is_ok()
    };
    for n in 0..files {
        let path = volume.at(&format!("{n}"));
        wait_for("a file can be read", patience, || is_right(n, &path));
    }
}

fn two_are_lost(files: u64, patience: Duration) {
    let switch = Switch::new(5);
    let mut all = group(&switch, 5);
    // What the others name from now on is not what A writes.
    all[1..].iter().for_each(sync);
    write_files(&all[0], files);
    let wait = patience.as_secs().to_string();
    all[0].dfs(["sync", "--wait", &wait]).arg(all[0].folder()).ok();
    let (lack, bytes) = lacking(&all[0]);
    assert!(lack == 0 && bytes >= files * FILE_LEN as u64, "{lack} of {bytes}");
    // Two of the others stop for good, in the middle of a night. Nothing is missing: A has it all.
    for _ in 0..2 {
        let mut lost = all.pop().unwrap();
        let id = lost.status()["device"].as_str().unwrap().to_owned();
        lost.kill();
        drop(lost);
        all[0].dfs(["remove", &id]).arg(all[0].folder()).ok();
    }
    all_is_right(&all[0], files, Duration::from_secs(30));
    wait_for("everything has two replicas again", patience, || {
        all[0].status()["replication"]["possible"] == 2 && lacking(&all[0]) == (0, bytes)
    });
    let before = disk_bytes(all[0].state());
    let said = all[0].dfs(["free"]).arg(all[0].mountpoint()).ok();
    let after = disk_bytes(all[0].state());
    assert!(after * 10 <= before, "{before} {after} {said}");
    all_is_right(&all[0], files, Duration::from_secs(30));
    // And with only the others' copies left, one more goes.
    all[0].dfs(["free"]).arg(all[0].mountpoint()).ok();
    let mut lost = all.pop().unwrap();
    lost.kill();
    drop(lost);
    all_is_right(&all[0], files, Duration::from_secs(60));
}

#[test]
fn of_five_computers_two_are_lost_and_then_a_third() {
    two_are_lost(16, Duration::from_secs(120));
}

#[test]
#[ignore = "two gigabytes: only with --long"]
fn of_five_computers_two_are_lost_with_two_gigabytes() {
    two_are_lost(512, Duration::from_secs(1800));
}
