//! What is committed while programs move directories about is a tree, and all of it.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::devices_tests::{CALLER, Device, Dice, RW};
use super::storm_tests::{Storm, storms};
use crate::base::types::{FileKind, RenameMode};
use crate::object::map::{self, Root};
use crate::object::record::Record;
use crate::volume::{ROOT_INO, Volume, Wait};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Changes of each thread for one commit.
const CHANGES: usize = 100;

/// A directory that may be gone by the time it is looked at.
fn any_dir(volume: &Volume, dice: &mut Dice) -> (u64, OsString) {
    let (mut at, mut depth) = (ROOT_INO, dice.roll(4));
    loop {
        let name = OsString::from(NAMES[dice.roll(NAMES.len())]);
        let below = volume.lookup(at, &name).ok();
        match below.filter(|below| below.kind == FileKind::Directory) {
            Some(below) if depth > 0 => at = below.ino,
            _ => return (at, name),
        }
        depth -= 1;
    }
}

/// Stops the others however a test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One change; others change things as well, so that it may come to nothing.
fn change(volume: &Volume, dice: &mut Dice, kernel: &Mutex<()>) {
    let (dir, name) = any_dir(volume, dice);
    let (to, other) = any_dir(volume, dice);
    // Two changes of one directory come one after the other, and nothing is made where something is.
    let _one = kernel.lock();
    let free = |dir, name: &OsString| volume.lookup(dir, name).is_err();
    match dice.roll(10) {
        0..=2 if !free(dir, &name) => {}
        0 => drop(volume.mkdir(dir, &name, 0o755, &CALLER)),
        1 | 2 => {
            if let Ok((_, opened)) = volume.create(dir, &name, 0o644, RW, &CALLER) {
                drop(volume.write(opened.fh, 0, name.as_encoded_bytes(), Wait::Bounded));
                drop(volume.flush(opened.fh));
                volume.release(opened.fh);
            }
        }
        3 => drop(volume.rmdir(dir, &name)),
        4 => drop(volume.unlink(dir, &name)),
        5 => {
            if let Ok(attr) = volume.lookup(dir, &name)
                && free(to, &other)
            {
                drop(volume.link(attr.ino, to, &other));
            }
        }
        6 => drop(volume.rename(dir, &name, to, &other, RenameMode::Exchange, Wait::Bounded)),
        _ => drop(volume.rename(dir, &name, to, &other, RenameMode::Replace, Wait::Bounded)),
    }
}

fn root(device: &Device) -> Root {
    let head = device.engine().journal().head.unwrap();
    device.engine().snapshot(&head).unwrap().root
}

/// Nothing was found that was not in the tree already.
fn assert_same(device: &Device, before: Root, seed: u64) {
    let mut found = Vec::new();
    map::diff(
        &device.volume().tree_nodes(),
        &before,
        &root(device),
        |key, old, new| {
            let record =
                |value: Option<&[u8]>| value.map(|value| Record::decode_entry(key, value).unwrap().2);
            found.push(format!(
                "{} {:?}: {:?}, was {:?}",
                key[..4].iter().map(|b| format!("{b:02x}")).collect::<String>(),
                OsStr::from_bytes(&key[16..]),
                record(new),
                record(old)
            ));
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert!(found.is_empty(), "seed {seed}: {found:#?}");
}

#[test]
fn a_commit_beside_moving_directories_is_a_whole_tree() {
    for seed in storms(3) {
        let mut storm = Storm::new(seed, 1);
        let (stop, kernel, commits) = (AtomicBool::new(false), Mutex::new(()), AtomicUsize::new(0));
        let device = &storm.devices[0];
        std::thread::scope(|scope| {
            let stop = Stop(&stop);
            for n in 0..2 {
                let (volume, stop, kernel, commits) = (device.volume(), stop.0, &kernel, &commits);
                let mut dice = Dice::new(seed * 10 + n);
                scope.spawn(move || {
                    let mut done = 0;
                    while !stop.load(Ordering::SeqCst) {
                        // The tree does not grow faster than it is looked at.
                        if done < CHANGES * commits.load(Ordering::SeqCst) {
                            change(volume, &mut dice, kernel);
                            done += 1;
                        } else {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            for n in 0..30 {
                // As after a start, now and then.
                if n % 5 == 0 {
                    device.volume().note_everything();
                }
                commits.fetch_add(1, Ordering::SeqCst);
                device.engine().commit().unwrap();
                device.check_head(seed);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        device.engine().commit().unwrap();
        let before = root(device);
        device.volume().note_everything();
        device.engine().commit().unwrap();
        assert_same(device, before, seed);
        // Nor does the next start find anything.
        storm.devices[0].life = None;
        storm.devices[0].start();
        storm.devices[0].engine().commit().unwrap();
        assert_same(&storm.devices[0], before, seed);
    }
}
