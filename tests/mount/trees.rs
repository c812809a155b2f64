//! What is copied in comes back the same, and the folder shows none of it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::command::Cmd;
use crate::harness::tree::{self, CANARY};
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::{long, noise};

#[test]
fn ten_thousand_files_come_back_after_a_remount() {
    let mut volume = TestVolume::mounted();
    let source = volume.place().join("source");
    tree::real_tree(&source, 10_000);
    Cmd::new("cp")
        .arg("-a")
        .arg(&source)
        .arg(volume.at("tree"))
        .within(MINUTES)
        .ok();
    Cmd::new("diff")
        .args(["-r", "--no-dereference"])
        .arg(&source)
        .arg(volume.at("tree"))
        .within(MINUTES)
        .ok();
    let expected = tree::snapshot(&source);
    assert!(expected.len() > 10_000);
    tree::assert_same(&expected, &tree::snapshot(&volume.at("tree")));

    volume.unmount();
    tree::assert_only_manifests(volume.folder());
    tree::assert_absent(CANARY, volume.folder());
    tree::assert_absent(CANARY, volume.state());

    volume.mount();
    tree::assert_same(&expected, &tree::snapshot(&volume.at("tree")));
    Cmd::new("rm")
        .arg("-rf")
        .arg(volume.at("tree"))
        .within(MINUTES)
        .ok();
    assert_eq!(
        fs::read_dir(volume.mountpoint())
            .unwrap()
            .filter(|e| !is_virtual(e))
            .count(),
        0
    );
}

#[test]
fn everything_a_filesystem_can_hold_comes_back_after_a_remount() {
    let mut volume = TestVolume::mounted();
    let source = volume.place().join("source");
    fs::create_dir(&source).unwrap();
    tree::odd_tree(&source);
    Cmd::new("cp").arg("-a").arg(&source).arg(volume.at("tree")).ok();
    let expected = tree::snapshot(&source);
    tree::assert_same(&expected, &tree::snapshot(&volume.at("tree")));
    volume.remount();
    tree::assert_same(&expected, &tree::snapshot(&volume.at("tree")));
    tree::assert_only_manifests(volume.folder());
    Cmd::new("rm").arg("-rf").arg(volume.at("tree")).ok();
}

#[test]
fn a_large_file_has_a_small_manifest() {
    let mut volume = TestVolume::mounted();
    let mib: u64 = if long() { 1024 } else { 256 };
    let source = volume.place().join("large");
    Cmd::bash(&format!("head -c {mib}M /dev/urandom > \"$0\""))
        .arg(&source)
        .ok();
    let expected = tree::hash(&source);
    Cmd::new("cp")
        .arg("-a")
        .arg(&source)
        .arg(volume.at("large"))
        .within(MINUTES)
        .ok();
    assert_eq!(tree::hash(&volume.at("large")), expected);
    volume.remount();
    assert_eq!(tree::hash(&volume.at("large")), expected);
    assert_eq!(fs::metadata(volume.at("large")).unwrap().len(), mib << 20);
    let manifest = fs::metadata(volume.host("large")).unwrap().len();
    assert!(manifest <= 16 << 10, "its manifest has {manifest} bytes");
}

#[test]
fn a_byte_in_front_stores_little_that_is_new() {
    let mut volume = TestVolume::mounted();
    let content = noise(41, 128 << 20);
    fs::write(volume.at("before"), &content).unwrap();
    volume.remount();
    let before = volume.stored();
    assert!(before >= 128 << 20, "{before} bytes for 128 MiB of noise");
    fs::write(volume.at("after"), [b"!", content.as_slice()].concat()).unwrap();
    volume.remount();
    let grown = volume.stored() - before;
    // The first chunk, those until the cuts are the same again, and what a background sync in the middle of the writing cut where it stood.
    assert!(grown < 4 << 20, "{grown} new bytes for one byte in front");
}

#[test]
fn a_large_file_needs_little_memory() {
    let mut volume = TestVolume::new();
    volume.configure(&format!("{ALONE}[volume]\nwrite_budget = \"32MiB\"\n"));
    volume.mount();
    let mib = if long() { 2048 } else { 384 };
    let script = "for n in 1 2 3 4; do head -c \"${1}M\" /dev/urandom > \"$0/$n\" & done; wait; cat \"$0\"/? > /dev/null";
    let quarter = (mib / 4).to_string();
    Cmd::bash(script)
        .arg(volume.mountpoint())
        .arg(quarter)
        .within(MINUTES)
        .ok();
    let peak = volume.peak_memory();
    assert!(
        peak < 320 << 20,
        "{} MiB at most, after {mib} MiB written and read",
        peak >> 20
    );
}

#[test]
fn a_copied_manifest_opens_as_the_same_file() {
    let mut volume = TestVolume::mounted();
    let content = noise(1, 3 << 20);
    fs::write(volume.at("original"), &content).unwrap();
    volume.unmount();
    fs::copy(volume.host("original"), volume.host("copy")).unwrap();
    volume.mount();
    assert_eq!(fs::read(volume.at("copy")).unwrap(), content);
    fs::write(volume.at("copy"), b"changed").unwrap();
    volume.remount();
    assert_eq!(fs::read(volume.at("original")).unwrap(), content);
    assert_eq!(fs::read(volume.at("copy")).unwrap(), b"changed");
}

#[test]
fn equal_content_is_stored_once() {
    let mut volume = TestVolume::mounted();
    let content = noise(2, 16 << 20);
    fs::write(volume.at("one"), &content).unwrap();
    fs::write(volume.at("two"), &content).unwrap();
    volume.unmount();
    let mut stored = 0;
    tree::visit(volume.state(), &mut |_, meta| stored += meta.blocks() * 512);
    assert!(
        (16 << 20..24 << 20).contains(&stored),
        "{stored} bytes for two equal files"
    );
}

#[test]
fn a_copy_names_the_same_blocks() {
    let mut volume = TestVolume::mounted();
    let content = noise(8, 48 << 20);
    fs::write(volume.at("original"), &content).unwrap();
    volume.remount();
    let before = volume.stored();
    // As `cp` does: by copy_file_range.
    fs::copy(volume.at("original"), volume.at("copy")).unwrap();
    assert!(
        volume.stored() - before < 1 << 20,
        "{} bytes more",
        volume.stored() - before
    );
    fs::remove_file(volume.at("original")).unwrap();
    volume.remount();
    assert!(fs::read(volume.at("copy")).unwrap() == content);
}

#[test]
fn a_mount_may_cover_its_folder() {
    let mut volume = TestVolume::new();
    let folder = volume.folder().to_owned();
    volume.own("mount-dfs").arg(&folder).ok();
    fs::write(folder.join("a"), b"over the folder").unwrap();
    assert_eq!(fs::read(folder.join("a")).unwrap(), b"over the folder");
    assert!(!folder.join("a.f").exists());
    volume.own("umount-dfs").arg(&folder).ok();
    assert!(folder.join("a.f").exists() && !folder.join("a").exists());
    volume.mount();
    assert_eq!(fs::read(volume.at("a")).unwrap(), b"over the folder");
}

#[test]
fn names_are_as_long_as_the_page_says() {
    let volume = TestVolume::mounted();
    fs::write(volume.at(&"n".repeat(253)), b"x").unwrap();
    fs::create_dir(volume.at(&"d".repeat(253))).unwrap();
    let refused = fs::write(volume.at(&"n".repeat(254)), b"x").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidFilename);
}

#[test]
fn random_writes_are_what_a_plain_file_would_hold() {
    let mut volume = TestVolume::mounted();
    let (plain, ours) = (volume.place().join("plain"), volume.at("file"));
    for path in [&plain, &ours] {
        let mut file = fs::File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        scribble(&mut file);
    }
    assert_eq!(tree::hash(&plain), tree::hash(&ours));
    volume.remount();
    assert_eq!(tree::hash(&plain), tree::hash(&volume.at("file")));
}

/// Six hundred writes, cuts and growths at places that a small generator chooses.
fn scribble(file: &mut fs::File) {
    use std::os::unix::fs::FileExt;
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    for step in 0..600 {
        let (offset, len) = (next(6 << 20), next(40_000));
        match next(20) {
            0 => file.set_len(offset).unwrap(),
            1 => file.sync_all().unwrap(),
            _ => file.write_all_at(&noise(step, len as usize), offset).unwrap(),
        }
    }
}

fn is_virtual(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|e| e.file_name() == ".dfs")
}

/// For copies that take a while on two busy cores.
const MINUTES: std::time::Duration = std::time::Duration::from_secs(240);
