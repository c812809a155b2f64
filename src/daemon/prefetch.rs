//! Brings content here that others wrote, before anybody reads it: what `prefetch` under `[sync]` of `dfs.toml` means, and what is pinned.
//!
//! Everything up to a snapshot was brought, or need not be; that snapshot is remembered, so a restart goes on from there. What cannot be had, or
//! has no room, is tried again later. Called by `run`.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use super::network::Networking;
use super::trees::Trees;
use crate::base::BlockId;
use crate::folder::prefetch::{Matcher, Prefetch};
use crate::folder::state::StateDir;
use crate::sync::{Bring, Brought};
use crate::volume::Volume;

/// Name of what is remembered in the state directory.
const LIST: &str = "prefetched";

/// How often it is looked whether there is something new.
const LOOK: Duration = Duration::from_millis(500);

/// Pause before what could not be had is tried again; longer each time.
const AGAIN: Duration = Duration::from_secs(15);
/// The longest such pause.
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// How often it is remembered how far it is.
const REMEMBER: Duration = Duration::from_secs(60);

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Done {
    /// For these patterns.
    patterns: Vec<String>,
    /// Up to this snapshot.
    snapshot: Option<BlockId>,
}

#[derive(Debug, Default)]
struct Stop {
    asked: Mutex<bool>,
    rung: Condvar,
}

impl Stop {
    fn is_asked(&self) -> bool {
        *self.asked.lock()
    }

    /// Waits. True when it is to end.
    fn wait(&self, at_most: Duration) -> bool {
        let mut asked = self.asked.lock();
        if !*asked {
            self.rung.wait_for(&mut asked, at_most);
        }
        *asked
    }
}

/// The thread that brings content; ends when dropped.
#[derive(Debug)]
pub(super) struct Prefetching {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetching {
    /// Begins.
    pub(super) fn start(
        volume: &Arc<Volume>,
        trees: &Arc<Trees>,
        network: &Arc<Networking>,
        state: &StateDir,
        prefetch: &Prefetch,
    ) -> std::io::Result<Self> {
        let matcher = prefetch.matcher().map_err(std::io::Error::other)?;
        let stop = Arc::<Stop>::default();
        let mut work = Work {
            volume: Arc::clone(volume),
            trees: Arc::clone(trees),
            network: Arc::clone(network),
            state: state.clone(),
            matcher: (!prefetch.is_none()).then_some(matcher),
            stop: Arc::clone(&stop),
            done: Done {
                patterns: prefetch.patterns().to_vec(),
                snapshot: None,
            },
            remembered: None,
            remembered_at: Instant::now(),
            after: None,
            next: Instant::now(),
            pause: AGAIN,
            reached: 0,
        };
        let thread = std::thread::Builder::new()
            .name("dfs-prefetch".into())
            .spawn(move || work.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Prefetching {
    fn drop(&mut self) {
        *self.stop.asked.lock() = true;
        self.stop.rung.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that brings content ended by a fault");
        }
    }
}

struct Work {
    volume: Arc<Volume>,
    trees: Arc<Trees>,
    network: Arc<Networking>,
    state: StateDir,
    /// `None`: only what is pinned.
    matcher: Option<Matcher>,
    stop: Arc<Stop>,
    done: Done,
    remembered: Option<Done>,
    remembered_at: Instant,
    /// Where in the tree it stopped.
    after: Option<Vec<u8>>,
    /// When it is tried again.
    next: Instant,
    pause: Duration,
    /// Members that were connected at the last look.
    reached: usize,
}

impl Work {
    fn run(&mut self) {
        self.recall();
        while !self.stop.wait(LOOK) {
            self.look();
            if self.remembered_at.elapsed() >= REMEMBER {
                self.remember();
            }
        }
        self.remember();
    }

    fn look(&mut self) {
        let Some(head) = self.trees.engine().journal().head else {
            return;
        };
        if self.done.snapshot == Some(head) {
            return;
        }
        if self.matcher.is_none() && !self.volume.has_wishes() {
            self.done.snapshot = Some(head);
            return;
        }
        let reached = self.network.summary().connected;
        if reached > self.reached {
            // Who just came may have what was missing.
            (self.next, self.pause) = (Instant::now(), AGAIN);
        }
        self.reached = reached;
        if reached == 0 || Instant::now() < self.next {
            return;
        }
        let from = self.done.snapshot;
        let outcome = {
            let how = |path: &Path| self.how(path);
            let go_on = || !self.stop.is_asked();
            let engine = self.trees.engine();
            engine.bring_ahead((from.as_ref(), &head), self.after.as_deref(), &how, &go_on)
        };
        match outcome {
            Ok(brought) => self.went(head, brought),
            Err(error) => {
                tracing::debug!(%error, "what is to be brought here cannot be told now");
                // Of a snapshot that is not kept any more nobody can tell what changed since.
                if from.is_some() {
                    self.done.snapshot = None;
                    self.after = None;
                }
                self.later();
            }
        }
    }

    /// What came of one go.
    fn went(&mut self, head: BlockId, brought: Brought) {
        let ahead = brought.ahead;
        if ahead.blocks > 0 {
            tracing::info!(
                blocks = ahead.blocks,
                bytes = ahead.bytes,
                "content was brought here before it was read"
            );
            self.pause = AGAIN;
        }
        if brought.stopped_at.is_some() {
            self.after = brought.stopped_at;
            // There is more behind what cannot be had.
            if ahead.full {
                self.after = None;
            }
            return self.later();
        }
        let from_the_beginning = self.after.take().is_none();
        if ahead.missing > 0 {
            self.later();
        } else if from_the_beginning {
            self.done.snapshot = Some(head);
            self.pause = AGAIN;
            if ahead.blocks > 0 {
                self.remember();
            }
        }
    }

    fn later(&mut self) {
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(AGAIN_MAX);
    }

    fn how(&self, path: &Path) -> Bring {
        if self.volume.has_wishes() && self.volume.is_pinned(path) {
            return Bring::Pinned;
        }
        let is_meant = self.matcher.as_ref().is_some_and(|matcher| matcher.matches(path));
        if is_meant { Bring::Ahead } else { Bring::No }
    }

    /// Goes on from what was remembered; from the beginning where other patterns were meant. What is pinned was brought when it was.
    fn recall(&mut self) {
        let read = self.state.read_list(LIST).ok().flatten();
        let read: Option<Done> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match read {
            Some(read) if read.patterns == self.done.patterns => {
                self.done.snapshot = read.snapshot;
                self.remembered = Some(read);
            }
            _ if self.matcher.is_none() => self.done.snapshot = self.trees.engine().journal().head,
            _ => {}
        }
        let is_here = |id: &BlockId| self.volume.is_here(id).unwrap_or(false);
        self.done.snapshot = self.done.snapshot.filter(is_here);
    }

    fn remember(&mut self) {
        self.remembered_at = Instant::now();
        let is_of_use = self.matcher.is_some() || self.volume.has_wishes();
        if !is_of_use || self.remembered.as_ref() == Some(&self.done) {
            return;
        }
        let written = serde_json::to_vec(&self.done).map_err(std::io::Error::other);
        let written = written.map_err(|error| error.to_string()).and_then(|bytes| {
            let written = self.state.write_list(LIST, &bytes);
            written.map_err(|error| error.to_string())
        });
        match written {
            Ok(()) => self.remembered = Some(self.done.clone()),
            Err(error) => tracing::debug!(error, "how much was brought here is not remembered"),
        }
    }
}
