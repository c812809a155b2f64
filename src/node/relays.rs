//! The swarm actor's part that reaches members which cannot be dialled: places at relays, dials through them, and the way back.
//!
//! Invariant: at most [`RELAYS`] places are held; only members relay, for members only (`gated`), and only those at an address at which
//! somebody has reached them; a relayed connection ends as soon as a direct one to the same member is ready.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, autonat};

use super::local::{device_of, peer_of, public_of};
use super::swarm::Actor;
use super::throttle::is_local;

/// Relays at which this device can be reached, at one time.
const RELAYS: usize = 2;
/// How often places are looked for, direct ways tried, and members looked up that nobody has met.
const LOOK: Duration = Duration::from_secs(20);
/// A member that gave no place is asked again after this.
const REFUSED: Duration = Duration::from_secs(120);
/// Members looked up in the DHT at one time because nothing is known of where they are.
const LOOKED_UP: usize = 4;

/// Where this device has places, and who gave none.
pub(super) struct Relays {
    on: bool,
    held: HashMap<ListenerId, PeerId>,
    refused: HashMap<PeerId, Instant>,
    due: Instant,
    /// Others reach this device by itself, as AutoNAT found.
    public: bool,
    /// The member that was looked up last: the next ones are those after it.
    looked_up: [u8; 32],
}

impl Relays {
    /// No places yet; none at all when relaying is off.
    pub(super) fn new(on: bool) -> Self {
        Self {
            on,
            held: HashMap::new(),
            refused: HashMap::new(),
            due: Instant::now(),
            public: false,
            looked_up: [0; 32],
        }
    }
}

/// Whether the address leads through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Part::P2pCircuit)
}

impl Actor {
    /// AutoNAT found something out.
    pub(super) fn on_reachability(&mut self, status: &autonat::NatStatus) {
        self.relays.public = status.is_public();
        tracing::info!("reachability: {status:?}");
    }

    /// A member has reached this device at one of its own addresses: there it can relay.
    pub(super) fn reached_at(&mut self, address: Multiaddr) {
        if self.relays.on && !is_relayed(&address) {
            self.swarm.add_external_address(address);
        }
    }

    /// Looks after places, direct ways and unknown members, every so often.
    pub(super) fn tend_relays(&mut self, now: Instant) {
        if !self.relays.on || self.relays.due > now {
            return;
        }
        self.relays.due = now + LOOK;
        self.relays.refused.retain(|_, at| *at + REFUSED > now);
        self.take_places();
        self.try_direct();
        self.look_up_unknown();
    }

    /// Looks sooner: somebody new is connected.
    pub(super) fn tend_soon(&mut self, now: Instant) {
        self.relays.due = self.relays.due.min(now + Duration::from_secs(1));
    }

    /// Listens at relays: members that this device reached by itself.
    fn take_places(&mut self) {
        if self.relays.public {
            return;
        }
        let mut candidates: Vec<(bool, PeerId, Multiaddr)> = self
            .connections
            .values()
            .filter(|c| c.member.is_some() && c.dialled && !is_relayed(&c.remote))
            .filter(|c| !self.relays.held.values().any(|peer| *peer == c.peer))
            .filter(|c| !self.relays.refused.contains_key(&c.peer))
            .map(|c| (is_local(&c.remote), c.peer, super::swarm::without_peer(&c.remote)))
            .collect();
        // Those out in the world first: everybody reaches them.
        candidates.sort();
        candidates.dedup_by_key(|(_, peer, _)| *peer);
        let room = RELAYS.saturating_sub(self.relays.held.len());
        for (_, peer, address) in candidates.into_iter().take(room) {
            let place = address.with(Part::P2p(peer)).with(Part::P2pCircuit);
            match self.swarm.listen_on(place) {
                Ok(listener) => drop(self.relays.held.insert(listener, peer)),
                Err(e) => {
                    tracing::debug!(%peer, "cannot listen at a relay: {e}");
                    self.relays.refused.insert(peer, Instant::now());
                }
            }
        }
    }

    /// A place was given up or not had. Whether it was one.
    pub(super) fn place_lost(&mut self, listener: ListenerId, why: &str) -> bool {
        let Some(peer) = self.relays.held.remove(&listener) else {
            return false;
        };
        tracing::debug!(%peer, "no place at this relay: {why}");
        self.relays.refused.insert(peer, Instant::now());
        true
    }

    /// Dials members directly that are connected through a relay only.
    fn try_direct(&mut self) {
        let mut relayed: HashMap<PeerId, bool> = HashMap::new();
        for connection in self.connections.values().filter(|c| c.member.is_some()) {
            *relayed.entry(connection.peer).or_insert(true) &= is_relayed(&connection.remote);
        }
        for peer in relayed
            .into_iter()
            .filter(|(_, relayed)| *relayed)
            .map(|(peer, _)| peer)
        {
            let Some(public) = public_of(&peer) else { continue };
            let known = self.book.addresses(&device_of(&public));
            let direct: Vec<Multiaddr> = known
                .iter()
                .filter_map(|a| a.parse().ok())
                .filter(|a| !is_relayed(a))
                .collect();
            if direct.is_empty() {
                continue;
            }
            let opts = DialOpts::peer_id(peer)
                .addresses(direct)
                .condition(PeerCondition::NotDialing)
                .build();
            if let Err(e) = self.swarm.dial(opts) {
                tracing::debug!(%peer, "cannot dial directly: {e}");
            }
        }
    }

    /// Ends relayed connections to a member to which a direct one is ready.
    pub(super) fn leave_relays(&mut self, ready: ConnectionId) {
        let Some(connection) = self.connections.get(&ready) else {
            return;
        };
        let peer = connection.peer;
        if is_relayed(&connection.remote) {
            return;
        }
        let relayed: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, c)| c.peer == peer && is_relayed(&c.remote))
            .map(|(id, _)| *id)
            .collect();
        for id in relayed {
            tracing::info!(%peer, "a direct connection takes the place of the one through a relay");
            self.swarm.close_connection(id);
        }
    }

    /// Asks the DHT for members of which no address is known, some at a time.
    fn look_up_unknown(&mut self) {
        let mut unknown: Vec<[u8; 32]> = self.local.members.publics();
        let own = self.local.identity.device.public();
        unknown.retain(|public| *public != own && self.book.addresses(&device_of(public)).is_empty());
        unknown.sort_unstable();
        let after = unknown.partition_point(|public| *public <= self.relays.looked_up);
        unknown.rotate_left(after);
        for public in unknown.into_iter().take(LOOKED_UP) {
            if peer_of(&public).is_some() {
                self.relays.looked_up = public;
                self.ask_addresses(public);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circuit_is_told_from_a_direct_address() {
        let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        let direct: Multiaddr = format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}").parse().unwrap();
        assert!(!is_relayed(&direct));
        assert!(is_relayed(&direct.with(Part::P2pCircuit)));
    }
}
