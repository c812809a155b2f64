//! Random changes on three computers at once, with cut cables, `kill -9` and power cuts: in the end all have one tree, and nothing that was
//! acknowledged is lost.
//!
//! `DFS_TEST_SEED` repeats the order of things (their timing cannot be repeated).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::trees::{come_together, fall_silent, together};
use crate::harness::command::Cmd;
use crate::harness::disk::Disk;
use crate::harness::namespaces::Switch;
use crate::harness::tree::Tree;
use crate::harness::volume::TestVolume;
use crate::harness::{Dice, noise, seed};

/// Computers.
const COUNT: usize = 3;

/// What begins like this belongs to one computer alone, which remembers what it wrote.
const OWN: &str = "own-";

/// The computer whose disks lose their power.
const POWERLESS: usize = 2;

#[test]
fn a_storm_of_changes_on_three_computers_ends_in_one_tree() {
    storm(2, Duration::from_secs(8), None);
}

#[test]
fn a_storm_of_changes_with_power_cuts_ends_in_one_tree() {
    storm(1, Duration::from_secs(8), Some("ext4"));
}

#[test]
#[ignore = "takes half an hour: only with --long"]
fn many_storms_of_changes_on_three_computers_end_in_one_tree() {
    storm(30, Duration::from_secs(30), None);
}

#[test]
#[ignore = "takes twenty minutes: only with --long"]
fn many_storms_of_changes_with_power_cuts_end_in_one_tree() {
    for kind in ["ext4", "xfs"] {
        storm(15, Duration::from_secs(30), Some(kind));
    }
}

/// What one computer wrote for itself and nobody changed afterwards: name and content.
type Kept = BTreeMap<String, Vec<u8>>;

/// A computer as those see it that work on it.
struct Place {
    mountpoint: PathBuf,
    /// Whether only what was synced is sure to stay.
    powerless: bool,
    /// Held for writing while there is no mount, so that nobody works in the bare folder below.
    mounted: RwLock<()>,
}

/// With a kind of filesystem: the folder and the state of the last computer are on disks of it, which lose their power now and then.
fn storm(rounds: u64, length: Duration, kind: Option<&str>) {
    let mut dice = Dice::new(seed());
    let switch = Switch::new(COUNT);
    let place = tempfile::Builder::new()
        .prefix("dfs-test-disk-")
        .tempdir()
        .unwrap();
    let disks: Vec<Disk> = kind
        .into_iter()
        .flat_map(|kind| ["folder", "state"].map(|name| Disk::new(place.path(), name, kind, 2 << 10)))
        .collect();
    let computer = |n| {
        let computer = TestVolume::empty().on(switch.path(n));
        match &disks[..] {
            [folder, state] if n == POWERLESS => {
                let folder = folder.at.join("folder");
                fs::create_dir(&folder).unwrap();
                computer.moved(Some(&folder), Some(&state.at.join("state")))
            }
            _ => computer,
        }
    };
    let mut all = together((0..COUNT).map(computer).collect());
    let places: Vec<Place> = all
        .iter()
        .enumerate()
        .map(|(n, volume)| Place {
            mountpoint: volume.mountpoint().to_owned(),
            powerless: n == POWERLESS && !disks.is_empty(),
            mounted: RwLock::new(()),
        })
        .collect();
    let mut kept = Kept::new();
    for round in 0..rounds {
        let (stop, mut dices) = (AtomicBool::new(false), Vec::new());
        dices.resize_with(COUNT, || Dice::new(dice.below(u64::MAX)));
        std::thread::scope(|scope| {
            let work = |(n, mut dice): (usize, Dice)| {
                let (place, stop) = (&places[n], &stop);
                scope.spawn(move || worked(place, &format!("{n}-{round}"), &mut dice, stop))
            };
            let workers: Vec<_> = dices.into_iter().enumerate().map(work).collect();
            let end = Instant::now() + length;
            let mut is_cut = disks.is_empty();
            while Instant::now() < end || !is_cut {
                std::thread::sleep(Duration::from_millis(500 + dice.below(1500)));
                is_cut |= disturb(&switch, &mut all, &places, &disks, &mut dice);
            }
            stop.store(true, Ordering::SeqCst);
            for worker in workers {
                kept.extend(worker.join().unwrap());
            }
        });
        let all: Vec<&TestVolume> = all.iter().collect();
        come_together(&all);
        let tree = fall_silent(&all);
        eprintln!(
            "round {round}: {} names, {} of them kept by one",
            tree.len(),
            kept.len()
        );
        all_is_kept(all[round as usize % COUNT], &tree, &kept);
    }
}

/// Cuts off one of the computers for some time, kills its daemon, or takes the power from its disks: then it says so.
fn disturb(
    switch: &Switch,
    all: &mut [TestVolume],
    places: &[Place],
    disks: &[Disk],
    dice: &mut Dice,
) -> bool {
    let victim = dice.below(COUNT as u64) as usize;
    if dice.below(3) == 0 || (!places[victim].powerless && dice.below(4) == 0) {
        eprintln!("computer {victim} is cut off");
        switch.plug(victim, false);
        std::thread::sleep(Duration::from_millis(500 + dice.below(2500)));
        switch.plug(victim, true);
    } else if places[victim].powerless && dice.below(4) > 0 {
        eprintln!("computer {victim} has no power");
        // They need not lose the same moment.
        let first = dice.below(2) as usize;
        disks[first].power_off();
        std::thread::sleep(Duration::from_millis(dice.below(100)));
        disks[1 - first].power_off();
        all[victim].kill();
        let _nobody = places[victim].mounted.write().unwrap();
        Cmd::new("umount")
            .args(["-q", "-l"])
            .arg(all[victim].mountpoint())
            .run();
        disks.iter().for_each(Disk::power_on);
        all[victim].mount();
        return true;
    } else {
        eprintln!("the daemon of computer {victim} is killed");
        all[victim].kill();
        let _nobody = places[victim].mounted.write().unwrap();
        all[victim].mount();
    }
    false
}

/// Every file that one computer wrote for itself is as it was when its close was acknowledged.
fn all_is_kept(volume: &TestVolume, tree: &Tree, kept: &Kept) {
    for (name, content) in kept {
        assert!(
            tree.contains_key(Path::new(name)),
            "{name} was written and is lost"
        );
        assert!(
            fs::read(volume.at(name)).unwrap() == *content,
            "{name} has other content than was written"
        );
    }
    let mut ours = tree.keys().map(|path| path.to_string_lossy());
    let conflict = ours.find(|name| name.starts_with(OWN) && name.contains(".conflict-"));
    assert_eq!(conflict, None, "nobody else wrote there");
}

/// Random changes until told to stop. Most of what does not work does not because of what others do: that is their right.
fn worked(place: &Place, who: &str, dice: &mut Dice, stop: &AtomicBool) -> Kept {
    let mut kept = Kept::new();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        {
            let _mounted = place.mounted.read().unwrap();
            if dice.below(8) == 0 {
                let (name, content) = (
                    format!("{OWN}{who}-{number}"),
                    noise(number, dice.below(30_000) as usize),
                );
                if written(place, &name, &content).is_ok() {
                    kept.insert(name, content);
                }
            } else {
                change(&place.mountpoint, &format!("{who}-{number}"), dice).ok();
            }
        }
        std::thread::sleep(Duration::from_millis([0, 0, 10, 100][dice.below(4) as usize]));
    }
    kept
}

/// Writes a file that is to stay.
fn written(place: &Place, name: &str, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(place.mountpoint.join(name))?;
    file.write_all(content)?;
    if place.powerless {
        file.sync_all()?;
        fs::File::open(&place.mountpoint)?.sync_all()?;
    }
    drop(file);
    Ok(())
}

/// All directories and all other names, but those that belong to one computer.
fn listed(root: &Path) -> std::io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut dirs, mut files, mut at) = (vec![root.to_owned()], Vec::new(), 0);
    while let Some(dir) = dirs.get(at).cloned() {
        at += 1;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(OWN.as_bytes()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok((dirs, files))
}

fn change(root: &Path, text: &str, dice: &mut Dice) -> std::io::Result<()> {
    let (dirs, files) = listed(root)?;
    let name = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][dice.below(10) as usize];
    let new = pick(&dirs, dice).join(name);
    // The root itself does not move.
    let any = || dirs[1..].iter().chain(&files).cloned().collect::<Vec<_>>();
    let deed = dice.below(100);
    if deed < 25 || files.is_empty() {
        let len = [0, 10, 5_000, 200_000][dice.below(4) as usize];
        return fs::write(new, format!("{text}{}", "x".repeat(len)));
    }
    let file = pick(&files, dice);
    match deed {
        25..40 => fs::OpenOptions::new()
            .append(true)
            .open(file)?
            .write_all(text.as_bytes()),
        40..45 => fs::OpenOptions::new()
            .write(true)
            .open(file)?
            .set_len([0, 3, 1_000][dice.below(3) as usize]),
        45..60 => fs::rename(pick(&any(), dice), new),
        60..68 => fs::remove_file(file),
        68..78 => fs::create_dir(new),
        78..81 => fs::remove_dir(pick(&dirs, dice)),
        81..86 => fs::hard_link(file, new),
        86..92 => {
            let mode = [0o755, 0o644, 0o700, 0o600][dice.below(4) as usize];
            fs::set_permissions(pick(&any(), dice), fs::Permissions::from_mode(mode))
        }
        92..95 => symlink(text, new),
        95..97 => {
            let label = ["user.a", "user.b"][dice.below(2) as usize];
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(pick(&any(), dice), label, text.as_bytes(), flags)?;
            Ok(())
        }
        _ => {
            let mut temp = new.clone().into_os_string();
            temp.push(OsStr::new(&format!(".{text}")));
            fs::write(&temp, format!("replaced by {text}"))?;
            fs::rename(temp, new)
        }
    }
}

fn pick(from: &[PathBuf], dice: &mut Dice) -> PathBuf {
    from[dice.below(from.len() as u64) as usize].clone()
}
