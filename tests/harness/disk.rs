//! Disks that a test can take the power from: small filesystems on loop devices.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::command::Cmd;
use super::{SOON, wait_for};

/// A filesystem in a file, mounted below a directory of the test.
pub struct Disk {
    /// Where it is mounted.
    pub at: PathBuf,
}

impl Disk {
    /// An empty disk of `mib` MiB with the given filesystem (`ext4` or `xfs`).
    pub fn new(place: &Path, name: &str, kind: &str, mib: u64) -> Self {
        let (image, at) = (place.join(format!("{name}.img")), place.join(name));
        std::fs::create_dir_all(&at).unwrap();
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        Cmd::new(format!("mkfs.{kind}")).arg("-q").arg(&image).ok();
        Cmd::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).ok();
        Self { at }
    }

    /// Drops everything that was not synced, as a power cut would, and mounts the disk again.
    pub fn cut_power(&self) {
        self.power_off();
        self.power_on();
    }

    /// From now on nothing reaches the disk any more, and what was not synced is lost.
    pub fn power_off(&self) {
        Cmd::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(&self.at)
            .ok();
    }

    /// Mounts the disk again. Nothing may be open on it.
    pub fn power_on(&self) {
        let source = Cmd::new("findmnt").args(["-no", "SOURCE"]).arg(&self.at).ok();
        // The loop device outlives the umount only while something holds it.
        let device = source.trim();
        let held = File::open(device).unwrap();
        // A killed process may take a moment to give up what it had open.
        wait_for("nothing uses the disk", SOON, || {
            Cmd::new("umount").arg(&self.at).run().succeeded()
        });
        // Another test that makes a mount namespace just now copies this mount, and keeps the dead file system alive with it: mounting
        // the device then gives that one again.
        wait_for("the disk is mounted anew", SOON, || {
            Cmd::new("mount").arg(device).arg(&self.at).ok();
            let lives = std::fs::read_dir(&self.at).is_ok_and(|mut list| list.all(|entry| entry.is_ok()));
            lives || !Cmd::new("umount").arg(&self.at).run().succeeded()
        });
        drop(held);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Cmd::new("umount").args(["--quiet", "--lazy"]).arg(&self.at).run();
    }
}
