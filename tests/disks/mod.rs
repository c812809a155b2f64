//! Disks that are full or lose power: small filesystems on loop devices.

mod frozen;
mod full;
mod power;

use std::path::{Path, PathBuf};

use crate::harness::command::Cmd;

/// A filesystem in a file, mounted below a directory of the test.
struct Disk {
    at: PathBuf,
}

impl Disk {
    /// An empty disk of `mib` MiB with the given filesystem (`ext4` or `xfs`).
    fn new(place: &Path, name: &str, kind: &str, mib: u64) -> Self {
        let (image, at) = (place.join(format!("{name}.img")), place.join(name));
        std::fs::create_dir_all(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        Cmd::new(format!("mkfs.{kind}")).arg("-q").arg(&image).ok();
        Cmd::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).ok();
        Self { at }
    }

    /// Drops everything that was not synced, as a power cut would, and mounts the disk again.
    fn cut_power(&self) {
        let source = Cmd::new("findmnt").args(["-no", "SOURCE"]).arg(&self.at).ok();
        Cmd::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(&self.at)
            .ok();
        // The loop device outlives the umount only while something holds it.
        let device = source.trim();
        let held = std::fs::File::open(device).unwrap();
        Cmd::new("umount").arg(&self.at).ok();
        Cmd::new("mount").arg(device).arg(&self.at).ok();
        drop(held);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Cmd::new("umount").args(["--quiet", "--lazy"]).arg(&self.at).run();
    }
}
