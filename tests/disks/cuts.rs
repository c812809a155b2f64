//! Power cuts at random moments of random concurrent work: promises 1 to 3, for every file.
//!
//! `DFS_TEST_SEED` repeats the work of a run (its timing cannot be repeated), `DFS_TEST_CUTS` sets how many cuts there are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::command::Cmd;
use crate::harness::disk::Disk;
use crate::harness::ledger::Crash;
use crate::harness::volume::{ALONE, TestVolume};
use crate::harness::workers::Workers;
use crate::harness::{Dice, seed};

/// Cuts that one volume goes through before a new one is made.
const CUTS_PER_VOLUME: u64 = 25;

#[test]
fn power_cuts_on_ext4() {
    cut_often("ext4", 5);
}

#[test]
fn power_cuts_on_xfs() {
    cut_often("xfs", 5);
}

#[test]
#[ignore = "takes half an hour: only with --long"]
fn many_power_cuts_on_ext4() {
    cut_often("ext4", 250);
}

#[test]
#[ignore = "takes half an hour: only with --long"]
fn many_power_cuts_on_xfs() {
    cut_often("xfs", 250);
}

/// Half of the cuts with folder and state on one disk, half with a disk for each, which lose power one after the other.
fn cut_often(kind: &str, cuts: u64) {
    let cuts = std::env::var("DFS_TEST_CUTS").map_or(cuts, |text| text.parse().unwrap());
    let mut dice = Dice::new(seed());
    let mut left = [cuts / 2, cuts - cuts / 2];
    while left != [0, 0] {
        for (disks, left) in left.iter_mut().enumerate() {
            let now = CUTS_PER_VOLUME.min(*left);
            if now > 0 {
                cut_one_volume(kind, disks + 1, now, &mut dice);
            }
            *left -= now;
        }
    }
}

fn cut_one_volume(kind: &str, disks: usize, cuts: u64, dice: &mut Dice) {
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let disks: Vec<Disk> = (0..disks)
        .map(|number| Disk::new(place.path(), &format!("disk{number}"), kind, 3 << 10))
        .collect();
    let folder = disks[0].at.join("folder");
    let state = disks[disks.len() - 1].at.join("state");
    fs::create_dir(&folder).unwrap();
    let mut volume = TestVolume::empty().moved(Some(&folder), Some(&state));
    volume.init();
    volume.configure(ALONE);
    volume.mount();
    let mut workers = Workers::prepare(&volume, 3);
    volume.unmount();
    for cut in 0..cuts {
        eprintln!("{kind}, {} disks, cut {cut}", disks.len());
        // Mostly no background sync within the round: only what the workers ask for is safe.
        let interval = [1, 3600, 3600][dice.below(3) as usize];
        volume.configure(&format!("{ALONE}[volume]\nsync_interval = {interval}\n"));
        volume.mount();
        let round = workers.start(dice.below(1 << 60));
        let host = HostWrites::start(&folder, &state, dice.below(1 << 60));
        std::thread::sleep(Duration::from_millis(100 + dice.below(1500)));
        round.crash_comes();
        power_off(&disks, dice);
        volume.kill();
        let ended = round.end();
        host.end();
        power_on(&volume, &disks);
        if dice.below(4) == 0 {
            // And again while it recovers.
            let pause = Duration::from_millis(dice.below(150));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(pause);
                    power_off(&disks, dice);
                });
                volume.try_mount([]);
            });
            volume.kill_if_running();
            power_on(&volume, &disks);
        }
        volume.mount();
        workers.judge(ended, Crash::PowerCut);
        if dice.below(2) == 0 {
            volume.unmount();
        } else {
            volume.kill();
        }
    }
    volume.mount();
    volume.unmount();
    volume.own("fsck-dfs").arg(volume.folder()).ok();
}

/// One disk after the other: they need not lose the same moment.
fn power_off(disks: &[Disk], dice: &mut Dice) {
    let first = dice.below(disks.len() as u64) as usize;
    disks[first].power_off();
    for (number, disk) in disks.iter().enumerate() {
        if number != first {
            std::thread::sleep(Duration::from_millis(dice.below(100)));
            disk.power_off();
        }
    }
}

fn power_on(volume: &TestVolume, disks: &[Disk]) {
    Cmd::new("umount")
        .args(["-q", "-l"])
        .arg(volume.mountpoint())
        .run();
    disks.iter().for_each(Disk::power_on);
}

/// The host writes back what it likes when it likes: here it does so often, and in any order.
struct HostWrites {
    thread: std::thread::JoinHandle<()>,
    ending: Arc<AtomicBool>,
}

impl HostWrites {
    fn start(folder: &Path, state: &Path, seed: u64) -> Self {
        let ending = Arc::new(AtomicBool::new(false));
        let (also, mut dice) = (Arc::clone(&ending), Dice::new(seed));
        let (folder, state) = (folder.to_owned(), state.to_owned());
        // In some rounds it leaves everything in memory.
        let pause = [5, 30, 120, 100_000][dice.below(4) as usize];
        let thread = std::thread::spawn(move || {
            while !also.load(Ordering::SeqCst) {
                let wait = dice.below(pause).min(2_000);
                for _ in 0..=wait / 5 {
                    std::thread::sleep(Duration::from_millis(5));
                    if also.load(Ordering::SeqCst) {
                        return;
                    }
                }
                let which = [&folder, &folder, &state][dice.below(3) as usize];
                if dice.below(6) == 0 {
                    File::open(which)
                        .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
                        .ok();
                    continue;
                }
                let mut files = Vec::new();
                files_below(which, &mut files);
                if !files.is_empty() {
                    let file = files.swap_remove(dice.below(files.len() as u64) as usize);
                    // It may be gone, or the power may be.
                    File::open(file).and_then(|file| file.sync_data()).ok();
                }
            }
        });
        Self { thread, ending }
    }

    fn end(self) {
        self.ending.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), found),
            _ => found.push(entry.path()),
        }
    }
}
