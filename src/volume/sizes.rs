//! The sizes of files whose `.f` was read or written: what spares a `stat` from opening it.
//!
//! Invariant: a size is given only for the very version of a `.f` that it was taken from, told by [`Mark`]. At most [`SIZES_MAX`] are kept
//! beside a share of new ones; one that is missing costs the reading of a `.f` and nothing else. Used by `attributes` and `write_back`;
//! `size_cache` keeps them between two mounts.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::base::types::{Attr, Timestamp};

/// Most sizes kept: 40 bytes each.
pub const SIZES_MAX: usize = 1_000_000;
/// New ones that are taken up one by one, and the share of all beyond which they are sorted in among the others.
const NEW_MIN: usize = 4096;
const NEW_SHARE: usize = 8;
/// The size of a file that nobody looked at for so many days leaves the cache: the file is gone, perhaps.
const DAYS_MAX: u32 = 90;
/// How long the change time of a `.f` must have passed before a size read from it is believed later, in nanoseconds: clocks of filesystems
/// stand still for milliseconds, in ext3 for a second, and a change meanwhile would not be seen. git(1) has the same rule for its index.
const SETTLED_NANOS: i64 = 2_000_000_000;

/// What tells a version of a `.f` from the others of the same inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Change time of the inode, in nanoseconds since the Unix epoch.
    ctime: i64,
    /// Low bits of the time of the last write, in nanoseconds.
    mtime: u32,
}

impl Mark {
    /// The mark of an inode; none where its times are beyond the years 1677 to 2262.
    pub fn of(attr: &Attr) -> Option<Self> {
        let (ctime, mtime) = (nanos(attr.ctime)?, nanos(attr.mtime)?);
        // Times up to four seconds apart differ in these bits.
        let mtime = (mtime & i64::from(u32::MAX)) as u32;
        Some(Self { ctime, mtime })
    }

    /// Whether every change after `now` gives another mark.
    pub fn is_settled(&self, now: Timestamp) -> bool {
        nanos(now).is_some_and(|now| self.ctime <= now.saturating_sub(SETTLED_NANOS))
    }

    /// Whether every write that does not choose its times gives another mark: it makes both times the same.
    pub fn has_own_mtime(&self) -> bool {
        self.mtime != (self.ctime & i64::from(u32::MAX)) as u32
    }
}

fn nanos(time: Timestamp) -> Option<i64> {
    time.secs
        .checked_mul(1_000_000_000)?
        .checked_add(i64::from(time.nanos))
}

/// What is known of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Inode number on the host.
    pub ino: u64,
    /// Change time of the `.f`, in nanoseconds; [`UNKNOWN`] where nobody has looked at it.
    pub ctime: i64,
    /// Size of the content, in bytes.
    pub size: u64,
    /// Bytes of the content that are not holes.
    pub stored: u64,
    /// Low bits of the time of the last write.
    pub mtime: u32,
    /// Day of the last use, since the Unix epoch.
    pub day: u32,
}

/// Change time that no `.f` has.
pub const UNKNOWN: i64 = i64::MIN;

impl Entry {
    fn is(&self, mark: Mark) -> bool {
        self.ctime != UNKNOWN && self.ctime == mark.ctime && self.mtime == mark.mtime
    }
}

/// The table. Not locked: its owner is.
#[derive(Debug, Default)]
pub struct Sizes {
    /// By inode number: a tenth of what a table of buckets would need while it doubles.
    sorted: Vec<Entry>,
    new: HashMap<u64, Entry>,
    /// Changed since it was loaded or saved.
    changed: bool,
    missed: u64,
    /// Takes entries of one day by chance when there are too many, so that a walk through more than fit finds most of them the next time.
    chance: RandomState,
}

impl Sizes {
    /// A table with these entries, which ascend by inode number.
    pub fn loaded(sorted: Vec<Entry>) -> Self {
        Self {
            sorted,
            ..Self::default()
        }
    }

    /// Size and stored bytes of an inode whose `.f` has this mark.
    pub fn get(&mut self, ino: u64, mark: Mark, day: u32) -> Option<(u64, u64)> {
        let Some(entry) = self.entry(ino).filter(|entry| entry.is(mark)) else {
            self.missed += 1;
            return None;
        };
        let (known, used_first) = ((entry.size, entry.stored), entry.day != day);
        entry.day = day;
        self.changed |= used_first;
        Some(known)
    }

    /// How many sizes were asked for that were not known.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// The size of a file as it was found when the file was opened: what contradicts it is forgotten.
    pub fn check(&mut self, ino: u64, size: u64) {
        if self.entry(ino).is_some_and(|entry| entry.size != size) {
            self.forget(ino);
        }
    }

    /// The stored bytes of an inode when they were last known, whatever happened to it since.
    pub fn stored(&mut self, ino: u64) -> Option<u64> {
        self.entry(ino).map(|entry| entry.stored)
    }

    /// Takes note of a size, in the place of what was known.
    pub fn set(&mut self, ino: u64, mark: Option<Mark>, (size, stored): (u64, u64), day: u32) {
        let entry = Entry {
            ino,
            ctime: mark.map_or(UNKNOWN, |mark| mark.ctime),
            size,
            stored,
            mtime: mark.map_or(0, |mark| mark.mtime),
            day,
        };
        self.changed = true;
        match self.entry(ino) {
            Some(old) => *old = entry,
            None => {
                self.new.insert(ino, entry);
                if self.new.len() > NEW_MIN.max(self.sorted.len() / NEW_SHARE) {
                    self.sort();
                }
            }
        }
    }

    /// The inode is gone, or what was known of it is wrong.
    pub fn forget(&mut self, ino: u64) {
        if self.new.remove(&ino).is_some() {
            self.changed = true;
        } else if let Some(entry) = self.entry(ino) {
            (entry.ctime, entry.stored) = (UNKNOWN, 0);
            self.changed = true;
        }
    }

    /// All entries worth keeping, by inode number, and whether any of them is news since the last call.
    pub fn settle(&mut self, day: u32) -> (&[Entry], bool) {
        self.sort();
        // A clock that was ahead for a while must not keep an entry for ever.
        self.sorted
            .retain(|entry| entry.ctime != UNKNOWN && entry.day.abs_diff(day) <= DAYS_MAX);
        (&self.sorted, std::mem::replace(&mut self.changed, false))
    }

    fn entry(&mut self, ino: u64) -> Option<&mut Entry> {
        match self.sorted.binary_search_by_key(&ino, |entry| entry.ino) {
            Ok(at) => Some(&mut self.sorted[at]),
            Err(_) => self.new.get_mut(&ino),
        }
    }

    fn sort(&mut self) {
        let new = std::mem::take(&mut self.new);
        self.sorted.reserve_exact(new.len());
        self.sorted.extend(new.into_values());
        if self.sorted.len() > SIZES_MAX {
            let kept = SIZES_MAX - SIZES_MAX / NEW_SHARE;
            let chance = &self.chance;
            let newest_first = |entry: &Entry| (u32::MAX - entry.day, chance.hash_one(entry.ino));
            self.sorted.select_nth_unstable_by_key(kept, newest_first);
            self.sorted.truncate(kept);
        }
        self.sorted.sort_unstable_by_key(|entry| entry.ino);
    }
}

/// The day of a time, since the Unix epoch.
pub fn day_of(time: Timestamp) -> u32 {
    u32::try_from(time.secs / 86_400).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(ctime: i64, mtime: u32) -> Mark {
        Mark { ctime, mtime }
    }

    #[test]
    fn a_size_is_given_for_its_own_version_only() {
        let mut sizes = Sizes::default();
        sizes.set(7, Some(mark(10, 3)), (5, 4), 1);
        assert_eq!(sizes.get(7, mark(10, 3), 1), Some((5, 4)));
        for other in [mark(11, 3), mark(10, 4), mark(9, 3)] {
            assert_eq!(sizes.get(7, other, 1), None);
        }
        assert_eq!(sizes.get(8, mark(10, 3), 1), None);
        assert_eq!(sizes.missed(), 4);
        sizes.check(7, 5);
        assert_eq!(sizes.get(7, mark(10, 3), 1), Some((5, 4)));
        sizes.check(7, 6);
        assert_eq!(sizes.get(7, mark(10, 3), 1), None);
        sizes.set(7, None, (6, 6), 1);
        assert_eq!(sizes.get(7, mark(UNKNOWN, 0), 1), None, "no time is that one");
        assert_eq!(sizes.stored(7), Some(6));
        sizes.forget(7);
        assert_eq!(sizes.settle(1).0, []);
    }

    #[test]
    fn times_that_stand_still_or_lie_ahead_are_not_settled() {
        let at = |secs| Timestamp { secs, nanos: 0 };
        let mark = mark(10_000_000_000, 0);
        assert!(mark.is_settled(at(12)));
        assert!(!mark.is_settled(at(11)) && !mark.is_settled(at(10)) && !mark.is_settled(at(0)));
        assert!(nanos(at(i64::MAX)).is_none() && nanos(at(i64::MIN)).is_none());
    }

    #[test]
    fn a_plain_write_is_told_by_its_equal_times() {
        let same = 1_700_000_000_123_456_789;
        assert!(!mark(same, (same & i64::from(u32::MAX)) as u32).has_own_mtime());
        assert!(mark(same, 1).has_own_mtime());
    }

    #[test]
    fn the_table_finds_everything_while_it_grows_and_drops_what_is_gone_or_old() {
        let (mut sizes, many) = (Sizes::default(), 50_000);
        for ino in (0..many).rev() {
            sizes.set(
                ino,
                Some(mark(1, 1)),
                (ino, ino),
                if ino % 5 == 0 { 100 } else { 200 },
            );
        }
        assert!((0..many).all(|ino| sizes.stored(ino) == Some(ino)));
        (0..many)
            .filter(|ino| ino % 2 == 0)
            .for_each(|ino| sizes.forget(ino));
        let (kept, changed) = sizes.settle(200);
        assert!(changed && kept.is_sorted_by_key(|entry| entry.ino));
        let expected: Vec<_> = (0..many).filter(|ino| ino % 2 == 1 && ino % 5 != 0).collect();
        assert_eq!(kept.iter().map(|entry| entry.ino).collect::<Vec<_>>(), expected);
        assert!(!sizes.settle(200).1, "nothing new");
        assert_eq!(sizes.get(3, mark(1, 1), 200), Some((3, 3)));
        assert!(!sizes.settle(200).1, "used on the same day");
        assert_eq!(sizes.get(3, mark(1, 1), 201), Some((3, 3)));
        assert!(sizes.settle(201).1, "a new day is news");
    }

    #[test]
    fn of_too_many_the_oldest_go() {
        let entry = |ino: u64| Entry {
            ino,
            ctime: 1,
            size: 1,
            stored: 1,
            mtime: 1,
            day: if ino < 100_000 { 1 } else { 2 },
        };
        let mut sizes = Sizes::loaded((0..SIZES_MAX as u64).map(entry).collect());
        sizes.set(u64::MAX, Some(mark(1, 1)), (1, 1), 2);
        let (kept, _) = sizes.settle(2);
        assert_eq!(kept.len(), SIZES_MAX - SIZES_MAX / NEW_SHARE);
        assert!(
            kept.iter().all(|entry| entry.day == 2),
            "the older ones went first"
        );
        assert_eq!(size_of::<Entry>(), 40);
    }
}
