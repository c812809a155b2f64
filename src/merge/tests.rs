//! What a merge must never do, whatever was changed; and what comes of each pair of changes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::base::DeviceId;
use crate::base::types::{FileKind, Timestamp};

/// So many, or as many as `PROPTEST_CASES` says.
pub(super) fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(usual)
}

/// Changes trees as a user of one device does.
#[derive(Debug, Clone)]
pub(super) struct Person {
    device: u8,
    pub(super) tree: MemoryTree,
    made: u32,
}

/// What somebody does, with numbers that choose among what there is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Deed {
    Create(u8, u8, u8),
    Directory(u8, u8),
    Symlink(u8, u8, u8),
    Edit(u8, u8),
    Move(u8, u8, u8),
    Link(u8, u8, u8),
    Remove(u8),
    Mode(u8, u8),
    Xattr(u8, u8, u8),
}

pub(super) fn deeds(most: usize) -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        3 => any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Deed::Create(a, b, c)),
        2 => any::<(u8, u8)>().prop_map(|(a, b)| Deed::Directory(a, b)),
        1 => any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Deed::Symlink(a, b, c)),
        3 => any::<(u8, u8)>().prop_map(|(a, b)| Deed::Edit(a, b)),
        4 => any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Deed::Move(a, b, c)),
        1 => any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Deed::Link(a, b, c)),
        3 => any::<u8>().prop_map(Deed::Remove),
        1 => any::<(u8, u8)>().prop_map(|(a, b)| Deed::Mode(a, b)),
        1 => any::<(u8, u8, u8)>().prop_map(|(a, b, c)| Deed::Xattr(a, b, c)),
    ];
    proptest::collection::vec(deed, 0..most)
}

impl Person {
    pub(super) fn new(device: u8, tree: MemoryTree) -> Self {
        Self {
            device,
            tree,
            made: 0,
        }
    }

    pub(super) fn act(&mut self, deeds: &[Deed]) {
        for deed in deeds {
            self.one(*deed);
        }
    }

    fn version(&self, content: u8) -> Content {
        // Few contents, so that two people now and then write the same.
        Content::File(Version {
            hash: [content % 12; 32],
            author: DeviceId([self.device; 32]),
        })
    }

    fn pick(&self, n: u8, wanted: impl Fn(&Node) -> bool) -> Option<FileId> {
        let all: Vec<FileId> = self
            .tree
            .nodes()
            .iter()
            .filter(|(_, n)| wanted(n))
            .map(|(id, _)| *id)
            .collect();
        (!all.is_empty()).then(|| all[usize::from(n) % all.len()])
    }

    fn directory(&self, n: u8) -> FileId {
        match n % 3 {
            0 => ROOT,
            _ => self.pick(n, |node| node.content.is_directory()).unwrap_or(ROOT),
        }
    }

    fn place(&self, directory: u8, name: u8) -> Place {
        Place {
            parent: self.directory(directory),
            name: format!("{}.txt", name % 6).into_bytes().into(),
        }
    }

    fn put(&mut self, id: FileId, node: Option<Node>) {
        self.tree.apply(&Edits::from([(id, node)]));
    }

    fn make(&mut self, place: Place, content: Content) {
        if self.tree.at(&place).unwrap().is_some() {
            return;
        }
        self.made += 1;
        let mut id = [self.device; 16];
        id[..4].copy_from_slice(&self.made.to_be_bytes());
        // The clocks of these people are wrong.
        let mtime = Timestamp {
            secs: i64::from(self.made) * 7 % 13,
            nanos: 0,
        };
        let meta = Meta {
            mode: 0o644,
            mtime,
            ..Meta::default()
        };
        let node = Node {
            places: BTreeSet::from([place]),
            content,
            meta,
        };
        self.put(FileId(id), Some(node));
    }

    fn change(&mut self, id: FileId, change: impl FnOnce(&mut Node)) {
        if let Some(mut node) = self.tree.node(&id).unwrap() {
            change(&mut node);
            self.put(id, Some(node));
        }
    }

    fn is_inside(&self, mut at: FileId, directory: FileId) -> bool {
        while at != ROOT {
            if at == directory {
                return true;
            }
            at = self.tree.nodes()[&at].places.first().unwrap().parent;
        }
        false
    }

    fn one(&mut self, deed: Deed) {
        match deed {
            Deed::Create(d, n, content) => self.make(self.place(d, n), self.version(content)),
            Deed::Directory(d, n) => self.make(self.place(d, n), Content::Directory),
            Deed::Symlink(d, n, to) => {
                self.make(self.place(d, n), Content::Symlink(vec![b'a' + to % 3].into()))
            }
            Deed::Edit(n, content) => {
                if let Some(id) = self.pick(n, |node| matches!(node.content, Content::File(_))) {
                    let version = self.version(content);
                    self.change(id, |node| {
                        if !node.content.reads_as(&version) {
                            node.content = version;
                            node.meta.mtime.secs += 1;
                        }
                    });
                }
            }
            Deed::Move(n, d, name) => {
                let place = self.place(d, name);
                let Some(id) = self.pick(n, |_| true) else { return };
                if self.tree.at(&place).unwrap().is_none() && !self.is_inside(place.parent, id) {
                    self.change(id, |node| {
                        node.places.pop_first();
                        node.places.insert(place);
                    });
                }
            }
            Deed::Link(n, d, name) => {
                let place = self.place(d, name);
                let file = self.pick(n, |node| !node.content.is_directory());
                if let Some(id) = file.filter(|_| self.tree.at(&place).unwrap().is_none()) {
                    self.change(id, |node| {
                        node.places.insert(place);
                    });
                }
            }
            Deed::Remove(n) => {
                if let Some(id) = self.pick(n, |_| true) {
                    self.remove(id);
                }
            }
            Deed::Mode(n, mode) => {
                if let Some(id) = self.pick(n, |_| true) {
                    self.change(id, |node| node.meta.mode = u32::from(mode));
                }
            }
            Deed::Xattr(n, key, value) => {
                if let Some(id) = self.pick(n, |_| true) {
                    let value: Box<[u8]> = vec![value].into();
                    self.change(id, |node| {
                        drop(node.meta.xattrs.insert(vec![b'a' + key % 3].into(), value))
                    });
                }
            }
        }
    }

    fn remove(&mut self, id: FileId) {
        let inside: Vec<FileId> = self
            .tree
            .nodes()
            .iter()
            .filter(|(_, node)| node.places.iter().any(|place| place.parent == id))
            .map(|(id, _)| *id)
            .collect();
        for child in inside {
            let only = self.tree.nodes()[&child]
                .places
                .iter()
                .all(|place| place.parent == id);
            match only {
                true => self.remove(child),
                false => self.change(child, |node| node.places.retain(|place| place.parent != id)),
            }
        }
        self.put(id, None);
    }
}

/// A tree is one: names are unique, directories are there and not inside themselves.
pub(super) fn check(tree: &MemoryTree) {
    let mut names = BTreeSet::new();
    for (id, node) in tree.nodes() {
        assert!(!node.places.is_empty(), "{id:?} has no name");
        assert!(
            !node.content.is_directory() || node.places.len() == 1,
            "{id:?} has two places"
        );
        for place in &node.places {
            assert!(names.insert(place), "two are called {place:?}");
            assert_eq!(tree.at(place), Ok(Some(*id)));
            let (mut at, mut steps) = (place.parent, 0);
            while at != ROOT {
                let parent = tree
                    .nodes()
                    .get(&at)
                    .unwrap_or_else(|| panic!("{id:?} is in nothing"));
                assert!(parent.content.is_directory());
                at = parent.places.first().unwrap().parent;
                steps += 1;
                assert!(steps <= tree.nodes().len(), "{id:?} is inside itself");
            }
        }
    }
}

fn contents(tree: &MemoryTree) -> BTreeSet<[u8; 32]> {
    let hash = |node: &Node| match node.content {
        Content::File(version) => Some(version.hash),
        _ => None,
    };
    tree.nodes().values().filter_map(hash).collect()
}

/// What a side wrote since the base, by file.
fn written(base: &MemoryTree, side: &MemoryTree) -> BTreeSet<[u8; 32]> {
    let hash = |(id, node): (&FileId, &Node)| match node.content {
        Content::File(version)
            if base
                .node(id)
                .unwrap()
                .is_none_or(|old| !old.content.reads_as(&node.content)) =>
        {
            Some(version.hash)
        }
        _ => None,
    };
    side.nodes().iter().filter_map(hash).collect()
}

pub(super) fn merged(base: &MemoryTree, left: &MemoryTree, right: &MemoryTree) -> MemoryTree {
    let mut tree = base.clone();
    tree.apply(&merge(base, &base.edits_to(left), &base.edits_to(right)).unwrap());
    tree
}

pub(super) fn sides(first: &[Deed], left: &[Deed], right: &[Deed]) -> (MemoryTree, MemoryTree, MemoryTree) {
    let mut one = Person::new(1, MemoryTree::default());
    one.act(first);
    let base = one.tree.clone();
    let mut two = Person::new(2, base.clone());
    one.act(left);
    two.act(right);
    (base, one.tree, two.tree)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(2000), ..ProptestConfig::default() })]

    #[test]
    fn a_merge_is_a_tree_the_same_from_either_side_and_has_all_that_was_written(
        first in deeds(25), left in deeds(15), right in deeds(15)
    ) {
        let (base, left, right) = sides(&first, &left, &right);
        check(&left);
        check(&right);
        let both = merged(&base, &left, &right);
        check(&both);
        prop_assert_eq!(&both, &merged(&base, &right, &left));
        let found = contents(&both);
        for hash in written(&base, &left).union(&written(&base, &right)) {
            prop_assert!(found.contains(hash), "{:?} is lost", hash[0]);
        }
        prop_assert_eq!(&both, &merged(&base, &both, &both));
    }

    #[test]
    fn what_only_one_side_changed_is_as_it_made_it(first in deeds(25), left in deeds(15)) {
        let (base, left, _) = sides(&first, &left, &[]);
        prop_assert_eq!(&merged(&base, &left, &base), &left);
        prop_assert_eq!(&merged(&base, &left, &left), &left);
    }
}

/// A tree from paths, `d/` for directories; ids follow the paths.
pub(super) fn tree(paths: &[(&str, u8)]) -> MemoryTree {
    let mut tree = MemoryTree::default();
    for (path, content) in paths {
        let is_directory = path.ends_with('/');
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let content = match is_directory {
            true => Content::Directory,
            false => Content::File(Version {
                hash: [*content; 32],
                author: DeviceId([*content; 32]),
            }),
        };
        let place = Place {
            parent: id_of(parent),
            name: name.as_bytes().into(),
        };
        let node = Node {
            places: BTreeSet::from([place]),
            content,
            meta: Meta::default(),
        };
        tree.apply(&Edits::from([(id_of(path), Some(node))]));
    }
    tree
}

pub(super) fn id_of(path: &str) -> FileId {
    let mut id = ROOT;
    if !path.is_empty() {
        id.0.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..16]);
    }
    id
}

pub(super) fn change(tree: &mut MemoryTree, path: &str, change: impl FnOnce(&mut Node)) {
    let id = id_of(path);
    let mut node = tree.node(&id).unwrap().unwrap();
    change(&mut node);
    tree.apply(&Edits::from([(id, Some(node))]));
}

pub(super) fn moved(tree: &mut MemoryTree, path: &str, parent: &str, name: &str) {
    let place = Place {
        parent: id_of(parent),
        name: name.as_bytes().into(),
    };
    change(tree, path, |node| node.places = BTreeSet::from([place]));
}

pub(super) fn written_to(tree: &mut MemoryTree, path: &str, content: u8) {
    let version = Version {
        hash: [content; 32],
        author: DeviceId([content; 32]),
    };
    change(tree, path, |node| node.content = Content::File(version));
}

pub(super) fn removed(tree: &mut MemoryTree, paths: &[&str]) {
    let edits = paths.iter().map(|path| (id_of(path), None)).collect();
    tree.apply(&edits);
}

/// Every path with its content, zero for a directory.
fn listed(tree: &MemoryTree) -> BTreeMap<String, u8> {
    let path = |mut place: Place| {
        let mut path = String::from_utf8(place.name.clone().into()).unwrap();
        while place.parent != ROOT {
            place = tree.nodes()[&place.parent].places.first().unwrap().clone();
            path = format!("{}/{path}", String::from_utf8(place.name.clone().into()).unwrap());
        }
        path
    };
    let mut all = BTreeMap::new();
    for node in tree.nodes().values() {
        let content = match &node.content {
            Content::File(version) => version.hash[0],
            _ => 0,
        };
        all.extend(node.places.iter().map(|place| (path(place.clone()), content)));
    }
    all
}

pub(super) fn expect(base: &MemoryTree, left: &MemoryTree, right: &MemoryTree, paths: &[(&str, u8)]) {
    let both = merged(base, left, right);
    check(&both);
    assert_eq!(both, merged(base, right, left));
    let expected: BTreeMap<String, u8> = paths
        .iter()
        .map(|(path, content)| ((*path).into(), *content))
        .collect();
    assert_eq!(listed(&both), expected);
}

/// A base with a directory and two files, and the two sides that begin as it.
pub(super) fn three() -> (MemoryTree, MemoryTree, MemoryTree) {
    let base = tree(&[("d/", 0), ("d/a", 1), ("b", 2)]);
    (base.clone(), base.clone(), base)
}

#[test]
fn edit_and_edit_keep_both() {
    let (base, mut left, mut right) = three();
    written_to(&mut left, "d/a", 7);
    written_to(&mut right, "d/a", 8);
    let copy = "d/a.conflict-07070707-07070707";
    expect(&base, &left, &right, &[("d", 0), ("d/a", 8), (copy, 7), ("b", 2)]);
    written_to(&mut right, "d/a", 7);
    expect(&base, &left, &right, &[("d", 0), ("d/a", 7), ("b", 2)]);
}

#[test]
fn the_same_conflict_once_more_leaves_what_became_of_its_copy() {
    let (base, mut left, mut right) = three();
    written_to(&mut left, "d/a", 7);
    written_to(&mut right, "d/a", 8);
    let mut base = merged(&base, &left, &right);
    let copy = *base.nodes().keys().find(|id| id.is_derived()).unwrap();
    written_to(&mut base, "d/a", 1);
    let mut node = base.node(&copy).unwrap().unwrap();
    let place = Place {
        parent: ROOT,
        name: b"mine".as_slice().into(),
    };
    node.places = [place].into();
    let mut own = node.clone();
    own.content = Content::File(Version {
        hash: [9; 32],
        author: DeviceId([9; 32]),
    });
    let name = "d/a.conflict-07070707-07070707";
    let rest = [("d", 0), ("d/a", 8), ("b", 2)];
    // Renamed it is still a copy; written to it is something else, and there is a new one.
    for (node, more) in [(node, &[("mine", 7)][..]), (own, &[("mine", 9), (name, 7)])] {
        base.apply(&Edits::from([(copy, Some(node))]));
        let (mut left, mut right) = (base.clone(), base.clone());
        written_to(&mut left, "d/a", 7);
        written_to(&mut right, "d/a", 8);
        expect(&base, &left, &right, &[&rest[..], more].concat());
    }
}

#[test]
fn edit_and_rename_meet_also_in_a_directory_that_moved() {
    let (base, mut left, mut right) = three();
    written_to(&mut left, "d/a", 7);
    moved(&mut right, "d", "", "e");
    moved(&mut right, "d/a", "d", "c");
    expect(&base, &left, &right, &[("e", 0), ("e/c", 7), ("b", 2)]);
}

#[test]
fn edit_beats_delete_and_its_directory_reappears() {
    let (base, mut left, mut right) = three();
    removed(&mut left, &["d", "d/a"]);
    written_to(&mut right, "d/a", 7);
    expect(&base, &left, &right, &[("d", 0), ("d/a", 7), ("b", 2)]);
    let (_, _, mut right) = three();
    change(&mut right, "d/a", |node| node.meta.mode = 0o600);
    expect(&base, &left, &right, &[("b", 2)]);
    let (_, _, mut right) = three();
    moved(&mut right, "b", "d", "b");
    expect(&base, &left, &right, &[("d", 0), ("d/b", 2)]);
    let (_, _, mut right) = three();
    moved(&mut right, "d", "", "e");
    expect(&base, &left, &right, &[("b", 2)]);
}

#[test]
fn two_renames_end_in_one_place() {
    let (base, mut left, mut right) = three();
    moved(&mut left, "b", "", "x");
    moved(&mut right, "b", "", "y");
    expect(&base, &left, &right, &[("d", 0), ("d/a", 1), ("y", 2)]);
    let (_, mut left, mut right) = three();
    moved(&mut left, "d", "", "x");
    moved(&mut right, "d", "", "y");
    expect(&base, &left, &right, &[("y", 0), ("y/a", 1), ("b", 2)]);
}

#[test]
fn directories_moved_into_each_other_stay_outside() {
    let base = tree(&[("d/", 0), ("e/", 0), ("d/a", 1), ("e/b", 2)]);
    let (mut left, mut right) = (base.clone(), base.clone());
    moved(&mut left, "d", "e", "d");
    moved(&mut right, "e", "d", "e");
    let both = merged(&base, &left, &right);
    check(&both);
    assert_eq!(both, merged(&base, &right, &left));
    // One of the two moves was made.
    let paths = listed(&both);
    let (one, other) = (paths.contains_key("e/d/a"), paths.contains_key("d/e/b"));
    assert!(one != other && paths.len() == 4, "{paths:?}");
}

#[test]
fn one_name_for_two() {
    let (base, mut left, mut right) = three();
    let with = |tree: &mut MemoryTree, path: &str, n: u8, content: Content| {
        let place = Place {
            parent: ROOT,
            name: path.as_bytes().into(),
        };
        let node = Node {
            places: BTreeSet::from([place]),
            content,
            meta: Meta::default(),
        };
        tree.apply(&Edits::from([(FileId([n; 16]), Some(node))]));
    };
    let file = |n: u8| {
        Content::File(Version {
            hash: [n; 32],
            author: DeviceId([n; 32]),
        })
    };
    with(&mut left, "new.txt", 40, file(7));
    with(&mut right, "new.txt", 50, file(8));
    let rest = [("d", 0), ("d/a", 1), ("b", 2)];
    let plus = |more: &[(&'static str, u8)]| [&rest[..], more].concat();
    let copy = "new.conflict-07070707-07070707.txt";
    expect(&base, &left, &right, &plus(&[("new.txt", 8), (copy, 7)]));
    // The same content is no conflict.
    with(&mut right, "new.txt", 50, file(7));
    expect(&base, &left, &right, &plus(&[("new.txt", 7)]));
    // A directory keeps its name.
    with(&mut right, "new.txt", 50, Content::Directory);
    expect(&base, &left, &right, &plus(&[("new.txt", 0), (copy, 7)]));
    // Two directories become one.
    with(&mut left, "new.txt", 40, Content::Directory);
    moved(&mut left, "b", "", "b2");
    let inside = Place {
        parent: FileId([40; 16]),
        name: b"l".as_slice().into(),
    };
    change(&mut left, "b", |node| node.places = BTreeSet::from([inside]));
    let inside = Place {
        parent: FileId([50; 16]),
        name: b"r".as_slice().into(),
    };
    change(&mut right, "d/a", |node| node.places = BTreeSet::from([inside]));
    expect(
        &base,
        &left,
        &right,
        &[("d", 0), ("new.txt", 0), ("new.txt/l", 2), ("new.txt/r", 1)],
    );
}

#[test]
fn fields_meet_and_nobody_gets_a_right_that_one_took() {
    let (base, mut left, mut right) = three();
    change(&mut left, "b", |node| {
        node.meta.mode = 0o755;
        node.meta
            .xattrs
            .insert(b"one".as_slice().into(), b"1".as_slice().into());
    });
    change(&mut right, "b", |node| {
        node.meta.mode = 0o640;
        node.meta
            .xattrs
            .insert(b"two".as_slice().into(), b"2".as_slice().into());
    });
    let both = merged(&base, &left, &right);
    let node = both.node(&id_of("b")).unwrap().unwrap();
    assert_eq!((node.meta.mode, node.meta.xattrs.len()), (0o640, 2));
    // Of other things than files there are copies too.
    let special = |n| Content::Special(FileKind::Fifo, n);
    change(&mut left, "b", |node| node.content = special(1));
    change(&mut right, "b", |node| node.content = special(2));
    assert_eq!(merged(&base, &left, &right).nodes().len(), base.nodes().len() + 1);
}
