//! A map against the standard library's, and the promise that equal content has an equal root.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a key had and has.
type Change = (Option<Vec<u8>>, Option<Vec<u8>>);

pub(super) fn entries(nodes: &MemoryNodes, root: &Root, from: &[u8]) -> Model {
    let mut all = Model::new();
    scan(nodes, root, from, |key, value| {
        assert!(all.last_key_value().is_none_or(|(last, _)| last.as_slice() < key));
        all.insert(key.to_vec(), value.to_vec());
        ControlFlow::Continue(())
    })
    .unwrap();
    all
}

fn built(nodes: &MemoryNodes, model: &Model) -> Root {
    let edits = model.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    update(nodes, &Root::EMPTY, &edits).unwrap()
}

fn apply(model: &mut Model, edits: &Edits) {
    for (key, value) in edits {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

fn differences(left: &Model, right: &Model) -> BTreeMap<Vec<u8>, Change> {
    let keys = left.keys().chain(right.keys());
    let pair = |key: &Vec<u8>| (key.clone(), (left.get(key).cloned(), right.get(key).cloned()));
    keys.map(pair)
        .filter(|(_, (left, right))| left != right)
        .collect()
}

/// Keys that are near each other and values of very different lengths, made of few numbers.
fn key(n: u16) -> Vec<u8> {
    let mut key = vec![(n >> 13) as u8; 16];
    key.extend(format!("{:x}", u32::from(n) * 7919 % 8192).into_bytes());
    key
}

fn value(n: u16) -> Vec<u8> {
    let len = match n % 97 {
        0 => 20_000,
        1 => 0,
        short => usize::from(short) * 4,
    };
    n.to_le_bytes().into_iter().cycle().take(len).collect()
}

fn edits(most: usize) -> impl Strategy<Value = Edits> {
    let entry = (any::<u16>(), proptest::option::weighted(0.7, any::<u16>()));
    // Ranges are taken too: many entries that are gone at once.
    let range = (
        any::<u16>(),
        0_u16..400,
        proptest::option::weighted(0.3, any::<u16>()),
    );
    let spread =
        |(start, count, n): (u16, u16, Option<u16>)| (0..count).map(move |i| (start.wrapping_add(i), n));
    let singles = proptest::collection::vec(entry, 0..most);
    let ranges = proptest::collection::vec(
        range.prop_map(move |range| spread(range).collect::<Vec<_>>()),
        0..4,
    );
    (singles, ranges).prop_map(|(singles, ranges)| {
        let all = singles.into_iter().chain(ranges.into_iter().flatten());
        all.map(|(n, new)| (key(n), new.map(value))).collect()
    })
}

fn cases(usual: u32) -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(60), ..ProptestConfig::default() })]

    #[test]
    fn any_way_to_some_content_ends_in_one_root(
        first in 0..9000_u16, steps in proptest::collection::vec(edits(60), 1..6)
    ) {
        let nodes = MemoryNodes::default();
        let mut model: Model = (0..first).map(|n| (key(n), value(n.wrapping_mul(31)))).collect();
        let mut root = built(&nodes, &model);
        for edits in &steps {
            let (before, old) = (root, model.clone());
            root = update(&nodes, &root, edits).unwrap();
            apply(&mut model, edits);
            prop_assert_eq!(&root, &built(&nodes, &model));
            prop_assert_eq!(root.len, model.len() as u64);
            prop_assert_eq!(&entries(&nodes, &root, b""), &model);
            let mut found = BTreeMap::new();
            diff(&nodes, &before, &root, |key, old, new| {
                found.insert(key.to_vec(), (old.map(<[u8]>::to_vec), new.map(<[u8]>::to_vec)));
                ControlFlow::Continue(())
            }).unwrap();
            prop_assert_eq!(&found, &differences(&old, &model));
        }
        let from = key(first / 2);
        let tail: Model = model.range(from.clone()..).map(|(k, v)| (k.clone(), v.clone())).collect();
        prop_assert_eq!(&entries(&nodes, &root, &from), &tail);
        for n in (0..first).step_by(211) {
            prop_assert_eq!(get(&nodes, &root, &key(n)).unwrap(), model.get(&key(n)).cloned());
        }
        let gone = model.keys().map(|key| (key.clone(), None)).collect();
        prop_assert_eq!(update(&nodes, &root, &gone).unwrap(), Root::EMPTY);
    }
}

/// Counts what is read and written.
#[derive(Default)]
struct Counted {
    nodes: MemoryNodes,
    got: Cell<u64>,
    put: Cell<u64>,
    put_bytes: Cell<u64>,
}

impl Nodes for Counted {
    type Error = Infallible;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Infallible> {
        self.got.set(self.got.get() + 1);
        self.nodes.get(id)
    }

    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>, Infallible> {
        self.put.set(self.put.get() + nodes.len() as u64);
        let bytes: usize = nodes.iter().map(Vec::len).sum();
        self.put_bytes.set(self.put_bytes.get() + bytes as u64);
        self.nodes.put(nodes)
    }
}

impl Counted {
    /// Nodes read, nodes written, bytes written since the last time.
    fn take(&self) -> (u64, u64, u64) {
        (self.got.take(), self.put.take(), self.put_bytes.take())
    }
}

/// An entry as a volume has them: about 150 bytes, half of them hashes.
fn file(n: u64) -> (Vec<u8>, Vec<u8>) {
    let directory = blake3::hash(&(n / 200).to_le_bytes());
    let key = [&directory.as_bytes()[..16], format!("IMG_{n:07}.jpg").as_bytes()].concat();
    let value = [blake3::hash(&n.to_le_bytes()).as_bytes(), &[7; 44][..]].concat();
    (key, [&value[..], &value[..10]].concat())
}

#[test]
fn a_change_reads_and_writes_little_of_a_large_map() {
    let nodes = Counted::default();
    let edits: Edits = (0..100_000).map(file).map(|(k, v)| (k, Some(v))).collect();
    let root = update(&nodes, &Root::EMPTY, &edits).unwrap();
    let (_, written, bytes) = nodes.take();
    let mean = bytes / written;
    assert!(
        (14_000..20_000).contains(&mean),
        "nodes of {mean} bytes on average"
    );
    let (key, _) = file(4711);
    for new in [Some(vec![1; 100]), None] {
        let changed = update(&nodes, &root, &Edits::from([(key.clone(), new)])).unwrap();
        let (read, written, bytes) = nodes.take();
        assert!(
            read < 20 && written <= 8 && bytes < 200_000,
            "{read} {written} {bytes}"
        );
        let mut found = 0;
        diff(&nodes, &root, &changed, |_, _, _| {
            found += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        let (read, ..) = nodes.take();
        assert!(found == 1 && read <= 16, "{read} nodes read to find {found}");
    }
    // What is so already is not written again.
    let (key, value) = file(4711);
    assert_eq!(
        update(&nodes, &root, &Edits::from([(key, Some(value))])).unwrap(),
        root
    );
    let absent = Edits::from([(b"absent".to_vec(), None)]);
    assert_eq!(update(&nodes, &root, &absent).unwrap(), root);
    assert_eq!(nodes.take().1, 0);
}

#[test]
fn a_walk_visits_what_is_wanted_and_nothing_twice() {
    let nodes = Counted::default();
    let edits: Edits = (0..20_000).map(file).map(|(k, v)| (k, Some(v))).collect();
    let root = update(&nodes, &Root::EMPTY, &edits).unwrap();
    let changed = update(&nodes, &root, &Edits::from([(file(99).0, None)])).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut visit = |root: &Root| {
        nodes.take();
        let mut count = 0;
        let each = |_: &[u8], _: &[u8]| {
            count += 1;
            ControlFlow::Continue(())
        };
        walk(&nodes, root, |id| seen.insert(*id), each).unwrap();
        (count, nodes.take().0)
    };
    assert_eq!(visit(&root).0, 20_000);
    let (count, read) = visit(&changed);
    assert!(count < 1000 && read < 10, "{count} entries in {read} nodes");
    assert_eq!(visit(&changed), (0, 0));
}

#[test]
fn the_largest_entries_fit_and_larger_ones_are_refused() {
    use crate::base::limits::{CHUNK_MAX, MAP_KEY_MAX, MAP_VALUE_MAX};
    let nodes = MemoryNodes::default();
    let key = |n: u8| vec![n; MAP_KEY_MAX];
    let edits: Edits = (0..60).map(|n| (key(n), Some(vec![n; MAP_VALUE_MAX]))).collect();
    let root = update(&nodes, &Root::EMPTY, &edits).unwrap();
    assert!(nodes.all().values().all(|node| node.len() <= CHUNK_MAX));
    assert_eq!(get(&nodes, &root, &key(9)).unwrap(), Some(vec![9; MAP_VALUE_MAX]));
    let refused = |key: Vec<u8>, value: Vec<u8>| update(&nodes, &root, &Edits::from([(key, Some(value))]));
    assert_eq!(
        refused(vec![0; MAP_KEY_MAX + 1], vec![]),
        Err(MapError::KeyTooLong(MAP_KEY_MAX + 1))
    );
    assert_eq!(
        refused(vec![], vec![0; MAP_VALUE_MAX + 1]),
        Err(MapError::ValueTooLong(MAP_VALUE_MAX + 1))
    );
}

/// Notes which nodes are read.
struct Read<'a>(&'a MemoryNodes, RefCell<Vec<BlockId>>);

impl Nodes for Read<'_> {
    type Error = Infallible;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Infallible> {
        self.1.borrow_mut().push(*id);
        self.0.get(id)
    }

    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>, Infallible> {
        self.0.put(nodes)
    }
}

#[test]
fn the_leaves_are_told_in_order_without_being_read() {
    for count in [0, 1, 50, 3000, 9000] {
        let nodes = MemoryNodes::default();
        let model: Model = (0..count).map(|n| (key(n), value(n))).collect();
        let root = built(&nodes, &model);
        let all = Read(&nodes, RefCell::default());
        scan(&all, &root, b"", |_, _| ControlFlow::Continue(())).unwrap();
        let (inner, mut found) = (Read(&nodes, RefCell::default()), Vec::new());
        leaves(&inner, &root, |ids| {
            found.extend_from_slice(ids);
            ControlFlow::Continue(())
        })
        .unwrap();
        let inner = inner.1.take();
        let is_leaf = |id: &BlockId| !inner.contains(id);
        let read: Vec<BlockId> = all.1.take().into_iter().filter(is_leaf).collect();
        assert_eq!(found, read, "{count} entries");
    }
}
