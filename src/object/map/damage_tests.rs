//! Nodes that lie, alone or about each other: an error that names the node, never a wrong answer, a panic or an endless search.

use std::ops::ControlFlow;
use std::sync::Arc;

use proptest::prelude::*;

use super::node::{header, reference, write_entry};
use super::*;

/// A node of these entries, whatever they are.
fn node(level: u8, entries: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.raw(&header(level, entries.len() as u32));
    for (key, value) in entries {
        write_entry(level, key, value, &mut writer);
    }
    writer.into_vec()
}

fn leaf(keys: &[&[u8]]) -> Vec<u8> {
    let entries: Vec<(&[u8], Vec<u8>)> = keys.iter().map(|key| (*key, b"v".to_vec())).collect();
    node(0, &entries)
}

type Leaves = [Vec<u8>; 2];
type Said = [(&'static [u8], u64); 2];

/// A map of depth 1 over two leaves, whatever they are, of which the node above says these last keys and lengths.
fn over(nodes: &MemoryNodes, leaves: [Vec<u8>; 2], said: [(&[u8], u64); 2]) -> Root {
    let ids = nodes.put(&leaves).unwrap();
    let entries: Vec<(&[u8], Vec<u8>)> = (0..2)
        .map(|n| (said[n].0, reference(said[n].1, &ids[n])))
        .collect();
    let top = nodes.put(&[node(1, &entries)]).unwrap();
    Root {
        id: Some(top[0]),
        depth: 1,
        len: said[0].1 + said[1].1,
    }
}

/// What each way to read a map says of it.
fn all_ways(nodes: &MemoryNodes, root: &Root) -> Vec<Result<(), MapError<std::convert::Infallible>>> {
    let go_on = |_: &[u8], _: &[u8]| ControlFlow::Continue(());
    let keys: [&[u8]; 4] = [b"", b"b", b"d", b"z"];
    let gets = keys.map(|key| get(nodes, root, key).map(drop));
    let edits = |keys: &[&[u8]]| {
        keys.iter()
            .map(|key| (key.to_vec(), Some(vec![])))
            .collect::<Edits>()
    };
    let mut all = vec![
        scan(nodes, root, b"", go_on),
        walk(nodes, root, |_| true, go_on),
        diff(nodes, &Root::EMPTY, root, |_, _, _| ControlFlow::Continue(())),
        diff(nodes, root, &Root::EMPTY, |_, _, _| ControlFlow::Continue(())),
        update(nodes, root, &edits(&keys)).map(drop),
    ];
    all.extend(gets);
    all
}

#[test]
fn a_sound_map_of_two_leaves_is_read() {
    let nodes = MemoryNodes::default();
    let leaves = [leaf(&[b"a", b"b"]), leaf(&[b"c", b"d"])];
    let root = over(&nodes, leaves, [(b"b", 2), (b"d", 2)]);
    assert!(all_ways(&nodes, &root).iter().all(Result::is_ok));
}

#[test]
fn a_node_that_contradicts_the_one_above_is_damaged() {
    let sound = || [leaf(&[b"a", b"b"]), leaf(&[b"c", b"d"])];
    let [left, _] = sound();
    let cases: [(Leaves, Said, &str); 5] = [
        (sound(), [(b"b", 2), (b"e", 2)], "ends with another key"),
        (sound(), [(b"b", 2), (b"d", 3)], "another number of entries"),
        (
            [left.clone(), leaf(&[b"b", b"d"])],
            [(b"b", 2), (b"d", 2)],
            "begins before",
        ),
        (
            [left.clone(), node(1, &[(b"d", reference(2, &BlockId([0; 32])))])],
            [(b"b", 2), (b"d", 2)],
            "another level",
        ),
        ([left, Vec::new()], [(b"b", 2), (b"d", 2)], "truncated"),
    ];
    for (leaves, said, expected) in cases {
        let nodes = MemoryNodes::default();
        let wrong = BlockId::of(&leaves[1]);
        let root = over(&nodes, leaves, said);
        let ways = all_ways(&nodes, &root);
        // All but the two searches that the other leaf answers.
        assert!(
            ways.iter().filter(|way| way.is_err()).count() >= ways.len() - 2,
            "{expected}"
        );
        for way in ways {
            let Err(MapError::Damaged(id, error)) = way else {
                continue;
            };
            assert!(id == wrong && error.to_string().contains(expected), "{error}");
        }
    }
}

#[test]
fn a_root_that_lies_is_damaged() {
    let nodes = MemoryNodes::default();
    let root = over(
        &nodes,
        [leaf(&[b"a", b"b"]), leaf(&[b"c", b"d"])],
        [(b"b", 2), (b"d", 2)],
    );
    let lost = Some(BlockId([9; 32]));
    for wrong in [
        Root { depth: 0, ..root },
        Root { depth: 2, ..root },
        Root { len: 5, ..root },
        Root { id: lost, ..root },
    ] {
        for way in all_ways(&nodes, &wrong) {
            assert!(
                matches!(way, Err(MapError::Damaged(id, _)) if Some(id) == wrong.id),
                "{way:?}"
            );
        }
    }
}

#[test]
fn a_node_that_contradicts_itself_is_damaged() {
    let above = |len: u64| reference(len, &BlockId([1; 32]));
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = leaf(&[b"a", b"b"]);
        change(&mut bytes);
        bytes
    };
    let wrong = [
        leaf(&[]),
        leaf(&[b"b", b"a"]),
        leaf(&[b"a", b"a"]),
        leaf(&[&[b'a'; 513]]),
        node(0, &[(b"a", vec![0; (256 << 10) + 1])]),
        node(17, &[(b"a", above(1))]),
        with(|bytes| bytes[0] = 0),
        with(|bytes| bytes[4] = 2),
        with(|bytes| bytes[5] = 1),
        with(|bytes| bytes[6] = 1),
        with(|bytes| bytes[8] = 3),
        with(|bytes| bytes[8..12].fill(0xff)),
        with(|bytes| bytes.push(0)),
        with(|bytes| bytes.truncate(20)),
    ];
    for bytes in wrong {
        assert!(
            Node::decode(Arc::new(bytes.clone())).is_err(),
            "{:?}",
            &bytes[..bytes.len().min(40)]
        );
    }
    // More entries below than there are numbers.
    let nodes = MemoryNodes::default();
    let ids = nodes
        .put(&[node(1, &[(b"a", above(u64::MAX)), (b"b", above(2))])])
        .unwrap();
    let root = Root {
        id: Some(ids[0]),
        depth: 1,
        len: 1,
    };
    assert!(all_ways(&nodes, &root).iter().all(Result::is_err));
}

#[test]
fn roots_round_trip_and_have_one_form() {
    let root = Root {
        id: Some(BlockId([1; 32])),
        depth: 3,
        len: 4,
    };
    for root in [root, Root::EMPTY] {
        let mut writer = Writer::default();
        root.encode(&mut writer);
        let bytes = writer.into_vec();
        assert_eq!(bytes.len(), Root::ENCODED_LEN);
        assert_eq!(Root::decode(&mut Reader::new(&bytes)), Ok(root));
    }
    for wrong in [
        Root { depth: 17, ..root },
        Root { len: 0, ..root },
        Root {
            id: None,
            len: 0,
            ..root
        },
    ] {
        let mut writer = Writer::default();
        wrong.encode(&mut writer);
        assert!(
            Root::decode(&mut Reader::new(&writer.into_vec())).is_err(),
            "{wrong:?}"
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_in_place_of_any_node_never_panic(which: prop::sample::Index, at: prop::sample::Index, byte: u8) {
        let nodes = MemoryNodes::default();
        let edits: Edits = (0..2000_u32).map(|n| (n.to_be_bytes().to_vec(), Some(vec![1; 40]))).collect();
        let root = update(&nodes, &Root::EMPTY, &edits).unwrap();
        let all: Vec<(BlockId, Arc<Vec<u8>>)> = nodes.all().into_iter().collect();
        let (id, bytes) = &all[which.index(all.len())];
        let mut bytes = bytes.to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let nodes = Changed { nodes, id: *id, bytes: Arc::new(bytes) };
        let mut count = 0;
        let each = |_: &[u8], _: &[u8]| { count += 1; ControlFlow::Continue(()) };
        if scan(&nodes, &root, b"", each).is_ok() {
            prop_assert_eq!(count, root.len);
        }
        let _ = update(&nodes, &root, &edits);
    }
}

/// Nodes one of which has other bytes than its id says.
struct Changed {
    nodes: MemoryNodes,
    id: BlockId,
    bytes: Arc<Vec<u8>>,
}

impl Nodes for Changed {
    type Error = std::convert::Infallible;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Self::Error> {
        if *id == self.id {
            Ok(Arc::clone(&self.bytes))
        } else {
            self.nodes.get(id)
        }
    }

    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>, Self::Error> {
        self.nodes.put(nodes)
    }
}
