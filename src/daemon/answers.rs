//! What a running daemon answers on its control socket.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Located;
use super::assembly::{Assembly, Identity};
use super::care::{self, Care, Pinning};
use super::copy;
use super::events::Hub;
use super::listening;
use super::membership;
use super::network::Networking;
use super::past;
use super::replication::Replication;
use super::run::Event;
use super::scrub::Damaged;
use super::trees::Trees;
use super::watchdog;
use crate::base::clock::{Clock, SystemClock, UnixSecs};
use crate::base::{DeviceId, work};
use crate::control::{Answer, Caller, Failure, Handler, Now, Progress, Request, Standing, Status, Tree};
use crate::node::{Members, PeerInfo};
use crate::store::{BlockStore, SqliteStore, Tiered};
use crate::volume::Volume;

/// How long the answer to a stop waits for the drain: as long as it takes, but not for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Answers the requests of one daemon.
pub(super) struct Answers {
    identity: Identity,
    store: Arc<SqliteStore>,
    tiered: Arc<Tiered>,
    volume: Option<Arc<Volume>>,
    network: Option<Arc<Networking>>,
    replication: Option<Arc<Replication>>,
    timeout: Duration,
    started: UnixSecs,
    located: Place,
    mountpoint: Option<PathBuf>,
    read_only: bool,
    damaged: Damaged,
    trees: Option<Arc<Trees>>,
    hub: Arc<Hub>,
    events: Mutex<Sender<Event>>,
}

struct Place {
    volume: crate::base::VolumeId,
    folder: PathBuf,
    state: PathBuf,
}

impl Answers {
    pub(super) fn new(
        assembly: &Assembly,
        located: &Located,
        mountpoint: Option<PathBuf>,
        damaged: &Damaged,
        trees: Option<Arc<Trees>>,
        hub: &Arc<Hub>,
        events: Sender<Event>,
    ) -> Self {
        Self {
            identity: assembly.identity().clone(),
            store: Arc::clone(assembly.store()),
            tiered: Arc::clone(assembly.tiered()),
            volume: assembly.volume().cloned(),
            network: assembly.network().cloned(),
            replication: assembly.replication().cloned(),
            timeout: assembly.timeout(),
            started: SystemClock.now(),
            located: Place {
                volume: located.marker.volume,
                folder: located.folder.clone(),
                state: located.state.path().to_owned(),
            },
            mountpoint,
            read_only: assembly.read_only(),
            damaged: Arc::clone(damaged),
            trees,
            hub: Arc::clone(hub),
            events: Mutex::new(events),
        }
    }

    /// How the daemon is, for whoever watches it; `None` when it cannot tell.
    pub(super) fn look(&self) -> Option<Status> {
        self.status().ok()
    }

    fn status(&self) -> Result<Status, Failure> {
        let stats = self
            .store
            .stats()
            .map_err(|e| Failure::new("cannot tell the state of the store", e, ""))?;
        Ok(Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: self.started,
            volume: self.located.volume,
            group: Some(self.identity.group),
            device: self.identity.device,
            role: self.identity.role.to_string(),
            folder: self.located.folder.clone(),
            state: self.located.state.clone(),
            mountpoint: self.mountpoint.clone(),
            read_only: self.read_only,
            store: stats.into(),
            network: self.network.as_ref().map(|network| network.summary()),
            replication: self.replication.as_deref().map(care::health).transpose()?,
            tree: self.trees.as_ref().map(|trees| trees.look()),
            work: work::so_far(),
            stalls: watchdog::stalls(self.volume.as_deref(), self.timeout),
            warnings: self.warnings(),
        })
    }

    /// How it is, for those who listen to events. Whether copies are missing only `with_copies`: that asks for every block.
    fn now(&self, with_copies: bool) -> Result<Now, Failure> {
        let connected: Vec<DeviceId> = match &self.network {
            Some(network) => {
                let peers = network.peers()?.into_iter();
                peers
                    .filter(|peer| peer.connected)
                    .map(|peer| peer.device)
                    .collect()
            }
            None => Vec::new(),
        };
        let tree = self.trees.as_ref().map(|trees| trees.look());
        let lacking_bytes = match &self.replication {
            Some(replication) if with_copies => Some(care::health(replication)?.lacking_bytes),
            _ => None,
        };
        Ok(Now {
            volume: self.located.volume,
            device: self.identity.device,
            mountpoint: self.mountpoint.clone(),
            tree: tree.as_ref().map(|tree| listening::accord(tree, &connected)),
            snapshot: tree.as_ref().and_then(|tree| tree.snapshot),
            conflicts: tree.as_ref().and_then(|tree| tree.conflicts),
            waiting: tree.and_then(|tree| tree.waiting),
            connected,
            lacking_bytes,
            warnings: self.warnings(),
        })
    }

    fn warnings(&self) -> Vec<String> {
        let network = self.network.as_ref();
        let mut warnings = network.map(|network| network.warnings()).unwrap_or_default();
        let damaged = self.damaged.lock().len();
        if damaged > 0 {
            warnings.push(format!(
                "{damaged} blocks here are damaged, and no device that can be reached has them: `dfs verify --repair` tries again"
            ));
        }
        warnings
    }

    fn network(&self, what: &str) -> Result<&Networking, Failure> {
        self.network.as_deref().ok_or_else(|| {
            Failure::new(
                what,
                "this daemon runs without a network",
                "its log says why; `enabled` in dfs.toml and --no-network turn it off",
            )
        })
    }

    fn replication(&self, what: &str) -> Result<&Replication, Failure> {
        self.network(what)?;
        self.replication
            .as_deref()
            .ok_or_else(|| Failure::new(what, "replication could not be started", "its log says why"))
    }

    /// What care for the volume's blocks needs.
    fn care(&self, what: &'static str) -> Result<Care<'_>, Failure> {
        Ok(Care {
            what,
            volume: self.volume(what)?,
            replication: self.replication(what)?,
            store: &self.store,
        })
    }

    fn stop(&self, lazy: bool) -> Result<Answer, Failure> {
        let ending = || Failure::new("cannot stop", "the daemon is already ending", "");
        let (reply, outcome) = channel();
        let stop = Event::Stop { lazy, reply };
        self.events.lock().send(stop).map_err(|_| ending())?;
        outcome.recv_timeout(DRAIN_TIMEOUT).map_err(|_| ending())??;
        Ok(Answer::Stopped {
            pid: std::process::id(),
        })
    }

    /// Has everything committed; when asked to wait, until all that are connected have the same tree.
    fn sync_trees(&self, wait_secs: u64, report: care::Report<'_>) -> Result<(), Failure> {
        let what = "cannot bring the devices to the same tree";
        let Some(trees) = &self.trees else { return Ok(()) };
        let connected: HashSet<DeviceId> = match (&self.network, wait_secs) {
            (Some(network), 1..) => {
                let peers = network.peers()?;
                peers
                    .iter()
                    .filter(|peer| peer.connected)
                    .map(|peer| peer.device)
                    .collect()
            }
            _ => HashSet::new(),
        };
        let until = Instant::now() + Duration::from_secs(wait_secs);
        let mut tell = |tree: &Tree| {
            let behind = tree.devices.iter().filter(|of| of.standing != Standing::Same);
            let progress = Progress {
                what: format!("the tree: {} devices have another one", behind.count()),
                ..Progress::default()
            };
            report(progress).is_ok()
        };
        let same = trees
            .wait(&connected, until, &mut tell)
            .map_err(|e| Failure::new(what, e, "the log says more"))?;
        if same || wait_secs == 0 {
            return Ok(());
        }
        let why = trees
            .look()
            .waiting
            .unwrap_or_else(|| "another device has not taken in everything yet".into());
        Err(Failure::new(
            what,
            why,
            "`dfs status` shows who has what; wait longer with `--wait SECONDS`",
        ))
    }

    /// What knows the past.
    fn trees(&self, what: &str) -> Result<&Trees, Failure> {
        self.volume(what)?;
        self.trees.as_deref().ok_or_else(|| {
            let why = "this device commits nothing: it is read-only, dfs.toml says so, or its list of snapshots could not be read";
            Failure::new(what, why, "mount without `ro`, and look at [volume] in dfs.toml; the log says more")
        })
    }

    fn volume(&self, what: &str) -> Result<&Arc<Volume>, Failure> {
        self.volume
            .as_ref()
            .ok_or_else(|| Failure::new(what, "this device is a host and cannot read the volume", ""))
    }
}

impl Handler for Answers {
    fn handle(
        &self,
        request: Request,
        report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
    ) -> Result<Answer, Failure> {
        match request {
            Request::Status => Ok(Answer::Status(Box::new(self.status()?))),
            Request::Peers => Ok(Answer::Peers {
                peers: self.network("cannot list the members")?.peers()?,
            }),
            Request::Members => {
                let what = "cannot list the members";
                let list = |group: &Members, peers: &[PeerInfo]| Ok(membership::list(group, peers));
                Ok(Answer::Members(self.network(what)?.with_group(what, list)?))
            }
            Request::Remove { device } => {
                let what = "cannot remove the device";
                let remove = |group: &Members, peers: &[PeerInfo]| membership::remove(group, peers, &device);
                Ok(Answer::Changed(self.network(what)?.with_group(what, remove)?))
            }
            Request::Role { device, role } => {
                let what = "cannot change the role";
                let change =
                    |group: &Members, peers: &[PeerInfo]| membership::set_role(group, peers, &device, &role);
                Ok(Answer::Changed(self.network(what)?.with_group(what, change)?))
            }
            Request::Invite {
                role,
                expires_secs,
                uses,
            } => Ok(Answer::Ticket {
                ticket: self.network("cannot invite")?.invite(&role, expires_secs, uses)?,
            }),
            Request::Import { from, into } => {
                copy::import(self.volume("cannot import")?, &from, &into, report).map(Answer::Copied)
            }
            Request::Export { from, to } => {
                copy::export(self.volume("cannot export")?, &from, &to, report).map(Answer::Copied)
            }
            Request::Free { paths, target_bytes } => self
                .care("cannot free space")?
                .free(&paths, target_bytes, report)
                .map(Answer::Freed),
            Request::Pin { paths, pinned } => {
                let what = if pinned { "cannot pin" } else { "cannot unpin" };
                let care = Pinning {
                    what,
                    volume: self.volume(what)?,
                    replication: self.replication.as_deref(),
                };
                care.pin(&paths, pinned, report).map(Answer::Pinned)
            }
            Request::Sync { wait_secs } => {
                let what = "cannot wait for replicas";
                if let Some(volume) = &self.volume {
                    care::write_back(volume)?;
                }
                self.sync_trees(wait_secs, report)?;
                if wait_secs == 0 && self.network.is_none() {
                    // Nobody is there who could keep anything.
                    return Ok(Answer::Replication(crate::control::Replication::default()));
                }
                care::wait_for_replicas(self.replication(what)?, Duration::from_secs(wait_secs), report)
                    .map(Answer::Replication)
            }
            Request::Verify { repair } => {
                let what = "cannot verify";
                let replication = self.replication.as_deref();
                care::verify(
                    what,
                    &self.store,
                    self.tiered.as_ref(),
                    replication,
                    repair,
                    report,
                )
                .map(Answer::Verified)
            }
            Request::Collect { now } => {
                // What was deleted a moment ago is not committed yet, and what is committed is needed.
                self.sync_trees(0, report)?;
                self.care("cannot collect garbage")?
                    .collect(now)
                    .map(Answer::Garbage)
            }
            Request::Log { path, most } => {
                past::log(self.trees("cannot tell what was")?, &path, most).map(Answer::Log)
            }
            Request::Diff { path, from, to } => {
                let trees = self.trees("cannot compare")?;
                past::diff(trees, &path, from.as_ref(), to.as_ref()).map(Answer::Diff)
            }
            Request::Restore { path, at } => {
                let what = "cannot restore";
                let (volume, trees) = (self.volume(what)?, self.trees(what)?);
                past::restore(volume, trees, &path, at.as_ref()).map(Answer::Restored)
            }
            Request::Conflicts { path } => {
                let what = "cannot list the conflict copies";
                let (volume, trees) = (self.volume(what)?, self.trees(what)?);
                past::conflicts(volume, trees, &path).map(Answer::Conflicts)
            }
            Request::Events => {
                let what = "cannot listen to events";
                Err(Failure::new(what, "this is no way to listen", ""))
            }
            Request::Stop { lazy } => self.stop(lazy),
        }
    }

    fn listen(&self, caller: &Caller<'_>) -> Result<Answer, Failure> {
        listening::listen(&self.hub, caller, |with_copies| self.now(with_copies))
    }
}
