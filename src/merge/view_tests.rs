//! Trees as maps: the same edits, the same merges, the same trees as in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{Deed, Person, cases, deeds};
use super::*;
use crate::base::codec::DecodeError;
use crate::base::{BlockId, DeviceId, FileId};
use crate::object;
use crate::object::map::{self, MemoryNodes, Root, update};
use crate::object::record::{Body, Record, directory_entries, file_entries, key, own_key, version_hash};

/// The content that a number stands for.
fn stored(n: u8) -> object::Content {
    object::Content::Inline(vec![n; usize::from(n)])
}

/// A tree of the other tests, whose versions are numbers, with the versions that records give where it does not have them yet.
fn with_contents(tree: &MemoryTree) -> MemoryTree {
    let is_number = |hash: &[u8; 32]| hash.iter().all(|byte| *byte == hash[0]);
    let mut edits = Edits::new();
    for (id, node) in tree.nodes() {
        let mut node = node.clone();
        if let Content::File(version) = &mut node.content
            && is_number(&version.hash)
        {
            version.hash = version_hash(&stored(version.hash[0]));
        }
        edits.insert(*id, Some(node));
    }
    let mut out = MemoryTree::default();
    out.apply(&edits);
    out
}

/// A tree as a map.
fn mapped(nodes: &MemoryNodes, tree: &MemoryTree) -> Root {
    let known: BTreeMap<[u8; 32], u8> = (0..=255).map(|n| (version_hash(&stored(n)), n)).collect();
    let mut entries = BTreeMap::new();
    for (id, node) in tree.nodes() {
        let (places, meta) = (node.places.clone(), node.meta.clone());
        let body = match &node.content {
            Content::Directory => {
                entries.extend(directory_entries(*id, places.first().unwrap().clone(), meta));
                continue;
            }
            Content::Symlink(target) => Body::Symlink(target.clone()),
            Content::Special(kind, number) => Body::Special(*kind, *number),
            Content::File(version) => Body::File {
                content: stored(known[&version.hash]),
                size: u64::from(known[&version.hash]),
                author: version.author,
            },
        };
        entries.extend(file_entries(*id, places, meta, body));
    }
    let edits = entries
        .into_iter()
        .map(|(key, record)| (key, Some(record.encode())));
    update(nodes, &Root::EMPTY, &edits.collect()).unwrap()
}

fn sides(first: &[Deed], left: &[Deed], right: &[Deed]) -> [MemoryTree; 3] {
    let (base, left, right) = super::tests::sides(first, left, right);
    [base, left, right].map(|tree| with_contents(&tree))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(1000), ..ProptestConfig::default() })]

    #[test]
    fn maps_are_compared_and_merged_as_trees_in_memory(
        first in deeds(25), left in deeds(15), right in deeds(15), more in deeds(15)
    ) {
        let nodes = MemoryNodes::default();
        let [base, left, right] = sides(&first, &left, &right);
        let roots = [&base, &left, &right].map(|tree| mapped(&nodes, tree));
        let mut view = View::new(&nodes, &roots[0]);
        let edits = [view.edits_to(&roots[1]).unwrap(), view.edits_to(&roots[2]).unwrap()];
        prop_assert_eq!(&edits[0], &base.edits_to(&left));
        prop_assert_eq!(&edits[1], &base.edits_to(&right));
        let changed = update(&nodes, &roots[0], &view.records(&edits[0]).unwrap()).unwrap();
        prop_assert_eq!(changed, roots[1]);
        // And on from a merged tree, which may have conflict copies in it.
        let merged = merge(&view, &edits[0], &edits[1]).unwrap();
        prop_assert_eq!(&merged, &merge(&base, &edits[0], &edits[1]).unwrap());
        let mut both = base.clone();
        both.apply(&merged);
        let root = update(&nodes, &roots[0], &view.records(&merged).unwrap()).unwrap();
        prop_assert_eq!(root, mapped(&nodes, &both));
        let mut person = Person::new(3, right.clone());
        person.act(&more);
        let other = with_contents(&person.tree);
        let mut view = View::new(&nodes, &root);
        let edits = [view.edits_to(&roots[1]).unwrap(), view.edits_to(&mapped(&nodes, &other)).unwrap()];
        let merged = merge(&view, &edits[0], &edits[1]).unwrap();
        prop_assert_eq!(&merged, &merge(&both, &edits[0], &edits[1]).unwrap());
        both.apply(&merged);
        let root = update(&nodes, &root, &view.records(&merged).unwrap()).unwrap();
        prop_assert_eq!(root, mapped(&nodes, &both));
    }
}

fn node_at(name: &str, content: Content) -> Node {
    let place = Place {
        parent: ROOT,
        name: name.as_bytes().into(),
    };
    Node {
        places: [place].into(),
        content,
        meta: Meta::default(),
    }
}

fn file(n: u8) -> Content {
    Content::File(Version {
        hash: version_hash(&stored(n)),
        author: DeviceId([n; 32]),
    })
}

#[test]
fn a_directory_of_many_files_is_renamed_with_three_records() {
    let nodes = MemoryNodes::default();
    let directory = FileId([1; 16]);
    let mut tree = MemoryTree::default();
    tree.apply(&Edits::from([(
        directory,
        Some(node_at("old", Content::Directory)),
    )]));
    for n in 0..2000_u128 {
        let place = Place {
            parent: directory,
            name: format!("{n}").into_bytes().into(),
        };
        let mut node = node_at("", file(1));
        node.places = [place].into();
        tree.apply(&Edits::from([(
            FileId((n + (9 << 100)).to_le_bytes()),
            Some(node),
        )]));
    }
    let root = mapped(&nodes, &tree);
    let view = View::new(&nodes, &root);
    let moved = Edits::from([(directory, Some(node_at("new", Content::Directory)))]);
    let changes = view.records(&moved).unwrap();
    assert_eq!(changes.len(), 3);
    let changed = update(&nodes, &root, &changes).unwrap();
    assert_eq!(View::new(&nodes, &root).edits_to(&changed).unwrap(), moved);
}

#[test]
fn what_is_no_tree_is_an_error() {
    let nodes = MemoryNodes::default();
    let with = |entries: &[(Vec<u8>, Vec<u8>)]| {
        let edits: map::Edits = entries
            .iter()
            .map(|(key, value)| (key.clone(), Some(value.clone())))
            .collect();
        let root = update(&nodes, &Root::EMPTY, &edits).unwrap();
        View::new(&nodes, &Root::EMPTY).edits_to(&root)
    };
    let id = FileId([7; 16]);
    let body = Body::Symlink(b"target".as_slice().into());
    let meta = Meta::default();
    let record = Record::Node { id, meta, body }.encode();
    assert_eq!(with(&[(key(&ROOT, b"a"), record.clone())]).unwrap().len(), 1);
    let twice = with(&[
        (key(&ROOT, b"a"), record.clone()),
        (key(&ROOT, b"b"), record.clone()),
    ]);
    // Two files of one id are two files.
    let twice = twice.unwrap();
    let twin = crate::object::record::twin(&id, &key(&ROOT, b"b"));
    assert_eq!(twice.keys().copied().collect::<Vec<_>>(), [id, twin]);
    let misplaced = with(&[(own_key(&id), record)]);
    let expected = DecodeError::Invalid("a record under a key of another kind");
    assert!(
        matches!(misplaced, Err(ViewError::Record { id: found, error }) if found == id && error == expected)
    );
    let view = View::new(&nodes, &Root::EMPTY);
    let unknown = view.records(&Edits::from([(id, Some(node_at("a", file(1))))]));
    assert!(matches!(unknown, Err(ViewError::NoContent(found)) if found == id));
    // A node that is not there is an error, not an empty tree.
    let lost = Root {
        id: Some(BlockId([1; 32])),
        depth: 0,
        len: 1,
    };
    assert!(matches!(
        View::new(&nodes, &lost).node(&id),
        Err(ViewError::Map(_))
    ));
    assert!(matches!(
        View::new(&nodes, &lost).at(&node_at("a", file(1)).places.pop_first().unwrap()),
        Err(ViewError::Map(_))
    ));
}

#[test]
fn a_copy_is_found_by_its_id_where_nothing_else_tells_of_it() {
    let nodes = MemoryNodes::default();
    let id = FileId([1; 16]);
    let versions = |n| Edits::from([(id, Some(node_at("a", file(n))))]);
    let mut base = MemoryTree::default();
    base.apply(&versions(1));
    base.apply(&merge(&base, &versions(2), &versions(3)).unwrap());
    let copy = *base.nodes().keys().find(|id| id.is_derived()).unwrap();
    // The copy becomes a file of its own; the same conflict comes again.
    base.apply(&versions(1));
    base.apply(&Edits::from([(copy, Some(node_at("mine", file(4))))]));
    let root = mapped(&nodes, &base);
    let sides = [2, 3].map(|n| {
        let mut side = base.clone();
        side.apply(&versions(n));
        mapped(&nodes, &side)
    });
    let mut view = View::new(&nodes, &root);
    let edits = sides.map(|side| view.edits_to(&side).unwrap());
    let merged = merge(&view, &edits[0], &edits[1]).unwrap();
    assert_eq!(merged, merge(&base, &edits[0], &edits[1]).unwrap());
    let root = update(&nodes, &root, &view.records(&merged).unwrap()).unwrap();
    base.apply(&merged);
    assert_eq!((root, base.nodes().len()), (mapped(&nodes, &base), 3));
}
