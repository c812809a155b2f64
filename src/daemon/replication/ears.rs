//! What the node tells replication: blocks that members place here, messages, who comes and goes.
//!
//! Invariant: nothing here waits for the machine; only [`Partner::keep`] waits for the disk.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::Msg;
use super::carrier::Job;
use super::shards::Shards;
use super::unleased::Unleased;
use crate::base::{BlockId, DeviceId};
use crate::keys::Role;
use crate::keys::certificate::Membership;
use crate::node::partner::{self, Partner};
use crate::store::{BlockStore, CheckedBlock, Put, PutKind, ReplicaStore};

/// Stands for all guests together.
const GUESTS: DeviceId = DeviceId([0; 32]);

/// What the node tells.
pub(super) struct Ears {
    pub(super) inbox: Sender<Msg>,
    pub(super) jobs: Sender<Job>,
    pub(super) shards: Arc<Shards>,
    pub(super) quota: u64,
    pub(super) public: u64,
    pub(super) unleased: Mutex<Unleased>,
}

impl Partner for Ears {
    fn keep(&self, from: &Membership, block: CheckedBlock) -> Result<(), String> {
        let is_guest = from.role == Role::Guest;
        if self.quota == 0 || (is_guest && self.public == 0) {
            return Err("this device keeps nothing for others".into());
        }
        if matches!(self.shards.store.get(block.id()), Ok(Some(_))) {
            // A lease is all that it lacks. What is here and damaged is replaced.
            return Ok(());
        }
        let len = block.bytes().len() as u64;
        let from = DeviceId(*blake3::hash(&from.device).as_bytes());
        // Anybody can be many guests: what they place without leases is bounded for all of them together.
        let placer = if is_guest { GUESTS } else { from };
        self.unleased
            .lock()
            .admit(placer, *block.id(), len, &*self.shards.store, Instant::now())?;
        let put = Put {
            id: *block.id(),
            bytes: block.bytes().clone(),
            kind: PutKind::Cached,
            plain: None,
        };
        self.shards.store.put(vec![put]).map(|_| ()).map_err(|error| {
            tracing::warn!(device = %from.short(), %error, "a block that a member wants kept cannot be stored");
            "the store failed or is full".into()
        })
    }

    fn hear(&self, from: &Membership, body: bytes::Bytes, answer: partner::Answer) {
        let _ = self.jobs.send(Job::Hear(Box::new(from.clone()), body, answer));
    }

    fn holders(&self, block: &BlockId) -> Vec<DeviceId> {
        let replicas = self.shards.store.replicas(block).unwrap_or_default();
        replicas.into_iter().map(|replica| replica.holder).collect()
    }

    fn reachable(&self, device: DeviceId, reachable: bool) {
        self.shards.met.set(device, reachable);
        let _ = self.inbox.send(Msg::Reachable(device, reachable));
    }
}
