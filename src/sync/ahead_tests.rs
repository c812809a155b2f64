//! Content of one device brought to another one before it is read there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::ahead::{Bring, Brought};
use super::history_tests::One;
use super::{Engine, Heads, Journal};
use crate::base::{BlockId, DeviceId, StoreId};
use crate::folder::Folder;
use crate::folder::state::StateDir;
use crate::keys::{RootSecret, VolumeKeys};
use crate::store::{BlockStore, CheckedBlock, Fetch, FetchDone, FetchError, MemoryStore, Tiered, Want};
use crate::volume::{Volume, VolumeOptions};

/// The first device, as the second one sees it.
struct There {
    store: Arc<MemoryStore>,
    head: BlockId,
    /// It gives nothing that is asked for ahead.
    is_mean: Arc<AtomicBool>,
}

impl Fetch for There {
    fn start(&self, want: Want, _deadline: Instant, done: FetchDone) {
        let refused = want.ahead && self.is_mean.load(Ordering::SeqCst);
        let found = self.store.get(&want.id).unwrap().filter(|_| !refused);
        let checked = found.and_then(|bytes| CheckedBlock::new(want.id, bytes));
        done(checked.ok_or(FetchError::Alone { id: want.id }));
    }
}

impl Heads for There {
    fn known(&self) -> Vec<(DeviceId, BlockId)> {
        vec![(DeviceId([1; 32]), self.head)]
    }

    fn publish(&self, _: BlockId) {}
}

struct Two {
    _temp: tempfile::TempDir,
    _volume: Arc<Volume>,
    store: Arc<MemoryStore>,
    engine: Engine,
    is_mean: Arc<AtomicBool>,
}

/// A second device that has come to the tree of the first one.
fn second(one: &One) -> Two {
    let head = one.commit();
    let is_mean = Arc::<AtomicBool>::default();
    let there = || There {
        store: Arc::clone(&one.store),
        head,
        is_mean: Arc::clone(&is_mean),
    };
    let temp = tempfile::tempdir().unwrap();
    std::fs::create_dir(temp.path().join("folder")).unwrap();
    let state = StateDir::create(&temp.path().join("state")).unwrap();
    let store = Arc::new(MemoryStore::new(StoreId([2; 16])));
    let blocks = Arc::clone(&store) as Arc<dyn BlockStore>;
    let volume = Volume::start(
        Folder::open(&temp.path().join("folder")).unwrap(),
        Arc::new(VolumeKeys::from_root(&RootSecret::from_bytes([7; 32]), 1).unwrap()),
        Tiered::new(blocks, Arc::new(there()), Duration::from_secs(2)),
        VolumeOptions {
            sync_interval: Duration::from_secs(3600),
            remote: true,
            retained: Some(Vec::new()),
            ..VolumeOptions::default()
        },
    )
    .unwrap();
    let heads = Arc::new(there());
    let engine = Engine::new(
        &volume,
        &state,
        Journal::default(),
        heads,
        DeviceId([2; 32]),
        true,
    );
    assert!(engine.round(true, true).unwrap().applied);
    assert_eq!(engine.journal().head, Some(head));
    Two {
        _temp: temp,
        _volume: volume,
        store,
        engine,
        is_mean,
    }
}

impl Two {
    fn bring(&self, after: Option<&[u8]>, how: impl Fn(&Path) -> Bring) -> Brought {
        let head = self.engine.journal().head.unwrap();
        let brought = self
            .engine
            .bring_ahead((None, &head), after, &how, &|| true)
            .unwrap();
        // What was fetched is on its way to the store.
        std::thread::sleep(Duration::from_millis(100));
        brought
    }

    fn stored(&self) -> u64 {
        self.store.stats().unwrap().blocks
    }
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut out);
    out
}

fn all(_: &Path) -> Bring {
    Bring::Ahead
}

#[test]
fn what_is_meant_is_brought_once() {
    let one = One::new();
    one.mkdir("dir");
    one.write("dir/large", &noise(1, 3_000_000));
    one.write("other", &noise(2, 500_000));
    one.write("small", b"lies in its manifest");
    let two = second(&one);
    let before = two.stored();
    let in_dir = |path: &Path| match path.starts_with("dir") {
        true => Bring::Ahead,
        false => Bring::No,
    };
    let brought = two.bring(None, in_dir);
    assert!(
        brought.ahead.blocks > 1 && brought.ahead.bytes >= 3_000_000,
        "{brought:?}"
    );
    assert_eq!((brought.ahead.missing, &brought.stopped_at), (0, &None));
    assert!(two.stored() >= before + brought.ahead.blocks);
    // It is here now; the rest comes when it is meant.
    assert_eq!(two.bring(None, in_dir), Brought::default());
    let rest = two.bring(None, all);
    assert!((500_000..600_000).contains(&rest.ahead.bytes), "{rest:?}");
    assert_eq!(two.bring(None, all), Brought::default());
    // Who wrote it has it.
    let head = one.commit();
    let own = one.engine.bring_ahead((None, &head), None, &all, &|| true);
    assert_eq!(own.unwrap(), Brought::default());
    // Between a snapshot and itself nothing changed.
    let same = two.engine.bring_ahead((Some(&head), &head), None, &all, &|| true);
    assert_eq!(same.unwrap(), Brought::default());
}

#[test]
fn what_cannot_be_had_stands_in_nobodys_way() {
    let one = One::new();
    for n in 0..6 {
        one.write(&format!("file-{n}"), &noise(10 + n, 400_000));
    }
    let two = second(&one);
    two.is_mean.store(true, Ordering::SeqCst);
    let first = two.bring(None, all);
    assert!(first.ahead.missing >= 4 && first.ahead.blocks == 0, "{first:?}");
    let after = first.stopped_at.unwrap();
    // Gone on with behind that, to the end.
    two.is_mean.store(false, Ordering::SeqCst);
    let rest = two.bring(Some(&after), all);
    assert_eq!((rest.ahead.missing, &rest.stopped_at), (0, &None));
    assert!((800_000..1_000_000).contains(&rest.ahead.bytes), "{rest:?}");
    // And from the beginning for what was left.
    let left = two.bring(None, all);
    assert!((1_600_000..1_900_000).contains(&left.ahead.bytes), "{left:?}");
    // Whoever is told to stop has done nothing.
    let head = two.engine.journal().head.unwrap();
    let stopped = two
        .engine
        .bring_ahead((None, &head), None, &all, &|| false)
        .unwrap();
    assert!(stopped.stopped_at.is_some() && stopped.ahead == Brought::default().ahead);
}

#[test]
fn whoever_is_stopped_in_the_last_file_is_not_done() {
    let one = One::new();
    one.write("only", &noise(1, 400_000));
    let two = second(&one);
    let head = two.engine.journal().head.unwrap();
    let stopped = two
        .engine
        .bring_ahead((None, &head), None, &all, &|| false)
        .unwrap();
    assert_eq!(
        (stopped.ahead.blocks, stopped.stopped_at.as_deref()),
        (0, Some(&[][..]))
    );
    // From where it stopped it is all still to be brought.
    let brought = two.bring(stopped.stopped_at.as_deref(), all);
    assert!(brought.ahead.bytes >= 400_000 && brought.stopped_at.is_none());
}
