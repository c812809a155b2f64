//! What a peer owes on one stream, and how soon it is expected to answer. Pure; used by `fetch`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::base::{BlockId, DeviceId};

use super::tempo::Tempo;

/// A peer that has not been measured for this long is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What a peer owes may take this long before it is asked for more that nobody waits for,
const AHEAD_MAX: Duration = Duration::from_millis(250);
/// but so many blocks are asked for in any case, for a line that is long or was not measured.
const AHEAD_MIN: usize = 4;

/// One stream to a peer.
#[derive(Debug)]
pub(super) struct Link {
    /// The peer.
    pub(super) device: DeviceId,
    /// Requests that may be open.
    pub(super) capacity: usize,
    /// GETs that were not answered, and when they were sent.
    pub(super) open: BTreeMap<BlockId, Instant>,
    /// When it last said anything.
    pub(super) last_answer: Instant,
    /// When it last answered a GET.
    last_block: Option<Instant>,
    /// What was measured.
    pub(super) tempo: Tempo,
    /// Until when it said that it is busy.
    pub(super) busy_until: Option<Instant>,
}

impl Link {
    /// A stream that nothing was asked on.
    pub(super) fn new(device: DeviceId, capacity: usize, now: Instant) -> Self {
        Self {
            device,
            capacity: capacity.max(1),
            open: BTreeMap::new(),
            last_answer: now,
            last_block: None,
            tempo: Tempo::default(),
            busy_until: None,
        }
    }

    /// Whether one more may be asked.
    pub(super) fn has_room(&self) -> bool {
        self.busy_until.is_none() && self.open.len() < self.capacity
    }

    /// Whether one more may be asked that nobody waits for: what is owed then still lets a later one that somebody waits for come soon.
    pub(super) fn has_room_ahead(&self) -> bool {
        self.has_room()
            && (self.open.len() < AHEAD_MIN
                || self
                    .tempo
                    .backlog(self.open.len())
                    .is_some_and(|wait| wait < AHEAD_MAX))
    }

    /// How long one more GET is expected to take. A peer that was not tried for a while is tried: it may have become faster.
    pub(super) fn expected(&self, now: Instant) -> Duration {
        let stale = self.last_block.is_none_or(|at| at + TRY_AGAIN <= now);
        match stale && self.open.is_empty() {
            true => Duration::ZERO,
            false => self.tempo.expected(self.open.len()),
        }
    }

    /// A GET was answered, or outrun: then it would have taken longer still. Whether it was open.
    pub(super) fn answered(&mut self, id: &BlockId, now: Instant) -> bool {
        let Some(asked) = self.open.remove(id) else {
            return false;
        };
        let other = self.last_block.map(|at| now - at.min(now));
        self.tempo.answered(now - asked.min(now), other);
        self.last_block = Some(now);
        true
    }
}
