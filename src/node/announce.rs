//! When which files are announced in the DHT: swept region by region of the key space, within a budget. Pure; the clock is passed in.
//!
//! Everything in one region goes to the same members, many files in one message, so the cost grows with the regions (hence with the members)
//! and with hundreds of files at a time, never with blocks. Invariant: at most `budget` files are kept announced, the newest; each is
//! announced within seconds of being added and again within [`RENEW_SECS`]; what was swept when outlives a restart. Used by `publish`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};

/// Files told in one message.
pub const BATCH: usize = 512;
/// Members to which each file is told, and at most so many more.
pub const REPLICATION: usize = 20;
/// A region is swept again after this; well within what the records are kept for.
pub const RENEW_SECS: u64 = 20 * 3600;
/// What reached nobody is tried again after this.
pub const RETRY_SECS: u64 = 60;
/// Most files that may be kept announced.
pub const BUDGET_MAX: usize = 131_072;
/// Regions are unions of these: the first byte of the hashed key.
const CELLS: usize = 256;
const DEPTH_MAX: u32 = CELLS.trailing_zeros();

const MAGIC: &[u8; 4] = b"dfsR";
const VERSION: u8 = 1;

/// A place in the key space: the hash of a file's root or of a member.
pub type Key = [u8; 32];

/// A part of the key space: all keys with the same first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    first_cell: u8,
    /// How many bits.
    depth: u32,
}

impl Region {
    /// The regions of a group of so many members: each with enough members of its own to keep what lies in it.
    pub fn depth(members: usize) -> u32 {
        (members / REPLICATION).max(1).ilog2().min(DEPTH_MAX)
    }

    fn of(key: &Key, depth: u32) -> Self {
        let cells = CELLS >> depth;
        Self {
            first_cell: (usize::from(key[0]) / cells * cells) as u8,
            depth,
        }
    }

    fn cells(&self) -> std::ops::Range<usize> {
        let first = usize::from(self.first_cell);
        first..first + (CELLS >> self.depth)
    }

    /// Whether a key lies in it.
    pub fn contains(&self, key: &Key) -> bool {
        self.cells().contains(&usize::from(key[0]))
    }

    /// Who of these is told: those in the region; where they are too few, those nearest to it.
    pub fn targets<T>(&self, mut members: Vec<(Key, T)>) -> Vec<T> {
        let start = self.first_cell;
        members.sort_by_key(|(key, _)| {
            let mut distance = *key;
            distance[0] ^= start;
            distance
        });
        let inside = members.iter().filter(|(key, _)| self.contains(key)).count();
        members.truncate(inside.clamp(REPLICATION, 2 * REPLICATION));
        members.into_iter().map(|(_, member)| member).collect()
    }
}

/// Files to be told now, to the members of one region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The region.
    pub region: Region,
    /// Their roots, at most [`BATCH`].
    pub roots: Vec<[u8; 32]>,
}

/// What is announced, and when again.
#[derive(Debug)]
pub struct Schedule {
    budget: usize,
    roots: BTreeMap<Key, [u8; 32]>,
    /// Oldest first.
    order: VecDeque<Key>,
    /// Not announced yet.
    fresh: BTreeSet<Key>,
    /// When each cell was swept last.
    swept: [UnixSecs; CELLS],
    /// What is left of the sweep that is under way; `bool`: of a whole region.
    sweep: Option<(Region, bool, Vec<Key>)>,
    not_before: UnixSecs,
}

impl Schedule {
    /// Nothing is announced; at most so many files will be.
    pub fn new(budget: usize) -> Self {
        Self {
            budget: budget.min(BUDGET_MAX),
            roots: BTreeMap::new(),
            order: VecDeque::new(),
            fresh: BTreeSet::new(),
            swept: [0; CELLS],
            sweep: None,
            not_before: 0,
        }
    }

    /// Adds a file, by the hash and its root. The oldest gives way when the budget is spent. Whether that changed anything.
    pub fn add(&mut self, key: Key, root: [u8; 32]) -> bool {
        if self.budget == 0 || self.roots.insert(key, root).is_some() {
            return false;
        }
        self.order.push_back(key);
        self.fresh.insert(key);
        while self.order.len() > self.budget {
            if let Some(oldest) = self.order.pop_front() {
                self.roots.remove(&oldest);
                self.fresh.remove(&oldest);
            }
        }
        true
    }

    /// What to announce now, in a group of so many members. Everything that is due comes batch by batch; ask once a second.
    pub fn next(&mut self, now: UnixSecs, members: usize) -> Option<Batch> {
        if now < self.not_before {
            return None;
        }
        if self.sweep.is_none() {
            self.sweep = self.begin(now, Region::depth(members));
        }
        let (region, _, left) = self.sweep.as_mut()?;
        let region = *region;
        let some = left.split_off(left.len().saturating_sub(BATCH));
        let roots = some
            .iter()
            .filter_map(|key| self.roots.get(key).copied())
            .collect();
        Some(Batch { region, roots })
    }

    /// The last batch was told to members.
    pub fn told(&mut self, now: UnixSecs) {
        if let Some((region, whole, _)) = self.sweep.take_if(|(_, _, left)| left.is_empty())
            && whole
        {
            self.swept[region.cells()].fill(now);
        }
    }

    /// The last batch reached nobody: its region's turn comes again.
    pub fn failed(&mut self, now: UnixSecs, batch: &Batch, key_of: impl Fn(&[u8; 32]) -> Key) {
        self.not_before = now + RETRY_SECS;
        if let Some((_, whole, left)) = self.sweep.take()
            && !whole
        {
            self.fresh.extend(left);
            self.fresh.extend(
                batch
                    .roots
                    .iter()
                    .map(key_of)
                    .filter(|key| self.roots.contains_key(key)),
            );
        }
    }

    fn begin(&mut self, now: UnixSecs, depth: u32) -> Option<(Region, bool, Vec<Key>)> {
        let due = |region: &Region| {
            let cells = &self.swept[region.cells()];
            // A clock that was set back makes everything due.
            cells
                .iter()
                .any(|at| at.saturating_add(RENEW_SECS) <= now || *at > now)
        };
        let regions = (0..1usize << depth).map(|n| Region {
            first_cell: (n * (CELLS >> depth)) as u8,
            depth,
        });
        let regions: Vec<Region> = regions.filter(due).collect();
        for region in regions {
            let keys: Vec<Key> = self
                .roots
                .keys()
                .filter(|key| region.contains(key))
                .copied()
                .collect();
            if keys.is_empty() {
                self.swept[region.cells()].fill(now);
                continue;
            }
            self.fresh.retain(|key| !region.contains(key));
            return Some((region, true, keys));
        }
        let region = Region::of(self.fresh.first()?, depth);
        let (inside, others) = std::mem::take(&mut self.fresh)
            .into_iter()
            .partition(|key| region.contains(key));
        self.fresh = others;
        Some((region, false, Vec::from_iter::<BTreeSet<Key>>(inside)))
    }

    /// How many files are kept announced.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Binary form: what was swept when, and all files, oldest first.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(16 + 8 * CELLS + 32 * self.order.len());
        w.raw(MAGIC).u8(VERSION);
        for at in self.swept {
            w.u64(at);
        }
        w.u32(self.order.len() as u32);
        for root in self.order.iter().filter_map(|key| self.roots.get(key)) {
            w.raw(root);
        }
        w.into_vec()
    }

    /// Adds what a binary form holds. What was swept is not announced again before its time.
    pub fn load(&mut self, bytes: &[u8], key_of: impl Fn(&[u8; 32]) -> Key) -> Result<(), DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid(
                "not a list of announced files of a known version",
            ));
        }
        let mut swept = [0; CELLS];
        for at in &mut swept {
            *at = r.u64()?;
        }
        let count = r.u32()? as usize;
        if count > BUDGET_MAX || r.remaining() != count * 32 {
            return Err(DecodeError::Invalid("as many announced files as are not there"));
        }
        for _ in 0..count {
            let root = r.array()?;
            let key = key_of(&root);
            self.add(key, root);
            if swept[usize::from(key[0])] > 0 {
                self.fresh.remove(&key);
            }
        }
        self.swept = swept;
        r.finish()
    }
}

/// Messages that keep so many files announced for one [`RENEW_SECS`], in a group of so many members that all are connected; counted by
/// running the schedule.
pub fn messages(files: u64, budget: usize, members: u64) -> u64 {
    let hash = |what: &[u8], n: u64| -> Key {
        *blake3::keyed_hash(&[7; 32], &[what, &n.to_le_bytes()].concat()).as_bytes()
    };
    let others: Vec<(Key, ())> = (1..members).map(|n| (hash(b"member", n), ())).collect();
    let mut schedule = Schedule::new(budget);
    for n in 0..files {
        schedule.add(hash(b"file", n), hash(b"root", n));
    }
    let (mut now, mut sent) = (1_000_000, 0);
    while let Some(batch) = schedule.next(now, members as usize) {
        sent += batch.region.targets(others.clone()).len() as u64;
        schedule.told(now);
        now += 1;
    }
    sent
}

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
