//! A disk that does not answer: the daemon says what it waits for, and goes on when the disk does.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::command::Cmd;
use crate::harness::disk::Disk;
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::{SOON, wait_for};

/// A filesystem whose changes wait until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: &Path) -> Self {
        Cmd::new("fsfreeze").arg("-f").arg(at).ok();
        Self(at.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        Cmd::new("fsfreeze").arg("-u").arg(&self.0).run();
    }
}

#[test]
fn a_daemon_whose_disk_does_not_answer_says_what_it_waits_for() {
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let disk = Disk::new(place.path(), "folder-disk", "ext4", 64);
    let folder = disk.at.join("folder");
    fs::create_dir(&folder).unwrap();
    let mut volume = TestVolume::empty().moved(Some(&folder), None);
    volume.init();
    volume.configure(ALONE);
    volume.mount();
    fs::write(volume.at("before"), b"before").unwrap();

    let frozen = Frozen::new(&disk.at);
    let writer = Cmd::bash("echo text > \"$0\" && echo written")
        .arg(volume.at("file"))
        .start();
    let stalled = || {
        volume
            .log()
            .lines()
            .find(|line| line.contains("makes no progress"))
            .map(str::to_owned)
    };
    wait_for("the log names what makes no progress", SOON + SOON, || {
        stalled().is_some()
    });
    let line = stalled().unwrap();
    assert!(
        line.contains("operation=\"create\"") || line.contains("operation=\"open\""),
        "{line}"
    );
    assert!(line.contains("waits_for=\"a system call of the host"), "{line}");
    // Commands do not go through the mount.
    let stalls = volume.status()["stalls"].clone();
    assert!(stalls[0]["secs"].as_u64() >= Some(10), "{stalls}");
    let shown = volume.dfs(["status"]).arg(volume.folder()).ok();
    assert!(shown.contains("waits for a system call of the host"), "{shown}");

    drop(frozen);
    wait_for("the writer goes on", SOON, || writer.said().contains("written"));
    wait_for("the log says so", Duration::from_secs(30), || {
        volume.log().contains("what made no progress went on")
    });
    assert_eq!(volume.status()["stalls"].as_array().map(Vec::len), Some(0));
    assert_eq!(fs::read(volume.at("file")).unwrap(), b"text\n");
    volume.unmount();
}
