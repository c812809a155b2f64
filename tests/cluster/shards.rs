//! Erasure coding between seven computers: grouped, freed here, read back with two of them gone, repaired.

use std::fs;

use super::replicas::{PATIENCE, disk_bytes, drop_caches, in_zone, lacking, member, sync};
use super::{carry, first};
use crate::harness::namespaces::{Cable, End};
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{noise, wait_for};

/// A, whose blocks are in groups of four and two, and six others in zones of their own.
fn seven() -> (Cable, TestVolume, Vec<TestVolume>) {
    let (cable, mut a) = first();
    a.unmount();
    a.configure(&format!("{}redundancy = \"4+2\"\n", in_zone(ON_CABLE, "a")));
    a.mount();
    let others = (0..6).map(|n| {
        let mut other = TestVolume::empty().on(cable.path(End::B));
        member(&mut other, &a, &format!("zone {n}"), 8082 + n);
        other
    });
    let others = others.collect();
    (cable, a, others)
}

/// Groups, those of them of which all six shards are elsewhere, and the bytes of their blocks.
fn groups(volume: &TestVolume) -> (u64, u64, u64) {
    let status = volume.status();
    let lines = status["replication"]["groups"].as_array().unwrap();
    let sum = |what: &str, least: u64| -> u64 {
        let lines = lines
            .iter()
            .filter(|line| line["have"].as_u64().unwrap() >= least);
        lines.map(|line| line[what].as_u64().unwrap()).sum()
    };
    (sum("groups", 0), sum("groups", 6), sum("bytes", 6))
}

fn held(volume: &TestVolume) -> u64 {
    volume.status()["replication"]["held_bytes"].as_u64().unwrap()
}

/// What blocks take on the disk. The database's log, which is as long as it was at its longest, is not theirs.
fn block_bytes(volume: &TestVolume) -> u64 {
    let store = volume.state().join("store.sqlite");
    disk_bytes(&store) + disk_bytes(&volume.state().join("store.sqlite-blocks"))
}

/// So many bytes in one file, and a hundred kilobytes in each of twenty.
fn seven_with(len: usize) {
    let (_cable, a, mut others) = seven();
    fs::create_dir(a.at("dir")).unwrap();
    for n in 0..20 {
        fs::write(a.at(&format!("dir/{n}")), noise(100 + n, 100_000)).unwrap();
    }
    wait_for("all six are known", PATIENCE, || groups(&a).1 > 0);
    let big = noise(1, len);
    fs::write(a.at("big"), &big).unwrap();
    sync(&a);
    let (all, whole, bytes) = groups(&a);
    assert!(
        all == whole && bytes as usize > len * 9 / 10,
        "{all} {whole} {bytes}"
    );
    let kept: u64 = others.iter().map(held).sum();
    assert!((kept as usize) < len * 18 / 10, "{kept} bytes for {len}");
    let said = a.dfs(["status"]).arg(a.folder()).ok();
    let line = format!("redundancy 4+2: {all} groups");
    assert!(
        said.contains(&line) && said.contains("survive the loss of 2 more devices"),
        "{said}"
    );

    let before = block_bytes(&a);
    let said = a.dfs(["free"]).arg(a.mountpoint()).ok();
    let after = block_bytes(&a);
    assert!(after < before / 10, "{before} {after}: {said}");

    // Two are gone for good, with a third of everything.
    let gone: Vec<String> = others
        .drain(..2)
        .map(|mut other| {
            let device = other.status()["device"].as_str().unwrap().to_owned();
            other.kill();
            device
        })
        .collect();
    drop_caches();
    assert!(fs::read(a.at("big")).unwrap() == big);
    for n in 0..20 {
        assert!(fs::read(a.at(&format!("dir/{n}"))).unwrap() == noise(100 + n, 100_000));
    }
    // One that knows the groups only from those that keep their shards reads as well.
    carry(&a, &others[0], &["big"]);
    assert!(fs::read(others[0].at("big")).unwrap() == big);

    // Four zones are too few for groups: each block gets three replicas.
    a.dfs(["free"]).arg(a.mountpoint()).ok();
    for device in &gone {
        a.dfs(["remove", device]).arg(a.folder()).ok();
    }
    wait_for("what was lost is made again", PATIENCE, || {
        let (all, _, _) = groups(&a);
        let (lack, bytes) = lacking(&a);
        (all, lack) == (0, 0) && bytes as usize > len
    });
    let said = a.dfs(["free"]).arg(a.mountpoint()).ok();
    assert!(block_bytes(&a) < before / 10, "{said}");
    drop_caches();
    assert!(fs::read(a.at("big")).unwrap() == big);
}

#[test]
fn what_is_freed_survives_the_loss_of_two_of_six() {
    seven_with(40 << 20);
}

#[test]
#[ignore = "two gibibytes: only with --long"]
fn two_gibibytes_survive_the_loss_of_two_of_six() {
    seven_with(2 << 30);
}
