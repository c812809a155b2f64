//! The one task that owns the swarm. It dials, listens, keeps the book of peers and the DHT, and gives every stream to a task of its own.
//!
//! Invariant: nothing here waits or computes for long: blocks, hashing and disk are others' business. A peer is in the book as
//! connected exactly while a trusted connection to it is open.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::kad::QueryId;
use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, autonat, identify, mdns, ping};
use tokio::sync::mpsc;

use crate::base::{DeviceId, RootId};
use crate::keys::certificate::Membership;

use super::admission::{Admission, Admissions};
use super::announce::Schedule;
use super::behaviour::{Behaviour, BehaviourEvent};
use super::config::multiaddr;
use super::dht::{QUERIES, Query};
use super::exchange::ToExchange;
use super::gate::{GateEvent, Opened, Protocol};
use super::head_records::HeadSchedule;
use super::local::{Command, Local, device_of, peer_of, public_of};
use super::peers::{Book, Target};
use super::relays::Relays;
use super::state::NodeState;
use super::{admit, link, serve};

/// Dials begun at one time.
const DIALS: usize = 16;
/// Changes of addresses are collected for this long before the record is renewed.
const RECORD_SETTLE: Duration = Duration::from_millis(500);
/// Changes of the roster are collected for this long before it is published.
const ROSTER_SETTLE: Duration = Duration::from_secs(3);
/// Dials that fail this often make us ask the DHT for new addresses.
const ASK_AFTER: u32 = 2;
/// Unanswered pings after which a connection counts as dead.
const PINGS_LOST: u32 = 2;

enum Dialling {
    Device(DeviceId),
    Seed(String),
}

/// A connection and what is known of it.
pub(super) struct Connection {
    pub(super) peer: PeerId,
    pub(super) remote: Multiaddr,
    /// The own address at which the peer reached this device.
    reached: Option<Multiaddr>,
    pub(super) dialled: bool,
    admission: Arc<Admission>,
    /// The member, once it has shown its certificate.
    pub(super) member: Option<DeviceId>,
    pings_lost: u32,
}

/// The task's state.
pub(super) struct Actor {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) local: Arc<Local>,
    pub(super) state: Arc<dyn NodeState>,
    pub(super) admissions: Admissions,
    pub(super) book: Book,
    pub(super) schedule: Schedule,
    pub(super) connections: HashMap<ConnectionId, Connection>,
    dials: HashMap<ConnectionId, Dialling>,
    pub(super) queries: HashMap<QueryId, Query>,
    pub(super) lookups: Vec<RootId>,
    pub(super) record_due: Option<Instant>,
    pub(super) absent: usize,
    pub(super) announced_changed: bool,
    pub(super) announced_saved: Instant,
    prospects: usize,
    /// Tells of changes of the roster.
    roster: tokio::sync::watch::Receiver<u64>,
    /// When the roster is next exchanged through the DHT.
    pub(super) roster_due: Instant,
    pub(super) relays: Relays,
    pub(super) heads: HeadSchedule,
    /// Lists on their way to the disk.
    pub(super) saving: Option<tokio::task::JoinHandle<()>>,
}

impl Actor {
    /// The actor of a swarm that listens already.
    pub(super) fn new(
        swarm: Swarm<Behaviour>,
        local: Arc<Local>,
        state: Arc<dyn NodeState>,
        admissions: Admissions,
        book: Book,
        schedule: Schedule,
        relay: bool,
    ) -> Self {
        let mut roster = local.members.subscribe();
        roster.mark_changed();
        Self {
            swarm,
            local,
            state,
            admissions,
            book,
            schedule,
            connections: HashMap::new(),
            dials: HashMap::new(),
            queries: HashMap::new(),
            lookups: Vec::new(),
            record_due: None,
            absent: 0,
            announced_changed: false,
            announced_saved: Instant::now(),
            prospects: 0,
            roster,
            roster_due: Instant::now(),
            relays: Relays::new(relay),
            heads: HeadSchedule::new(Instant::now()),
            saving: None,
        }
    }

    /// Runs until `Shutdown`.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.dial_due();
        self.tell_prospects().await;
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm(event).await,
                command = commands.recv() => match command {
                    None | Some(Command::Shutdown) => break,
                    Some(command) => self.on_command(command).await,
                },
                _ = tick.tick() => self.on_tick().await,
            }
            self.tell_prospects().await;
        }
        self.save().await;
    }

    /// Tells the exchange how many members may still come.
    pub(super) async fn tell_prospects(&mut self) {
        let prospects = self.book.prospects();
        if prospects != self.prospects {
            self.prospects = prospects;
            self.tell(ToExchange::Prospects(prospects)).await;
        }
    }

    /// Tells the exchange something.
    pub(super) async fn tell(&mut self, event: ToExchange) {
        // The exchange never waits for this task (it only tries to send), so this cannot deadlock.
        let _ = self.local.exchange.send(event).await;
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Dial(address) => {
                self.book.add_seed(address, Instant::now());
                self.dial_due();
            }
            Command::Lookup(root) => {
                self.lookups.push(root);
                self.begin_lookups().await;
            }
            Command::Peers(answer) => {
                let mut moving: BTreeMap<DeviceId, (u64, u64)> = BTreeMap::new();
                for connection in self.connections.values() {
                    if let Some(device) = connection.member {
                        let (bytes_in, bytes_out) = connection.admission.counted();
                        let sum = moving.entry(device).or_default();
                        *sum = (sum.0 + bytes_in, sum.1 + bytes_out);
                    }
                }
                let _ = answer.try_send(self.book.list(|d| moving.get(d).copied().unwrap_or_default()));
            }
            Command::Addresses(answer) => {
                let _ = answer.try_send(self.addresses());
            }
            Command::Trusted {
                peer,
                connection,
                member,
            } => self.trusted(peer, connection, &member),
            Command::Ready { peer, connection } => {
                self.leave_relays(connection);
                self.swarm.behaviour_mut().gate.wake(peer, connection);
                if let Some(public) = public_of(&peer) {
                    self.book.linked(device_of(&public), true);
                }
            }
            Command::Unlinked {
                link,
                peer,
                connection,
            } => {
                if let Some(public) = public_of(&peer) {
                    self.book.linked(device_of(&public), false);
                }
                self.swarm.close_connection(connection);
                // Prospects first: a pending want waits for the peer to come back.
                self.tell_prospects().await;
                self.tell(ToExchange::LinkDown(link)).await;
            }
            Command::Find(ids) => self.search(ids).await,
            Command::Reach(public, addresses) => self.reach(&public, &addresses),
            Command::Provided(peer, roots) => {
                roots.into_iter().for_each(|root| self.provides(peer, root));
            }
            Command::Close(connection) => {
                self.swarm.close_connection(connection);
            }
            Command::Shutdown => {}
        }
    }

    /// Addresses at which others may reach this device: confirmed ones first.
    pub(super) fn addresses(&self) -> Vec<String> {
        let external = self.swarm.external_addresses();
        let mut all: Vec<String> = external
            .chain(self.swarm.listeners())
            .map(|a| without_peer(a).to_string())
            .collect();
        let mut seen = HashSet::new();
        all.retain(|a| seen.insert(a.clone()));
        // A way through a relay is the longer one; loopback is of no use to other computers.
        all.sort_by_key(|a| {
            (
                a.starts_with("/ip4/127.") || a.starts_with("/ip6/::1/"),
                a.contains("/p2p-circuit"),
            )
        });
        all
    }

    fn trusted(&mut self, peer: PeerId, id: ConnectionId, member: &Membership) {
        self.swarm.behaviour_mut().gate.wake(peer, id);
        let (now, clock) = (Instant::now(), self.local.clock.now());
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let first = connection.member.is_none();
        connection.member = Some(device_of(&member.device));
        self.book.member(member, first, now, clock);
        let reached = connection.reached.take();
        if connection.dialled {
            let address = without_peer(&connection.remote);
            self.book
                .add_addresses(&member.device, &[address.to_string()], true, now);
            self.book.seed_answered(&address.to_string(), &member.device);
            self.swarm.behaviour_mut().kad.get().add_address(&peer, address);
        }
        if let Some(address) = reached {
            self.reached_at(address);
        }
        self.tend_soon(now);
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if first {
            tracing::info!(
                device = %device_of(&member.device).short(),
                address = %connection.remote,
                "connected to a {}", member.role
            );
            if self.record_due.is_none_or(|at| at > now + RECORD_SETTLE) && self.queries.len() < QUERIES {
                // A new member should know where we are.
                self.record_due = Some(now + RECORD_SETTLE);
            }
        }
    }

    async fn on_tick(&mut self) {
        let roster_changed = self.roster.has_changed().unwrap_or(false);
        if roster_changed {
            self.roster.mark_unchanged();
            let members = Arc::clone(&self.local.members);
            self.book.retain(|device| !members.is_removed(device));
            self.roster_due = self.roster_due.min(Instant::now() + ROSTER_SETTLE);
        }
        if self.local.members.has_mail() {
            let members = Arc::clone(&self.local.members);
            tokio::task::spawn_blocking(move || members.open_mail());
        }
        self.tend_heads(roster_changed);
        self.dial_due();
        self.count_absent().await;
        self.tend_relays(Instant::now());
        // Alone there is nobody to tell; all stays due.
        if self.connections.values().any(|c| c.member.is_some()) {
            self.announce_due().await;
            if self.roster_due <= Instant::now() && self.queries.len() < QUERIES {
                self.exchange_roster();
            }
            self.exchange_heads(Instant::now());
        }
        if self.record_due.is_some_and(|at| at <= Instant::now()) {
            self.publish_record();
        }
        self.save_in_background();
    }

    /// Dials whoever is due.
    pub(super) fn dial_due(&mut self) {
        let room = DIALS.saturating_sub(self.dials.len());
        for target in self.book.due(Instant::now(), room) {
            match target {
                Target::Device {
                    public,
                    addresses,
                    failures,
                } => {
                    if failures >= ASK_AFTER {
                        self.ask_addresses(public);
                    }
                    self.dial_device(&public, &addresses);
                }
                Target::Address(address) => self.dial_seed(address),
            }
        }
    }

    /// Dials a device.
    pub(super) fn dial_device(&mut self, public: &[u8; 32], addresses: &[String]) {
        let (Some(peer), device) = (peer_of(public), device_of(public)) else {
            return;
        };
        if self.local.shut_out_for(&device).is_some() {
            self.book.failed(device, Instant::now());
            return;
        }
        let addresses = addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let opts = DialOpts::peer_id(peer)
            .addresses(addresses)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .build();
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, Dialling::Device(device));
            }
            Err(e) => {
                tracing::debug!(device = %device.short(), "cannot dial: {e}");
                self.book.failed(device, Instant::now());
            }
        }
    }

    fn dial_seed(&mut self, address: String) {
        let Ok(at) = multiaddr(&address) else {
            return;
        };
        let opts = DialOpts::unknown_peer_id().address(at).build();
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, Dialling::Seed(address));
            }
            Err(e) => {
                tracing::debug!(address, "cannot dial: {e}");
                self.book.seed_failed(&address, Instant::now());
            }
        }
    }

    fn dial_ended(&mut self, id: ConnectionId, failed: bool) {
        match self.dials.remove(&id) {
            Some(Dialling::Device(device)) if failed && !self.book.is_connected(&device) => {
                self.book.failed(device, Instant::now());
            }
            Some(Dialling::Seed(address)) if failed => self.book.seed_failed(&address, Instant::now()),
            _ => {}
        }
    }

    async fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event).await,
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.dial_ended(connection_id, false);
                let reached = match &endpoint {
                    ConnectedPoint::Listener { local_addr, .. } => Some(local_addr.clone()),
                    ConnectedPoint::Dialer { .. } => None,
                };
                let connection = Connection {
                    reached,
                    peer: peer_id,
                    remote: endpoint.get_remote_address().clone(),
                    dialled: endpoint.is_dialer(),
                    admission: self.admissions.of(connection_id),
                    member: None,
                    pings_lost: 0,
                };
                self.connections.insert(connection_id, connection);
            }
            SwarmEvent::ConnectionClosed {
                connection_id, cause, ..
            } => self.closed(connection_id, cause.map(|c| c.to_string())),
            SwarmEvent::OutgoingConnectionError {
                connection_id, error, ..
            } => {
                tracing::debug!("a dial failed: {error}");
                if let (DialError::LocalPeerId { .. }, Some(Dialling::Seed(address))) =
                    (&error, self.dials.get(&connection_id))
                {
                    self.book.remove_seed(address);
                }
                self.dial_ended(connection_id, true);
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => tracing::debug!(address = %send_back_addr, "an incoming connection failed: {error}"),
            SwarmEvent::NewListenAddr { address, .. } => {
                tracing::info!(%address, "listening");
                self.record_due = Some(Instant::now() + RECORD_SETTLE);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.swarm.remove_external_address(&address);
                self.record_due = Some(Instant::now() + RECORD_SETTLE);
            }
            SwarmEvent::ExternalAddrConfirmed { .. } | SwarmEvent::ExternalAddrExpired { .. } => {
                self.record_due = Some(Instant::now() + RECORD_SETTLE);
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!("a listener failed: {error}"),
            SwarmEvent::ListenerClosed {
                listener_id,
                addresses,
                reason,
            } => {
                let why = reason
                    .err()
                    .map_or_else(|| "closed".to_owned(), |e| e.to_string());
                if !self.place_lost(listener_id, &why) {
                    tracing::warn!("no longer listening on {addresses:?}: {why}");
                }
            }
            _ => {}
        }
    }

    fn closed(&mut self, id: ConnectionId, cause: Option<String>) {
        let Some(connection) = self.connections.remove(&id) else {
            return;
        };
        let now = Instant::now();
        let Some(device) = connection.member else {
            if !connection.dialled {
                tracing::warn!(
                    peer = %connection.peer,
                    address = %connection.remote,
                    "a device left without showing a certificate of this group"
                );
            } else if let Some(public) = public_of(&connection.peer) {
                self.book.failed(device_of(&public), now);
                let address = without_peer(&connection.remote).to_string();
                self.book.seed_failed(&address, now);
            }
            return;
        };
        self.book.moved(device, connection.admission.counted());
        self.book.lost(device, now, self.local.clock.now());
        tracing::info!(
            device = %device.short(),
            address = %connection.remote,
            "disconnected: {}", cause.as_deref().unwrap_or("closed here")
        );
    }

    async fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gate(GateEvent::Stream(opened)) => self.give_to_task(opened),
            BehaviourEvent::Gate(GateEvent::Refused { peer, remote, why }) => {
                tracing::warn!(%peer, address = %remote, "refused a device: {why}");
            }
            BehaviourEvent::Gate(GateEvent::Abuse { peer, remote, why }) => {
                if let Some(public) = public_of(&peer) {
                    self.local.shut_out(device_of(&public), &remote, why);
                }
            }
            BehaviourEvent::Autonat(autonat::Event::StatusChanged { new, .. }) => self.on_reachability(&new),
            BehaviourEvent::Kad(event) => self.on_kad(event).await,
            BehaviourEvent::Identify(
                identify::Event::Received { peer_id, info, .. }
                | identify::Event::Pushed { peer_id, info, .. },
            ) => {
                let Some(public) = public_of(&peer_id) else {
                    return;
                };
                let listening: Vec<String> = info
                    .listen_addrs
                    .iter()
                    .take(super::peers::ADDRESSES_MAX)
                    .map(|a| without_peer(a).to_string())
                    .collect();
                self.book
                    .add_addresses(&public, &listening, false, Instant::now());
                for address in info.listen_addrs.into_iter().take(super::peers::ADDRESSES_MAX) {
                    let kad = self.swarm.behaviour_mut().kad.get();
                    kad.add_address(&peer_id, without_peer(&address));
                }
            }
            BehaviourEvent::Ping(ping::Event {
                peer,
                connection,
                result,
            }) => self.pinged(&peer, connection, result.ok()),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    if let Some(public) = public_of(&peer) {
                        let address = without_peer(&address).to_string();
                        self.book
                            .add_addresses(&public, &[address], false, Instant::now());
                    }
                }
                self.dial_due();
            }
            _ => {}
        }
    }

    fn give_to_task(&mut self, opened: Box<Opened>) {
        let local = Arc::clone(&self.local);
        match (opened.protocol, opened.inbound) {
            (Protocol::Block, false) => tokio::spawn(link::run(opened, local)),
            (Protocol::Block, true) => tokio::spawn(serve::run(opened, local)),
            (Protocol::Join, true) => tokio::spawn(admit::run(opened, local)),
            (Protocol::Join, false) => return,
        };
    }

    fn pinged(&mut self, peer: &PeerId, id: ConnectionId, round_trip: Option<Duration>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match (round_trip, public_of(peer)) {
            (Some(round_trip), Some(public)) => {
                connection.pings_lost = 0;
                self.book.latency(device_of(&public), round_trip);
            }
            _ => {
                connection.pings_lost += 1;
                if connection.pings_lost >= PINGS_LOST {
                    self.swarm.close_connection(id);
                }
            }
        }
    }
}

/// The address without the peer id at its end.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut address = address.clone();
    if let Some(Part::P2p(_)) = address.iter().last() {
        address.pop();
    }
    address
}
