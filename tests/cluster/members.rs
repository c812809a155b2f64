//! Members come and go: removed ones get nothing more, from nobody; the 24 words make a new admin; a copied device is recognised.

use std::fs;
use std::path::Path;

use super::{carry, first, join, second, ticket, try_join};
use crate::harness::command::Cmd;
use crate::harness::namespaces::End;
use crate::harness::volume::{ON_CABLE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

fn device(volume: &TestVolume) -> String {
    volume.status()["device"].as_str().unwrap().to_owned()
}

/// What `dfs members --json` says, of everybody and of one.
fn members(from: &TestVolume) -> serde_json::Value {
    let json = from.dfs(["members", "--json"]).arg(from.folder()).ok();
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}"))
}

fn member(from: &TestVolume, device: &str) -> Option<serde_json::Value> {
    let list = members(from)["members"].as_array().unwrap().clone();
    list.into_iter().find(|member| member["device"] == device)
}

fn wait_until_known(from: &TestVolume, device: &str) {
    wait_for("the roster names the device", SOON, || {
        member(from, device).is_some_and(|member| member["since"].is_u64() && member["name"].is_string())
    });
}

/// The key epoch of the newest version of a file, from the `.f` itself.
fn epoch(volume: &TestVolume, name: &str) -> u32 {
    let bytes = fs::read(volume.host(name)).unwrap();
    let slots = bytes.chunks(4096).filter(|slot| slot.len() > 12);
    let epochs = slots.map(|slot| u32::from_le_bytes(slot[8..12].try_into().unwrap()));
    epochs.max().unwrap()
}

fn port_of(volume: &TestVolume) -> u16 {
    let listening = volume.status()["network"]["listening"].clone();
    let address = listening[0].as_str().unwrap();
    address.rsplit('/').next().unwrap().parse().unwrap()
}

fn remove(at: &TestVolume, device: &str) -> String {
    at.dfs(["remove", &device[..12]]).arg(at.folder()).ok()
}

#[test]
fn a_removed_device_gets_nothing_new_from_anybody_and_the_others_go_on_under_new_keys() {
    let (cable, a) = first();
    fs::write(a.at("old"), noise(71, 1 << 20)).unwrap();
    fs::write(a.at("unread"), noise(72, 1 << 20)).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    // Beside B on the same computer, and so on a port of its own.
    let mut c = second(&cable);
    let joined = try_join(&c, &ticket(&a, ["--role", "writer"]));
    assert!(joined.succeeded(), "{joined}");
    c.configure(&ON_CABLE.replace("8080", "8081"));
    c.mount();
    let (b_id, c_id) = (device(&b), device(&c));
    carry(&a, &c, &["old", "unread"]);
    carry(&a, &b, &["old"]);
    assert!(fs::read(c.at("old")).unwrap() == noise(71, 1 << 20));
    assert!(fs::read(b.at("old")).unwrap() == noise(71, 1 << 20));
    for id in [&b_id, &c_id] {
        wait_until_known(&a, id);
    }
    assert_eq!(epoch(&a, "old"), 1);
    b.unmount();

    // A person who is no admin, and one who names nobody in particular, are told so.
    let refused = c.dfs(["remove", &b_id[..12]]).arg(c.folder()).fails();
    assert!(refused.err.contains("no admin"), "{refused}");
    a.dfs(["remove", "ffffffffffff"]).arg(a.folder()).fails();
    a.dfs(["remove", &c_id[..2]]).arg(a.folder()).fails();

    let said = remove(&a, &c_id);
    assert!(said.contains("Removed") && said.contains("epoch 2"), "{said}");
    wait_for("A closes the connection", SOON, || {
        member(&a, &c_id).unwrap()["connected"] == false
    });
    assert_eq!(fs::read(c.at("unread")).unwrap_err().raw_os_error(), Some(5));
    assert!(
        fs::read(c.at("old")).unwrap() == noise(71, 1 << 20),
        "what it has it keeps"
    );
    wait_for("C learns why", SOON, || {
        c.log().contains("was removed from the group on")
    });
    wait_for("and says so", SOON, || {
        let warnings = c.status()["warnings"].to_string();
        warnings.contains("was removed from the group on")
    });

    // Without a remount, A seals under the new epoch.
    let content = noise(73, 1 << 20);
    fs::write(a.at("new"), &content).unwrap();
    assert_eq!((epoch(&a, "new"), epoch(&a, "old")), (2, 1));

    // B was away. It hears the roster and gets the keys.
    b.mount();
    wait_for("B hears of the removal and gets the keys", SOON, || {
        members(&b)["epoch"] == 2 && b.log().contains("sealed under key epoch 2")
    });
    assert!(member(&b, &c_id).unwrap()["removed"].is_u64());
    let table = b.dfs(["members"]).arg(b.folder()).ok();
    assert!(
        table.contains("removed on") && table.contains("this device"),
        "{table}"
    );
    carry(&a, &b, &["new"]);
    assert!(fs::read(b.at("new")).unwrap() == content);
    assert!(
        fs::read(b.at("old")).unwrap() == noise(71, 1 << 20),
        "the old keys are kept"
    );
    fs::write(b.at("of-b"), b"short").unwrap();
    assert_eq!(epoch(&b, "of-b"), 2);

    // C asks B, which refuses it as well.
    c.unmount();
    let alone = ON_CABLE.replace("8080", "8081");
    c.configure(&format!("{alone}peers = [\"10.77.0.2:{}\"]\n", port_of(&b)));
    c.mount();
    wait_for("B refuses C", SOON, || {
        let log = b.log();
        let short = &c_id[..8];
        log.lines()
            .any(|line| line.contains("refused a device") && line.contains(short) && line.contains("removed"))
    });
    carry(&b, &c, &["new", "of-b"]);
    fs::read(c.at("new")).unwrap_err();
    fs::read(c.at("of-b")).unwrap_err();

    // Not even with all that B has stored: it lacks the key.
    c.unmount();
    b.unmount();
    for name in ["store.sqlite", "store.sqlite-blocks"] {
        Cmd::new("rm").arg("-rf").arg(c.state().join(name)).ok();
        Cmd::new("cp")
            .arg("-a")
            .arg(b.state().join(name))
            .arg(c.state().join(name))
            .ok();
    }
    c.mount();
    assert!(
        fs::read(c.at("old")).unwrap() == noise(71, 1 << 20),
        "the copied store works"
    );
    fs::read(c.at("new")).unwrap_err();
    fs::read(c.at("of-b")).unwrap_err();
    b.mount();
    assert!(
        fs::read(b.at("new")).unwrap() == content,
        "with its key it is readable from there"
    );
}

#[test]
fn the_24_words_make_a_new_admin_when_the_last_one_is_lost() {
    let (cable, mut a) = first();
    fs::write(a.at("file"), noise(74, 1 << 20)).unwrap();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    carry(&a, &b, &["file"]);
    assert!(fs::read(b.at("file")).unwrap() == noise(74, 1 << 20));
    let a_id = device(&a);
    wait_until_known(&b, &a_id);
    a.unmount();
    // A's computer is gone for good; its words are not.
    let words: Vec<&str> = a.printed.lines().filter(|line| line.starts_with('│')).collect();
    let mut new = TestVolume::empty().on(cable.path(End::A));
    new.dfs(["init", "--recover"])
        .arg(new.folder())
        .arg("--state")
        .arg(new.state())
        .stdin(words.join("\n"))
        .ok();
    new.configure(&format!("{ON_CABLE}peers = [\"10.77.0.2:{}\"]\n", port_of(&b)));
    new.mount();
    let new_id = device(&new);
    wait_until_known(&b, &new_id);
    assert_eq!(member(&b, &new_id).unwrap()["role"], "admin");
    wait_until_known(&new, &device(&b));
    // It may do what an admin may.
    remove(&new, &a_id);
    wait_for("B hears of it", SOON, || members(&b)["epoch"] == 2);
    assert!(member(&b, &a_id).unwrap()["removed"].is_u64());
    carry(&b, &new, &["file"]);
    assert!(fs::read(new.at("file")).unwrap() == noise(74, 1 << 20));
    wait_for("B has the new keys", SOON, || {
        b.log().contains("sealed under key epoch 2")
    });
    fs::write(b.at("later"), noise(75, 300_000)).unwrap();
    assert_eq!(epoch(&b, "later"), 2);
    carry(&b, &new, &["later"]);
    assert!(fs::read(new.at("later")).unwrap() == noise(75, 300_000));
    let b_id = device(&b);
    new.dfs(["role", &b_id[..12], "admin"]).arg(new.folder()).ok();
    wait_for("B becomes an admin", SOON, || b.log().contains("is an admin now"));
    b.remount();
    let third = ticket(&b, ["--role", "reader"]);
    let mut c = second(&cable);
    join(&mut c, &third);
}

#[test]
fn a_copied_state_directory_that_runs_twice_is_recognised() {
    let (cable, a) = first();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    let id = device(&b);
    wait_until_known(&a, &id);
    b.unmount();
    let mut copy = second(&cable);
    copy_all(b.state(), copy.state());
    copy_all(b.folder(), copy.folder());
    b.mount();
    wait_for("A knows B again", SOON, || {
        member(&a, &id).unwrap()["connected"] == true
    });
    assert_eq!(a.status()["warnings"], serde_json::json!([]));
    let state = format!("state={}", copy.state().display());
    copy.mount_with(["-o", &state]);
    wait_for("A says that there are two", SOON, || {
        let warnings = a.status()["warnings"].to_string();
        warnings.contains(&id[..8]) && warnings.contains("was copied")
    });
    assert!(a.log().contains("shows two states"), "{}", a.log());
    wait_for("one of the two knows itself", SOON, || {
        [&b, &copy]
            .iter()
            .any(|of| of.log().contains("its state directory was copied"))
    });
    let status = a.dfs(["status"]).arg(a.folder()).ok();
    assert!(status.contains("warning"), "{status}");
}

#[test]
fn the_group_is_managed_without_a_daemon_too() {
    let (cable, mut a) = first();
    let mut b = second(&cable);
    join(&mut b, &ticket(&a, ["--role", "writer"]));
    let id = device(&b);
    wait_until_known(&a, &id);
    a.unmount();
    let said = a.dfs(["role", &id[..12], "reader"]).arg(a.folder()).ok();
    assert!(said.contains("is a reader now"), "{said}");
    let said = remove(&a, &id);
    assert!(said.contains("a reader"), "{said}");
    assert!(member(&a, &id).unwrap()["removed"].is_u64());
    assert_eq!(members(&a)["epoch"], 2);
    a.mount();
    wait_for("B is refused", SOON, || {
        b.log().contains("was removed from the group on")
    });
    fs::write(a.at("new"), b"x").unwrap();
    assert_eq!(epoch(&a, "new"), 2);
}

fn copy_all(from: &Path, to: &Path) {
    fs::remove_dir_all(to).ok();
    Cmd::new("cp").arg("-a").arg(from).arg(to).ok();
}
