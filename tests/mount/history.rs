//! What was is told and brought back: `dfs log`, `dfs diff`, `dfs restore`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::Value;

use crate::harness::noise;
use crate::harness::tree;
use crate::harness::volume::TestVolume;

/// A mounted volume with the settings that `dfs.toml` begins with, but for the network.
fn mounted() -> TestVolume {
    let mut volume = TestVolume::new();
    volume.configure("[network]\nenabled = false\n");
    volume.mount();
    volume
}

/// Has what changed committed: `dfs log` does so itself.
fn log(volume: &TestVolume, path: &Path) -> Vec<Value> {
    let said = volume.dfs(["log", "--json"]).arg(path).ok();
    let said: Value = serde_json::from_str(&said).unwrap();
    said["versions"].as_array().unwrap().clone()
}

fn ids(log: &[Value]) -> Vec<String> {
    log.iter()
        .map(|one| one["snapshot"].as_str().unwrap().to_owned())
        .collect()
}

fn changes(log: &[Value]) -> Vec<&str> {
    log.iter().map(|one| one["change"].as_str().unwrap()).collect()
}

#[test]
fn every_version_of_a_file_comes_back() {
    let volume = mounted();
    let (first, second) = (noise(61, 900_000), noise(62, 300));
    let file = volume.at("report.txt");
    fs::write(&file, &first).unwrap();
    log(&volume, &file);
    fs::write(&file, &second).unwrap();
    log(&volume, &file);
    fs::remove_file(&file).unwrap();

    let versions = log(&volume, &file);
    assert_eq!(changes(&versions), ["deleted", "changed", "there"]);
    assert_eq!(versions[2]["size"], 900_000);
    let said = volume.dfs(["log"]).arg(&file).ok();
    assert!(
        said.contains("report.txt  deleted") && said.contains("changed, 300 B"),
        "{said}"
    );
    // By its name in the folder, too.
    assert_eq!(log(&volume, &volume.host("report.txt")), versions);

    // Deleted files come back with one command.
    let said = volume.dfs(["restore"]).arg(&file).ok();
    assert!(said.contains("1 changes"), "{said}");
    assert!(fs::read(&file).unwrap() == second);
    let at = &ids(&versions)[2][..8];
    volume.dfs(["restore", "--at", at]).arg(&file).ok();
    assert!(fs::read(&file).unwrap() == first);
    // And so does what the restore replaced.
    let versions = log(&volume, &file);
    assert_eq!(
        changes(&versions),
        ["changed", "created", "deleted", "changed", "there"]
    );
    volume
        .dfs(["restore", "--at", &ids(&versions)[1]])
        .arg(&file)
        .ok();
    assert!(fs::read(&file).unwrap() == second);
    let refused = volume.dfs(["restore"]).arg(&file).fails();
    assert!(refused.err.contains("--at"), "{refused}");
    let never = volume.dfs(["restore"]).arg(volume.at("no/such")).fails();
    assert!(never.err.contains("no/such is in no snapshot"), "{never}");
}

#[test]
fn a_removed_tree_comes_back_as_it_was() {
    let mut volume = mounted();
    let source = volume.place().join("source");
    tree::real_tree(&source, 300);
    volume.dfs(["import"]).arg(&source).arg(volume.mountpoint()).ok();
    fs::create_dir(volume.at("source/links")).unwrap();
    fs::write(volume.at("source/links/a"), b"two names").unwrap();
    fs::hard_link(volume.at("source/links/a"), volume.at("source/links/b")).unwrap();
    let before = tree::snapshot(&volume.at("source"));
    let first = log(&volume, volume.mountpoint());
    fs::write(volume.at("kept"), b"made later").unwrap();
    fs::remove_dir_all(volume.at("source")).unwrap();
    let said = volume.dfs(["diff", "--json"]).arg(volume.mountpoint()).ok();
    let diff: Value = serde_json::from_str(&said).unwrap();
    let paths = diff["differences"].as_array().unwrap();
    let of = |path: &str| paths.iter().find(|one| one["path"] == path).unwrap()["change"].clone();
    assert_eq!(
        (of("kept"), of("source")),
        ("created".into(), "deleted".into()),
        "{said}"
    );

    volume.dfs(["restore"]).arg(volume.at("source")).ok();
    tree::assert_same(&before, &tree::snapshot(&volume.at("source")));
    assert_eq!(fs::metadata(volume.at("source/links/b")).unwrap().nlink(), 2);
    assert_eq!(fs::read(volume.at("kept")).unwrap(), b"made later");
    volume.remount();
    tree::assert_same(&before, &tree::snapshot(&volume.at("source")));
    // The volume as a whole.
    volume
        .dfs(["restore", "--at", &ids(&first)[0]])
        .arg(volume.mountpoint())
        .ok();
    assert!(!volume.at("kept").exists());
    tree::assert_same(&before, &tree::snapshot(&volume.at("source")));
    volume.dfs(["restore"]).arg(volume.at("kept")).ok();
    assert_eq!(fs::read(volume.at("kept")).unwrap(), b"made later");
}

#[test]
fn nothing_of_what_was_is_kept_where_nobody_wants_it() {
    let volume = TestVolume::mounted();
    fs::write(volume.at("file"), noise(63, 4 << 20)).unwrap();
    log(&volume, volume.mountpoint());
    assert!(volume.stored() >= 4 << 20);
    fs::remove_file(volume.at("file")).unwrap();
    assert_eq!(changes(&log(&volume, volume.mountpoint())), ["there"]);
    let never = volume.dfs(["restore"]).arg(volume.at("file")).fails();
    assert!(never.err.contains("file is in no snapshot"), "{never}");
}
