//! Several computers: namespaces joined by a cable, each with a daemon of its own.

mod care;
mod conflicts;
mod five;
mod guests;
mod hanging;
mod hosts;
mod joining;
mod kills;
mod members;
mod open_files;
mod pair;
mod prefetch;
mod reaching;
mod replicas;
mod repositories;
mod returning;
mod shards;
mod speed;
#[cfg(target_arch = "x86_64")]
mod steps;
mod storm;
mod strangers;
mod trees;

use std::fs;
use std::path::Path;

use crate::harness::command::{Cmd, Ran};
use crate::harness::namespaces::{Cable, End};
use crate::harness::volume::{ON_CABLE, TestVolume};

/// Computer A with a volume, mounted, and the cable it hangs on.
fn first() -> (Cable, TestVolume) {
    let cable = Cable::new();
    let mut a = TestVolume::empty().on(cable.path(End::A));
    a.init();
    a.configure(ON_CABLE);
    a.mount();
    (cable, a)
}

/// Computer B at the other end, member of nothing yet.
fn second(cable: &Cable) -> TestVolume {
    TestVolume::empty().on(cable.path(End::B))
}

/// A ticket of `a`.
fn ticket<const N: usize>(a: &TestVolume, more: [&str; N]) -> String {
    let said = a.dfs(["invite"]).arg(a.folder()).args(more).ok();
    let ticket = said.split_whitespace().find(|word| word.starts_with("dfs1"));
    ticket
        .unwrap_or_else(|| panic!("no ticket in: {said}"))
        .to_owned()
}

/// `dfs join` on `b`, not judged.
fn try_join(b: &TestVolume, ticket: &str) -> Ran {
    let command = b.dfs(["join"]).arg(b.folder()).arg("--state").arg(b.state());
    command.stdin(format!("{ticket}\n")).run()
}

/// Joins and mounts `b`.
#[track_caller]
fn join(b: &mut TestVolume, ticket: &str) {
    let ran = try_join(b, ticket);
    assert!(ran.succeeded(), "{ran}");
    // `dfs join` has written down A's addresses there.
    let joined = fs::read_to_string(b.state().join("dfs.toml")).unwrap();
    b.configure(&joined.replace(
        "[network]\n",
        "[network]\nmdns = false\nupnp = false\ntimeout = 5\n",
    ));
    b.mount();
}

/// Takes manifests from one folder to the other, as a person with a USB stick would: under the name the mount shows.
fn carry(from: &TestVolume, to: &TestVolume, names: &[&str]) {
    for name in names {
        copy(&from.host(name), &to.host(name));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
}

#[test]
fn the_cable_of_these_tests_counts_and_can_be_pulled() {
    let cable = Cable::new();
    let ping = |within: &str| {
        let command = Cmd::within_namespace("bash", &cable.path(End::A));
        command
            .args([
                "-c",
                &format!("timeout {within} bash -c '</dev/tcp/10.77.0.2/9' 2>&1"),
            ])
            .run()
    };
    let before = cable.received(End::B);
    ping("5");
    assert!(cable.received(End::B) > before, "a packet was not counted");
    cable.plug(false);
    let before = cable.received(End::B);
    ping("1");
    assert_eq!(cable.received(End::B), before);
}
