//! What people ask for their files: to stay here, to go, to have more copies, to be checked.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::replicas::{disk_bytes, drop_caches, lacking, sync, three};
use crate::harness::noise;
use crate::harness::volume::TestVolume;
use crate::harness::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);

/// The value of an extended attribute of a file in a mount.
fn xattr(path: &Path, name: &str) -> String {
    let mut value = vec![0u8; 64];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
    value.truncate(len);
    String::from_utf8(value).unwrap()
}

fn set_xattr(path: &Path, name: &str, value: &str) -> rustix::io::Result<()> {
    rustix::fs::setxattr(path, name, value.as_bytes(), rustix::fs::XattrFlags::empty())
}

pub(super) fn state(volume: &TestVolume, file: &str) -> String {
    xattr(&volume.at(file), "user.dfs.state")
}

#[test]
fn what_is_pinned_stays_and_comes_back() {
    let (_cable, a, _b, _c) = three();
    fs::create_dir_all(a.at("kept/deep")).unwrap();
    fs::write(a.at("kept/deep/one"), noise(1, 3_000_000)).unwrap();
    fs::write(a.at("other"), noise(2, 3_000_000)).unwrap();
    sync(&a);
    assert_eq!(state(&a, "other"), "local");
    let said = a.dfs(["free"]).arg(a.mountpoint()).ok();
    assert_eq!(
        (state(&a, "other"), state(&a, "kept/deep/one")),
        ("remote".into(), "remote".into()),
        "{said}"
    );
    // Brought, and at once safe from being freed; so is what is written there later.
    let said = a.dfs(["pin"]).arg(a.at("kept")).ok();
    assert!(said.contains("brought here"), "{said}");
    assert_eq!(state(&a, "kept/deep/one"), "local");
    fs::write(a.at("kept/two"), noise(3, 2_000_000)).unwrap();
    sync(&a);
    let said = a.dfs(["free"]).arg(a.mountpoint()).ok();
    assert!(said.contains("blocks: pinned"), "{said}");
    assert_eq!(state(&a, "kept/deep/one"), "local");
    assert_eq!(state(&a, "kept/two"), "local");
    // The wish is part of the tree, and can be seen and undone.
    assert_eq!(xattr(&a.at("kept"), "user.dfs.pinned"), "1");
    a.dfs(["unpin"]).arg(a.at("kept")).ok();
    a.dfs(["free"]).arg(a.mountpoint()).ok();
    assert_eq!(state(&a, "kept/deep/one"), "remote");
    drop_caches();
    assert!(fs::read(a.at("kept/deep/one")).unwrap() == noise(1, 3_000_000));
}

#[test]
fn a_directory_may_want_more_copies_or_fewer() {
    let (_cable, a, b, c) = three();
    fs::create_dir_all(a.at("cheap")).unwrap();
    set_xattr(&a.at("cheap"), "user.dfs.replicas", "1").unwrap();
    fs::write(a.at("cheap/film"), noise(1, 8_000_000)).unwrap();
    fs::write(a.at("dear"), noise(2, 2_000_000)).unwrap();
    sync(&a);
    // Copies that moved when another computer came still lie there for an hour, but nobody has a right to them.
    let leased = |volume: &TestVolume| -> u64 {
        let status = volume.status();
        let members = status["replication"]["members"].as_array().unwrap();
        members
            .iter()
            .map(|member| member["held_bytes"].as_u64().unwrap())
            .sum()
    };
    wait_for("one copy of the film, two of the other", PATIENCE, || {
        (12_000_000..13_000_000).contains(&(leased(&b) + leased(&c)))
    });
    set_xattr(&a.at("cheap"), "user.dfs.replicas", "2").unwrap();
    wait_for("it gets the second copy", PATIENCE, || {
        leased(&b) + leased(&c) >= 20_000_000 && lacking(&a).0 == 0
    });
    for (name, value) in [("user.dfs.replicas", "many"), ("user.dfs.pinned", "yes")] {
        assert_eq!(
            set_xattr(&a.at("cheap"), name, value),
            Err(rustix::io::Errno::INVAL)
        );
    }
    assert_eq!(
        set_xattr(&a.at("dear"), "user.dfs.state", "local"),
        Err(rustix::io::Errno::PERM)
    );
}

#[test]
fn so_much_is_freed_as_is_wanted() {
    let (_cable, a, _b, _c) = three();
    for n in 0..10 {
        fs::write(a.at(&format!("{n}")), noise(n, 1_000_000)).unwrap();
    }
    sync(&a);
    let before = disk_bytes(a.state());
    let said = a.dfs(["free", "--target", "3MB"]).arg(a.mountpoint()).ok();
    let freed = before - disk_bytes(a.state());
    assert!((2_900_000..4_500_000).contains(&freed), "{freed}: {said}");
}

#[test]
fn the_store_stays_within_its_bound_also_with_own_files() {
    let (_cable, mut a, _b, _c) = three();
    a.unmount();
    let settings = fs::read_to_string(a.state().join("dfs.toml")).unwrap();
    a.configure(&format!("{settings}\n[store]\ncache_size = \"16MiB\"\n"));
    a.mount();
    let file = |n: u64| (a.at(&format!("{n}")), noise(n, 4_000_000));
    for n in 0..12 {
        let (path, content) = file(n);
        fs::write(path, content).unwrap();
    }
    sync(&a);
    wait_for("what is over the bound goes", PATIENCE, || {
        a.status()["store"]["bytes"].as_u64().unwrap() <= 16 << 20
    });
    assert_eq!(state(&a, "0"), "remote", "the oldest goes first");
    drop_caches();
    for n in 0..12 {
        let (path, content) = file(n);
        assert!(fs::read(path).unwrap() == content, "{n}");
    }
}

#[test]
fn fsync_waits_for_replicas_when_told_to() {
    let (_cable, mut a, b, c) = three();
    a.unmount();
    a.mount_with(["-o", "fsync=replicas,timeout=5"]);
    let mut file = fs::File::create(a.at("ledger")).unwrap();
    file.write_all(&noise(1, 500_000)).unwrap();
    file.sync_all().unwrap();
    let (lack, all) = lacking(&a);
    assert!(lack == 0 && all >= 500_000, "{lack} of {all}");
    // With nobody there it does not say that all is well.
    drop((b, c));
    file.write_all(&noise(2, 500_000)).unwrap();
    let error = file.sync_all().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

#[test]
fn a_holder_that_lost_blocks_is_found_out_and_mended() {
    let (_cable, a, mut b, c) = three();
    fs::write(a.at("file"), noise(1, 6_000_000)).unwrap();
    sync(&a);
    let said = a.dfs(["verify"]).arg(a.mountpoint()).ok();
    assert!(
        said.contains(" 0 wrong or missing") && !said.contains(" 0 copies right"),
        "{said}"
    );
    // B's disk forgets part of what it keeps: of one block, since a holder that failed thrice would not be relied on for a while.
    b.unmount();
    let segments: Vec<_> = fs::read_dir(b.state().join("store.sqlite-blocks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| fs::metadata(path).unwrap().len() > 4_000_000)
        .collect();
    assert!(!segments.is_empty());
    for segment in segments {
        let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"bit rot", 1_000_000).unwrap();
    }
    b.mount();
    wait_for("B is there again", PATIENCE, || {
        a.status()["network"]["connected"].as_u64() == Some(2)
    });
    let output = a.dfs(["verify", "--json"]).arg(a.mountpoint()).run();
    let found: serde_json::Value = serde_json::from_str(&output.out).unwrap();
    assert!(found["replicas_wrong"].as_u64().unwrap() > 0, "{found}");
    let said = a.dfs(["verify", "--repair"]).arg(a.mountpoint()).ok();
    assert!(said.contains("replicas 2 of 2"), "{said}");
    drop(c);
    let said = a.dfs(["verify"]).arg(a.mountpoint()).ok();
    assert!(said.contains("away"), "{said}");
}

#[test]
fn what_no_file_needs_is_shown_and_removed() {
    let (_cable, a, _b, _c) = three();
    fs::write(a.at("file"), noise(1, 6_000_000)).unwrap();
    sync(&a);
    let gc = |more: &[&str]| -> serde_json::Value {
        let said = a.dfs(["gc", "--json"]).args(more).arg(a.mountpoint()).ok();
        serde_json::from_str(&said).unwrap()
    };
    assert_eq!(gc(&[])["bytes"], 0);
    fs::remove_file(a.at("file")).unwrap();
    // As soon as nobody needs the snapshot any more that had it.
    wait_for("it is garbage", Duration::from_secs(30), || {
        let found = gc(&[]);
        assert_eq!(found["removed"], false);
        found["bytes"].as_u64().unwrap() >= 6_000_000
    });
    assert_eq!(gc(&["--now"])["removed"], true);
    assert_eq!(gc(&[])["bytes"], 0);
    // The snapshot of the empty tree.
    assert!(a.status()["store"]["blocks"].as_u64().unwrap() <= 8);
}

#[test]
fn a_pin_brings_what_another_wrote() {
    let (_cable, a, mut b, _c) = three();
    // Long enough that its manifest names blocks which name those with content.
    let film = noise(1, 40 << 20);
    fs::write(a.at("film"), &film).unwrap();
    sync(&a);
    b.unmount();
    fs::copy(a.host("film"), b.host("film")).unwrap();
    b.mount();
    let said = b.dfs(["pin"]).arg(b.at("film")).ok();
    assert!(said.contains("brought here"), "{said}");
    assert!(state(&b, "film").starts_with("local"), "{}", state(&b, "film"));
    drop(a);
    drop_caches();
    assert!(fs::read(b.at("film")).unwrap() == film);
}
