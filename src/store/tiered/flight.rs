//! One block on its way, and everyone who waits for it.
//!
//! Invariant: a flight lands exactly once.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::store::{CheckedBlock, FetchError, StoreError};

/// How a flight ended.
#[derive(Debug, Clone)]
pub(super) enum Landing {
    /// With the block.
    Block(CheckedBlock),
    /// Nobody else gave it; the second says what was wrong with the store's own copy, if anything was.
    Missing(FetchError, Option<StoreError>),
    /// The store is closed.
    Closed,
}

#[derive(Debug, Default)]
struct State {
    /// When the fetch has to have answered.
    deadline: Option<Instant>,
    landing: Option<Landing>,
    /// The store's queue had no room for the block.
    refused: bool,
    /// It was sent for before anybody waited.
    ahead: bool,
    /// Somebody waits.
    hurried: bool,
}

/// One block on its way.
#[derive(Debug, Default)]
pub(super) struct Flight {
    state: Mutex<State>,
    landed: Condvar,
}

impl Flight {
    /// Ends the flight; false when it had ended before.
    pub(super) fn land(&self, landing: Landing) -> bool {
        let mut state = self.state.lock();
        if state.landing.is_some() {
            return false;
        }
        state.landing = Some(landing);
        drop(state);
        self.landed.notify_all();
        true
    }

    /// Notes that the block was looked for here in vain: the rest is up to the network, until `deadline`. Whether it is sent for `ahead`,
    /// which it is not once somebody waits.
    pub(super) fn go_remote(&self, deadline: Instant, ahead: bool) -> bool {
        let mut state = self.state.lock();
        state.deadline = Some(deadline);
        state.ahead = ahead && !state.hurried;
        state.ahead
    }

    /// Notes that somebody waits. True once, when it was sent for ahead.
    pub(super) fn hurry(&self) -> bool {
        let mut state = self.state.lock();
        state.hurried = true;
        state.landing.is_none() && std::mem::take(&mut state.ahead)
    }

    /// Whether the block is known to be only elsewhere.
    pub(super) fn is_remote(&self) -> bool {
        let state = self.state.lock();
        state.deadline.is_some() && state.landing.is_none()
    }

    /// Whether an answer is due and has not come.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        let state = self.state.lock();
        state.landing.is_none() && state.deadline.is_some_and(|deadline| deadline < now)
    }

    /// Notes that the store's queue had no room for the block.
    pub(super) fn refuse(&self) {
        self.state.lock().refused = true;
    }

    /// True once after [`Flight::refuse`]: for the waiter that then waits for room.
    pub(super) fn take_refused(&self) -> bool {
        std::mem::take(&mut self.state.lock().refused)
    }

    /// How the flight ended, if it has.
    pub(super) fn landing(&self) -> Option<Landing> {
        self.state.lock().landing.clone()
    }

    /// Waits for the end of the flight, no longer than until `deadline`.
    pub(super) fn wait(&self, deadline: Instant) -> Option<Landing> {
        let mut state = self.state.lock();
        while state.landing.is_none() {
            if self.landed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.landing.clone()
    }
}
