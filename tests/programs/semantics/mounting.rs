//! How a mount ends without its helper, and changes its flags.

use std::fs::{self, File};
use std::io::Write;

use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, noise, wait_for};

#[test]
fn an_unmount_without_helper_loses_nothing() {
    let mut volume = TestVolume::mounted();
    for round in 0..4 {
        let name = format!("file-{round}");
        let mut file = File::create(volume.at(&name)).unwrap();
        file.write_all(&noise(round, 5 << 20)).unwrap();
        drop(file);
        // A mount in use is not unmounted.
        let held = File::open(volume.at(&name)).unwrap();
        let refused = Cmd::new("umount").arg("-i").arg(volume.mountpoint()).fails();
        assert!(refused.err.contains("busy"), "{refused}");
        drop(held);
        let pid = volume.pid().unwrap();
        Cmd::new("umount").arg("-i").arg(volume.mountpoint()).ok();
        assert!(!volume.is_mounted());
        wait_for("the daemon ends by itself", SOON, || {
            !fs::exists(format!("/proc/{pid}/stat")).unwrap()
        });
        volume.mount();
        assert!(fs::read(volume.at(&name)).unwrap() == noise(round, 5 << 20));
    }
}

#[test]
fn remounting_changes_the_flags_of_a_mount() {
    let mut volume = TestVolume::mounted();
    let remount = |options: &str| {
        volume
            .own("mount-dfs")
            .arg(volume.folder())
            .arg(volume.mountpoint())
            .args(["-o", options])
            .run()
    };
    let write = || fs::write(volume.at("file"), b"x").map_err(|error| error.kind());
    assert_eq!(write(), Ok(()));
    assert!(remount("remount,ro,noexec").succeeded());
    assert_eq!(write(), Err(std::io::ErrorKind::ReadOnlyFilesystem));
    let options = Cmd::new("findmnt")
        .args(["-no", "OPTIONS"])
        .arg(volume.mountpoint())
        .ok();
    assert!(options.contains("noexec"), "{options}");
    assert!(remount("remount,rw").succeeded());
    assert_eq!(write(), Ok(()));
    volume.unmount();
    volume.mount_with(["-o", "ro"]);
    let ran = volume
        .own("mount-dfs")
        .arg(volume.folder())
        .arg(volume.mountpoint())
        .args(["-o", "remount,rw"])
        .run();
    let written = fs::write(volume.at("file"), b"x").map_err(|error| error.kind());
    assert_eq!(
        written,
        Err(std::io::ErrorKind::ReadOnlyFilesystem),
        "it stays so: {ran}"
    );
}
