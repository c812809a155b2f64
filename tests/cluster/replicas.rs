//! Blocks on other computers: replicated, freed here, read back, repaired when a holder is gone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{first, join, second, ticket};
use crate::harness::command::Cmd;
use crate::harness::namespaces::{Cable, End};
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

/// Replicating and repairing some megabytes; a day's noise included.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A computer that fails by itself, with its own port where it shares a namespace.
pub(super) fn member(volume: &mut TestVolume, a: &TestVolume, zone: &str, port: u16) {
    join(volume, &ticket(a, ["--role", "writer"]));
    volume.unmount();
    let settings = fs::read_to_string(volume.state().join("dfs.toml")).unwrap();
    let listen = format!("[network]\nlisten = [\"0.0.0.0:{port}\"]\n");
    let settings = settings.replace("[network]\n", &listen);
    volume.configure(&in_zone(&settings, zone));
    volume.mount();
}

pub(super) fn in_zone(settings: &str, zone: &str) -> String {
    format!(
        "{}\n[replication]\nzone = \"{zone}\"\n",
        settings.replace("[replication]\n", "")
    )
}

/// A with a zone of its own, B and C.
pub(super) fn three() -> (Cable, TestVolume, TestVolume, TestVolume) {
    let (cable, mut a) = first();
    a.unmount();
    a.configure(&in_zone(ON_CABLE, "a"));
    a.mount();
    let mut b = second(&cable);
    member(&mut b, &a, "b", 8082);
    let mut c = TestVolume::empty().on(cable.path(End::B));
    member(&mut c, &a, "c", 8083);
    knows_hosts(&a, 2);
    // All that they have is named: what A writes from now on they do not have kept on A for themselves as well, which A could not free then.
    sync(&b);
    sync(&c);
    (cable, a, b, c)
}

/// Waits until a computer was told what so many others offer: before that it is content with fewer replicas.
#[track_caller]
pub(super) fn knows_hosts(volume: &TestVolume, count: u64) {
    wait_for("it knows who keeps blocks", SOON, || {
        volume.status()["replication"]["possible"].as_u64() >= Some(count)
    });
}

/// Bytes that lack replicas, and all bytes, as `dfs status` tells.
pub(super) fn lacking(volume: &TestVolume) -> (u64, u64) {
    let status = volume.status();
    let health = status["replication"]["health"].as_array().unwrap();
    let all = health.iter().map(|line| line["bytes"].as_u64().unwrap()).sum();
    (status["replication"]["lacking_bytes"].as_u64().unwrap(), all)
}

pub(super) fn sync(volume: &TestVolume) {
    volume.dfs(["sync", "--wait", "60"]).arg(volume.folder()).ok();
}

pub(super) fn disk_bytes(path: &Path) -> u64 {
    let said = Cmd::new("du").args(["-s", "--block-size=1"]).arg(path).ok();
    said.split_whitespace().next().unwrap().parse().unwrap()
}

pub(super) fn drop_caches() {
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
}

#[test]
fn what_is_freed_here_comes_back_from_those_that_keep_it() {
    let (_cable, mut a, b, c) = three();
    let big = noise(1, 40 << 20);
    fs::write(a.at("big"), &big).unwrap();
    fs::create_dir(a.at("dir")).unwrap();
    for n in 0..20 {
        fs::write(a.at(&format!("dir/{n}")), noise(100 + n, 100_000)).unwrap();
    }
    sync(&a);
    let (lack, all) = lacking(&a);
    assert_eq!(lack, 0);
    assert!(all > 42_000_000, "{all}");
    for holder in [&b, &c] {
        assert!(holder.status()["replication"]["held_bytes"].as_u64().unwrap() >= all);
    }
    let before = disk_bytes(a.state());
    let said = a.dfs(["free"]).arg(a.mountpoint()).ok();
    assert!(said.contains("freed"), "{said}");
    let after = disk_bytes(a.state());
    assert!(after < before / 10, "{before} {after}: {said}");
    // Also after a restart, and with one of the two gone.
    a.unmount();
    a.mount();
    drop_caches();
    assert!(fs::read(a.at("big")).unwrap() == big);
    drop(b);
    for n in 0..20 {
        wait_for("it comes from the other one", PATIENCE, || {
            fs::read(a.at(&format!("dir/{n}"))).is_ok_and(|found| found == noise(100 + n, 100_000))
        });
    }
}

#[test]
fn what_too_few_keep_stays_here() {
    let (_cable, a, b, mut c) = three();
    fs::write(a.at("file"), noise(1, 3_000_000)).unwrap();
    sync(&a);
    c.kill();
    let before = disk_bytes(a.state());
    let said = a.dfs(["free"]).arg(a.at("file")).ok();
    assert!(
        said.contains("kept") && said.contains("freed    0 blocks"),
        "{said}"
    );
    assert!(disk_bytes(a.state()) > before * 9 / 10);
    drop(b);
    drop_caches();
    assert!(fs::read(a.at("file")).unwrap() == noise(1, 3_000_000));
}

#[test]
fn blocks_of_a_removed_device_get_another_holder() {
    let (cable, a, b, c) = three();
    fs::write(a.at("file"), noise(1, 5_000_000)).unwrap();
    sync(&a);
    let mut d = TestVolume::empty().on(cable.path(End::B));
    member(&mut d, &a, "d", 8084);
    let gone = b.status()["device"].as_str().unwrap().to_owned();
    a.dfs(["remove", &gone]).arg(a.folder()).ok();
    drop(b);
    let (_, all) = lacking(&a);
    wait_for("two others have everything", PATIENCE, || {
        let held = |volume: &TestVolume| volume.status()["replication"]["held_bytes"].as_u64().unwrap();
        lacking(&a) == (0, all) && held(&c) >= all && held(&d) >= all
    });
    a.dfs(["free"]).arg(a.mountpoint()).ok();
    drop_caches();
    assert!(fs::read(a.at("file")).unwrap() == noise(1, 5_000_000));
}

#[test]
fn what_was_written_while_nobody_was_there_is_replicated_when_somebody_comes() {
    let (cable, mut a) = first();
    a.unmount();
    a.configure(&in_zone(ON_CABLE, "a"));
    a.mount();
    fs::write(a.at("before"), noise(1, 2_000_000)).unwrap();
    assert_eq!(lacking(&a), (0, 0), "alone");
    let mut b = second(&cable);
    member(&mut b, &a, "b", 8082);
    wait_for("it is known and on B", PATIENCE, || {
        b.status()["replication"]["held_bytes"].as_u64().unwrap() > 2_000_000
    });
    // One other computer, two replicas wanted: that is said.
    let ran = a.dfs(["sync", "--wait", "1"]).arg(a.folder()).run();
    assert!(
        !ran.succeeded() && ran.to_string().contains("fewer replicas than are wanted"),
        "{ran}"
    );
    // Killed in the middle of writing: what was closed is named again.
    fs::write(a.at("after"), noise(2, 2_000_000)).unwrap();
    a.kill();
    a.mount();
    wait_for("the rest is on B too", PATIENCE, || {
        b.status()["replication"]["held_bytes"].as_u64().unwrap() > 4_000_000
    });
}
