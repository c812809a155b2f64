//! How a mount begins, what it refuses, and how it ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

#[test]
fn a_second_mount_is_refused_and_says_why() {
    let mut volume = TestVolume::mounted();
    let elsewhere = volume.place().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let refused = volume
        .own("mount-dfs")
        .arg(volume.folder())
        .arg(&elsewhere)
        .fails();
    assert_eq!(refused.code(), 32, "{refused}");
    let pid = volume.pid().unwrap().to_string();
    assert!(refused.err.contains(&pid), "should name process {pid}: {refused}");
    fs::write(volume.at("a"), b"the first mount still works").unwrap();
    volume.unmount();
    volume.mount();
}

#[test]
fn umount_drains_what_is_still_open() {
    let mut volume = TestVolume::mounted();
    let content = noise(4, 20 << 20);
    fs::write(volume.at("file"), &content).unwrap();
    volume.unmount();
    volume.mount();
    assert!(fs::read(volume.at("file")).unwrap() == content);
}

#[test]
fn umount_of_the_system_ends_the_daemon_too() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("a"), b"x").unwrap();
    let pid = volume.pid().unwrap();
    Cmd::new("umount").arg("-i").arg(volume.mountpoint()).ok();
    wait_for("the daemon ends", SOON, || {
        !fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("dfs"))
    });
    volume.mount();
    assert_eq!(fs::read(volume.at("a")).unwrap(), b"x");
}

#[test]
fn sigterm_drains_and_unmounts() {
    let mut volume = TestVolume::mounted();
    let content = noise(5, 8 << 20);
    fs::write(volume.at("file"), &content).unwrap();
    volume.signal(Signal::TERM);
    wait_for("the mount is gone", SOON, || !volume.is_mounted());
    volume.mount();
    assert!(fs::read(volume.at("file")).unwrap() == content);
}

#[test]
fn a_read_only_mount_reads_only() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("a"), b"x").unwrap();
    volume.unmount();
    volume.mount_with(["-o", "ro"]);
    assert_eq!(fs::read(volume.at("a")).unwrap(), b"x");
    let refused = fs::write(volume.at("b"), b"y").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn fstab_options_are_accepted_and_unknown_ones_refused() {
    let mut volume = TestVolume::new();
    let refused = volume.try_mount(["-o", "rw,frobnicate"]);
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.err.contains("frobnicate"), "{refused}");
    assert!(!volume.is_mounted());
    volume.mount_with(["-s", "-o", "rw,frobnicate"]);
    volume.unmount();
    volume.mount_with([
        "-o",
        "rw,_netdev,nofail,noauto,user,x-systemd.automount,nosuid,nodev,noexec,noatime",
    ]);
    let line = Cmd::new("findmnt")
        .args(["-no", "FSTYPE,OPTIONS"])
        .arg(volume.mountpoint())
        .ok();
    for part in ["fuse.dfs", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

#[test]
fn dash_f_goes_through_all_but_the_mount() {
    let mut volume = TestVolume::new();
    let ran = volume.try_mount(["-f"]);
    assert!(ran.succeeded(), "{ran}");
    assert!(!volume.is_mounted());
}

#[test]
fn wrong_calls_have_the_exit_codes_of_mount() {
    let volume = TestVolume::new();
    assert_eq!(volume.own("mount-dfs").fails().code(), 1);
    let nowhere = volume.place().join("nowhere");
    let refused = volume
        .own("mount-dfs")
        .arg(&nowhere)
        .arg(volume.mountpoint())
        .fails();
    assert!([1, 2, 32].contains(&refused.code()), "{refused}");
    assert!(refused.err.contains("nowhere"), "{refused}");
    let refused = volume.own("mount-dfs").arg(volume.folder()).arg(&nowhere).fails();
    assert!(refused.err.contains("nowhere"), "{refused}");
}

#[test]
fn a_folder_that_is_no_volume_is_refused_with_what_to_do() {
    let volume = TestVolume::empty();
    let refused = volume
        .own("mount-dfs")
        .arg(volume.folder())
        .arg(volume.mountpoint())
        .fails();
    assert!(refused.err.contains("dfs init"), "{refused}");
}

#[test]
fn statfs_and_inode_numbers_are_those_of_a_filesystem() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("a"), noise(6, 100_000)).unwrap();
    fs::hard_link(volume.at("a"), volume.at("b")).unwrap();
    let (a, b) = (
        fs::metadata(volume.at("a")).unwrap(),
        fs::metadata(volume.at("b")).unwrap(),
    );
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    assert!(a.blocks() * 512 >= 100_000 || a.blocks() > 0);
    let free = rustix::fs::statvfs(volume.mountpoint()).unwrap();
    assert!(free.f_bavail > 0 && free.f_namemax == 253);
    volume.remount();
    assert_eq!(fs::metadata(volume.at("b")).unwrap().ino(), a.ino());
}

#[test]
fn status_tells_who_serves_what() {
    let volume = TestVolume::mounted();
    let status = volume.status();
    assert_eq!(status["mountpoint"].as_str(), volume.mountpoint().to_str());
    assert!(
        status["volume"].as_str().is_some_and(|id| id.len() == 32),
        "{status}"
    );
    assert!(
        status["device"].as_str().is_some_and(|id| id.len() == 64),
        "{status}"
    );
    let from_mount = volume.dfs(["status", "--json"]).arg(volume.mountpoint()).ok();
    assert!(from_mount.contains(status["volume"].as_str().unwrap()));
    volume
        .dfs(["status"])
        .arg(volume.folder())
        .within(Duration::from_secs(10))
        .ok();
}

#[test]
fn the_marker_is_a_virtual_folder_in_the_mount() {
    let volume = TestVolume::mounted();
    assert!(fs::metadata(volume.folder().join(".dfs")).unwrap().is_file());
    assert!(fs::metadata(volume.at(".dfs")).unwrap().is_dir());
    let status = fs::read_to_string(volume.at(".dfs/status")).unwrap();
    assert!(!status.is_empty());
    assert!(fs::write(volume.at(".dfs/status"), b"x").is_err());
    assert!(fs::remove_dir_all(volume.at(".dfs")).is_err());
}

#[test]
fn a_mount_that_is_in_use_for_a_moment_is_unmounted_nevertheless() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("a"), "a").unwrap();
    let open = fs::File::open(volume.at("a")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(open);
        });
        volume.unmount();
    });
}
