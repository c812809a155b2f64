//! The power goes: what was synced is there, and everything else is a version that once existed.

use std::fs;
use std::io::Write;

use crate::harness::disk::Disk;
use crate::harness::noise;
use crate::harness::volume::{ALONE, TestVolume};

#[test]
fn what_was_synced_survives_and_the_rest_is_whole_or_old() {
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let folder_disk = Disk::new(place.path(), "folder-disk", "xfs", 320);
    let state_disk = Disk::new(place.path(), "state-disk", "xfs", 320);
    let folder = folder_disk.at.join("folder");
    fs::create_dir(&folder).unwrap();
    let mut volume = TestVolume::empty().moved(Some(&folder), Some(&state_disk.at.join("state")));
    volume.init();
    // No background sync within the test: only what the test syncs is safe.
    volume.configure(&format!("{ALONE}[volume]\nsync_interval = 3600\n"));
    for round in 0..3_u64 {
        volume.mount();
        let synced = noise(round, 700_000);
        let mut file = fs::File::create(volume.at("synced")).unwrap();
        file.write_all(&synced).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let directory = fs::File::open(volume.mountpoint()).unwrap();
        directory.sync_all().unwrap();
        let versions: Vec<Vec<u8>> = (0..5).map(|n| noise(100 + 10 * round + n, 300_000)).collect();
        for version in &versions {
            fs::write(volume.at("unsynced"), version).unwrap();
        }
        volume.kill();
        // In either order: the two disks need not lose the same moment.
        let disks = if round % 2 == 0 {
            [&folder_disk, &state_disk]
        } else {
            [&state_disk, &folder_disk]
        };
        crate::harness::command::Cmd::new("umount")
            .args(["-l"])
            .arg(volume.mountpoint())
            .ok();
        for disk in disks {
            disk.cut_power();
        }
        volume.mount();
        assert!(fs::read(volume.at("synced")).unwrap() == synced, "round {round}");
        if volume.at("unsynced").exists() {
            let found = fs::read(volume.at("unsynced")).unwrap();
            let earlier = (0..=round).flat_map(|r| (0..5).map(move |n| noise(100 + 10 * r + n, 300_000)));
            let is_version = found.is_empty() || earlier.into_iter().any(|version| version == found);
            assert!(
                is_version,
                "round {round}: {} bytes that are no version",
                found.len()
            );
        }
        volume.unmount();
    }
}

#[test]
fn the_power_cut_of_these_tests_loses_what_was_not_synced() {
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let disk = Disk::new(place.path(), "disk", "xfs", 320);
    let mut synced = fs::File::create(disk.at.join("synced")).unwrap();
    synced.write_all(b"kept").unwrap();
    synced.sync_all().unwrap();
    drop(synced);
    fs::write(disk.at.join("unsynced"), b"lost").unwrap();
    disk.cut_power();
    assert_eq!(fs::read(disk.at.join("synced")).unwrap(), b"kept");
    assert_ne!(fs::read(disk.at.join("unsynced")).unwrap_or_default(), b"lost");
}
