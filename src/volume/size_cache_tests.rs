//! Sizes across remounts, without a kernel: on tmpfs, which every Linux has there, and which keeps inode numbers.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::tests::{Bench, RW, write_all};
use super::{ROOT_INO, Volume, VolumeOptions, Wait};
use crate::folder::Folder;
use crate::folder::state::StateDir;
use crate::store::{NoFetch, Tiered};

const FILES: usize = 100;

struct Place {
    bench: Bench,
    _dir: tempfile::TempDir,
    state: StateDir,
}

impl Place {
    /// A volume of files whose sizes are their numbers, ended in order.
    fn filled() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self {
            bench: Bench::below(Path::new("/dev/shm")),
            state: StateDir::create(&dir.path().join("state")).unwrap(),
            _dir: dir,
        };
        let volume = place.start(false);
        for n in 0..FILES {
            write_all(&volume, &format!("n{n}"), &vec![b'x'; n]);
        }
        volume.shutdown().unwrap();
        place
    }

    fn start(&self, unclean: bool) -> Arc<Volume> {
        let tiered = Tiered::new(
            Arc::clone(&self.bench.store),
            Arc::new(NoFetch),
            Duration::from_secs(1),
        );
        let options = VolumeOptions {
            sync_interval: Duration::from_secs(3600),
            unclean,
            state: Some(self.state.clone()),
            ..VolumeOptions::default()
        };
        let folder = Folder::open(self.bench.path()).unwrap();
        Volume::start(folder, Arc::clone(&self.bench.keys), tiered, options).unwrap()
    }

    fn cache(&self) -> PathBuf {
        self.state.path().join("sizes")
    }

    /// Starts, finds every file with its right size, and ends in order: how many `.f` had to be read.
    fn misses(&self, unclean: bool) -> u64 {
        let volume = self.start(unclean);
        for n in 0..FILES {
            assert_eq!(size(&volume, &format!("n{n}")), n as u64);
        }
        volume.shutdown().unwrap();
        volume.sizes.lock().missed()
    }
}

fn size(volume: &Volume, name: &str) -> u64 {
    volume.lookup(ROOT_INO, OsStr::new(name)).unwrap().size
}

/// All but the empty one, whose `.f` is looked at by nobody.
const READ: u64 = FILES as u64 - 1;

#[test]
fn a_remount_knows_the_sizes_without_reading_a_manifest() {
    let place = Place::filled();
    assert_eq!(place.misses(false), 0);
    assert_eq!(place.misses(false), 0);
    let mode = std::fs::metadata(place.cache()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn without_its_cache_or_with_a_damaged_one_a_mount_shows_the_same() {
    let place = Place::filled();
    let whole = std::fs::read(place.cache()).unwrap();
    std::fs::remove_file(place.cache()).unwrap();
    assert_eq!(place.misses(false), READ);
    let mut altered = whole.clone();
    altered[100] ^= 1;
    for damaged in [&whole[..whole.len() - 1], &altered, b""] {
        std::fs::write(place.cache(), damaged).unwrap();
        let volume = place.start(false);
        assert!(!place.cache().exists(), "what is not believed is removed");
        assert_eq!(size(&volume, "n7"), 7);
        volume.shutdown().unwrap();
        assert_eq!(volume.sizes.lock().missed(), 1);
    }
    // Far longer than it can be, and without a disk for it.
    let long = std::fs::File::create(place.cache()).unwrap();
    long.set_len(1 << 40).unwrap();
    assert_eq!(place.misses(false), READ);
}

#[test]
fn after_an_end_without_order_nothing_is_believed_then_or_later() {
    let place = Place::filled();
    assert!(place.cache().exists());
    let volume = place.start(true);
    assert!(!place.cache().exists());
    volume.shutdown().unwrap();
    assert_eq!(place.misses(false), READ);
}

#[test]
fn a_manifest_changed_behind_the_mount_is_read_anew() {
    let place = Place::filled();
    let host = |n: usize| place.bench.path().join(format!("n{n}.f"));
    // In place, by another of the same length and time of last write; by a new inode; and by none.
    let times = std::fs::metadata(host(10)).unwrap().modified().unwrap();
    std::fs::write(host(10), std::fs::read(host(11)).unwrap()).unwrap();
    std::fs::File::options()
        .write(true)
        .open(host(10))
        .unwrap()
        .set_modified(times)
        .unwrap();
    std::fs::copy(host(21), host(20).with_extension("new")).unwrap();
    std::fs::rename(host(20).with_extension("new"), host(20)).unwrap();
    std::fs::write(host(30), b"").unwrap();
    let volume = place.start(false);
    let sizes = ["n10", "n11", "n20", "n21", "n30"].map(|name| size(&volume, name));
    assert_eq!(sizes, [11, 11, 21, 21, 0]);
    assert_eq!(volume.sizes.lock().missed(), 2);
}

#[test]
fn what_was_written_by_another_just_now_is_not_remembered() {
    let place = Place::filled();
    let host = |n: usize| place.bench.path().join(format!("n{n}.f"));
    let volume = place.start(false);
    std::fs::write(host(1), std::fs::read(host(2)).unwrap()).unwrap();
    assert_eq!(size(&volume, "n1"), 2);
    // It could be written again while the clock of the host stands still.
    std::fs::write(host(1), std::fs::read(host(3)).unwrap()).unwrap();
    assert_eq!(size(&volume, "n1"), 3);
    assert_eq!(volume.sizes.lock().missed(), 2);
}

#[test]
fn what_a_session_changes_or_removes_is_known_to_the_next() {
    let place = Place::filled();
    let volume = place.start(false);
    let ino = volume.lookup(ROOT_INO, OsStr::new("n5")).unwrap().ino;
    let opened = volume.open(ino, RW, Wait::Bounded).unwrap();
    volume.write(opened.fh, 5, &[b'y'; 1000], Wait::Bounded).unwrap();
    volume.flush(opened.fh).unwrap();
    volume.release(opened.fh);
    volume.unlink(ROOT_INO, OsStr::new("n6")).unwrap();
    volume.shutdown().unwrap();
    let volume = place.start(false);
    assert_eq!(size(&volume, "n5"), 1005);
    assert_eq!(volume.sizes.lock().missed(), 0);
    let kept = volume
        .sizes
        .lock()
        .settle(super::sizes::day_of(super::attributes::now()))
        .0
        .len();
    assert_eq!(kept as u64, READ - 1, "the removed one is gone");
}
