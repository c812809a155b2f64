//! Keeps the tree of this device and those of the others the same, on a thread of its own.
//!
//! Invariant: a head is published only after the engine said so, signed by this device's key, and follows the one that was known of it before.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::events::{Follower, Hub};
use super::network::SharedNode;
use crate::base::clock::{Clock, SystemClock};
use crate::base::{BlockId, DeviceId, GroupId, VolumeId};
use crate::control::{Standing, Tree, TreeOf, What};
use crate::folder::keep::Keep;
use crate::folder::state::StateDir;
use crate::keys::{DeviceKey, Head};
use crate::node::{HeadListener, PublishError};
use crate::sync::{Engine, Heads, Journal, Place, Round};
use crate::volume::Volume;

/// How often it is looked whether something is to be done.
const LOOK: Duration = Duration::from_millis(100);

/// A round is waited for so long, however little time is left.
const AT_LEAST: Duration = Duration::from_secs(5);

/// Pause before something that failed, or had to wait, is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// The longest such pause, when it fails again and again.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Who this device is to the others.
pub(super) struct Own {
    pub(super) key: DeviceKey,
    pub(super) group: GroupId,
    pub(super) volume: VolumeId,
    /// Whether it makes snapshots and tells of them.
    pub(super) may_write: bool,
}

/// The running engine.
pub(super) struct Trees {
    engine: Arc<Engine>,
    volume: Arc<Volume>,
    bell: Arc<Bell>,
    follower: Arc<Follower>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread is to do.
#[derive(Default)]
struct Asked {
    stop: bool,
    /// Others have something new.
    heard: bool,
    /// Rounds asked for, and done.
    wanted: u64,
    done: u64,
    /// How the last round ended.
    outcome: Option<Result<Round, String>>,
}

#[derive(Default)]
struct Bell {
    asked: Mutex<Asked>,
    rung: Condvar,
}

impl HeadListener for Bell {
    fn head(&self, head: &Head, fork: bool) {
        if fork {
            let device = head.device_id();
            tracing::warn!(device = %device.short(), seq = head.seq, "a device was put back to an earlier state, or has a twin: what both did is merged");
        }
        self.asked.lock().heard = true;
        self.rung.notify_all();
    }
}

/// The heads that the node knows.
struct NodeHeads {
    node: Option<Arc<SharedNode>>,
    own: Own,
    volume: Arc<Volume>,
}

impl NodeHeads {
    fn all(&self) -> Vec<Head> {
        let node = self.node.as_ref();
        node.map(|node| node.heads(&self.own.volume)).unwrap_or_default()
    }
}

impl Heads for NodeHeads {
    fn known(&self) -> Vec<(DeviceId, BlockId)> {
        let pair = |head: &Head| (head.device_id(), head.snapshot);
        self.all().iter().map(pair).collect()
    }

    fn publish(&self, snapshot: BlockId) {
        let Some(node) = &self.node else { return };
        let public = self.own.key.public();
        let mut before = self.all().into_iter().find(|head| head.device == public);
        // Once more from the one that is known already, should there be a newer one.
        for _ in 0..2 {
            let (epoch, time) = (self.volume.epoch(), SystemClock.now());
            let (key, group, volume) = (&self.own.key, &self.own.group, self.own.volume);
            let head = Head::issue(key, group, volume, before.as_ref(), snapshot, epoch, time);
            match node.publish_head(&head) {
                Ok(()) | Err(PublishError::Gone) => return,
                Err(PublishError::Behind(newest)) => before = Some(*newest),
                Err(error) => {
                    tracing::debug!(%error, "nobody is told of the newest snapshot");
                    return;
                }
            }
        }
    }
}

impl Trees {
    /// Begins. What happens is told to `hub`.
    pub(super) fn start(
        volume: &Arc<Volume>,
        state: &StateDir,
        journal: Journal,
        node: Option<Arc<SharedNode>>,
        (own, keep): (Own, Keep),
        hub: &Arc<Hub>,
    ) -> std::io::Result<Self> {
        let bell = Arc::<Bell>::default();
        if let Some(node) = &node {
            node.set_head_listener(Arc::clone(&bell) as Arc<dyn HeadListener>);
        }
        let (device, may_write) = (own.key.id(), own.may_write);
        let heads = Arc::new(NodeHeads {
            node,
            own,
            volume: Arc::clone(volume),
        });
        let engine = Engine::new(volume, state, journal, heads, device, may_write).keeping(keep);
        let engine = Arc::new(engine);
        let follower = Arc::new(Follower::new(hub));
        let thread = std::thread::Builder::new().name("dfs-trees".into()).spawn({
            let (engine, bell) = (Arc::clone(&engine), Arc::clone(&bell));
            let follower = Arc::clone(&follower);
            move || run(&engine, &bell, &follower)
        })?;
        Ok(Self {
            engine,
            volume: Arc::clone(volume),
            bell,
            follower,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// What does it.
    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where the tree is.
    pub(super) fn look(&self) -> Tree {
        let journal = self.engine.journal();
        let standing = |place| match place {
            Place::Same => Standing::Same,
            Place::Behind => Standing::Behind,
            Place::Ahead => Standing::Ahead,
        };
        let others = self.engine.others().into_iter();
        let waiting = match &self.bell.asked.lock().outcome {
            Some(Ok(round)) if round.waiting => {
                Some("something that was just changed here is in the way".into())
            }
            Some(Ok(round)) => round.failed.clone(),
            Some(Err(error)) => Some(error.clone()),
            None => None,
        };
        Tree {
            snapshot: journal.head,
            since: journal.kept.last().map(|kept| kept.time),
            kept: journal.kept.len(),
            changed: self.engine.has_changes(),
            waiting,
            conflicts: self.follower.conflicts(),
            devices: others
                .map(|(device, place)| TreeOf {
                    device,
                    standing: standing(place),
                })
                .collect(),
        }
    }

    /// Waits until everything is committed, and those of `with` that told where they are have the same tree; at most until then. False when
    /// that took too long.
    pub(super) fn wait(
        &self,
        with: &HashSet<DeviceId>,
        until: Instant,
        report: &mut dyn FnMut(&Tree) -> bool,
    ) -> Result<bool, String> {
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(AT_LEAST);
            match self.now(left) {
                Some(outcome) => drop(outcome?),
                None => return Ok(false),
            }
            let tree = self.look();
            let is_there = |of: &TreeOf| of.standing == Standing::Same || !with.contains(&of.device);
            if tree.waiting.is_none() && !tree.changed && tree.devices.iter().all(is_there) {
                return Ok(true);
            }
            if Instant::now() >= until || !report(&tree) {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Commits what is left, and ends.
    pub(super) fn stop(&self) {
        self.bell.asked.lock().stop = true;
        self.bell.rung.notify_all();
        let Some(thread) = self.thread.lock().take() else {
            return;
        };
        if thread.join().is_err() {
            tracing::error!("the thread that compares trees ended by a fault");
            return;
        }
        let committed = self.volume.write_everything().map_err(|error| error.to_string());
        let round = || self.engine.round(true, false).map_err(|error| error.to_string());
        if let Err(error) = committed.and_then(|()| round()) {
            tracing::warn!(%error, "the newest changes are committed at the next start");
        }
        self.follower.look(&self.engine);
    }

    /// Has everything committed and taken in now, and waits for that, at most so long. `None` when it takes longer.
    pub(super) fn now(&self, at_most: Duration) -> Option<Result<Round, String>> {
        let deadline = Instant::now() + at_most;
        let mut asked = self.bell.asked.lock();
        asked.wanted += 1;
        let mine = asked.wanted;
        self.bell.rung.notify_all();
        while asked.done < mine {
            if self.bell.rung.wait_until(&mut asked, deadline).timed_out() {
                return None;
            }
        }
        asked.outcome.clone()
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(engine: &Engine, bell: &Bell, follower: &Follower) {
    let (mut failed, mut told): (Option<String>, Option<String>) = (None, None);
    let (mut pause, mut again) = (AGAIN, Instant::now());
    loop {
        let (now, heard, wanted) = {
            let mut asked = bell.asked.lock();
            if !asked.heard && asked.done == asked.wanted && !asked.stop {
                bell.rung.wait_for(&mut asked, LOOK);
            }
            if asked.stop {
                return;
            }
            let heard = std::mem::take(&mut asked.heard);
            (asked.done < asked.wanted, heard, asked.wanted)
        };
        let rested = Instant::now() >= again;
        if failed.is_some() && !now && !rested {
            continue;
        }
        let take_in = now || heard || rested;
        let outcome = engine.round(now, take_in).map_err(|error| error.to_string());
        let wrong = match &outcome {
            Ok(round) => round.failed.as_ref(),
            Err(error) => Some(error),
        };
        if let Some(error) = wrong
            && told.as_ref() != Some(error)
        {
            tracing::warn!(%error, "the trees of this device and of others cannot be made the same now; it is tried again");
            told = Some(error.clone());
            follower.hub().tell(What::Failed { why: error.clone() });
        } else if wrong.is_none() && told.take().is_some() {
            tracing::info!("the trees of this device and of others can be compared again");
            follower.hub().tell(What::Recovered);
        }
        follower.look(engine);
        match &outcome {
            Ok(round) if round.failed.is_none() => {
                pause = AGAIN;
                if round.waiting {
                    again = Instant::now() + AGAIN;
                }
            }
            _ => {
                again = Instant::now() + pause;
                pause = (pause * 2).min(AGAIN_MAX);
            }
        }
        failed = outcome.as_ref().err().cloned();
        let mut asked = bell.asked.lock();
        asked.done = asked.done.max(wanted);
        asked.outcome = Some(outcome);
        bell.rung.notify_all();
    }
}
