//! Computers that keep blocks of a group and cannot read them.

use std::fs;
use std::time::Duration;

use super::replicas::{in_zone, lacking, sync};
use super::{first, second, ticket, try_join};
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{noise, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn held(volume: &TestVolume) -> u64 {
    volume.status()["replication"]["held_bytes"].as_u64().unwrap()
}

fn is_up(volume: &TestVolume) -> bool {
    volume.dfs(["status"]).arg(volume.folder()).run().succeeded()
}

#[test]
fn a_host_takes_what_its_quota_allows_and_can_read_none_of_it() {
    let (cable, mut a) = first();
    a.unmount();
    a.configure(&format!(
        "{ON_CABLE}\n[replication]\nreplicas = 1\nzone = \"a\"\n"
    ));
    a.mount();
    let mut b = second(&cable);
    let ran = try_join(&b, &ticket(&a, ["--role", "host"]));
    assert!(ran.succeeded(), "{ran}");
    let joined = fs::read_to_string(b.state().join("dfs.toml")).unwrap();
    let quick = "[network]\nmdns = false\nupnp = false\ntimeout = 5\n";
    b.configure(&in_zone(&joined.replace("[network]\n", quick), "b"));
    assert!(!b.try_mount([]).succeeded(), "a host has nothing to mount");
    let mut serving = b
        .dfs(["serve", "--quota", "6MB", "--foreground"])
        .arg(b.folder())
        .start();
    let secret = b"the name of the rose".repeat(1000);
    fs::write(a.at("secret"), &secret).unwrap();
    for n in 0..12 {
        fs::write(a.at(&format!("{n}")), noise(n, 1_000_000)).unwrap();
    }
    wait_for("the host is full", PATIENCE, || {
        is_up(&b) && held(&b) > 4_500_000 && a.log().contains("no room left")
    });
    assert!(held(&b) <= 6_000_000, "{}", held(&b));
    let (lack, all) = lacking(&a);
    assert!(lack >= all - 6_000_000 && lack < all, "{lack} of {all}");
    // What it has is enough to free that much here, and no more.
    let freed = a.dfs(["free", "--json"]).arg(a.mountpoint()).ok();
    let freed: serde_json::Value = serde_json::from_str(&freed).unwrap();
    // But for the tree, without which nothing could be committed here.
    let freed = freed["bytes"].as_u64().unwrap();
    assert!(
        freed <= all - lack && freed + 100_000 > all - lack,
        "{freed} of {all} - {lack}"
    );
    for n in 0..12 {
        assert!(
            fs::read(a.at(&format!("{n}"))).unwrap() == noise(n, 1_000_000),
            "{n}"
        );
    }
    // More room, and it takes the rest.
    serving.kill();
    let mut serving = b
        .dfs(["serve", "--quota", "60MB", "--foreground"])
        .arg(b.folder())
        .start();
    wait_for("the host is there again", PATIENCE, || {
        a.status()["network"]["connected"].as_u64() == Some(1)
    });
    sync(&a);
    assert!(held(&b) >= all);
    serving.kill();
}
