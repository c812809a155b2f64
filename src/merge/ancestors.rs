//! The common ancestors of two snapshots.

use std::collections::BTreeSet;

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
    let (of_left, of_right) = (ancestors(history, [left]), ancestors(history, [right]));
    let common: BTreeSet<H::Id> = of_left.intersection(&of_right).copied().collect();
    let above = common.iter().flat_map(|id| history.parents(*id));
    let below = ancestors(history, above);
    common.difference(&below).copied().collect()
}

/// Snapshots and all that they came from, each looked at once.
fn ancestors<H: History + ?Sized>(history: &H, ids: impl IntoIterator<Item = H::Id>) -> BTreeSet<H::Id> {
    let mut found = BTreeSet::new();
    let mut next: Vec<H::Id> = ids.into_iter().collect();
    while let Some(id) = next.pop() {
        if found.insert(id) {
            next.extend(history.parents(id));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

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

    struct Counted(Cell<usize>);

    impl History for Counted {
        type Id = usize;
        fn parents(&self, id: usize) -> Vec<usize> {
            self.0.set(self.0.get() + 1);
            id.checked_sub(1).into_iter().collect()
        }
    }

    #[test]
    fn a_long_past_is_walked_a_few_times_and_not_from_everywhere() {
        let history = Counted(Cell::new(0));
        assert_eq!(lowest_common(&history, 5000, 4999), [4999]);
        assert!(history.0.get() <= 5 * 5001, "{} steps", history.0.get());
    }
}
