//! What one file waits for keeps no other waiting: a fetch that never ends, and a collection while files come and go.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::spill::Spill;
use super::tests::{Bench, CALLER, RW, noise, read_all, write_all};
use super::{ROOT_INO, SeekTo, Synced, Volume, VolumeOptions, Wait};
use crate::base::StoreId;
use crate::base::types::{OpenMode, RenameMode};
use crate::folder::Folder;
use crate::store::{Fetch, FetchDone, MemoryStore, Tiered, Want};

/// Longest that a test waits for what ought to happen at once; a fetch here takes longer.
const SOON: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(600);

/// A peer that hangs.
#[derive(Default)]
struct Hangs(Mutex<Vec<FetchDone>>);

impl Fetch for Hangs {
    fn start(&self, _: Want, _: Instant, done: FetchDone) {
        self.0.lock().push(done);
    }
}

/// The volume of `bench` on another computer, which has none of the blocks.
fn elsewhere(bench: &Bench, fetch: &Arc<Hangs>) -> Arc<Volume> {
    let store = Arc::new(MemoryStore::new(StoreId([2; 16])));
    let tiered = Tiered::new(store, Arc::clone(fetch) as Arc<dyn Fetch>, TIMEOUT);
    let options = VolumeOptions {
        timeout: TIMEOUT,
        write_budget: 4 << 20,
        sync_interval: Duration::from_millis(200),
        remote: true,
        ..VolumeOptions::default()
    };
    Volume::start(
        Folder::open(bench.path()).unwrap(),
        Arc::clone(&bench.keys),
        tiered,
        options,
    )
    .unwrap()
}

#[test]
fn a_file_that_waits_for_the_network_keeps_no_other_waiting() {
    let bench = Bench::new();
    bench.write(&bench.start(), "away", &noise(8 << 20, 1));
    let fetch = Arc::new(Hangs::default());
    let volume = elsewhere(&bench, &fetch);
    let away = volume.lookup(ROOT_INO, OsStr::new("away")).unwrap().ino;
    let opened = volume.open(away, RW, Wait::Bounded).unwrap();
    // More than the budget, and the blocks at both its ends are only elsewhere.
    for step in 0..5 {
        let data = noise(1 << 20, 100 + step);
        volume
            .write(opened.fh, 100_000 + (step << 20), &data, Wait::Never)
            .unwrap();
    }
    let (ended, end) = channel();
    let reader = std::thread::spawn({
        let (volume, ended) = (Arc::clone(&volume), ended.clone());
        move || {
            let read = volume.read(opened.fh, 0, 100, &mut Vec::new(), Wait::Bounded);
            ended
                .send(read.map(drop).map_err(|error| error.to_string()))
                .unwrap();
        }
    });
    let flusher = std::thread::spawn({
        let volume = Arc::clone(&volume);
        move || drop(volume.flush(opened.fh))
    });
    while fetch.0.lock().is_empty() {
        std::thread::yield_now();
    }

    let (done, works) = channel();
    let worker = std::thread::spawn({
        let volume = Arc::clone(&volume);
        move || {
            let content = noise(24 << 20, 2);
            let ino = write_all(&volume, "here", &content);
            assert!(read_all(&volume, ino) == content);
            let opened = volume.open(ino, RW, Wait::Bounded).unwrap();
            volume.write(opened.fh, 5, b"changed", Wait::Bounded).unwrap();
            volume.fsync(opened.fh, Synced::All).unwrap();
            assert_eq!(volume.lseek(opened.fh, 0, SeekTo::Data).unwrap(), 0);
            volume.release(opened.fh);
            write_all(&volume, "also here", b"small");
            volume
                .rename(
                    ROOT_INO,
                    OsStr::new("here"),
                    ROOT_INO,
                    OsStr::new("moved"),
                    RenameMode::Replace,
                    Wait::Bounded,
                )
                .unwrap();
            volume.getattr(away, None).unwrap();
            let dir = volume.opendir(ROOT_INO).unwrap();
            let mut names = 0;
            volume
                .readdir(dir, 0, &mut |_| {
                    names += 1;
                    true
                })
                .unwrap();
            assert_eq!(names, 5);
            // The background makes durable what it can.
            while volume.durability.len() > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            done.send(()).unwrap();
        }
    });
    // A thread that reads requests from the kernel tries the file itself without waiting.
    for _ in 0..3 {
        drop(volume.write(opened.fh, 0, b"x", Wait::Never));
        drop(volume.flush_at_once(opened.fh));
    }
    works
        .recv_timeout(SOON)
        .expect("local files go on while a peer hangs");
    worker.join().unwrap();
    assert!(end.try_recv().is_err(), "the read still waits");

    // The peer is given up.
    let deadline = Instant::now() + SOON;
    loop {
        fetch.0.lock().clear();
        if let Ok(read) = end.try_recv() {
            assert!(read.unwrap_err().starts_with("away: block "));
            break;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    reader.join().unwrap();
    while !flusher.is_finished() {
        fetch.0.lock().clear();
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_file_that_is_closed_during_a_collection_keeps_its_blocks() {
    let bench = Bench::new();
    let volume = bench.start();
    let content = noise(6 << 20, 3);
    let (attr, opened) = volume
        .create(ROOT_INO, OsStr::new("f"), 0o644, RW, &CALLER)
        .unwrap();
    volume.write(opened.fh, 0, &content, Wait::Bounded).unwrap();
    // Sealed before the collection begins, named by the .f while it runs.
    volume
        .spill(&volume.handles.open_file(attr.ino).unwrap(), Spill::All)
        .unwrap();
    volume.blocks.begin_watch();
    let mut marked = volume.mark_folder().unwrap();
    volume.flush(opened.fh).unwrap();
    volume.release(opened.fh);
    assert!(volume.handles.open_file(attr.ino).is_none());
    volume.mark_open(&mut marked).unwrap();
    volume.sweep(&marked).unwrap();
    volume.blocks.end_watch();
    drop(volume);
    let volume = bench.start();
    let ino = volume.lookup(ROOT_INO, OsStr::new("f")).unwrap().ino;
    let read = OpenMode {
        read: true,
        ..OpenMode::default()
    };
    let opened = volume.open(ino, read, Wait::Bounded).unwrap();
    let mut all = Vec::new();
    volume
        .read(opened.fh, 0, 8 << 20, &mut all, Wait::Bounded)
        .unwrap();
    assert!(all == content);
}
