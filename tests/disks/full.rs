//! A full disk: the writer is told, what was acknowledged stays, and writing goes on when there is room.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::harness::disk::Disk;
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::{SOON, noise, wait_for};

#[test]
fn a_full_disk_under_the_state() {
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let disk = Disk::new(place.path(), "state-disk", "ext4", 96);
    let mut volume = TestVolume::empty().moved(None, Some(&disk.at.join("state")));
    volume.init();
    volume.configure(ALONE);
    volume.mount();
    fill_and_go_on(&mut volume, &disk.at, 1 << 20, 200);
}

#[test]
fn a_full_disk_under_the_folder() {
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let disk = Disk::new(place.path(), "folder-disk", "ext4", 8);
    let folder = disk.at.join("folder");
    fs::create_dir(&folder).unwrap();
    let mut volume = TestVolume::empty().moved(Some(&folder), None);
    volume.init();
    volume.configure(ALONE);
    volume.mount();
    fill_and_go_on(&mut volume, &disk.at, 2_000, 8_000);
}

/// Fills the disk with a ballast file but for little, then writes files of `len` bytes until one fails.
fn fill_and_go_on(volume: &mut TestVolume, disk: &Path, len: usize, most: u64) {
    let acknowledged = (0..8_u64)
        .map(|n| (format!("before-{n}"), noise(n, len)))
        .collect::<Vec<_>>();
    for (name, content) in &acknowledged {
        write_durably(&volume.at(name), content).unwrap();
    }
    let ballast = disk.join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    let spare = (len as u64 * 3).max(64 << 10);
    while rustix::fs::statvfs(disk).unwrap().f_bavail * 4096 > spare {
        if file.write_all(&[7; 64 << 10]).is_err() {
            break;
        }
        file.sync_all().ok();
    }
    drop(file);
    let mut kept = Vec::new();
    let failure = (100..100 + most).find_map(|n| {
        let name = format!("during-{n}");
        match write_durably(&volume.at(&name), &noise(n, len)) {
            Ok(()) => {
                kept.push((name, noise(n, len)));
                None
            }
            Err(e) => Some(e),
        }
    });
    let failure = failure.expect("the disk never got full");
    assert_eq!(failure.kind(), ErrorKind::StorageFull, "{failure}");
    for (name, content) in acknowledged.iter().chain(&kept) {
        assert!(
            &fs::read(volume.at(name)).unwrap() == content,
            "{name} while the disk is full"
        );
    }

    fs::remove_file(&ballast).unwrap();
    let after = noise(999, len);
    wait_for("writing goes on once there is room", SOON, || {
        write_durably(&volume.at("after"), &after).is_ok()
    });
    volume.remount();
    let expected = acknowledged.iter().chain(&kept);
    for (name, content) in expected.chain([&("after".to_owned(), after)]) {
        assert!(
            &fs::read(volume.at(name)).unwrap() == content,
            "{name} after the remount"
        );
    }
}

fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}
