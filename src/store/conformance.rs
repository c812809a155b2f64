//! What every [`BlockStore`] must do, as functions that the tests of each implementation call with a fresh store.
//!
//! A check that holds for one store only belongs beside that store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;

use super::{BlockStore, Put, PutKind};
use crate::base::{BlockId, PlainHash, StoreId};

/// A block whose content follows from `seed`, so that tests can check what they get.
pub fn block(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// A put of `bytes`.
pub fn put(bytes: &Bytes, kind: PutKind) -> Put {
    Put {
        id: BlockId::of(bytes),
        bytes: bytes.clone(),
        kind,
        plain: None,
    }
}

/// All checks, each on a store of its own.
pub fn all(mut fresh: impl FnMut() -> Arc<dyn BlockStore>) {
    keeps_what_it_is_given(&*fresh());
    puts_of_what_is_there_change_nothing(&*fresh());
    numbers_grow_and_none_is_lost(&*fresh());
    finds_plaintext_until_its_block_goes(&*fresh());
    lists_in_order_and_in_parts(&*fresh());
    counts_what_it_holds(&*fresh());
    many_threads(&fresh());
}

fn keeps_what_it_is_given(store: &dyn BlockStore) {
    let blocks: Vec<Bytes> = [0, 1, 100, 16 << 10, 300_000]
        .map(|len| block(len as u64, len))
        .to_vec();
    for bytes in &blocks {
        assert_eq!(store.get(&BlockId::of(bytes)).unwrap(), None);
        assert!(!store.contains(&BlockId::of(bytes)).unwrap());
    }
    let batch = blocks.iter().map(|b| put(b, PutKind::Dirty)).collect();
    store.put(batch).unwrap();
    for bytes in &blocks {
        assert_eq!(store.get(&BlockId::of(bytes)).unwrap().as_ref(), Some(bytes));
        assert!(store.contains(&BlockId::of(bytes)).unwrap());
    }
    let (gone, kept) = (BlockId::of(&blocks[4]), BlockId::of(&blocks[3]));
    store.remove(&[gone, BlockId([7; 32])]).unwrap();
    assert_eq!(store.get(&gone).unwrap(), None);
    assert!(store.contains(&kept).unwrap());
}

fn puts_of_what_is_there_change_nothing(store: &dyn BlockStore) {
    let bytes = block(1, 5000);
    let first = store.put(vec![put(&bytes, PutKind::Dirty)]).unwrap();
    let again = store
        .put(vec![put(&bytes, PutKind::Cached), put(&bytes, PutKind::Dirty)])
        .unwrap();
    assert!(again >= first);
    let stats = store.stats().unwrap();
    assert_eq!((stats.blocks, stats.bytes, stats.dirty_bytes), (1, 5000, 5000));
    // A cached copy of a dirty block does not make it evictable; a dirty copy of a cached one makes it dirty.
    let cached = block(2, 300);
    store.put(vec![put(&cached, PutKind::Cached)]).unwrap();
    assert_eq!(store.stats().unwrap().dirty_bytes, 5000);
    store.put(vec![put(&cached, PutKind::Dirty)]).unwrap();
    assert_eq!(store.stats().unwrap().dirty_bytes, 5300);
}

fn numbers_grow_and_none_is_lost(store: &dyn BlockStore) {
    let id = store.id();
    let mut last = store.last_seq();
    for seed in 0..20 {
        let seq = store.put(vec![put(&block(seed, 100), PutKind::Dirty)]).unwrap();
        assert!(seq > last, "{seq} after {last}");
        assert_eq!(store.last_seq(), seq);
        assert!(!store.may_be_lost(&id, seq));
        last = seq;
    }
    assert!(store.sync().unwrap() >= last);
    assert!(store.sync().unwrap() >= last, "with nothing to sync");
    assert!(!store.may_be_lost(&id, last) && !store.may_be_lost(&id, 0));
    assert!(store.may_be_lost(&id, store.last_seq() + 1));
    assert!(
        !store.may_be_lost(&StoreId([0xee; 16]), store.last_seq() + 1),
        "another store's numbers"
    );
}

fn finds_plaintext_until_its_block_goes(store: &dyn BlockStore) {
    let (old, new) = (block(1, 1000), block(2, 1000));
    let hash = PlainHash([3; 32]);
    let with_plain = |bytes: &Bytes| Put {
        plain: Some(hash),
        ..put(bytes, PutKind::Dirty)
    };
    assert_eq!(store.find_plain(&hash).unwrap(), None);
    store.put(vec![with_plain(&old)]).unwrap();
    assert_eq!(store.find_plain(&hash).unwrap(), Some(BlockId::of(&old)));
    store.put(vec![with_plain(&new)]).unwrap();
    assert_eq!(
        store.find_plain(&hash).unwrap(),
        Some(BlockId::of(&new)),
        "the last one"
    );
    store.remove(&[BlockId::of(&new), BlockId::of(&old)]).unwrap();
    assert_eq!(store.find_plain(&hash).unwrap(), None);
    // A block that came without its hash gets it when this device seals the same.
    store.put(vec![put(&new, PutKind::Cached)]).unwrap();
    store.put(vec![with_plain(&new)]).unwrap();
    assert_eq!(store.find_plain(&hash).unwrap(), Some(BlockId::of(&new)));
}

fn lists_in_order_and_in_parts(store: &dyn BlockStore) {
    let mut expected = BTreeSet::new();
    for seed in 0..25 {
        let bytes = block(seed, 10);
        let seq = store.put(vec![put(&bytes, PutKind::Dirty)]).unwrap();
        expected.insert((BlockId::of(&bytes), seq));
    }
    let mut found = Vec::new();
    loop {
        let part = store.list(found.last().map(|(id, _)| *id), 10).unwrap();
        assert!(part.len() <= 10);
        if part.is_empty() {
            break;
        }
        found.extend(part);
    }
    assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
    assert!(store.list(None, 0).unwrap().is_empty());
}

fn counts_what_it_holds(store: &dyn BlockStore) {
    let (a, b) = (block(1, 1000), block(2, 200));
    store
        .put(vec![put(&a, PutKind::Dirty), put(&b, PutKind::Cached)])
        .unwrap();
    let counts = || {
        let stats = store.stats().unwrap();
        (stats.blocks, stats.bytes, stats.dirty_bytes)
    };
    assert_eq!(counts(), (2, 1200, 1000));
    store
        .set_dirty(&[BlockId::of(&a), BlockId([9; 32])], false)
        .unwrap();
    assert_eq!(counts(), (2, 1200, 0));
    store
        .set_dirty(&[BlockId::of(&a), BlockId::of(&b)], true)
        .unwrap();
    assert_eq!(counts(), (2, 1200, 1200));
    store.remove(&[BlockId::of(&b)]).unwrap();
    assert_eq!(counts(), (1, 1000, 1000));
}

fn many_threads(store: &Arc<dyn BlockStore>) {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 12;
    let work = |thread: u64| {
        let store = store.clone();
        move || {
            for round in 0..ROUNDS {
                let own = block(thread << 32 | round, 2000);
                let shared = block(round, 3000);
                let seq = store
                    .put(vec![put(&own, PutKind::Dirty), put(&shared, PutKind::Cached)])
                    .unwrap();
                assert_eq!(
                    store.get(&BlockId::of(&own)).unwrap(),
                    Some(own),
                    "read your writes"
                );
                assert_eq!(store.get(&BlockId::of(&shared)).unwrap(), Some(shared));
                assert!(store.last_seq() >= seq);
                if round % 4 == 0 {
                    assert!(store.sync().unwrap() >= seq);
                }
                if round % 3 == 0 {
                    store
                        .remove(&[BlockId::of(&block(thread << 32 | round, 2000))])
                        .unwrap();
                }
            }
        }
    };
    let threads: Vec<_> = (1..=THREADS).map(|t| thread::spawn(work(t))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let kept = THREADS * (ROUNDS - ROUNDS.div_ceil(3)) + ROUNDS;
    assert_eq!(store.stats().unwrap().blocks, kept);
    assert_eq!(store.list(None, usize::MAX).unwrap().len() as u64, kept);
}
