//! The book of peers: who is known, at which addresses, connected or not, and when to try again. Pure; the clock is passed in.
//!
//! Invariant: at most [`PEERS_MAX`] peers with [`ADDRESSES_MAX`] addresses each; a peer that cannot be reached is tried ever less often,
//! down to once in [`BACKOFF_MAX`]. Only peers that showed a valid certificate are kept across restarts. Owned by the swarm actor.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::base::DeviceId;
use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::Role;
use crate::keys::certificate::Membership;

use super::local::device_of;

/// Most peers remembered.
pub(super) const PEERS_MAX: usize = 4096;
/// Most peers remembered that have shown no certificate yet.
const STRANGERS_MAX: usize = 256;
/// Most addresses remembered of a peer.
pub(super) const ADDRESSES_MAX: usize = 8;
/// Longest address, in bytes.
pub(super) const ADDRESS_MAX: usize = 256;
/// First pause after a failure.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(600);
/// A stranger is forgotten after this many failures.
const STRANGER_FAILURES: u32 = 5;
/// How long a dial may take before it counts as failed.
const DIAL_PATIENCE: Duration = Duration::from_secs(30);

const MAGIC: &[u8; 4] = b"dfsP";
const VERSION: u8 = 1;

/// A peer as others see it.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct PeerInfo {
    /// Its device id.
    pub device: DeviceId,
    /// Its role, once it has shown a certificate.
    pub role: Option<Role>,
    /// Its failure zone.
    pub zone: Option<String>,
    /// Where it may be reached, the address that worked last first.
    pub addresses: Vec<String>,
    /// Whether it is connected now.
    pub connected: bool,
    /// Round trip, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Bytes of blocks received from it since the node started.
    pub bytes_in: u64,
    /// Bytes of blocks sent to it since the node started.
    pub bytes_out: u64,
    /// When it was last connected, Unix seconds; zero: never.
    pub last_seen: UnixSecs,
}

/// When to try again.
#[derive(Debug, Clone)]
struct Backoff {
    failures: u32,
    next: Instant,
}

impl Backoff {
    fn due(now: Instant) -> Self {
        Self {
            failures: 0,
            next: now,
        }
    }

    /// `jitter` spreads the members' attempts: 0 to 255.
    fn failed(&mut self, now: Instant, jitter: u8) {
        let pause = BACKOFF_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        self.next = now + pause + pause.mul_f64(f64::from(jitter) / 1024.0);
    }
}

#[derive(Debug)]
struct Entry {
    public: [u8; 32],
    role: Option<Role>,
    zone: Option<String>,
    addresses: Vec<String>,
    last_seen: UnixSecs,
    connections: u32,
    /// Streams on which blocks can be asked of it.
    links: u32,
    latency: Option<Duration>,
    backoff: Backoff,
    bytes: (u64, u64),
}

#[derive(Debug)]
struct Seed {
    address: String,
    backoff: Backoff,
    /// The member that answered there.
    device: Option<DeviceId>,
}

/// Whom to dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A known device.
    Device {
        /// Its public key.
        public: [u8; 32],
        /// Where to try.
        addresses: Vec<String>,
        /// How often it has failed before.
        failures: u32,
    },
    /// Whoever is at this address.
    Address(String),
}

/// The book.
#[derive(Debug)]
pub(super) struct Book {
    own: DeviceId,
    peers: BTreeMap<DeviceId, Entry>,
    seeds: Vec<Seed>,
    changed: bool,
}

impl Book {
    /// An empty book of the device `own`, which never gets in itself.
    pub(super) fn new(own: DeviceId) -> Self {
        Self {
            own,
            peers: BTreeMap::new(),
            seeds: Vec::new(),
            changed: false,
        }
    }

    /// Adds an address without knowing who is there.
    pub(super) fn add_seed(&mut self, address: String, now: Instant) {
        if self.seeds.len() < STRANGERS_MAX && !self.seeds.iter().any(|s| s.address == address) {
            self.seeds.push(Seed {
                address,
                backoff: Backoff::due(now),
                device: None,
            });
        }
    }

    /// Adds addresses of a device, newest first; makes it due when there is something new. `worked` puts them in front.
    pub(super) fn add_addresses(
        &mut self,
        public: &[u8; 32],
        addresses: &[String],
        worked: bool,
        now: Instant,
    ) {
        let device = device_of(public);
        if device == self.own {
            return;
        }
        let strangers = self.peers.values().filter(|e| e.role.is_none()).count();
        let full = self.peers.len() >= PEERS_MAX || strangers >= STRANGERS_MAX;
        if full && !self.peers.contains_key(&device) {
            return;
        }
        let entry = self
            .peers
            .entry(device)
            .or_insert_with(|| Entry::new(*public, now));
        for address in addresses.iter().take(ADDRESSES_MAX) {
            if address.is_empty() || address.len() > ADDRESS_MAX {
                continue;
            }
            match entry.addresses.iter().position(|a| a == address) {
                Some(at) if worked && at > 0 => {
                    let address = entry.addresses.remove(at);
                    entry.addresses.insert(0, address);
                }
                Some(_) => continue,
                None => {
                    let at = if worked { 0 } else { entry.addresses.len() };
                    entry.addresses.insert(at.min(ADDRESSES_MAX - 1), address.clone());
                    entry.addresses.truncate(ADDRESSES_MAX);
                    if entry.connections == 0 && entry.backoff.failures > 0 {
                        entry.backoff = Backoff::due(now);
                    }
                }
            }
            self.changed |= entry.role.is_some();
        }
    }

    /// The device has shown this certificate; it counts as connected from here on.
    pub(super) fn member(&mut self, member: &Membership, first: bool, now: Instant, clock: UnixSecs) {
        let device = device_of(&member.device);
        if device == self.own || (self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&device)) {
            return;
        }
        let entry = self
            .peers
            .entry(device)
            .or_insert_with(|| Entry::new(member.device, now));
        entry.role = Some(member.role);
        entry.zone = member.zone.clone();
        entry.last_seen = clock;
        entry.backoff = Backoff::due(now);
        if first {
            entry.connections += 1;
        }
        self.changed = true;
    }

    /// Forgets the devices that `belongs` denies.
    pub(super) fn retain(&mut self, belongs: impl Fn(&DeviceId) -> bool) {
        let before = self.peers.len();
        self.peers.retain(|device, _| belongs(device));
        self.changed |= self.peers.len() < before;
    }

    /// This device itself answers at the address.
    pub(super) fn remove_seed(&mut self, address: &str) {
        self.seeds.retain(|s| s.address != address);
    }

    /// A member answered at this address.
    pub(super) fn seed_answered(&mut self, address: &str, public: &[u8; 32]) {
        if let Some(seed) = self.seeds.iter_mut().find(|s| s.address == address) {
            seed.device = Some(device_of(public));
        }
    }

    /// One more or one less stream on which blocks can be asked of the device.
    pub(super) fn linked(&mut self, device: DeviceId, more: bool) {
        if let Some(entry) = self.peers.get_mut(&device) {
            entry.links = if more {
                entry.links + 1
            } else {
                entry.links.saturating_sub(1)
            };
        }
    }

    /// A trusted connection to the device ended.
    pub(super) fn lost(&mut self, device: DeviceId, now: Instant, clock: UnixSecs) {
        if let Some(entry) = self.peers.get_mut(&device) {
            entry.connections = entry.connections.saturating_sub(1);
            entry.last_seen = clock;
            entry.latency = None;
            entry.backoff.next = now + BACKOFF_MIN.mul_f64(f64::from(entry.public[0]) / 255.0);
        }
    }

    /// A dial of the device failed.
    pub(super) fn failed(&mut self, device: DeviceId, now: Instant) {
        let Some(entry) = self.peers.get_mut(&device) else {
            return;
        };
        entry.backoff.failed(now, entry.public[1]);
        if entry.role.is_none() && entry.backoff.failures >= STRANGER_FAILURES && entry.connections == 0 {
            self.peers.remove(&device);
        }
    }

    /// A dial of the address failed.
    pub(super) fn seed_failed(&mut self, address: &str, now: Instant) {
        if let Some(seed) = self.seeds.iter_mut().find(|s| s.address == address) {
            seed.backoff.failed(now, address.len() as u8);
        }
    }

    /// Bytes of blocks that moved over a connection that ended.
    pub(super) fn moved(&mut self, device: DeviceId, (bytes_in, bytes_out): (u64, u64)) {
        if let Some(entry) = self.peers.get_mut(&device) {
            entry.bytes.0 += bytes_in;
            entry.bytes.1 += bytes_out;
        }
    }

    /// A round trip was measured.
    pub(super) fn latency(&mut self, device: DeviceId, latency: Duration) {
        if let Some(entry) = self.peers.get_mut(&device) {
            entry.latency = Some(latency);
        }
    }

    /// Whom to dial now, at most `max`; each is then not due again before the dial has had its time.
    pub(super) fn due(&mut self, now: Instant, max: usize) -> Vec<Target> {
        let mut targets = Vec::new();
        for entry in self.peers.values_mut() {
            if targets.len() >= max {
                return targets;
            }
            if entry.connections == 0 && !entry.addresses.is_empty() && entry.backoff.next <= now {
                entry.backoff.next = now + DIAL_PATIENCE;
                targets.push(Target::Device {
                    public: entry.public,
                    addresses: entry.addresses.clone(),
                    failures: entry.backoff.failures,
                });
            }
        }
        for seed in &mut self.seeds {
            let connected = seed
                .device
                .and_then(|d| self.peers.get(&d))
                .is_some_and(|e| e.connections > 0);
            if targets.len() < max && !connected && seed.backoff.next <= now {
                seed.backoff.next = now + DIAL_PATIENCE;
                targets.push(Target::Address(seed.address.clone()));
            }
        }
        targets
    }

    /// When somebody is due next.
    #[cfg(test)]
    pub(super) fn next_due(&self) -> Option<Instant> {
        let peers = self
            .peers
            .values()
            .filter(|e| e.connections == 0 && !e.addresses.is_empty())
            .map(|e| e.backoff.next);
        let seeds = self
            .seeds
            .iter()
            .filter(|s| {
                s.device
                    .and_then(|d| self.peers.get(&d))
                    .is_none_or(|e| e.connections == 0)
            })
            .map(|s| s.backoff.next);
        peers.chain(seeds).min()
    }

    /// How many members or addresses there are that cannot be asked yet but may answer soon.
    pub(super) fn prospects(&self) -> usize {
        let peers = self
            .peers
            .values()
            .filter(|e| e.links == 0 && (e.connections > 0 || !e.addresses.is_empty()))
            .count();
        let seeds = self.seeds.iter().filter(|s| s.device.is_none()).count();
        peers + seeds
    }

    /// Where the device may be reached; nothing when it is not known.
    pub(super) fn addresses(&self, device: &DeviceId) -> Vec<String> {
        self.peers
            .get(device)
            .map_or_else(Vec::new, |e| e.addresses.clone())
    }

    /// Whether the device is connected.
    pub(super) fn is_connected(&self, device: &DeviceId) -> bool {
        self.peers.get(device).is_some_and(|e| e.connections > 0)
    }

    /// All peers; `moving` gives the bytes that moved over the connections that are open.
    pub(super) fn list(&self, moving: impl Fn(&DeviceId) -> (u64, u64)) -> Vec<PeerInfo> {
        self.peers
            .iter()
            .map(|(device, entry)| {
                let now = moving(device);
                PeerInfo {
                    device: *device,
                    role: entry.role,
                    zone: entry.zone.clone(),
                    addresses: entry.addresses.clone(),
                    connected: entry.connections > 0,
                    latency_ms: entry.latency.map(|l| l.as_secs_f64() * 1000.0),
                    bytes_in: entry.bytes.0 + now.0,
                    bytes_out: entry.bytes.1 + now.1,
                    last_seen: entry.last_seen,
                }
            })
            .collect()
    }

    /// The members in binary form, if they changed since the last call.
    pub(super) fn take_changed(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.changed).then(|| self.encode())
    }

    fn encode(&self) -> Vec<u8> {
        let members: Vec<_> = self.peers.values().filter(|e| e.role.is_some()).collect();
        let mut w = Writer::with_capacity(64 * members.len());
        w.raw(MAGIC).u8(VERSION).u16(members.len() as u16);
        for entry in members {
            w.raw(&entry.public)
                .u8(entry.role.map_or(0, Role::to_byte))
                .u64(entry.last_seen)
                .u8(entry.addresses.len() as u8);
            for address in &entry.addresses {
                w.bytes16(address.as_bytes());
            }
        }
        w.into_vec()
    }

    /// Adds the members in a binary form made by [`Book::take_changed`].
    pub(super) fn load(&mut self, bytes: &[u8], now: Instant) -> Result<(), DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a list of peers of a known version"));
        }
        let count = usize::from(r.u16()?);
        if count > PEERS_MAX {
            return Err(DecodeError::Invalid("too many peers"));
        }
        for _ in 0..count {
            let public = r.array()?;
            let (role, last_seen) = (Role::from_byte(r.u8()?)?, r.u64()?);
            let addresses = usize::from(r.u8()?);
            if addresses > ADDRESSES_MAX {
                return Err(DecodeError::Invalid("too many addresses"));
            }
            let mut entry = Entry::new(public, now);
            (entry.role, entry.last_seen) = (Some(role), last_seen);
            for _ in 0..addresses {
                entry.addresses.push(r.str16(ADDRESS_MAX)?.to_owned());
            }
            if device_of(&public) != self.own {
                self.peers.insert(device_of(&public), entry);
            }
        }
        r.finish()
    }
}

impl Entry {
    fn new(public: [u8; 32], now: Instant) -> Self {
        Self {
            public,
            role: None,
            zone: None,
            addresses: Vec::new(),
            last_seen: 0,
            connections: 0,
            links: 0,
            latency: None,
            backoff: Backoff::due(now),
            bytes: (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::GroupId;
    use proptest::prelude::*;

    const A: [u8; 32] = [1; 32];

    fn member(public: [u8; 32]) -> Membership {
        Membership {
            group: GroupId([0; 32]),
            device: public,
            role: Role::Reader,
            epoch: 1,
            issued: 0,
            expires: 1,
            zone: None,
        }
    }

    fn book() -> Book {
        Book::new(DeviceId([0; 32]))
    }

    #[test]
    fn a_peer_is_tried_less_and_less_often_and_at_once_when_its_address_changes() {
        let (mut book, mut now) = (book(), Instant::now());
        book.member(&member(A), false, now, 1);
        book.add_addresses(&A, &["/ip4/1.2.3.4/tcp/1".into()], false, now);
        let mut pauses = Vec::new();
        for _ in 0..14 {
            assert_eq!(book.due(now, 9).len(), 1);
            assert_eq!(book.due(now, 9).len(), 0, "it is being dialled");
            book.failed(device_of(&A), now);
            let next = book.next_due().unwrap();
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses.windows(2).all(|p| p[0] <= p[1]), "{pauses:?}");
        assert!(pauses[0] < BACKOFF_MIN * 2 && *pauses.last().unwrap() >= BACKOFF_MAX);
        assert!(*pauses.last().unwrap() <= BACKOFF_MAX * 5 / 4);
        book.failed(device_of(&A), now);
        book.add_addresses(&A, &["/ip4/1.2.3.5/tcp/1".into()], false, now);
        assert_eq!(book.due(now, 9).len(), 1);
    }

    #[test]
    fn strangers_are_forgotten_and_members_kept_across_restarts() {
        let (mut book1, now) = (book(), Instant::now());
        book1.add_addresses(&[2; 32], &["/ip4/1.2.3.4/tcp/1".into()], false, now);
        book1.add_addresses(&A, &["/a".into(), "/b".into()], false, now);
        book1.member(&member(A), true, now, 77);
        book1.add_addresses(&A, &["/b".into()], true, now);
        let bytes = book1.take_changed().unwrap();
        assert_eq!(book1.take_changed(), None);
        let mut book2 = book();
        book2.load(&bytes, now).unwrap();
        let list = book2.list(|_| (0, 0));
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].addresses, ["/b", "/a"]);
        assert_eq!((list[0].last_seen, list[0].connected), (77, false));
        for _ in 0..STRANGER_FAILURES {
            book1.failed(device_of(&[2; 32]), now);
        }
        assert_eq!(book1.list(|_| (0, 0)).len(), 1);
    }

    #[test]
    fn bounds_hold() {
        let (mut book, now) = (book(), Instant::now());
        for n in 0..1000u16 {
            let mut public = [0; 32];
            public[..2].copy_from_slice(&n.to_le_bytes());
            let addresses: Vec<String> = (0..20).map(|i| format!("/{n}/{i}")).collect();
            book.add_addresses(&public, &addresses, false, now);
            book.add_seed(format!("{n}"), now);
        }
        assert_eq!(book.peers.len(), STRANGERS_MAX);
        assert!(book.peers.values().all(|e| e.addresses.len() <= ADDRESSES_MAX));
        assert_eq!(book.seeds.len(), STRANGERS_MAX);
        assert_eq!(book.due(now, 5).len(), 5);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = book().load(&bytes, Instant::now());
            bytes.splice(0..0, [b'd', b'f', b's', b'P', 1]);
            let _ = book().load(&bytes, Instant::now());
        }
    }
}
