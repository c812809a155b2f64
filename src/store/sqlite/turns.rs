//! Who commits: every caller in turn, and with its own work that of all who came after it. So a commit that nobody disputes changes no
//! thread, and many at once share one. Housekeeping, which nobody is to wait for, has a thread of its own.
//!
//! Invariant: a job is put into the queue before its owner asks for the writer, and taken out under it: whoever gets the writer finds its
//! own job there, or its answer. Owned by [`SqliteStore`](super::SqliteStore).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};

use super::housekeeping::SYNC_AT;
use super::segments::Segments;
use super::writer::{Job, Task, Writer};
use crate::store::{CommitSeq, StoreError};

/// The writer, and what waits for it.
#[derive(Debug)]
pub(super) struct Turns {
    queue: Mutex<VecDeque<Job>>,
    /// `None`: the store is closed.
    writer: Mutex<Option<Writer>>,
    segments: Arc<Segments>,
    /// Counts turns: whether it is quiet.
    taken: AtomicU64,
    house: Mutex<House>,
    call: Condvar,
}

#[derive(Debug, Default)]
struct House {
    /// There is something to do now.
    called: bool,
    /// The thread sleeps until it is called: all is tidy.
    asleep: bool,
    closing: bool,
}

impl Turns {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            queue: Mutex::default(),
            segments: Arc::clone(&writer.segments),
            writer: Mutex::new(Some(writer)),
            taken: AtomicU64::new(0),
            house: Mutex::default(),
            call: Condvar::new(),
        }
    }

    /// Does a task, with others that wait. With `meanwhile`, the housekeeper begins it while the caller does something else.
    pub(super) fn run(
        &self,
        task: Task,
        meanwhile: Option<&mut dyn FnMut()>,
    ) -> Result<CommitSeq, StoreError> {
        let (reply, answer) = bounded(1);
        self.queue.lock().push_back(Job { task, reply });
        if let Some(meanwhile) = meanwhile {
            self.call(|_| {});
            meanwhile();
        }
        let mut turn = self.writer.lock();
        let mut crowded = false;
        while answer.is_empty() {
            let Some(writer) = turn.as_mut() else {
                return Err(StoreError::Closed);
            };
            let Some(first) = self.queue.lock().pop_front() else {
                return Err(StoreError::Closed);
            };
            writer.work(first, &self.queue);
            crowded |= writer.must_keep_house() || self.has_much_unsynced();
        }
        drop(turn);
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.call_if(crowded);
        answer.recv().map_err(|_| StoreError::Closed)?
    }

    /// Leaves a task to the housekeeper, unless something waits already: readers leave one again and again.
    pub(super) fn leave(&self, task: Task) {
        let (reply, _) = bounded(1);
        let mut queue = self.queue.lock();
        if queue.is_empty() {
            queue.push_back(Job { task, reply });
            drop(queue);
            self.call(|_| {});
        }
    }

    /// Closes the store. False when it was closed already.
    pub(super) fn close(&self) -> Result<bool, StoreError> {
        let mut turn = self.writer.lock();
        let Some(mut writer) = turn.take() else {
            return Ok(false);
        };
        self.drain(&mut writer);
        self.call(|house| house.closing = true);
        writer.close().map(|_| true)
    }

    fn has_much_unsynced(&self) -> bool {
        self.segments.end() - self.segments.synced() >= SYNC_AT
    }

    fn drain(&self, writer: &mut Writer) {
        while let Some(first) = { self.queue.lock().pop_front() } {
            writer.work(first, &self.queue);
        }
    }

    fn call(&self, change: impl FnOnce(&mut House)) {
        let mut house = self.house.lock();
        house.called = true;
        change(&mut house);
        self.call.notify_one();
    }

    /// Calls the housekeeper when there is something to do now, or wakes it so that it sees when there is quiet.
    fn call_if(&self, now: bool) {
        let mut house = self.house.lock();
        if now || house.asleep {
            house.called |= now;
            house.asleep = false;
            self.call.notify_one();
        }
    }

    /// Keeps house until the store is closed: at once when called, and step by step after `idle` without work.
    pub(super) fn keep_house(&self, idle: Duration) {
        let mut tidy = false;
        loop {
            let before = self.taken.load(Ordering::Relaxed);
            let called = {
                let mut house = self.house.lock();
                let until = Instant::now() + idle;
                house.asleep = tidy;
                while !house.called && !house.closing && (house.asleep == tidy) {
                    if tidy {
                        self.call.wait(&mut house);
                    } else if self.call.wait_until(&mut house, until).timed_out() {
                        break;
                    }
                }
                if house.closing {
                    return;
                }
                house.asleep = false;
                std::mem::take(&mut house.called)
            };
            if self.has_much_unsynced() && self.segments.sync_ahead().is_err() {
                // The writer knows by itself when a sync failed.
                tracing::debug!("a large amount of blocks could not be synced ahead");
            }
            let mut turn = self.writer.lock();
            let Some(writer) = turn.as_mut() else { return };
            self.drain(writer);
            if called {
                writer.keep_house();
                tidy = false;
            } else if self.taken.load(Ordering::Relaxed) == before && !tidy {
                tidy = writer.tidy_step().unwrap_or_else(|error| {
                    tracing::warn!(%error, "the store could not be tidied");
                    true
                });
            } else {
                tidy = false;
            }
        }
    }
}
