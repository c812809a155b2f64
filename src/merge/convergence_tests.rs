//! Devices that merge with each other in any order come to one tree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tests::{Deed, Person, cases, check, deeds};
use super::*;

const DEVICES: usize = 5;

/// All snapshots that were ever made: what each came from, and its tree.
#[derive(Default)]
struct Past(BTreeMap<[u8; 32], (Vec<[u8; 32]>, MemoryTree)>);

impl History for Past {
    type Id = [u8; 32];
    fn parents(&self, id: [u8; 32]) -> Vec<[u8; 32]> {
        self.0[&id].0.clone()
    }
}

impl Past {
    /// A snapshot is named by what it came from and what is in it: whoever makes the same merge makes the same snapshot.
    fn commit(&mut self, mut parents: Vec<[u8; 32]>, tree: MemoryTree) -> [u8; 32] {
        parents.sort_unstable();
        let id = *blake3::hash(format!("{parents:?} {tree:?}").as_bytes()).as_bytes();
        self.0.insert(id, (parents, tree));
        id
    }

    /// The tree that two snapshots came from; of several the one that these make together.
    fn base(&self, left: [u8; 32], right: [u8; 32]) -> MemoryTree {
        let mut common = lowest_common(self, left, right).into_iter();
        let Some(first) = common.next() else {
            return MemoryTree::default();
        };
        let mut tree = self.0[&first].1.clone();
        for other in common {
            let below = self.base(first, other);
            let edits = merge(&below, &below.edits_to(&tree), &below.edits_to(&self.0[&other].1)).unwrap();
            tree = below;
            tree.apply(&edits);
        }
        tree
    }

    /// What a device with the head `own` has after it heard of `other`.
    fn pull(&mut self, own: [u8; 32], other: [u8; 32]) -> [u8; 32] {
        let common = lowest_common(self, own, other);
        if common == [other] {
            return own;
        }
        if common == [own] {
            return other;
        }
        if self.0[&own].1 == self.0[&other].1 {
            return own.min(other);
        }
        let base = self.base(own, other);
        let (left, right) = (&self.0[&own].1, &self.0[&other].1);
        let edits = merge(&base, &base.edits_to(left), &base.edits_to(right)).unwrap();
        let mut tree = base;
        tree.apply(&edits);
        check(&tree);
        self.commit(vec![own, other], tree)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(300), ..ProptestConfig::default() })]

    #[test]
    fn five_devices_converge_in_any_order_and_fall_silent(
        first in deeds(20),
        rounds in proptest::collection::vec((0..DEVICES, deeds(8), 0..DEVICES, 0..DEVICES), 0..20),
        last in proptest::collection::vec((0..DEVICES, 0..DEVICES), 0..20),
    ) {
        converge(&first, &rounds, &last);
    }
}

fn converge(first: &[Deed], rounds: &[(usize, Vec<Deed>, usize, usize)], last: &[(usize, usize)]) {
    let mut past = Past::default();
    let mut founder = Person::new(200, MemoryTree::default());
    founder.act(first);
    let root = past.commit(Vec::new(), founder.tree.clone());
    let mut heads = [root; DEVICES];
    let mut people: Vec<Person> = (0..DEVICES as u8)
        .map(|n| Person::new(n, MemoryTree::default()))
        .collect();
    for (who, deeds, from, to) in rounds {
        let person = &mut people[*who];
        person.tree = past.0[&heads[*who]].1.clone();
        person.act(deeds);
        if person.tree != past.0[&heads[*who]].1 {
            heads[*who] = past.commit(vec![heads[*who]], person.tree.clone());
        }
        heads[*to] = past.pull(heads[*to], heads[*from]);
    }
    for (from, to) in last {
        heads[*to] = past.pull(heads[*to], heads[*from]);
    }
    // Everybody hears of everybody, again and again: at some time nobody has anything new.
    for round in 0.. {
        assert!(round < 12, "they never fall silent");
        let before = heads;
        for to in 0..DEVICES {
            for from in 0..DEVICES {
                heads[to] = past.pull(heads[to], heads[from]);
            }
        }
        if before == heads {
            break;
        }
    }
    assert!(
        heads.iter().all(|head| *head == heads[0]),
        "they have fallen silent with different trees"
    );
}
