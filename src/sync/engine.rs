//! One round after another: commit what changed here, take in what others committed, tell of where the folder is.
//!
//! Invariant: the folder is at the journal's head but for what is noted. A head is told of only when it and all that it needs here are durable.
//! Called by `daemon`, from one thread; the rest is looked at from others.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::commit::{self, Looked};
use super::journal::{Journal, Kept};
use super::news::{Arrival, Arrivals};
use super::{Result, apply, fill, merging, thinning};
use crate::base::clock::{Clock, SystemClock};
use crate::base::types::Timestamp;
use crate::base::{BlockId, DeviceId};
use crate::folder::keep::Keep;
use crate::folder::state::StateDir;
use crate::object::map::Root;
use crate::object::snapshot::{Made, Snapshot};
use crate::volume::{Frozen, Noted, Volume, VolumeError};

/// A change that comes alone is committed after so long.
const IDLE_FIRST: Duration = Duration::from_millis(300);

/// After a commit, the next one waits until nothing changed for so long.
const IDLE: Duration = Duration::from_secs(2);

/// Nothing waits longer than this for its commit.
const AT_MOST: Duration = Duration::from_secs(30);

/// What could not be had is asked for again after so long.
const LOST_FOR: Duration = Duration::from_secs(15);

/// Snapshots of the past that are kept here with one that others made.
const PAST_MAX: usize = 256;

/// Between two looks for snapshots that need not be kept.
const THIN_AGAIN: Duration = Duration::from_secs(600);

/// Snapshots kept in memory.
const KNOWN_MAX: usize = 1 << 16;

/// What other devices say, and are told.
pub trait Heads: Send + Sync {
    /// The newest snapshot of each of the volume's devices, this one's among them.
    fn known(&self) -> Vec<(DeviceId, BlockId)>;

    /// Tells everybody of this device's new head.
    fn publish(&self, snapshot: BlockId);
}

/// Where another device is, seen from this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the same snapshot.
    Same,
    /// At one that this one's came from.
    Behind,
    /// At one that has not been taken in here.
    Ahead,
}

/// What a round did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Round {
    /// A snapshot was made of what changed here.
    pub committed: bool,
    /// The folder came to what others did.
    pub applied: bool,
    /// Something that others did has to wait.
    pub waiting: bool,
    /// Why something that others did could not be brought here.
    pub failed: Option<String>,
}

/// The engine of one volume on one device.
pub struct Engine {
    pub(super) volume: Arc<Volume>,
    state: StateDir,
    heads: Arc<dyn Heads>,
    device: DeviceId,
    /// Whether what changes here is committed.
    pub(super) may_write: bool,
    /// Held by whoever brings the folder to another tree: one at a time.
    pub(super) turn: Mutex<()>,
    journal: Mutex<Journal>,
    known: Mutex<HashMap<BlockId, Arc<Snapshot>>>,
    /// Heads of others that the folder's came from.
    included: Mutex<BTreeSet<BlockId>>,
    /// Snapshots of the past that could not be had, when, and why.
    lost: Mutex<HashMap<BlockId, (Instant, String)>>,
    last_commit: Mutex<Option<Instant>>,
    keep: Keep,
    clock: Arc<dyn Clock>,
    last_thinned: Mutex<Option<Instant>>,
    pub(super) arrivals: Arrivals,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// The engine, where the journal says that it was. Notes what changes from now on.
    pub fn new(
        volume: &Arc<Volume>,
        state: &StateDir,
        journal: Journal,
        heads: Arc<dyn Heads>,
        device: DeviceId,
        may_write: bool,
    ) -> Self {
        if may_write {
            volume.watch_changes();
        }
        Self {
            volume: Arc::clone(volume),
            state: state.clone(),
            heads,
            device,
            may_write,
            turn: Mutex::new(()),
            journal: Mutex::new(journal),
            known: Mutex::default(),
            included: Mutex::default(),
            lost: Mutex::default(),
            last_commit: Mutex::new(None),
            keep: Keep::All,
            clock: Arc::new(SystemClock),
            last_thinned: Mutex::new(None),
            arrivals: Arrivals::default(),
        }
    }

    /// The device that it is on.
    pub(super) fn device(&self) -> DeviceId {
        self.device
    }

    /// Which snapshots it keeps, instead of all.
    #[must_use]
    pub fn keeping(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    /// Tells the time by another clock than the operating system's.
    #[cfg(test)]
    pub(super) fn by_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// The journal as it is.
    pub fn journal(&self) -> Journal {
        self.journal.lock().clone()
    }

    /// Whether something changed that has not been committed.
    pub fn has_changes(&self) -> bool {
        self.volume.changed_since().is_some()
    }

    /// Whether what changed is to be committed by now.
    fn is_due(&self) -> bool {
        let Some((first, last)) = self.volume.changed_since() else {
            return false;
        };
        let rested = self.last_commit.lock().is_none_or(|last| last.elapsed() >= IDLE);
        let idle = if rested { IDLE_FIRST } else { IDLE };
        last >= idle || first >= AT_MOST
    }

    /// One round. `now`: what changed is committed without waiting for it to come to rest. `take_in`: what others did is brought here.
    pub fn round(&self, now: bool, take_in: bool) -> Result<Round> {
        let _turn = self.turn.lock();
        let mut round = Round::default();
        if self.may_write && (now || self.is_due()) {
            round.committed = self.commit()?;
        }
        let ahead = if take_in {
            self.ahead(&mut round)
        } else {
            BTreeSet::new()
        };
        for head in ahead {
            if self.may_write && self.has_changes() {
                round.committed |= self.commit()?;
            }
            match self.take_in(head) {
                Ok(true) => round.applied = true,
                Ok(false) => round.waiting = true,
                // One whose blocks cannot be had keeps nobody from the others.
                Err(error) => round.failed = Some(error.to_string()),
            }
        }
        self.tell();
        self.thin_now_and_then();
        Ok(round)
    }

    /// Lets go of snapshots that need not be kept, now and then; at once where none is to be kept.
    fn thin_now_and_then(&self) {
        let rested = |last: Instant| self.keep == Keep::Rules(Vec::new()) || last.elapsed() >= THIN_AGAIN;
        if self.last_thinned.lock().is_none_or(rested) {
            // What cannot be let go of now is kept.
            if let Err(error) = self.thin(self.clock.now()) {
                tracing::warn!(%error, "all snapshots are kept this time");
            }
            *self.last_thinned.lock() = Some(Instant::now());
        }
    }

    /// Lets go of snapshots that need not be kept. Those that another device was at when it was last heard of stay, since what it did meanwhile is
    /// merged over that one; and so does the first here that came from each of these, which that device may have made of the same two as well,
    /// without having been able to say so.
    pub(super) fn thin(&self, now: u64) -> Result<()> {
        let known = self.heads.known().into_iter();
        let others: BTreeSet<BlockId> = known
            .filter(|(device, _)| *device != self.device)
            .map(|(_, head)| head)
            .collect();
        let mut journal = self.journal.lock();
        // What is not taken in yet is merged over something that is older than it.
        let is_in = |head: &BlockId| journal.head == Some(*head) || self.included.lock().contains(head);
        if !others.iter().all(is_in) {
            return Ok(());
        }
        let mut needed = others.clone();
        for head in &others {
            let first = self.first_from(head, &journal.kept)?;
            needed.extend(first.map(|at| journal.kept[at].id));
        }
        let kept = thinning::thin(&journal.kept, &self.keep, now, |id| needed.contains(id));
        if kept.len() < journal.kept.len() {
            let next = Journal {
                kept,
                ..journal.clone()
            };
            next.save(&self.state)?;
            self.volume.retain_snapshots(next.moments());
            *journal = next;
        }
        Ok(())
    }

    /// What could not be had is asked for again.
    #[cfg(test)]
    pub(super) fn forget_lost(&self) {
        self.lost.lock().clear();
    }

    /// The first of the snapshots that are kept, each of which came from the one before, that came from another one or is it.
    fn first_from(&self, head: &BlockId, kept: &[Kept]) -> Result<Option<usize>> {
        let (mut low, mut high) = (0, kept.len());
        while low < high {
            let middle = low.midpoint(high);
            let at = kept[middle].id;
            match at == *head || self.is_ancestor(*head, at)? {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        Ok((low < kept.len()).then_some(low))
    }

    /// Heads of others that the folder is not at and did not come from, in the same order on every device.
    fn ahead(&self, round: &mut Round) -> BTreeSet<BlockId> {
        let own = self.journal.lock().head;
        let mut ahead = BTreeSet::new();
        for (_, head) in self.heads.known() {
            let Some(own) = own.filter(|own| *own != head) else {
                if own.is_none() {
                    ahead.insert(head);
                }
                continue;
            };
            if self.included.lock().contains(&head) {
                continue;
            }
            match self.is_ancestor(head, own) {
                Ok(true) => drop(self.included.lock().insert(head)),
                Ok(false) => drop(ahead.insert(head)),
                // Where it came from cannot be read now.
                Err(error) => round.failed = Some(error.to_string()),
            }
        }
        ahead
    }

    /// The other devices whose heads are known, each with its head and whether that is where the folder is, or where it came from.
    pub fn others(&self) -> Vec<(DeviceId, Place)> {
        let own = self.journal.lock().head;
        let place = |head: BlockId| match own {
            Some(own) if own == head => Place::Same,
            Some(_) if self.included.lock().contains(&head) => Place::Behind,
            _ => Place::Ahead,
        };
        let known = self.heads.known().into_iter();
        known
            .filter(|(device, _)| *device != self.device)
            .map(|(device, head)| (device, place(head)))
            .collect()
    }

    /// Makes a snapshot of what changed. Says whether there is a new one.
    pub fn commit(&self) -> Result<bool> {
        let mut taken = Vec::new();
        let outcome = self.commit_taking(&mut taken);
        *self.last_commit.lock() = Some(Instant::now());
        for noted in taken {
            match outcome {
                Ok(_) => self.volume.forget_changes(noted),
                Err(_) => self.volume.put_back_changes(noted),
            }
        }
        outcome
    }

    fn commit_taking(&self, taken: &mut Vec<Noted>) -> Result<bool> {
        let head = self.journal.lock().head;
        let before = match head {
            Some(head) => self.snapshot(&head)?.root,
            None => Root::EMPTY,
        };
        let _no_collection = self.volume.committing();
        let mut root = before;
        let mut looked = Looked::default();
        let mut tree = |root, noted: &Noted, frozen: Option<&Frozen<'_>>| {
            commit::tree(&self.volume, self.device, root, noted, frozen, &mut looked)
        };
        // What changes while it is looked at is looked at again, until little is left to be looked at while all stand still.
        for _ in 0..LOOKS_MAX {
            let noted = self.volume.take_changes();
            let is_little = noted.len() < LITTLE;
            let looked = tree(root, &noted, None);
            taken.push(noted);
            root = looked?;
            if is_little {
                break;
            }
        }
        {
            let frozen = self.volume.freeze();
            let noted = frozen.take();
            let looked = tree(root, &noted, Some(&frozen));
            taken.push(noted);
            root = looked?;
        }
        if root == before {
            return Ok(false);
        }
        // What is committed must not be lost, or it would look as if somebody here had taken it back.
        self.volume.make_durable()?;
        self.made(head, root)?;
        Ok(true)
    }

    /// Makes a snapshot of the tree that the folder is at. Nothing may be collected meanwhile.
    pub(super) fn made(&self, head: Option<BlockId>, root: Root) -> Result<BlockId> {
        let made = self.journal.lock().made + 1;
        let snapshot = Snapshot {
            parents: head.into_iter().collect(),
            root,
            made: Some(Made {
                device: self.device,
                seq: made,
                epoch: self.volume.epoch(),
                time: Timestamp {
                    secs: i64::try_from(self.clock.now()).unwrap_or(i64::MAX),
                    nanos: 0,
                },
            }),
        };
        let id = self.volume.put_snapshot(&snapshot)?;
        self.arrive(id, Some(made), false)?;
        Ok(id)
    }

    /// The folder is at a snapshot from now on.
    fn arrive(&self, id: BlockId, made: Option<u64>, merge: bool) -> Result<()> {
        self.volume.sync_store()?;
        let mut journal = self.journal.lock();
        let mut next = journal.clone();
        next.arrive(id, self.clock.now(), merge);
        next.made = made.unwrap_or(next.made);
        next.save(&self.state)?;
        self.volume.retain_snapshots(next.moments());
        let from = journal.head;
        *journal = next;
        if from != Some(id) {
            self.arrivals.push(Arrival {
                from,
                to: id,
                made_here: made.is_some(),
            });
        }
        Ok(())
    }

    /// Tells of the head, unless that was done.
    pub(super) fn tell(&self) {
        if !self.may_write {
            return;
        }
        let Some(snapshot) = self.journal.lock().head else {
            return;
        };
        let known = self.heads.known();
        if !known.contains(&(self.device, snapshot)) {
            self.heads.publish(snapshot);
        }
    }

    /// Brings the folder to what another device committed, merged with what is here. False when something has to wait.
    fn take_in(&self, theirs: BlockId) -> Result<bool> {
        let own = self.journal.lock().head;
        let _no_collection = self.volume.committing();
        let (from, target, merge) = match own {
            None => (Root::EMPTY, theirs, false),
            Some(own) if own == theirs || self.is_ancestor(theirs, own)? => return Ok(true),
            Some(own) => {
                let from = self.snapshot(&own)?.root;
                let (target, merge) = match self.is_ancestor(own, theirs)? {
                    true => (theirs, false),
                    false => self.merged(own, theirs)?,
                };
                (from, target, merge)
            }
        };
        let to = self.snapshot(&target)?.root;
        let outcome = match own {
            None => fill::fill(&self.volume, to)?,
            Some(_) => apply::apply(&self.volume, from, to, Some(self.device))?,
        };
        tracing::debug!(done = outcome.done, left = outcome.left, snapshot = %target.short(), "applied");
        if outcome.left > 0 {
            return Ok(false);
        }
        let mut needed = outcome.read;
        needed.insert(target);
        self.keep_past(target)?;
        self.volume.keep_here(&needed)?;
        self.volume.make_durable()?;
        self.arrive(target, None, merge)?;
        Ok(true)
    }

    /// What two snapshots are together.
    fn merged(&self, own: BlockId, theirs: BlockId) -> Result<(BlockId, bool)> {
        let roots = (self.snapshot(&own)?.root, self.snapshot(&theirs)?.root);
        if roots.0 == roots.1 {
            // Everybody takes the same of the two.
            return Ok((own.min(theirs), false));
        }
        let base = self.base(own, theirs, 0)?;
        let root = merging::merged(&self.volume, base, roots.0, roots.1)?;
        let mut parents = vec![own, theirs];
        parents.sort_unstable();
        let snapshot = Snapshot {
            parents,
            root,
            made: None,
        };
        Ok((self.volume.put_snapshot(&snapshot)?, true))
    }

    /// The tree that two snapshots have in common: that of their common ancestor, or what several of these make together.
    fn base(&self, left: BlockId, right: BlockId, depth: usize) -> Result<Root> {
        let mut common = self.common(left, right)?.into_iter();
        let Some(first) = common.next() else {
            return Ok(Root::EMPTY);
        };
        let mut base = self.snapshot(&first)?.root;
        let mut last = first;
        for other in common {
            // Deeper than anybody crosses; from there on the first one is good enough.
            if depth < CROSSINGS_MAX {
                let below = self.base(last, other, depth + 1)?;
                base = merging::merged(&self.volume, below, base, self.snapshot(&other)?.root)?;
            }
            last = other;
        }
        Ok(base)
    }

    fn common(&self, left: BlockId, right: BlockId) -> Result<Vec<BlockId>> {
        let past = merging::Past::new(|id| self.parents(id));
        let common = crate::merge::lowest_common(&past, left, right);
        // A base that is older than need be costs conflict copies at worst; none at all would bring back what was deleted.
        match common.is_empty() {
            true => past.into_result().map(|()| common),
            false => Ok(common),
        }
    }

    /// What a snapshot was made from. What could not be had a moment ago is not asked for again.
    fn parents(&self, id: BlockId) -> Result<Vec<BlockId>> {
        if let Some((since, why)) = self.lost.lock().get(&id)
            && since.elapsed() < LOST_FOR
        {
            return Err(VolumeError::Damaged {
                path: format!("snapshot {}", id.short()),
                reason: why.clone(),
            }
            .into());
        }
        match self.snapshot(&id) {
            Ok(snapshot) => Ok(snapshot.parents.clone()),
            Err(error) => {
                self.lost.lock().insert(id, (Instant::now(), error.to_string()));
                Err(error.into())
            }
        }
    }

    /// Keeps the snapshots here that one came from, the newest of them: whoever made them may not be there for ever.
    fn keep_past(&self, id: BlockId) -> Result<()> {
        let kept: BTreeSet<BlockId> = self.journal.lock().kept.iter().map(|kept| kept.id).collect();
        let (mut next, mut past) = (VecDeque::from([id]), BTreeSet::new());
        while let Some(at) = next.pop_front().filter(|_| past.len() < PAST_MAX) {
            if let Ok(parents) = self.parents(at) {
                past.insert(at);
                next.extend(
                    parents
                        .into_iter()
                        .filter(|parent| !kept.contains(parent) && !past.contains(parent)),
                );
            }
        }
        Ok(self.volume.keep_here(&past)?)
    }

    /// Whether one snapshot came to be from another one.
    fn is_ancestor(&self, of: BlockId, id: BlockId) -> Result<bool> {
        let mut seen = BTreeSet::new();
        let mut next = VecDeque::from([id]);
        while let Some(at) = next.pop_front() {
            // Of what nobody has any more nobody knows what it came from: it is taken for a beginning.
            let parents = match self.parents(at) {
                Err(error) if at == id => return Err(error),
                parents => parents.unwrap_or_default(),
            };
            for parent in parents {
                if parent == of {
                    return Ok(true);
                }
                if seen.insert(parent) {
                    next.push_back(parent);
                }
            }
        }
        Ok(false)
    }

    /// A snapshot; remembered.
    pub fn snapshot(&self, id: &BlockId) -> std::result::Result<Arc<Snapshot>, VolumeError> {
        if let Some(known) = self.known.lock().get(id) {
            return Ok(Arc::clone(known));
        }
        let snapshot = Arc::new(self.volume.snapshot(id)?);
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(*id, Arc::clone(&snapshot));
        Ok(snapshot)
    }
}

/// So many times it is looked at what changed while it was looked at.
const LOOKS_MAX: usize = 8;

/// So few names that what changed while they were looked at is looked at while nothing can change.
const LITTLE: usize = 64;

/// Deepest base that is itself merged.
const CROSSINGS_MAX: usize = 8;
