//! What a running daemon answers on its control socket.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Located;
use super::assembly::{Assembly, Identity};
use super::copy;
use super::membership;
use super::network::Networking;
use super::replication::Replication;
use super::run::Event;
use super::watchdog;
use crate::base::clock::{Clock, SystemClock, UnixSecs};
use crate::base::{BlockId, work};
use crate::control::{
    self, Answer, Failure, Freed, Handler, Progress, Replication as Health, Request, Status,
};
use crate::node::{Members, PeerInfo};
use crate::replica::message::Unfreed;
use crate::store::{BlockStore, SqliteStore};
use crate::volume::Volume;

/// How long the answer to a stop waits for the drain: as long as it takes, but not for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Blocks freed before progress is told.
const FREED_AT_ONCE: usize = 4096;

/// How long the holders of so many may take to confirm.
const FREE_WITHIN: Duration = Duration::from_secs(300);

/// Answers the requests of one daemon.
pub(super) struct Answers {
    identity: Identity,
    store: Arc<SqliteStore>,
    volume: Option<Arc<Volume>>,
    network: Option<Arc<Networking>>,
    replication: Option<Arc<Replication>>,
    timeout: Duration,
    started: UnixSecs,
    located: Place,
    mountpoint: Option<PathBuf>,
    read_only: bool,
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
        events: Sender<Event>,
    ) -> Self {
        Self {
            identity: assembly.identity().clone(),
            store: Arc::clone(assembly.store()),
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
            events: Mutex::new(events),
        }
    }

    fn status(&self) -> Result<Answer, Failure> {
        let stats = self
            .store
            .stats()
            .map_err(|e| Failure::new("cannot tell the state of the store", e, ""))?;
        Ok(Answer::Status(Box::new(Status {
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
            replication: self.replication.as_deref().map(health),
            work: work::so_far(),
            stalls: watchdog::stalls(self.volume.as_deref(), self.timeout),
            warnings: self
                .network
                .as_ref()
                .map(|network| network.warnings())
                .unwrap_or_default(),
        })))
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

    /// Frees the blocks of files, a part at a time.
    fn free(
        &self,
        paths: &[PathBuf],
        report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
    ) -> Result<Freed, Failure> {
        let what = "cannot free space";
        let (volume, replication) = (self.volume(what)?, self.replication(what)?);
        let mut blocks = HashSet::new();
        for path in paths {
            let named = volume
                .blocks_below(path)
                .map_err(|e| Failure::new(format!("{what} of {}", path.display()), e, ""))?;
            blocks.extend(named);
        }
        let all: Vec<BlockId> = blocks.into_iter().collect();
        let mut sum = super::replication::Freed::default();
        for some in all.chunks(FREED_AT_ONCE) {
            let Some(freed) = replication.free(some.to_vec(), FREE_WITHIN) else {
                let hint = "`dfs status` shows who is connected; what was wanted is freed when it can be";
                return Err(Failure::new(what, "the holders did not confirm in time", hint));
            };
            sum.blocks += freed.blocks;
            sum.bytes += freed.bytes;
            for (why, count) in freed.kept {
                *sum.kept.entry(why).or_default() += count;
            }
            let progress = Progress {
                what: "freeing".into(),
                done_bytes: sum.bytes,
                total_bytes: None,
            };
            if report(progress).is_err() {
                break;
            }
        }
        // The space is to be seen on the disk when the command ends.
        self.store
            .tidy()
            .map_err(|e| Failure::new("cannot give the space back to the disk", e, ""))?;
        Ok(Freed {
            blocks: sum.blocks,
            bytes: sum.bytes,
            kept: sum
                .kept
                .into_iter()
                .map(|(why, count)| (unfreed(why).to_owned(), count))
                .collect(),
        })
    }

    /// Writes everything back, and waits for replicas.
    fn sync(
        &self,
        at_most: Duration,
        report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
    ) -> Result<Health, Failure> {
        let what = "cannot wait for replicas";
        let replication = self.replication(what)?;
        if let Some(volume) = &self.volume {
            volume
                .write_everything()
                .map_err(|e| Failure::new("cannot write everything back", e, ""))?;
        }
        let deadline = Instant::now() + at_most;
        loop {
            let now = health(replication);
            if replication.is_settled() && now.lacking_bytes == 0 || Instant::now() >= deadline {
                return Ok(now);
            }
            let progress = Progress {
                what: "replicating".into(),
                done_bytes: now
                    .health
                    .iter()
                    .filter(|h| h.replicas >= h.wanted)
                    .map(|h| h.bytes)
                    .sum(),
                total_bytes: Some(now.health.iter().map(|h| h.bytes).sum()),
            };
            if report(progress).is_err() {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
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

    fn volume(&self, what: &str) -> Result<&Arc<Volume>, Failure> {
        self.volume
            .as_ref()
            .ok_or_else(|| Failure::new(what, "this device is a host and cannot read the volume", ""))
    }
}

fn health(replication: &Replication) -> Health {
    let by_replicas: Vec<control::Health> = replication
        .health()
        .into_iter()
        .map(|line| control::Health {
            replicas: line.copies,
            wanted: line.wanted,
            blocks: line.blocks,
            bytes: line.bytes,
        })
        .collect();
    Health {
        lacking_bytes: by_replicas
            .iter()
            .filter(|line| line.replicas < line.wanted)
            .map(|line| line.bytes)
            .sum(),
        health: by_replicas,
        held_bytes: replication.held_bytes(),
    }
}

/// Why a block stays, for people.
fn unfreed(why: Unfreed) -> &'static str {
    match why {
        Unfreed::Pinned => "pinned",
        Unfreed::TooFew => "too few replicas",
        Unfreed::HoldersAway => "the holders are away or did not confirm",
        Unfreed::Contended => "another device is freeing the same",
        Unfreed::HeldForOthers => "kept for another device, which was asked to move it",
        Unfreed::NotRetained => "not known to be replicated yet",
        Unfreed::NotHere => "not on this device",
    }
}

impl Handler for Answers {
    fn handle(
        &self,
        request: Request,
        report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
    ) -> Result<Answer, Failure> {
        match request {
            Request::Status => self.status(),
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
            Request::Free { paths } => self.free(&paths, report).map(Answer::Freed),
            Request::Sync { wait_secs } => self
                .sync(Duration::from_secs(wait_secs), report)
                .map(Answer::Replication),
            Request::Stop { lazy } => self.stop(lazy),
        }
    }
}
