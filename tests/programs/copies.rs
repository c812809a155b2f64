//! rsync and tar: everything about every file goes out and comes back.

use std::fs;
use std::path::Path;

use super::MINUTES;
use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{noise, tree};

/// A tree with everything that these programs can carry beyond content: also default lists, and attributes that only root sees.
fn rich_tree(source: &Path, files: usize) {
    tree::real_tree(source, files);
    fs::create_dir(source.join("odd")).unwrap();
    tree::odd_tree(&source.join("odd"));
    let folder = source.join("odd/deep");
    Cmd::new("setfacl")
        .args(["-d", "-m", "u:nobody:rwx,g:daemon:r-x"])
        .arg(&folder)
        .ok();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(source.join("odd/size-4095"), "trusted.note", b"for root", flags).unwrap();
    rustix::fs::setxattr(source.join("odd/deep"), "trusted.note", b"\0\xff", flags).unwrap();
}

#[test]
fn rsync_keeps_everything_and_has_nothing_to_do_the_second_time() {
    let volume = TestVolume::mounted();
    let source = volume.place().join("source");
    rich_tree(&source, 500);
    let rsync = || {
        let from = format!("{}/", source.display());
        Cmd::new("rsync")
            .args(["-aHAXi", &from])
            .arg(volume.at("copy"))
            .within(MINUTES)
    };
    rsync().ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("copy")));
    assert_eq!(rsync().ok(), "", "the second run found differences");
    let checked = rsync().arg("--checksum").ok();
    assert_eq!(checked, "", "the checksums differ");
    let back = volume.place().join("back");
    let from = format!("{}/", volume.at("copy").display());
    Cmd::new("rsync")
        .args(["-aHAX", &from])
        .arg(&back)
        .within(MINUTES)
        .ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&back));
}

#[test]
fn rsync_brings_a_copy_up_to_date_in_place() {
    let mut volume = TestVolume::mounted();
    let source = volume.place().join("source");
    rich_tree(&source, 100);
    fs::write(source.join("large"), noise(5, 6 << 20)).unwrap();
    let rsync = |options: &str| {
        let from = format!("{}/", source.display());
        Cmd::new("rsync")
            .args(["-aHAXS", options, "--delete", &from])
            .arg(volume.at("copy"))
            .within(MINUTES)
            .ok();
    };
    rsync("--fsync");
    // A byte in the middle, a piece at the end, files gone and come, one that is a folder now.
    let large = fs::File::options()
        .write(true)
        .open(source.join("large"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, b"changed", 3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, &noise(6, 1 << 20), 6 << 20).unwrap();
    fs::remove_file(source.join("canary.txt")).unwrap();
    fs::create_dir(source.join("canary.txt")).unwrap();
    fs::write(source.join("canary.txt/new"), b"new").unwrap();
    fs::remove_dir_all(source.join("odd/folder.f")).unwrap();
    Cmd::new("setfacl")
        .arg("-b")
        .arg(source.join("odd/size-262144"))
        .ok();
    rustix::fs::removexattr(source.join("odd/deep"), "user.note").unwrap();
    let inplace = format!("{}/", source.display());
    Cmd::new("rsync")
        .args(["-aHAX", "--inplace", "--no-whole-file", "--delete", &inplace])
        .arg(volume.at("copy"))
        .within(MINUTES)
        .ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("copy")));
    volume.kill();
    volume.mount();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("copy")));
}

#[test]
fn tar_packs_and_unpacks() {
    let volume = TestVolume::mounted();
    let source = volume.place().join("source");
    rich_tree(&source, 800);
    // In from the host, then out again: the second archive is made of what the mount tells, its holes found by SEEK_HOLE.
    let script = r#"
tar --xattrs --xattrs-include='*' --acls --sparse -cf "$MOUNT/packed.tar" -C "$SOURCE" .
mkdir "$MOUNT/unpacked" "$BACK"
tar --xattrs --xattrs-include='*' --acls --same-owner -xpf "$MOUNT/packed.tar" -C "$MOUNT/unpacked"
tar --compare -f "$MOUNT/packed.tar" -C "$MOUNT/unpacked"
tar --xattrs --xattrs-include='*' --acls --sparse --hole-detection=seek -cf "$BACK.tar" -C "$MOUNT/unpacked" .
tar --xattrs --xattrs-include='*' --acls --same-owner -xpf "$BACK.tar" -C "$BACK"
tar --sparse --hole-detection=seek -cf - -C "$MOUNT/unpacked/odd" sparse | wc -c
"#;
    let back = volume.place().join("back");
    let said = Cmd::bash(script)
        .env("MOUNT", volume.mountpoint())
        .env("SOURCE", &source)
        .env("BACK", &back)
        .within(MINUTES)
        .ok();
    let packed: u64 = said.trim().parse().unwrap();
    assert!(
        packed < 4 << 20,
        "a file of 64 MiB with one island was packed into {packed} bytes"
    );
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("unpacked")));
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&back));
}
