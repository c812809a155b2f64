//! The swarm actor's part that tells others which files this device has, as `announce` says, and keeps what they tell; and that saves lists.
//!
//! Invariant: a member provides for itself only, over its authenticated connection; at most one batch leaves a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{KBucketKey, ProviderRecord, RecordKey};
use tokio::task::JoinHandle;

use super::announce::Key;
use super::exchange::ToExchange;
use super::local::device_of;
use super::local::public_of;
use super::state::{NodeState, StateFile};
use super::swarm::Actor;

/// The list of announced files is saved at most this often, and at the end.
const SAVE: Duration = Duration::from_secs(60);

/// Where a file lies in the key space.
pub(super) fn key_of_root(root: &[u8; 32]) -> Key {
    hashed(KBucketKey::new(RecordKey::new(root)).hashed_bytes())
}

fn key_of_peer(peer: &PeerId) -> Key {
    hashed(KBucketKey::from(*peer).hashed_bytes())
}

fn hashed(bytes: &[u8]) -> Key {
    bytes.try_into().unwrap_or_default()
}

impl Actor {
    /// Announces what is due, one batch at a time.
    pub(super) async fn announce_due(&mut self) {
        let mut peers: Vec<PeerId> = self
            .connections
            .values()
            .filter(|c| c.member.is_some())
            .map(|c| c.peer)
            .collect();
        peers.sort_unstable();
        peers.dedup();
        if peers.is_empty() {
            return;
        }
        let now = self.local.clock.now();
        let Some(batch) = self.schedule.next(now, peers.len() + 1) else {
            return;
        };
        // Whoever asks us finds us.
        let own = *self.swarm.local_peer_id();
        batch.roots.iter().for_each(|root| self.provides(own, *root));
        let members = peers.iter().map(|peer| (key_of_peer(peer), *peer)).collect();
        let targets = batch.region.targets(members);
        let devices = targets
            .iter()
            .filter_map(public_of)
            .map(|public| device_of(&public));
        self.local.work.announce(devices.clone().count() as u64);
        let provide = ToExchange::Provide {
            devices: devices.collect(),
            roots: batch.roots.clone(),
        };
        match self.local.exchange.send(provide).await {
            Ok(()) => self.schedule.told(now),
            Err(_) => self.schedule.failed(now, &batch, key_of_root),
        }
        self.announced_changed = true;
    }

    /// A member has a file.
    pub(super) fn provides(&mut self, peer: PeerId, root: [u8; 32]) {
        let record = ProviderRecord::new(RecordKey::new(&root), peer, Vec::new());
        let kad = self.swarm.behaviour_mut().kad.get();
        if let Err(e) = kad.store_mut().add_provider(record) {
            tracing::debug!(%peer, "a provider is not remembered: {e}");
        }
    }

    fn take_announced(&mut self) {
        let announced = std::mem::take(&mut *self.local.announced.lock());
        for root in announced {
            self.announced_changed |= self.schedule.add(key_of_root(&root.0), root.0);
        }
    }

    fn unsaved(&mut self, ending: bool) -> Vec<(StateFile, Vec<u8>)> {
        self.take_announced();
        let mut files = Vec::new();
        if let Some(bytes) = self.book.take_changed() {
            files.push((StateFile::Peers, bytes));
        }
        if let Some(bytes) = self.local.members.take_unsaved() {
            files.push((StateFile::Presences, bytes));
        }
        if (ending || self.heads.may_save(Instant::now()))
            && let Some(bytes) = self.local.heads.take_unsaved()
        {
            self.heads.saved(Instant::now());
            files.push((StateFile::Heads, bytes));
        }
        let due = ending || self.announced_saved.elapsed() >= SAVE;
        if due && std::mem::take(&mut self.announced_changed) {
            self.announced_saved = Instant::now();
            files.push((StateFile::Announced, self.schedule.encode()));
        }
        files
    }

    /// Saves what changed, without waiting; not while what changed before is still being saved.
    pub(super) fn save_in_background(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        let files = self.unsaved(false);
        self.saving = (!files.is_empty()).then(|| self.write(files));
    }

    /// Saves what changed.
    pub(super) async fn save(&mut self) {
        // What is older must not come to the disk after what is newer.
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        let files = self.unsaved(true);
        let _ = self.write(files).await;
    }

    fn write(&self, files: Vec<(StateFile, Vec<u8>)>) -> JoinHandle<()> {
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || {
            for (what, bytes) in files {
                write(&*state, what, &bytes);
            }
        })
    }
}

fn write(state: &dyn NodeState, what: StateFile, bytes: &[u8]) {
    if let Err(e) = state.save(what, bytes) {
        tracing::warn!("{} could not be saved: {e}", what.name());
    }
}
