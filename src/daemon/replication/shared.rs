//! What the volume's threads reach of replication, without waiting for its own: see [`Retention`].
//!
//! Invariant: what has to be named again is remembered in the store before whoever caused it goes on, so that no restart forgets it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::met::Met;
use super::{Msg, Replication};
use crate::base::BlockId;
use crate::replica::message::{Event, Retained};
use crate::store::{Number, ReplicaChange, ReplicaStore, SqliteStore};
use crate::volume::{Marked, Needs, Retention};

/// Blocks named in one event.
pub(super) const NAMED: usize = 1024;

/// First and longest pause between two looks at the replicas that somebody waits for.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// The state that all threads share.
pub(super) struct Shared {
    store: Arc<SqliteStore>,
    /// Replicas wanted of a block for which nothing else is wished.
    default: u8,
    /// Blocks that the volume stored since the machine was last told, with what they need where that is more than others do.
    stored: Mutex<HashMap<BlockId, Option<Needs>>>,
    /// There is a host: without one nothing need be named.
    hosts: AtomicBool,
    /// Distinct zones of hosts.
    possible: AtomicU8,
    /// Everything has to be named.
    unnamed: AtomicBool,
    /// Everything is being named.
    naming: AtomicBool,
    /// Somebody wished something for a file once.
    wishes: AtomicBool,
    /// Bytes that holders took since the last measurement.
    pub(super) sent: AtomicU64,
    /// Bytes a second that they took lately.
    pub(super) rate: AtomicU64,
    pub(super) met: Arc<Met>,
    pub(super) ending: AtomicBool,
}

impl Shared {
    /// With what the store remembers. After an unclean stop everything is named anew, and so it is when the settings changed.
    pub(super) fn new(store: &Arc<SqliteStore>, met: &Arc<Met>, default: u8) -> Self {
        let number = |number| store.number(number).unwrap_or(0);
        let named_before = number(Number::Mark) > 0 && number(Number::Wanted) == u64::from(default) + 1;
        let unnamed = store.opened_unclean() || !named_before || number(Number::Unnamed) > 0;
        Self {
            default,
            stored: Mutex::default(),
            hosts: AtomicBool::new(false),
            possible: AtomicU8::new(0),
            unnamed: AtomicBool::new(unnamed),
            naming: AtomicBool::new(false),
            wishes: AtomicBool::new(number(Number::Wishes) > 0),
            sent: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            met: Arc::clone(met),
            ending: AtomicBool::new(false),
            store: Arc::clone(store),
        }
    }

    pub(super) fn set_hosts(&self, any: bool, possible: u8) {
        self.possible.store(possible, Ordering::Release);
        self.hosts.store(any, Ordering::Release);
    }

    /// Measures, about once a second, what holders take: an average over some seconds.
    pub(super) fn measure(&self) {
        let now = self.sent.swap(0, Ordering::Relaxed);
        let before = self.rate.load(Ordering::Relaxed);
        self.rate.store((before * 3 + now) / 4, Ordering::Relaxed);
    }

    /// Distinct zones of hosts.
    pub(super) fn possible(&self) -> u8 {
        self.possible.load(Ordering::Acquire)
    }

    /// Whether everything is to be named now.
    pub(super) fn is_naming_due(&self) -> bool {
        self.hosts.load(Ordering::Acquire) && self.unnamed.load(Ordering::Acquire)
    }

    /// Everything is about to be named: what is stored from now on is told by itself.
    pub(super) fn naming(&self) {
        self.naming.store(true, Ordering::Release);
        self.unnamed.store(false, Ordering::Release);
    }

    /// Not everything could be named.
    fn naming_failed(&self) {
        self.name_again();
        self.naming.store(false, Ordering::Release);
    }

    /// Everything has to be named, now or after a restart.
    pub(super) fn name_again(&self) {
        if !self.unnamed.swap(true, Ordering::AcqRel) {
            self.remember(Number::Unnamed, 1);
        }
    }

    /// Everything was named, and that is on its way to the machine.
    fn named(&self) {
        self.remember(Number::Wanted, u64::from(self.default) + 1);
        // Not when something came up meanwhile.
        let unnamed = self.unnamed.load(Ordering::Acquire);
        self.naming.store(false, Ordering::Release);
        self.remember(Number::Unnamed, u64::from(unnamed));
    }

    fn remember(&self, number: Number, value: u64) {
        if let Err(error) = self.store.apply(&[ReplicaChange::Number(number, value)], false) {
            tracing::warn!(%error, "what is to be replicated may be looked for once more");
        }
    }

    /// Whether all that the volume stored was taken, and every member that was just met had the time to say what it offers.
    pub(super) fn is_settled(&self) -> bool {
        let naming = self.naming.load(Ordering::Acquire);
        self.stored.lock().is_empty() && !naming && !self.is_naming_due() && !self.met.is_greeting()
    }

    /// Takes what the volume stored since the last time, in parts.
    pub(super) fn take_stored(&self) -> Vec<Vec<Retained>> {
        let stored = std::mem::take(&mut *self.stored.lock());
        let default = self.default_needs();
        let mut all: Vec<(BlockId, Needs)> = stored
            .into_iter()
            .map(|(block, needs)| (block, needs.unwrap_or(default)))
            .collect();
        all.sort_unstable_by_key(|(block, _)| *block);
        all.chunks(NAMED).map(|some| self.retained(some)).collect()
    }

    fn default_needs(&self) -> Needs {
        Needs {
            replicas: self.default,
            pinned: false,
        }
    }

    /// The blocks with what is known of them.
    fn retained(&self, blocks: &[(BlockId, Needs)]) -> Vec<Retained> {
        let known = |(block, needs): &(BlockId, Needs)| {
            let here = self.store.length(block).ok().flatten();
            let len = here.or_else(|| Some(self.store.kept(block).ok()??.len));
            Retained {
                block: *block,
                len: len.unwrap_or_default(),
                wanted: needs.replicas,
                pinned: needs.pinned,
            }
        };
        blocks.iter().map(known).collect()
    }

    /// Whether a block has the replicas it needs, as far as `possible` zones allow. One that was not named yet has not.
    fn has_replicas(&self, block: &BlockId, possible: u8) -> bool {
        let kept = self.store.kept(block).ok().flatten();
        kept.is_some_and(|kept| kept.copies >= kept.wanted.min(possible))
    }
}

impl Retention for Replication {
    fn stored(&self, blocks: &[BlockId]) {
        if self.shared.hosts.load(Ordering::Acquire) {
            let mut stored = self.shared.stored.lock();
            for block in blocks {
                stored.entry(*block).or_insert(None);
            }
        } else {
            self.shared.name_again();
        }
    }

    fn wished(&self, blocks: &[(BlockId, Needs)]) {
        if self.shared.hosts.load(Ordering::Acquire) {
            let mut stored = self.shared.stored.lock();
            for (block, needs) in blocks {
                let all = stored.entry(*block).or_insert(None);
                *all = Some(all.map_or(*needs, |all| all.and(*needs)));
            }
        } else {
            self.shared.name_again();
        }
    }

    fn default_replicas(&self) -> u8 {
        self.shared.default
    }

    fn wishes_found(&self) {
        if !self.shared.wishes.swap(true, Ordering::AcqRel) {
            self.shared.remember(Number::Wishes, 1);
        }
    }

    fn has_wishes(&self) -> bool {
        self.shared.wishes.load(Ordering::Acquire)
    }

    fn look_again(&self) {
        self.shared.name_again();
    }

    fn has_replicas(&self, blocks: &[BlockId]) -> bool {
        let possible = self.shared.possible();
        possible == 0
            || blocks
                .iter()
                .all(|block| self.shared.has_replicas(block, possible))
    }

    fn wait_for_replicas(&self, blocks: &[BlockId], until: Instant) -> bool {
        let _ = self.inbox.send(Msg::Look);
        let mut left = blocks.to_vec();
        let mut pause = FIRST_LOOK;
        loop {
            // Nobody there is no reason to be content.
            let possible = self.shared.possible().max(1);
            left.retain(|block| !self.shared.has_replicas(block, possible));
            if left.is_empty() {
                return true;
            }
            if Instant::now() >= until || self.shared.ending.load(Ordering::Acquire) {
                tracing::warn!(
                    blocks = left.len(),
                    "the replicas that fsync waits for could not be had in time"
                );
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_LOOK);
        }
    }

    fn begin(&self) {
        self.shared.naming();
        send(&self.inbox, Event::BeginMark);
    }

    fn end(&self, named: Option<&Marked>) {
        let Some(named) = named else {
            return self.shared.naming_failed();
        };
        let all: Vec<(BlockId, Needs)> = named.iter().map(|(block, needs)| (*block, needs)).collect();
        for some in all.chunks(NAMED) {
            send(&self.inbox, Event::Named(self.shared.retained(some)));
        }
        send(&self.inbox, Event::EndMark);
        self.shared.named();
    }
}

fn send(inbox: &Sender<Msg>, event: Event) {
    let _ = inbox.send(Msg::Event(event));
}
