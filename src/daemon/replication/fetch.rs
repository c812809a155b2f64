//! What a read misses into where blocks may be in groups: others are asked for the block, and when none of them gives it soon, it is made
//! again from its group.
//!
//! Invariant: the answer comes exactly once, and by the deadline; a block that others have is not waited for longer than without groups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::shards::Shards;
use crate::base::BlockId;
use crate::store::{CheckedBlock, Fetch, FetchDone, FetchError, ReplicaStore, Want};

/// When a block is made again although it may still come: what the network counts as late.
const LATE: Duration = Duration::from_secs(2);

/// Blocks that are made at a time.
const MAKERS: usize = 4;

/// A block that somebody waits for.
struct Awaited {
    want: Want,
    deadline: Instant,
    done: Mutex<Option<FetchDone>>,
    /// Why nobody gave it, once that is so.
    refused: Mutex<Option<FetchError>>,
    /// It is being made.
    made: AtomicBool,
    /// That came to nothing.
    not_made: AtomicBool,
}

impl Awaited {
    fn is_over(&self) -> bool {
        self.done.lock().is_none()
    }

    fn end(&self, result: Result<CheckedBlock, FetchError>) {
        let done = self.done.lock().take();
        if let Some(done) = done {
            done(result);
        }
    }

    /// Both ways came to nothing.
    fn end_if_hopeless(&self) {
        if self.not_made.load(Ordering::Acquire)
            && let Some(error) = self.refused.lock().take()
        {
            self.end(Err(error));
        }
    }
}

/// Fetches blocks, and makes those that cannot be had.
pub(in crate::daemon) struct ShardFetch {
    shards: Arc<Shards>,
    late: Sender<(Instant, Arc<Awaited>)>,
    make: Sender<Arc<Awaited>>,
}

impl ShardFetch {
    /// Starts the threads. They end with it.
    pub(in crate::daemon) fn start(shards: &Arc<Shards>) -> std::io::Result<Self> {
        let (make, made) = unbounded::<Arc<Awaited>>();
        let (late, waiting) = unbounded();
        for n in 0..MAKERS {
            let (shards, made) = (Arc::clone(shards), made.clone());
            let thread = std::thread::Builder::new().name(format!("dfs-shards-{n}"));
            thread.spawn(move || make_all(&shards, &made))?;
        }
        let hurry = make.clone();
        let thread = std::thread::Builder::new().name("dfs-late".into());
        thread.spawn(move || watch(&waiting, &hurry))?;
        Ok(Self {
            shards: Arc::clone(shards),
            late,
            make,
        })
    }
}

impl Fetch for ShardFetch {
    fn hurry(&self, id: &BlockId) {
        self.shards.node.hurry(id);
    }

    fn start(&self, want: Want, deadline: Instant, done: FetchDone) {
        let awaited = Arc::new(Awaited {
            want,
            deadline,
            done: Mutex::new(Some(done)),
            refused: Mutex::new(None),
            made: AtomicBool::new(false),
            not_made: AtomicBool::new(false),
        });
        let (plain, make) = (Arc::clone(&awaited), self.make.clone());
        let answer = move |result: Result<CheckedBlock, FetchError>| match result {
            Ok(block) => plain.end(Ok(block)),
            Err(FetchError::Closed) => plain.end(Err(FetchError::Closed)),
            Err(error) => {
                *plain.refused.lock() = Some(error);
                begin(&plain, &make);
                plain.end_if_hopeless();
            }
        };
        self.shards.node.start(want, deadline, Box::new(answer));
        // One whose holders are known, and away, is made at once.
        let known = self
            .shards
            .store
            .replicas(&want.id)
            .is_ok_and(|known| !known.is_empty());
        if known && !self.shards.is_near(&want.id) {
            begin(&awaited, &self.make);
        } else {
            let patience = LATE.min(deadline.saturating_duration_since(Instant::now()) / 2);
            let _ = self.late.send((Instant::now() + patience, awaited));
        }
    }
}

fn begin(awaited: &Arc<Awaited>, make: &Sender<Arc<Awaited>>) {
    if !awaited.made.swap(true, Ordering::AcqRel) && make.send(Arc::clone(awaited)).is_err() {
        awaited.not_made.store(true, Ordering::Release);
    }
}

/// Has those made that have waited long enough. They come in about the order of their times.
fn watch(waiting: &Receiver<(Instant, Arc<Awaited>)>, make: &Sender<Arc<Awaited>>) {
    while let Ok((at, awaited)) = waiting.recv() {
        if awaited.is_over() {
            continue;
        }
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if !awaited.is_over() {
            begin(&awaited, make);
        }
    }
}

fn make_all(shards: &Shards, made: &Receiver<Arc<Awaited>>) {
    while let Ok(awaited) = made.recv() {
        if awaited.is_over() {
            continue;
        }
        let id = awaited.want.id;
        let result = shards.make_of_any(&id, awaited.deadline);
        match result.map(|bytes| CheckedBlock::new(id, bytes)) {
            Ok(Some(block)) => {
                tracing::info!(block = %id, "made again from its group: no holder of it could be reached");
                awaited.end(Ok(block));
            }
            other => {
                if let Err(why) = other {
                    tracing::debug!(block = %id, why, "cannot be made from a group");
                }
                awaited.not_made.store(true, Ordering::Release);
                awaited.end_if_hopeless();
            }
        }
    }
}
