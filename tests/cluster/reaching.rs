//! How computers reach each other without being told where: through a third one, then directly, and by multicast.

use std::fs;
use std::time::Duration;

use super::{carry, first, join, second, ticket};
use crate::harness::namespaces::{Middle, Place};
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{noise, wait_for};

/// Several rounds of looking for a way, 20 s each, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether `a` has a connection to `b`, as `dfs peers` tells.
fn is_connected(a: &TestVolume, b: &TestVolume) -> bool {
    let text = a.dfs(["peers", "--json"]).arg(a.folder()).ok();
    let peers: serde_json::Value = serde_json::from_str(&text).unwrap();
    let device = b.status()["device"].clone();
    let listed = peers.as_array().or_else(|| peers["peers"].as_array()).unwrap();
    listed
        .iter()
        .any(|peer| peer["device"] == device && peer["connected"] == true)
}

fn connections(volume: &TestVolume, through: &str) -> usize {
    let log = volume.log();
    let lines = log.lines().filter(|line| line.contains("connected to a"));
    lines.filter(|line| line.contains(through)).count()
}

#[test]
fn two_that_cannot_reach_each_other_meet_at_a_third_and_leave_it_when_there_is_a_way() {
    let net = Middle::new();
    // The one in the middle keeps nothing: what the others have of each other came through it, not from it.
    let mut middle = TestVolume::empty().on(net.path(Place::M));
    middle.init();
    middle.configure(&format!("{ON_CABLE}\n[replication]\nquota = 0\n"));
    middle.mount();
    let mut a = TestVolume::empty().on(net.path(Place::A));
    join(&mut a, &ticket(&middle, ["--role", "writer"]));
    let mut b = TestVolume::empty().on(net.path(Place::B));
    join(&mut b, &ticket(&middle, ["--role", "reader"]));
    let (first, second) = (noise(31, 9 << 20), noise(32, 9 << 20));
    fs::write(a.at("first"), &first).unwrap();
    fs::write(a.at("second"), &second).unwrap();
    wait_for("A and B meet", PATIENCE, || {
        is_connected(&a, &b) && is_connected(&b, &a)
    });
    // The one that was called knows no more of the caller's address than who it is.
    let called = connections(&a, "p2p-circuit") + connections(&b, "p2p-circuit");
    assert!(called > 0, "{}\n{}", a.log(), b.log());
    carry(&a, &b, &["first", "second"]);
    assert!(fs::read(b.at("first")).unwrap() == first, "through the relay");
    assert!(
        middle.stored() < 1 << 20,
        "the one in the middle has nothing of it"
    );

    net.route();
    let left = "takes the place of the one through a relay";
    wait_for("a direct connection", PATIENCE, || {
        (a.log() + &b.log()).contains(left)
    });
    wait_for("they stay connected", PATIENCE, || is_connected(&b, &a));
    assert!(fs::read(b.at("second")).unwrap() == second, "directly");
    assert!(
        connections(&a, "/10.78.2.2/") + connections(&b, "/10.78.1.2/") > 0,
        "{}\n{}",
        a.log(),
        b.log()
    );
}

#[test]
fn members_on_one_segment_find_each_other_without_an_address() {
    let (cable, mut a) = first();
    fs::write(a.at("file"), noise(33, 3_000_000)).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "reader"]));
    carry(&a, &b, &["file"]);
    b.unmount();
    a.unmount();
    // What the ticket and the last meeting told is forgotten.
    for (volume, list) in [(&a, "peers"), (&b, "peers"), (&b, "admins")] {
        fs::remove_file(volume.state().join(list)).unwrap();
    }
    let multicast = ON_CABLE.replace("mdns = false", "mdns = true");
    a.configure(&multicast);
    b.configure(&multicast);
    a.mount();
    b.mount();
    wait_for("they find each other", PATIENCE, || is_connected(&b, &a));
    assert!(fs::read(b.at("file")).unwrap() == noise(33, 3_000_000));
}
