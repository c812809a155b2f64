//! The node of a daemon: started from keys and settings, told of new files, asked for peers and tickets.
//!
//! Never in the way of a mount: a node that cannot start is logged, and the daemon goes on without a network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::RwLock;

use super::Located;
use super::admit::Admission;
use super::keeper::Keeper;
use crate::base::clock::{Clock, SystemClock};
use crate::base::{BlockId, DeviceId, RootId, VolumeId};
use crate::control::{Failure, Network, Peer};
use crate::folder::config::NetworkConfig;
use crate::folder::state::{Keyring, StateDir};
use crate::keys::{AdminAddress, DeviceKey, GroupKey, Head, Role, Ticket};
use crate::node::partner::{Done, Partner};
use crate::node::{
    HeadListener, Identity, Member, Members, Node, NodeConfig, NodeError, NodeParts, NodeState, PeerInfo,
    PublishError, StateFile,
};
use crate::store::{BlockStore, Fetch, FetchDone, FetchError, Want};

/// A node that can be ended while others still refer to it.
pub(super) struct SharedNode(RwLock<Option<Node>>);

impl SharedNode {
    fn with<T>(&self, ask: impl FnOnce(&Node) -> Result<T, NodeError>) -> Result<T, NodeError> {
        self.0.read().as_ref().map_or(Err(NodeError::Gone), ask)
    }

    /// Brings a block to a member, see [`Node::put`].
    pub(super) fn put(&self, device: DeviceId, id: BlockId, block: Bytes, deadline: Instant, done: Done) {
        match self.0.read().as_ref() {
            Some(node) => node.put(device, id, block, deadline, done),
            None => done(Err("the node has ended".into())),
        }
    }

    /// Brings a message to a member, see [`Node::say`].
    pub(super) fn say(&self, device: DeviceId, body: Bytes, deadline: Instant, done: Done) {
        match self.0.read().as_ref() {
            Some(node) => node.say(device, body, deadline, done),
            None => done(Err("the node has ended".into())),
        }
    }

    /// See [`Node::set_partner`].
    pub(super) fn set_partner(&self, partner: Arc<dyn Partner>) {
        if let Some(node) = self.0.read().as_ref() {
            node.set_partner(partner);
        }
    }

    /// See [`Node::publish_head`].
    pub(super) fn publish_head(&self, head: &Head) -> Result<(), PublishError> {
        let node = self.0.read();
        node.as_ref()
            .map_or(Err(PublishError::Gone), |node| node.publish_head(head))
    }

    /// See [`Node::heads`]; none after the node has ended.
    pub(super) fn heads(&self, volume: &VolumeId) -> Vec<Head> {
        let node = self.0.read();
        node.as_ref().map(|node| node.heads(volume)).unwrap_or_default()
    }

    /// See [`Node::set_head_listener`].
    pub(super) fn set_head_listener(&self, listener: Arc<dyn HeadListener>) {
        if let Some(node) = self.0.read().as_ref() {
            node.set_head_listener(listener);
        }
    }

    /// All devices that belong to the group, this one among them, with the zones in their certificates.
    pub(super) fn belonging(&self) -> Result<Vec<Member>, NodeError> {
        let members = self.with(Node::members)?;
        let belongs = |member: &Member| member.role.is_some() && member.removed.is_none();
        Ok(members.into_iter().filter(belongs).collect())
    }

    /// Tells others that this device has a file. Losing it costs them a search.
    pub(super) fn announce(&self, root: RootId) {
        if let Some(node) = self.0.read().as_ref() {
            node.announce(root);
        }
    }
}

impl Fetch for SharedNode {
    fn start(&self, want: Want, deadline: Instant, done: FetchDone) {
        match self.0.read().as_ref() {
            Some(node) => node.start(want, deadline, done),
            None => done(Err(FetchError::Closed)),
        }
    }

    fn hurry(&self, id: &BlockId) {
        if let Some(node) = self.0.read().as_ref() {
            node.hurry(id);
        }
    }
}

/// A running node, with what an admin needs to invite.
pub(super) struct Networking {
    node: Arc<SharedNode>,
    /// Public key of this device.
    public: [u8; 32],
    /// The group's signing key, on an admin's device.
    group: Option<GroupKey>,
}

impl Networking {
    /// Starts a node. Returns once it listens, without waiting for any peer.
    pub(super) fn start(
        config: &NetworkConfig,
        keys: &Keyring,
        located: &Located,
        store: Arc<dyn BlockStore>,
    ) -> Result<Self, NodeError> {
        let state = &located.state;
        let config = &with_admins(config, state);
        let parts = || NodeParts {
            identity: identity(keys),
            store: Arc::clone(&store),
            state: Arc::new(StateFiles(state.clone())),
            clock: Arc::new(SystemClock),
            admit: Admission::of(keys).map(|admission| Arc::new(admission) as Arc<dyn crate::node::Admit>),
            keys: Some(Arc::new(Keeper::of(keys, located))),
            name: host_name(),
        };
        let started = Node::start(&node_config(config), parts());
        let node = match started {
            // Another volume of this computer has the usual port: any other will do, members tell each other.
            Err(NodeError::Listen { reason, .. }) if config.listen == NetworkConfig::default().listen => {
                tracing::warn!("the usual port is taken ({reason}); listening on a free one");
                let mut free = node_config(config);
                free.listen.iter_mut().for_each(|address| address.set_port(0));
                Node::start(&free, parts())?
            }
            other => other?,
        };
        Ok(Self {
            node: Arc::new(SharedNode(RwLock::new(Some(node)))),
            public: keys.device.public(),
            group: keys.root.as_ref().map(GroupKey::from_root),
        })
    }

    pub(super) fn node(&self) -> &Arc<SharedNode> {
        &self.node
    }

    /// Ends the node: what it knows is saved, pending fetches end.
    pub(super) fn stop(&self) {
        let node = self.node.0.write().take();
        if let Some(node) = node {
            node.shutdown();
        }
    }

    pub(super) fn summary(&self) -> Network {
        let peers = self.node.with(Node::peers).unwrap_or_default();
        Network {
            listening: self.node.with(Node::addresses).unwrap_or_default(),
            connected: peers.iter().filter(|peer| peer.connected).count(),
            known: peers.len(),
            members: peers.into_iter().map(shown).collect(),
        }
    }

    /// What a person should know of the group.
    pub(super) fn warnings(&self) -> Vec<String> {
        let warnings = self.node.with(|node| Ok(node.group().warnings()));
        warnings.unwrap_or_default()
    }

    /// Does something with the group as the node knows it, and the peers that it knows.
    pub(super) fn with_group<T>(
        &self,
        what: &str,
        work: impl FnOnce(&Members, &[PeerInfo]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let gone = |e| Failure::new(what, e, "try again");
        let (group, peers) = self
            .node
            .with(|node| Ok((Arc::clone(node.group()), node.peers()?)))
            .map_err(gone)?;
        work(&group, &peers)
    }

    pub(super) fn peers(&self) -> Result<Vec<Peer>, Failure> {
        let peers = self
            .node
            .with(Node::peers)
            .map_err(|e| Failure::new("cannot list the members", e, "try again"))?;
        Ok(peers.into_iter().map(shown).collect())
    }

    /// A ticket for a new member, which names this device as the admin to ask.
    pub(super) fn invite(&self, role: &str, expires_secs: u64, uses: u32) -> Result<String, Failure> {
        let what = "cannot invite";
        let group = self.group.as_ref().ok_or_else(|| {
            Failure::new(
                what,
                "this device is no admin of the group",
                "invite on an admin's device",
            )
        })?;
        let own = self.node.with(|node| Ok(node.group().role()));
        if own.is_ok_and(|own| own < Role::Admin) {
            let why = "this device is no admin of the group any more";
            return Err(Failure::new(what, why, "invite on an admin's device"));
        }
        let role: Role = role
            .parse()
            .map_err(|e| Failure::new(what, e, "choose one of them"))?;
        let uses = u16::try_from(uses)
            .ok()
            .filter(|&uses| uses > 0)
            .ok_or_else(|| Failure::new(what, "the number of uses is out of bounds", "choose 1 to 1024"))?;
        let mut addresses = self
            .node
            .with(Node::addresses)
            .map_err(|e| Failure::new(what, e, "try again"))?;
        // A loopback address works on this computer only; on another one, it leads the joiner to whoever listens there.
        let loopback = |address: &String| address.contains("/127.") || address.contains("/ip6/::1/");
        if !addresses.iter().all(loopback) {
            addresses.retain(|address| !loopback(address));
        }
        if addresses.is_empty() {
            return Err(Failure::new(
                what,
                "this device listens on no address",
                "set `listen` in dfs.toml, or use --listen",
            ));
        }
        let admins = addresses
            .into_iter()
            .map(|address| AdminAddress {
                device: self.public,
                address,
            })
            .collect();
        let now = SystemClock.now();
        let ticket = Ticket::issue(group, role, now, now.saturating_add(expires_secs), uses, admins)
            .map_err(|e| Failure::new(what, e, ""))?;
        Ok(ticket.to_text().to_string())
    }
}

/// The settings, with the admins of the ticket by which this device joined among the peers to try first.
fn with_admins(config: &NetworkConfig, state: &StateDir) -> NetworkConfig {
    let mut config = config.clone();
    match state.admins() {
        Ok(admins) => config.peers.extend(admins),
        Err(e) => tracing::warn!("the admins' addresses cannot be read: {e}"),
    }
    config
}

fn node_config(config: &NetworkConfig) -> NodeConfig {
    let listen: Vec<SocketAddr> = config.listen.clone();
    NodeConfig {
        listen,
        known_peers: config.peers.clone(),
        mdns: config.mdns,
        nat: config.upnp,
        announce_budget: config.announce_budget,
        upload: (config.upload > 0).then_some(config.upload),
        download: (config.download > 0).then_some(config.download),
        ..NodeConfig::default()
    }
}

/// Who this device is, for the node.
pub(super) fn identity(keys: &Keyring) -> Identity {
    Identity {
        device: DeviceKey::from_bytes(&keys.device.seed()),
        certificate: keys.certificate.clone(),
        group_public: keys.group_public,
    }
}

/// What this computer is called, for the other members to tell it by.
fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// The node's small files, in the state directory.
pub(super) struct StateFiles(pub(super) StateDir);

impl NodeState for StateFiles {
    fn load(&self, what: StateFile) -> std::io::Result<Option<Vec<u8>>> {
        self.0.read_list(what.name()).map_err(std::io::Error::other)
    }

    fn save(&self, what: StateFile, bytes: &[u8]) -> std::io::Result<()> {
        self.0
            .write_list(what.name(), bytes)
            .map_err(std::io::Error::other)
    }
}

/// A member as commands show it.
fn shown(peer: PeerInfo) -> Peer {
    Peer {
        device: peer.device,
        role: peer.role.map(|role| role.to_string()),
        connected: peer.connected,
        addresses: peer.addresses,
        last_seen: (peer.last_seen > 0).then_some(peer.last_seen),
        rtt_ms: peer.latency_ms.map(|ms| ms.round() as u64),
    }
}
