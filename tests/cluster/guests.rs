//! An open group: whoever has its ticket keeps blocks for it and has blocks of a volume of his own kept, within limits.

use std::fs;
use std::time::Duration;

use super::replicas::{drop_caches, in_zone, knows_hosts};
use super::{ticket, try_join};
use crate::harness::namespaces::Switch;
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{noise, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
const QUICK: &str = "[network]\nlisten = [\"0.0.0.0:8080\"]\nmdns = false\nupnp = false\ntimeout = 5\n";

/// Bytes that `volume` keeps for others.
fn held(volume: &TestVolume) -> u64 {
    volume.status()["replication"]["held_bytes"].as_u64().unwrap()
}

/// Makes the settings of a device that joined quick, with these for replication.
fn settle(volume: &TestVolume, replication: &str) {
    let joined = fs::read_to_string(volume.state().join("dfs.toml")).unwrap();
    let joined = joined.replace("[network]\n", QUICK);
    volume.configure(&joined.replace("[replication]\n", &format!("[replication]\n{replication}\n")));
}

fn sees(volume: &TestVolume, others: u64) {
    wait_for("all see each other", PATIENCE, || {
        volume.status()["network"]["connected"].as_u64() == Some(others)
    });
}

#[test]
fn strangers_keep_blocks_for_each_other_and_read_none_of_them() {
    let switch = Switch::new(4);
    let mut founder = TestVolume::empty().on(switch.path(0));
    let made = founder.dfs(["init", "--public"]).arg(founder.folder());
    made.arg("--state").arg(founder.state()).ok();
    let open = fs::read_to_string(founder.state().join("dfs.toml")).unwrap();
    assert!(open.contains("\npublic = \"all\"\n"), "{open}");
    settle(&founder, "zone = \"0\"\nallowance = \"1MiB\"\nreplicas = 1");
    founder.mount();
    fs::write(founder.at("diary"), b"dear diary ".repeat(5000)).unwrap();
    let open_ticket = ticket(&founder, ["--role", "guest"]);

    // One that keeps blocks for others, and one that does not.
    let mut guests = Vec::new();
    for (n, offer) in [(1, "quota = \"50MB\""), (2, "quota = 0")] {
        let mut guest = TestVolume::empty().on(switch.path(n));
        let ran = try_join(&guest, &open_ticket);
        assert!(ran.succeeded(), "{ran}");
        assert!(
            ran.said().contains("as guest") && ran.said().contains("24 words"),
            "{ran}"
        );
        settle(
            &guest,
            &format!("zone = \"{n}\"\nallowance = \"1MiB\"\nreplicas = 1\n{offer}"),
        );
        guest.mount();
        guest.printed = ran.said();
        guests.push(guest);
    }
    sees(&founder, 2);
    let id = |volume: &TestVolume| volume.status()["volume"].as_str().unwrap().to_owned();
    assert_ne!(id(&guests[0]), id(&founder));
    assert_ne!(id(&guests[0]), id(&guests[1]));

    knows_hosts(&founder, 1);
    // The founder's blocks go to the guest that offers space, which earns room for its own.
    for n in 0..6 {
        fs::write(founder.at(&format!("{n}")), noise(n, 1_000_000)).unwrap();
    }
    founder.dfs(["sync", "--wait", "60"]).arg(founder.folder()).ok();
    assert!(held(&guests[0]) >= 6_000_000);
    assert_eq!(held(&guests[1]), 0);
    for n in 0..5 {
        fs::write(guests[0].at(&format!("own-{n}")), noise(100 + n, 1_000_000)).unwrap();
    }
    let ran = guests[0]
        .dfs(["sync", "--wait", "90"])
        .arg(guests[0].folder())
        .run();
    assert!(ran.succeeded(), "{ran}\nfounder: {}", founder.log());
    let earned = held(&founder);
    assert!(earned >= 5_000_000, "{earned}");

    // The one that offers nothing gets the allowance from each, and is told so.
    for n in 0..5 {
        fs::write(guests[1].at(&format!("own-{n}")), noise(200 + n, 1_000_000)).unwrap();
    }
    wait_for("both refuse", PATIENCE, || {
        [&founder, &guests[0]]
            .iter()
            .all(|v| v.log().contains("nothing more is kept for a guest"))
    });
    let taken = held(&founder) - earned;
    assert!(taken <= 1 << 20, "{taken}");
    assert!(guests[1].log().contains("no room left"), "{}", guests[1].log());

    // What is not a guest's own it has, and cannot read: not even with the founder's manifest.
    fs::copy(founder.host("diary"), guests[0].host("diary")).unwrap();
    let read = fs::read(guests[0].at("diary"));
    assert!(read.is_err(), "a guest reads the founder's files");

    // The guest loses its computer, and has the words and copies of its manifests.
    let mut old = guests.remove(0);
    old.unmount();
    let words = old.printed.lines().filter(|line| line.contains('│'));
    let words: String = words.map(|line| line.replace('│', " ") + "\n").collect();
    let mut again = TestVolume::empty().on(switch.path(3));
    let paper = again.place().join("ticket");
    fs::write(&paper, &open_ticket).unwrap();
    let join = again
        .dfs(["join", "--recover", "--ticket-file"])
        .arg(&paper)
        .arg(again.folder());
    let said = join.arg("--state").arg(again.state()).stdin(words).ok();
    assert!(!said.contains("24 words"), "they are known: {said}");
    settle(&again, "zone = \"3\"\nreplicas = 1");
    for n in 0..5 {
        fs::copy(old.host(&format!("own-{n}")), again.host(&format!("own-{n}"))).unwrap();
    }
    drop(old);
    again.mount();
    drop_caches();
    for n in 0..5 {
        let read = fs::read(again.at(&format!("own-{n}"))).unwrap_or_else(|e| panic!("{e}\n{}", again.log()));
        assert!(read == noise(100 + n, 1_000_000), "{n}");
    }
}

#[test]
fn what_a_guest_cannot_be() {
    let switch = Switch::new(2);
    let mut founder = TestVolume::empty().on(switch.path(0));
    founder.init();
    founder.configure(&in_zone(ON_CABLE, "0"));
    founder.mount();
    let mut guest = TestVolume::empty().on(switch.path(1));
    let ran = try_join(&guest, &ticket(&founder, ["--role", "guest"]));
    assert!(ran.succeeded(), "{ran}");
    settle(&guest, "zone = \"1\"");
    guest.mount();
    sees(&founder, 1);
    let device = guest.status()["device"].as_str().unwrap().to_owned();
    let change = founder
        .dfs(["role"])
        .args([&device, "writer"])
        .arg(founder.folder())
        .fails();
    assert!(change.said().contains("a volume of its own"), "{change}");
    let invites = guest
        .dfs(["invite", "--role", "guest"])
        .arg(guest.folder())
        .fails();
    assert!(invites.said().contains("admin"), "{invites}");
    // This founder did not open his group: nothing is kept for the guest, and nothing of his goes there.
    fs::write(founder.at("a"), noise(1, 1_000_000)).unwrap();
    fs::write(guest.at("b"), noise(2, 1_000_000)).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((held(&founder), held(&guest)), (0, 0));
    // Its removal ends its rights, and needs no new key: it never had one.
    let epoch = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["epoch"].as_u64();
    let before = founder.dfs(["members", "--json"]).arg(founder.folder()).ok();
    founder.dfs(["remove"]).arg(&device).arg(founder.folder()).ok();
    let after = founder.dfs(["members", "--json"]).arg(founder.folder()).ok();
    assert_eq!(epoch(&before), epoch(&after), "{after}");
    wait_for("it is shut out", PATIENCE, || {
        founder.status()["network"]["connected"].as_u64() == Some(0)
    });
    // Words of a volume go with a guest's ticket only.
    let late = TestVolume::empty().on(switch.path(1));
    let paper = late.place().join("ticket");
    fs::write(&paper, ticket(&founder, ["--role", "writer"])).unwrap();
    let join = late
        .dfs(["join", "--recover", "--ticket-file"])
        .arg(&paper)
        .arg(late.folder());
    let words = "abandon ".repeat(23) + "art";
    let refused = join.arg("--state").arg(late.state()).stdin(words).fails();
    assert!(refused.said().contains("only a guest"), "{refused}");
}
