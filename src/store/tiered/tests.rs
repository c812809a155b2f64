//! Reading through the tiers, with fetches that answer when and what the test says.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::store::conformance::{block, put};
use crate::store::fault::{Fault, FaultStore, Op};
use crate::store::{FetchDone, MemoryStore, NoFetch, PutKind};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);

fn checked(bytes: Bytes) -> CheckedBlock {
    CheckedBlock::new(BlockId::of(&bytes), bytes).unwrap()
}

fn want(bytes: &Bytes) -> Want {
    Want {
        ahead: false,
        id: BlockId::of(bytes),
        root: None,
    }
}

/// Has blocks elsewhere, counts who asks, and answers from its own threads.
#[derive(Default)]
struct Elsewhere {
    blocks: Mutex<HashMap<BlockId, Bytes>>,
    asked: AtomicUsize,
    /// Answers wait here until the test lets them go.
    held: Mutex<Vec<(Want, FetchDone)>>,
    hold: AtomicBool,
    /// Blocks that somebody came to wait for.
    hurried: Mutex<Vec<BlockId>>,
}

impl Elsewhere {
    fn with(blocks: &[Bytes]) -> Arc<Self> {
        let elsewhere = Self::default();
        for bytes in blocks {
            elsewhere.blocks.lock().insert(BlockId::of(bytes), bytes.clone());
        }
        Arc::new(elsewhere)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn answer(&self, want: Want, done: FetchDone) {
        let found = self.blocks.lock().get(&want.id).cloned();
        std::thread::spawn(move || done(found.map(checked).ok_or(FetchError::Alone { id: want.id })));
    }

    fn release(&self) {
        self.hold.store(false, Ordering::SeqCst);
        for (want, done) in self.held.lock().drain(..) {
            self.answer(want, done);
        }
    }
}

impl Fetch for Elsewhere {
    fn start(&self, want: Want, _deadline: Instant, done: FetchDone) {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.hold.load(Ordering::SeqCst) {
            self.held.lock().push((want, done));
        } else {
            self.answer(want, done);
        }
    }

    fn hurry(&self, id: &BlockId) {
        self.hurried.lock().push(*id);
    }
}

fn tiered(fetch: Arc<dyn Fetch>, timeout: Duration) -> (Arc<MemoryStore>, Arc<Tiered>) {
    let store = Arc::new(MemoryStore::default());
    (store.clone(), Tiered::new(store, fetch, timeout))
}

#[test]
fn a_block_is_read_from_the_store_without_asking_anyone() {
    let elsewhere = Elsewhere::with(&[]);
    let (store, tiered) = tiered(elsewhere.clone(), LONG);
    let bytes = block(1, 1000);
    store.put(vec![put(&bytes, PutKind::Dirty)]).unwrap();
    assert_eq!(
        tiered.get_local(&BlockId::of(&bytes)).unwrap(),
        Some(bytes.clone())
    );
    assert_eq!(tiered.get(want(&bytes)).unwrap(), bytes);
    assert_eq!(elsewhere.asked(), 0);
}

#[test]
fn a_miss_is_fetched_once_and_kept_as_cached() {
    let bytes = block(1, 1000);
    let elsewhere = Elsewhere::with(std::slice::from_ref(&bytes));
    let (store, tiered) = tiered(elsewhere.clone(), LONG);
    assert_eq!(tiered.get_local(&BlockId::of(&bytes)).unwrap(), None);
    assert_eq!(elsewhere.asked(), 0, "get_local asks nobody");
    assert_eq!(tiered.get(want(&bytes)).unwrap(), bytes);
    assert_eq!(tiered.get(want(&bytes)).unwrap(), bytes);
    tiered.close();
    assert_eq!(elsewhere.asked(), 1);
    assert_eq!(store.get(&BlockId::of(&bytes)).unwrap(), Some(bytes));
    let stats = store.stats().unwrap();
    assert_eq!((stats.bytes, stats.dirty_bytes), (1000, 0));
}

#[test]
fn concurrent_readers_share_one_fetch() {
    const READERS: usize = 16;
    let blocks: Vec<Bytes> = (0..20).map(|seed| block(seed, 500)).collect();
    let elsewhere = Elsewhere::with(&blocks);
    // Without memory, only the flights can keep them together.
    let options = TieredOptions {
        timeout: LONG,
        memory: 0,
    };
    let store = Arc::new(MemoryStore::default());
    let tiered = Tiered::with_options(store, elsewhere.clone(), options);
    let barrier = Barrier::new(READERS);
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                for bytes in &blocks {
                    barrier.wait();
                    assert_eq!(&tiered.get(want(bytes)).unwrap(), bytes);
                }
            });
        }
    });
    assert_eq!(elsewhere.asked(), blocks.len());
}

#[test]
fn a_damaged_local_block_is_fetched_and_replaced_or_named() {
    let (healed, lost) = (block(1, 1000), block(2, 1000));
    let elsewhere = Elsewhere::with(std::slice::from_ref(&healed));
    let (store, tiered) = tiered(elsewhere, LONG);
    for bytes in [&healed, &lost] {
        store.put(vec![put(bytes, PutKind::Dirty)]).unwrap();
        store.damage(&BlockId::of(bytes), block(3, 1000));
    }
    let id = BlockId::of(&healed);
    assert!(matches!(tiered.get_local(&id), Err(ReadError::DamagedHere(found)) if found == id));
    assert_eq!(tiered.get(want(&healed)).unwrap(), healed);
    let error = tiered.get(want(&lost)).unwrap_err();
    assert!(
        matches!(&error, ReadError::Damaged { id, .. } if *id == BlockId::of(&lost)),
        "{error}"
    );
    tiered.close();
    assert_eq!(store.get(&id).unwrap(), Some(healed));
    assert_eq!(
        store.stats().unwrap().dirty_bytes,
        2000,
        "a healed dirty block stays dirty"
    );
}

#[test]
fn wrong_bytes_never_reach_the_reader_or_the_store() {
    struct Liar(Bytes);
    impl Fetch for Liar {
        fn start(&self, _want: Want, _deadline: Instant, done: FetchDone) {
            done(Ok(checked(self.0.clone())));
        }
    }
    let (store, tiered) = tiered(Arc::new(Liar(block(2, 1000))), LONG);
    let bytes = block(1, 1000);
    for _ in 0..2 {
        let error = tiered.get(want(&bytes)).unwrap_err();
        assert!(matches!(error, ReadError::Unavailable(_)), "{error}");
    }
    tiered.prefetch(&[want(&bytes)]);
    tiered.close();
    assert_eq!(tiered.get_local(&BlockId::of(&bytes)).unwrap(), None);
    assert_eq!(store.stats().unwrap().blocks, 0);
}

#[test]
fn a_fetch_that_never_answers_ends_in_time() {
    let bytes = block(1, 1000);
    let elsewhere = Elsewhere::with(std::slice::from_ref(&bytes));
    elsewhere.hold.store(true, Ordering::SeqCst);
    let (_, tiered) = tiered(elsewhere.clone(), SHORT);
    let error = tiered.get(want(&bytes)).unwrap_err();
    assert!(error.to_string().contains("no answer in time"), "{error}");
    elsewhere.hold.store(false, Ordering::SeqCst);
    assert_eq!(
        tiered.get(want(&bytes)).unwrap(),
        bytes,
        "the next reader starts anew"
    );
}

#[test]
fn a_fetch_that_is_dropped_is_an_answer() {
    struct Dropper;
    impl Fetch for Dropper {
        fn start(&self, _want: Want, _deadline: Instant, done: FetchDone) {
            drop(done);
        }
    }
    let (_, tiered) = tiered(Arc::new(Dropper), LONG);
    let error = tiered.get(want(&block(1, 10))).unwrap_err();
    assert!(error.to_string().contains("dropped"), "{error}");
    tiered.prefetch(&[want(&block(2, 10))]);
    assert_eq!(tiered.shared.prefetching.load(Ordering::SeqCst), 0);
}

#[test]
fn prefetches_are_bounded_and_readers_join_them() {
    let blocks: Vec<Bytes> = (0..PREFETCH_MAX as u64 + 10)
        .map(|seed| block(seed, 100))
        .collect();
    let elsewhere = Elsewhere::with(&blocks);
    elsewhere.hold.store(true, Ordering::SeqCst);
    let (store, tiered) = tiered(elsewhere.clone(), LONG);
    let ahead = |bytes| Want {
        ahead: true,
        ..want(bytes)
    };
    let wants: Vec<Want> = blocks.iter().map(ahead).collect();
    tiered.prefetch(&wants);
    tiered.prefetch(&wants);
    assert_eq!(elsewhere.asked(), PREFETCH_MAX);
    assert!(elsewhere.hurried.lock().is_empty());
    // What somebody waits for is not held up by them, nor behind them.
    let (waited, last) = (want(&blocks[1]), want(&blocks[PREFETCH_MAX]));
    tiered.prefetch(&[waited, last]);
    tiered.prefetch(&[waited, last]);
    assert_eq!(
        *elsewhere.hurried.lock(),
        [waited.id],
        "once, and only what was ahead"
    );
    assert_eq!(elsewhere.asked(), PREFETCH_MAX + 1);
    assert_eq!(
        tiered.get_local(&wants[0].id).unwrap(),
        None,
        "does not wait for a prefetch"
    );
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| tiered.get(wants[0]).unwrap());
        elsewhere.release();
        assert_eq!(reader.join().unwrap(), blocks[0]);
    });
    assert_eq!(elsewhere.asked(), PREFETCH_MAX + 1);
    for (want, bytes) in wants.iter().zip(&blocks) {
        assert_eq!(&tiered.get(*want).unwrap(), bytes);
    }
    tiered.close();
    assert_eq!(elsewhere.asked(), blocks.len());
    assert_eq!(store.stats().unwrap().blocks as usize, blocks.len());
    assert_eq!(tiered.shared.prefetching.load(Ordering::SeqCst), 0);
    assert!(tiered.shared.flights.lock().is_empty());
}

#[test]
fn a_reader_of_a_failed_prefetch_asks_again() {
    let bytes = block(1, 100);
    let elsewhere = Elsewhere::with(&[]);
    elsewhere.hold.store(true, Ordering::SeqCst);
    let (_, tiered) = tiered(elsewhere.clone(), LONG);
    tiered.prefetch(&[want(&bytes)]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| tiered.get(want(&bytes)));
        // The prefetch fails; what the reader itself asks for then is there.
        let (lost, done) = elsewhere.held.lock().pop().unwrap();
        elsewhere.blocks.lock().insert(lost.id, bytes.clone());
        elsewhere.hold.store(false, Ordering::SeqCst);
        done(Err(FetchError::Alone { id: lost.id }));
        assert_eq!(reader.join().unwrap().unwrap(), bytes);
    });
}

#[test]
fn alone_says_so_and_a_failing_store_is_named() {
    let (_, alone) = tiered(Arc::new(NoFetch), LONG);
    let bytes = block(1, 100);
    let error = alone.get(want(&bytes)).unwrap_err();
    assert!(
        matches!(error, ReadError::Unavailable(FetchError::Alone { .. })),
        "{error}"
    );

    let fault = Fault::Before(StoreError::Io("planned".into()));
    let broken = Arc::new(FaultStore::new(Arc::new(MemoryStore::default()), move |op, _| {
        (op == Op::Get).then(|| fault.clone())
    }));
    let failing = Tiered::new(broken.clone(), Arc::new(NoFetch), LONG);
    assert!(matches!(
        failing.get(want(&bytes)),
        Err(ReadError::Store(StoreError::Io(_)))
    ));
    // A store that fails does not keep a block from a reader that others can serve.
    let served = Tiered::new(broken, Elsewhere::with(std::slice::from_ref(&bytes)), LONG);
    assert_eq!(served.get(want(&bytes)).unwrap(), bytes);
}

#[test]
fn a_full_disk_does_not_keep_a_block_from_its_reader() {
    let bytes = block(1, 100);
    let fault = Fault::Before(StoreError::NoSpace("here".into()));
    let full = Arc::new(FaultStore::new(Arc::new(MemoryStore::default()), move |op, _| {
        (op == Op::Put).then(|| fault.clone())
    }));
    let tiered = Tiered::new(full, Elsewhere::with(std::slice::from_ref(&bytes)), LONG);
    assert_eq!(tiered.get(want(&bytes)).unwrap(), bytes);
    tiered.close();
    assert_eq!(tiered.get(want(&bytes)).unwrap(), bytes);
}

#[test]
fn a_reader_faster_than_the_store_loses_nothing() {
    let blocks: Vec<Bytes> = (0..admit::QUEUE as u64 + 100)
        .map(|seed| block(seed, 10))
        .collect();
    let inner = Arc::new(MemoryStore::default());
    // Stores nothing until the test lets it.
    let gate = Arc::new(Mutex::new(()));
    let waits = gate.clone();
    let store = Arc::new(FaultStore::new(inner.clone(), move |op, _| {
        if op == Op::Put {
            drop(waits.lock());
        }
        None
    }));
    let tiered = Tiered::new(store, Elsewhere::with(&blocks), LONG);
    let closed = gate.lock();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for bytes in &blocks {
                assert_eq!(&tiered.get(want(bytes)).unwrap(), bytes);
            }
        });
        // Only now does the store begin to keep up.
        while !tiered.shared.admit.read().as_ref().is_some_and(Sender::is_full) {
            std::thread::yield_now();
        }
        drop(closed);
        reader.join().unwrap();
    });
    tiered.close();
    assert_eq!(inner.stats().unwrap().blocks as usize, blocks.len());
}
