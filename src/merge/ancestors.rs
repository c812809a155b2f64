//! The common ancestors of two snapshots.

use std::collections::{BTreeMap, BTreeSet};

/// Who came from whom.
pub trait History {
    /// Names a snapshot.
    type Id: Copy + Ord;

    /// The snapshots that one was made from: none of the first, two of a merge.
    fn parents(&self, id: Self::Id) -> Vec<Self::Id>;
}

/// The common ancestors of two snapshots that are no ancestors of other common ones, in order; either of the two may be among them. More than
/// one after two devices merged the same pair and both went on (a criss-cross).
pub fn lowest_common<H: History + ?Sized>(history: &H, left: H::Id, right: H::Id) -> Vec<H::Id> {
    let of_left = ancestors(history, left);
    let of_right = ancestors(history, right);
    let common: BTreeSet<H::Id> = of_left.intersection(&of_right).copied().collect();
    let mut below = BTreeSet::new();
    let mut memory = BTreeMap::new();
    for id in &common {
        for parent in history.parents(*id) {
            below.extend(
                memory
                    .entry(parent)
                    .or_insert_with(|| ancestors(history, parent))
                    .iter()
                    .copied(),
            );
        }
    }
    common.difference(&below).copied().collect()
}

/// A snapshot and all that it came from.
fn ancestors<H: History + ?Sized>(history: &H, id: H::Id) -> BTreeSet<H::Id> {
    let mut found = BTreeSet::new();
    let mut next = vec![id];
    while let Some(id) = next.pop() {
        if found.insert(id) {
            next.extend(history.parents(id));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(BTreeMap<u32, Vec<u32>>);

    impl History for Line {
        type Id = u32;
        fn parents(&self, id: u32) -> Vec<u32> {
            self.0.get(&id).cloned().unwrap_or_default()
        }
    }

    #[test]
    fn a_fork_a_line_a_criss_cross_and_strangers() {
        let made = [
            (2, vec![1]),
            (3, vec![1]),
            (4, vec![2, 3]),
            (5, vec![2, 3]),
            (6, vec![4]),
        ];
        let history = Line(made.into());
        assert_eq!(lowest_common(&history, 2, 3), [1]);
        assert_eq!(lowest_common(&history, 2, 6), [2], "one came from the other");
        assert_eq!(lowest_common(&history, 6, 5), [2, 3], "a criss-cross");
        assert!(lowest_common(&history, 6, 9).is_empty());
    }
}
