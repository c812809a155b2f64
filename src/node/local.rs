//! What this device is, and what its stream tasks share: identity, store, clock, limits, and the ways to the swarm actor and the exchange.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use libp2p::swarm::ConnectionId;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::base::clock::Clock;
use crate::base::{BlockId, DeviceId, GroupId, RootId};
use crate::keys::certificate::Membership;
use crate::keys::{Certificate, DeviceKey};
use crate::store::BlockStore;

use super::NodeError;
use super::admit::Desk;
use super::bans::{Bans, Terms};
use super::exchange::ToExchange;
use super::fetch_events::LinkId;
use super::find::Searches;
use super::heads::Heads;
use super::members::Members;
use super::partner::Partner;
use super::peers::PeerInfo;
use super::slots::Slots;
use super::throttle::Limits;
use super::work::Work;

/// Who this device is.
pub struct Identity {
    /// The device's key; also the identity that the transport authenticates.
    pub device: DeviceKey,
    /// The device's certificate.
    pub certificate: Certificate,
    /// The group's public key.
    pub group_public: [u8; 32],
}

/// Shared by every task of a node.
pub(super) struct Local {
    /// Who this device is.
    pub(super) identity: Identity,
    /// Id of the group.
    pub(super) group: GroupId,
    /// Who belongs to it.
    pub(super) members: Arc<Members>,
    /// The newest snapshots of those who write.
    pub(super) heads: Arc<Heads>,
    /// Where blocks are.
    pub(super) store: Arc<dyn BlockStore>,
    /// What time it is.
    pub(super) clock: Arc<dyn Clock>,
    /// Who may use the store for others, and when.
    pub(super) slots: Arc<Slots>,
    /// How fast blocks come and go.
    pub(super) limits: Limits,
    /// Who is shut out for a while.
    pub(super) bans: Mutex<Bans>,
    /// How long a handshake may take.
    pub(super) hello_timeout: Duration,
    /// How long a peer may take nothing of what it is sent.
    pub(super) stall_timeout: Duration,
    /// Who keeps blocks for others, once it is known.
    pub(super) partner: OnceLock<Arc<dyn Partner>>,
    /// Where devices with tickets are admitted, on an admin's device.
    pub(super) desk: Option<Arc<Desk>>,
    /// Files that are to be announced and that the swarm actor has not seen yet.
    pub(super) announced: Mutex<VecDeque<RootId>>,
    /// Searches that came by.
    pub(super) searches: Mutex<Searches>,
    /// What was asked of others.
    pub(super) work: Arc<Work>,
    /// The swarm actor.
    pub(super) actor: mpsc::Sender<Command>,
    /// The exchange.
    pub(super) exchange: mpsc::Sender<ToExchange>,
}

/// Bans of those who break the protocol or abuse it: short at first, since it may be an honest fault that a restart ends.
pub(super) const ABUSE: Terms = Terms {
    first: Duration::from_secs(5),
    longest: Duration::from_secs(6 * 3600),
    forgive: Duration::from_secs(3600),
};

impl Local {
    /// The device broke the protocol: it is shut out for a while. Says so in the log.
    pub(super) fn shut_out(&self, device: DeviceId, remote: &libp2p::Multiaddr, why: &str) {
        let length = self.bans.lock().strike(device, Instant::now());
        tracing::warn!(
            device = %device.short(),
            address = %remote,
            "closing the connection: {why}; it is shut out for {} s", length.as_secs()
        );
    }

    /// For how much longer the device is shut out.
    pub(super) fn shut_out_for(&self, device: &DeviceId) -> Option<Duration> {
        self.bans.lock().left(device, Instant::now())
    }
}

/// What the swarm actor is asked to do.
pub(super) enum Command {
    /// Connect to an address.
    Dial(String),
    /// Find providers of a file and connect to them; then tell the exchange.
    Lookup(RootId),
    /// List the peers.
    Peers(std::sync::mpsc::SyncSender<Vec<PeerInfo>>),
    /// List the addresses at which this device can be reached.
    Addresses(std::sync::mpsc::SyncSender<Vec<String>>),
    /// A peer has shown a valid certificate.
    Trusted {
        /// The peer.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
        /// What its certificate states.
        member: Box<Membership>,
    },
    /// Both sides of a connection have accepted each other.
    Ready {
        /// The peer.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
    },
    /// The block stream that we opened ended; the connection goes with it.
    Unlinked {
        /// The stream.
        link: LinkId,
        /// The peer.
        peer: PeerId,
        /// The connection.
        connection: ConnectionId,
    },
    /// A member has these files.
    Provided(PeerId, Vec<[u8; 32]>),
    /// Search for blocks from member to member.
    Find(Vec<BlockId>),
    /// Connect to the member with this public key, which may be at these addresses.
    Reach([u8; 32], Vec<String>),
    /// End a connection.
    Close(ConnectionId),
    /// End everything.
    Shutdown,
}

/// The transport's key pair of a device key.
pub(super) fn keypair(device: &DeviceKey) -> Result<Keypair, NodeError> {
    let mut seed = device.seed();
    Keypair::ed25519_from_bytes(&mut seed[..])
        .map_err(|e| NodeError::Transport(format!("the device key is not usable: {e}")))
}

/// The peer id of a device's public key.
pub(super) fn peer_of(public: &[u8; 32]) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(public).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The device public key in a peer id: Ed25519 keys are short enough to be the id itself.
pub(super) fn public_of(peer: &PeerId) -> Option<[u8; 32]> {
    let hash = peer.as_ref();
    if hash.code() != 0 {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    Some(key.try_into_ed25519().ok()?.to_bytes())
}

/// The device id of a public key.
pub(super) fn device_of(public: &[u8; 32]) -> DeviceId {
    DeviceId(*blake3::hash(public).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_keys_and_peer_ids_are_one_to_one() {
        let device = DeviceKey::from_bytes(&[5; 32]);
        let peer = keypair(&device).unwrap().public().to_peer_id();
        assert_eq!(peer_of(&device.public()), Some(peer));
        assert_eq!(public_of(&peer), Some(device.public()));
        assert_eq!(device_of(&device.public()), device.id());
        assert_eq!(public_of(&PeerId::random()), None);
    }
}
