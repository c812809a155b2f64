//! Random operations on the SQLite store and on the memory store, which is its model: both must always say the same.

use proptest::prelude::*;

use super::tests::{dir_and_path, open};
use super::*;
use crate::store::conformance::block;
use crate::store::{MemoryStore, PutKind};

/// Blocks and hashes that the operations choose from: few, so that they meet again.
const BLOCKS: u64 = 6;

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<(u64, bool, Option<u8>)>),
    Remove(Vec<u64>),
    SetDirty(Vec<u64>, bool),
    Sync,
    Tidy,
    Reopen,
}

fn bytes_of(seed: u64) -> Bytes {
    // From nothing over one page to several.
    block(seed, seed as usize * 9_000)
}

fn step() -> impl Strategy<Value = Step> {
    let seeds = || prop::collection::vec(0..BLOCKS, 0..4);
    let put = (0..BLOCKS, any::<bool>(), prop::option::of(0..3_u8));
    prop_oneof![
        6 => prop::collection::vec(put, 0..4).prop_map(Step::Put),
        2 => seeds().prop_map(Step::Remove),
        2 => (seeds(), any::<bool>()).prop_map(|(ids, dirty)| Step::SetDirty(ids, dirty)),
        1 => Just(Step::Sync),
        1 => Just(Step::Tidy),
        1 => Just(Step::Reopen),
    ]
}

fn ids(seeds: &[u64]) -> Vec<BlockId> {
    seeds.iter().map(|seed| BlockId::of(&bytes_of(*seed))).collect()
}

fn apply(store: &dyn BlockStore, step: &Step) {
    match step {
        Step::Put(puts) => {
            let batch = puts.iter().map(|(seed, dirty, plain)| Put {
                id: BlockId::of(&bytes_of(*seed)),
                bytes: bytes_of(*seed),
                kind: if *dirty { PutKind::Dirty } else { PutKind::Cached },
                plain: plain.map(|n| PlainHash([n; 32])),
            });
            store.put(batch.collect()).unwrap();
        }
        Step::Remove(seeds) => store.remove(&ids(seeds)).unwrap(),
        Step::SetDirty(seeds, dirty) => store.set_dirty(&ids(seeds), *dirty).unwrap(),
        Step::Sync => assert_eq!(store.sync().unwrap(), store.last_seq()),
        Step::Tidy | Step::Reopen => {}
    }
}

fn compare(store: &dyn BlockStore, model: &dyn BlockStore) {
    for seed in 0..BLOCKS {
        let id = BlockId::of(&bytes_of(seed));
        assert_eq!(store.get(&id).unwrap(), model.get(&id).unwrap());
        assert_eq!(store.contains(&id).unwrap(), model.contains(&id).unwrap());
    }
    for n in 0..3 {
        let hash = PlainHash([n; 32]);
        assert_eq!(store.find_plain(&hash).unwrap(), model.find_plain(&hash).unwrap());
    }
    let listed = |store: &dyn BlockStore| -> Vec<BlockId> {
        store
            .list(None, 100)
            .unwrap()
            .into_iter()
            .map(|(id, _)| id)
            .collect()
    };
    assert_eq!(listed(store), listed(model));
    assert_eq!(store.stats().unwrap(), model.stats().unwrap());
    for (_, seq) in store.list(None, 100).unwrap() {
        assert!(seq <= store.last_seq() && !store.may_be_lost(&store.id(), seq));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_what_its_model_is(steps in prop::collection::vec(step(), 1..12)) {
        let (_dir, path) = dir_and_path();
        let model = MemoryStore::default();
        let mut store = open(&path, 0);
        let mut last = store.last_seq();
        for step in &steps {
            match step {
                Step::Tidy => store.tidy().unwrap(),
                Step::Reopen => {
                    drop(store);
                    store = open(&path, 0);
                    prop_assert!(!store.opened_unclean());
                }
                _ => apply(&store, step),
            }
            apply(&model, step);
            compare(&store, &model);
            prop_assert!(store.last_seq() >= last);
            last = store.last_seq();
        }
        prop_assert_eq!(store.check().unwrap(), Vec::<String>::new());
    }
}
