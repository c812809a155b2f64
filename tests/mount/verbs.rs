//! What a person types: `dfs up`, `import`, `export`, `show`, and what the program says to a wrong call.

use std::fs;

use crate::harness::command::Cmd;
use crate::harness::tree;
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

#[test]
fn up_makes_a_volume_and_mounts_it_over_its_folder() {
    let volume = TestVolume::empty();
    let home = volume.place().join("home");
    fs::create_dir(&home).unwrap();
    let drive = volume.folder();
    let up = || Cmd::own("dfs").arg("up").arg(drive).env("HOME", &home);
    let said = up().arg("--state").arg(volume.state()).ok();
    assert!(said.contains("24 words"), "{said}");
    let shown = Cmd::new("findmnt").args(["-no", "FSTYPE"]).arg(drive).ok();
    assert_eq!(shown.trim(), "fuse.dfs");
    fs::write(drive.join("a"), b"up").unwrap();
    Cmd::new("umount").arg(drive).ok();
    assert!(drive.join("a.f").exists());
    volume.configure(ALONE);
    wait_for("the volume can be mounted again", SOON, || up().run().succeeded());
    assert_eq!(fs::read(drive.join("a")).unwrap(), b"up");
    Cmd::own("dfs").arg("umount").arg(drive).ok();
    assert!(!drive.join("a").exists());
}

#[test]
fn plain_files_in_the_folder_become_files_of_the_volume() {
    let mut volume = TestVolume::new();
    let content = noise(51, 900_000);
    fs::create_dir(volume.folder().join("sub")).unwrap();
    fs::write(volume.folder().join("sub/plain.bin"), &content).unwrap();
    fs::write(volume.folder().join("note.txt"), tree::CANARY).unwrap();
    volume.mount();
    wait_for("the plain files are taken in", SOON, || {
        volume.host("note.txt").exists() && volume.host("sub/plain.bin").exists()
    });
    assert!(fs::read(volume.at("sub/plain.bin")).unwrap() == content);
    assert_eq!(fs::read(volume.at("note.txt")).unwrap(), tree::CANARY.as_bytes());
    // While the daemon runs and the mount does not cover the folder, too.
    fs::write(volume.folder().join("later.bin"), &content).unwrap();
    wait_for("a file dropped later is taken in", SOON, || {
        volume.host("later.bin").exists() && !volume.folder().join("later.bin").exists()
    });
    assert!(fs::read(volume.at("later.bin")).unwrap() == content);
    tree::assert_only_manifests(volume.folder());
    tree::assert_absent(tree::CANARY, volume.folder());
}

#[test]
fn import_and_export_carry_trees_in_and_out() {
    let mut volume = TestVolume::mounted();
    let source = volume.place().join("source");
    tree::real_tree(&source, 300);
    let out = volume.place().join("out");
    volume.dfs(["import"]).arg(&source).arg(volume.mountpoint()).ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("source")));
    volume.dfs(["export"]).arg(volume.at("source")).arg(&out).ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&out));
    volume.unmount();
    tree::assert_absent(tree::CANARY, volume.folder());
}

#[test]
fn import_and_export_work_without_a_daemon() {
    let mut volume = TestVolume::new();
    let source = volume.place().join("source");
    fs::create_dir(&source).unwrap();
    tree::odd_tree(&source);
    let out = volume.place().join("out");
    volume.dfs(["import"]).arg(&source).arg(volume.folder()).ok();
    tree::assert_only_manifests(volume.folder());
    volume
        .dfs(["export"])
        .arg(volume.folder().join("source"))
        .arg(&out)
        .ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&out));
    volume.mount();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("source")));
}

#[test]
fn show_explains_a_manifest() {
    let volume = TestVolume::mounted();
    fs::write(volume.at("file"), noise(52, 3 << 20)).unwrap();
    let said = volume.dfs(["show"]).arg(volume.host("file")).ok();
    assert!(
        said.contains("3145728") || said.contains("3.0 MiB") || said.contains("3 MiB"),
        "{said}"
    );
    let json = volume.dfs(["show", "--json"]).arg(volume.host("file")).ok();
    serde_json::from_str::<serde_json::Value>(&json).unwrap();
}

#[test]
fn wrong_calls_are_usage_errors_and_help_is_none() {
    let dfs = || Cmd::own("dfs");
    assert_eq!(dfs().arg("frobnicate").fails().code(), 2);
    assert_eq!(dfs().arg("status").arg("--frobnicate").fails().code(), 2);
    assert!(dfs().arg("--help").ok().contains("invite"));
    assert!(dfs().arg("--version").ok().contains(env!("CARGO_PKG_VERSION")));
    let volume = TestVolume::empty();
    let nothing = volume.dfs(["status"]).arg(volume.folder()).fails();
    assert_eq!(nothing.code(), 1, "{nothing}");
    assert!(!nothing.err.contains("RUST_BACKTRACE"), "{nothing}");
}

#[test]
fn a_daemon_that_stands_still_is_not_taken_for_none() {
    let volume = TestVolume::mounted();
    let pid = nix::unistd::Pid::from_raw(volume.pid().unwrap());
    let signal = |signal| nix::sys::signal::kill(pid, signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let synced = volume.dfs(["sync"]).arg(volume.folder()).run();
    signal(nix::sys::signal::Signal::SIGCONT);
    let said = synced.said();
    assert!(
        !synced.succeeded() && said.contains(&format!("process {pid}) does not answer")),
        "{said}"
    );
}

#[test]
fn fsck_finds_a_sound_volume_sound() {
    let mut volume = TestVolume::mounted();
    fs::create_dir(volume.at("tree")).unwrap();
    tree::odd_tree(&volume.at("tree"));
    volume.unmount();
    volume.own("fsck-dfs").arg("-n").arg(volume.folder()).ok();
    fs::write(volume.host("broken"), b"no manifest").unwrap();
    let found = volume.own("fsck-dfs").arg("-n").arg(volume.folder()).fails();
    assert_eq!(found.code(), 4, "errors left uncorrected: {found}");
    assert!(found.said().contains("broken"), "{found}");
}
