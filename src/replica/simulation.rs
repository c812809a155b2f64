//! A seeded world of devices that run the machine, with a network, disks and hosts that fail in every way, and a look at the truth that no
//! device has. The same seed gives the same run.

mod disk;
mod groups;
mod network;
mod people;
mod truth;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use self::disk::Disk;
use super::machine::{Machine, Setup};
use super::message::{Action, Answer, Event, Member, Report, Request, Retained, Unfreed};
use super::rules::Rules;
use crate::base::{BlockId, DeviceId, StoreId};
use crate::store::{BlockStore, MemoryStore, ReplicaStore};

pub(super) const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// Throws that follow from the seed.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound.max(1)
    }

    /// True in `share` of a thousand cases.
    pub(super) fn hits(&mut self, share: u64) -> bool {
        self.below(1000) < share
    }
}

/// How a host lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// Grants everything and stores nothing.
    Drops,
    /// Stores something else.
    Corrupts,
    /// Stores, and never shows it again.
    Withholds,
}

/// A device, as the world knows it.
pub(super) struct Device {
    pub(super) setup: Setup,
    pub(super) disk: Arc<Disk>,
    pub(super) machine: Option<Machine>,
    booted_ms: u64,
    wake: u64,
    /// How wrong its wall clock is, in seconds.
    pub(super) wall_error: u64,
    pub(super) lie: Option<Lie>,
    /// It will never come back.
    pub(super) gone: bool,
    removed: bool,
    island: u8,
    /// What its files need.
    pub(super) retained: BTreeMap<BlockId, u8>,
    pub(super) freed: u64,
    pub(super) unfreed: BTreeMap<Unfreed, u64>,
    pub(super) condemned: BTreeSet<DeviceId>,
}

impl Device {
    pub(super) fn is_up(&self) -> bool {
        self.machine.is_some()
    }

    /// Whether it has the block, rightly, and would give it.
    pub(super) fn has(&self, block: &BlockId) -> bool {
        !self.gone && self.lie.is_none() && matches!(self.disk.inner.get(block), Ok(Some(_)))
    }

    /// It is a host that is soon full.
    pub(super) fn is_small(&self) -> bool {
        (1..=1000).contains(&self.setup.quota)
    }

    /// It does not die at a commit any more.
    pub(super) fn disk_heals(&self) {
        self.disk.fuse.store(0, Ordering::Relaxed);
    }

    pub(super) fn store(&self) -> &MemoryStore {
        &self.disk.inner
    }
}

#[derive(Debug, Clone)]
enum Payload {
    Ask(Request, Vec<Bytes>),
    Answer(Answer),
}

#[derive(Debug, Clone)]
enum Happening {
    Deliver {
        from: usize,
        to: usize,
        payload: Payload,
    },
    Tick {
        at: usize,
        wake: u64,
    },
    Boot(usize),
    /// What a device had computed.
    Computed {
        at: usize,
        booted_ms: u64,
        event: Event,
    },
    /// A device is told that another came or went.
    Link {
        at: usize,
        other: usize,
        booted_ms: u64,
    },
}

struct Entry(u64, u64, Happening);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// How bad the network is, in parts of a thousand, and how slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    pub(super) loss: u64,
    pub(super) twice: u64,
    pub(super) delay_ms: u64,
    /// Commits at which a device dies.
    pub(super) crashes: u64,
}

pub(super) const FAIR: Weather = Weather {
    loss: 0,
    twice: 0,
    delay_ms: 50,
    crashes: 0,
};

/// What was sent since it was last counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) puts: u64,
    pub(super) leases: u64,
    pub(super) confirmations: u64,
    pub(super) releases: u64,
    pub(super) audits: u64,
    pub(super) moves: u64,
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) now: u64,
    serial: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    pub(super) devices: Vec<Device>,
    index: BTreeMap<DeviceId, usize>,
    pub(super) weather: Weather,
    contents: BTreeMap<BlockId, Bytes>,
    /// Blocks whose last honest copy went with a device that never comes back: no software could have helped.
    pub(super) excused: BTreeSet<BlockId>,
    pub(super) sent: Sent,
    pub(super) crashes: u64,
    pub(super) removals: u64,
    next_content: u64,
}

impl World {
    /// A world without devices.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            now: DAY,
            serial: 0,
            queue: BinaryHeap::new(),
            devices: Vec::new(),
            index: BTreeMap::new(),
            weather: FAIR,
            contents: BTreeMap::new(),
            excused: BTreeSet::new(),
            sent: Sent::default(),
            crashes: 0,
            removals: 0,
            next_content: seed << 20,
        }
    }

    /// Adds a device; it is down until it boots.
    pub(super) fn add(&mut self, zone: &str, quota: u64, has_volume: bool, rules: Rules) -> usize {
        let n = self.devices.len();
        let device = DeviceId(*blake3::hash(&(n as u64 + (self.next_content << 8)).to_le_bytes()).as_bytes());
        self.devices.push(Device {
            setup: Setup {
                device,
                zone: zone.into(),
                quota,
                public: 0,
                allowance: 0,
                reserve: 0,
                has_volume,
                wanted: 2,
                groups: None,
                rules,
            },
            disk: Arc::new(Disk {
                inner: MemoryStore::with_power_cuts(StoreId([n as u8; 16])),
                fuse: AtomicU64::new(0),
                removed: Mutex::default(),
            }),
            machine: None,
            booted_ms: 0,
            wake: 0,
            wall_error: 0,
            lie: None,
            gone: false,
            removed: false,
            island: 0,
            retained: BTreeMap::new(),
            freed: 0,
            unfreed: BTreeMap::new(),
            condemned: BTreeSet::new(),
        });
        self.index.insert(device, n);
        n
    }

    fn at(&mut self, time: u64, happening: Happening) {
        self.serial += 1;
        self.queue.push(Reverse(Entry(time, self.serial, happening)));
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        let (x, y) = (&self.devices[a], &self.devices[b]);
        x.is_up() && y.is_up() && x.island == y.island && !x.removed && !y.removed
    }

    pub(super) fn boot(&mut self, at: usize) {
        let device = &mut self.devices[at];
        if device.gone || device.machine.is_some() {
            return;
        }
        let wall = 1_800_000_000 + self.now / 1000 + device.wall_error;
        let store: Arc<dyn ReplicaStore> = device.disk.clone();
        let seed = self.dice.below(u64::MAX);
        match Machine::start(store, device.setup.clone(), wall, 0, seed) {
            Ok(machine) => device.machine = Some(machine),
            Err(_) => return self.crash(at),
        }
        device.booted_ms = self.now;
        self.light_fuse(at);
        let members = self.roster();
        self.tell(at, Event::Roster(members));
        let retained = self.devices[at].retained.clone();
        let all: Vec<Retained> = retained
            .iter()
            .map(|(block, wanted)| self.as_retained(block, *wanted))
            .collect();
        self.tell(at, Event::Retain(all));
        self.links_of(at);
    }

    fn links_of(&mut self, at: usize) {
        for other in 0..self.devices.len() {
            if other != at {
                let delay = 1 + self.dice.below(self.weather.delay_ms);
                for (a, b) in [(at, other), (other, at)] {
                    let booted_ms = self.devices[a].booted_ms;
                    self.at(
                        self.now + delay,
                        Happening::Link {
                            at: a,
                            other: b,
                            booted_ms,
                        },
                    );
                }
            }
        }
    }

    fn light_fuse(&mut self, at: usize) {
        let fuse = if self.dice.hits(self.weather.crashes) {
            4 + self.dice.below(400)
        } else {
            0
        };
        self.devices[at].disk.fuse.store(fuse, Ordering::Relaxed);
    }

    /// The process dies, or the power fails; it starts again after a while.
    pub(super) fn crash(&mut self, at: usize) {
        self.crashes += 1;
        self.stop(at);
        if self.dice.hits(500) {
            self.devices[at].disk.inner.cut_power();
        }
        let delay = SECOND + self.dice.below(5 * MINUTE);
        self.at(self.now + delay, Happening::Boot(at));
    }

    pub(super) fn stop(&mut self, at: usize) {
        let device = &mut self.devices[at];
        device.machine = None;
        device.wake = 0;
        device.disk.fuse.store(0, Ordering::Relaxed);
        device.disk.removed.lock().clear();
        self.links_of(at);
    }

    /// A device is lost with all it has.
    pub(super) fn destroy(&mut self, at: usize) {
        self.devices[at].gone = true;
        self.stop(at);
        self.excuse();
    }

    pub(super) fn split(&mut self, at: usize, island: u8) {
        self.devices[at].island = island;
        self.links_of(at);
    }

    pub(super) fn dismiss(&mut self, at: usize) {
        self.devices[at].removed = true;
        self.links_of(at);
        self.tell_roster();
    }

    pub(super) fn tell_roster(&mut self) {
        let members = self.roster();
        for at in 0..self.devices.len() {
            self.tell(at, Event::Roster(members.clone()));
        }
    }

    fn roster(&self) -> Vec<Member> {
        let member = |d: &Device| Member {
            device: d.setup.device,
            zone: d.setup.zone.clone(),
            quota: d.setup.quota,
            guest: false,
        };
        self.devices.iter().filter(|d| !d.removed).map(member).collect()
    }

    fn as_retained(&self, block: &BlockId, wanted: u8) -> Retained {
        Retained {
            block: *block,
            len: self.contents[block].len() as u32,
            wanted,
            pinned: false,
        }
    }

    fn tell(&mut self, at: usize, event: Event) {
        let time = self.now - self.devices[at].booted_ms;
        let Some(machine) = self.devices[at].machine.as_mut() else {
            return;
        };
        match machine.handle(event, time) {
            Ok(actions) => self.carry_out(at, actions),
            Err(_) => {
                self.check_removed(at, false);
                self.crash(at);
            }
        }
    }

    fn carry_out(&mut self, at: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Ask(to, request) => self.send_request(at, self.index[&to], request),
                Action::Answer(to, answer, challenge) => {
                    let answer = self.prove(at, answer, challenge.is_some());
                    self.send(at, self.index[&to], Payload::Answer(answer));
                }
                Action::Wake(wake) => {
                    let device = &mut self.devices[at];
                    if device.wake != wake {
                        device.wake = wake;
                        let time = device.booted_ms + wake;
                        self.at(time, Happening::Tick { at, wake });
                    }
                }
                Action::Freed(block) => {
                    self.devices[at].freed += 1;
                    self.check_freed(at, &block);
                }
                Action::Unfreed(_, why) => *self.devices[at].unfreed.entry(why).or_default() += 1,
                Action::Encode(blocks, parity) => self.encode(at, blocks, parity),
                Action::Report(Report::Condemned(holder)) => {
                    self.devices[at].condemned.insert(holder);
                }
                Action::Report(_) => {}
            }
        }
        self.check_removed(at, true);
    }

    /// Runs until `until`.
    pub(super) fn run(&mut self, until: u64) {
        while let Some(Reverse(Entry(time, _, _))) = self.queue.peek() {
            if *time > until {
                break;
            }
            let Some(Reverse(Entry(time, _, happening))) = self.queue.pop() else {
                break;
            };
            self.now = time;
            match happening {
                Happening::Deliver { from, to, payload } => self.deliver(from, to, payload),
                Happening::Tick { at, wake } => {
                    if self.devices[at].wake == wake {
                        self.devices[at].wake = 0;
                        self.tell(at, Event::Tick);
                    }
                }
                Happening::Boot(at) => self.boot(at),
                Happening::Computed { at, booted_ms, event } => {
                    if self.devices[at].booted_ms == booted_ms {
                        self.tell(at, event);
                    }
                }
                Happening::Link { at, other, booted_ms } => {
                    let device = self.devices[other].setup.device;
                    if self.devices[at].booted_ms == booted_ms {
                        let event = if self.linked(at, other) {
                            Event::Connected(device)
                        } else {
                            Event::Disconnected(device)
                        };
                        self.tell(at, event);
                    }
                }
            }
        }
        self.now = until;
    }
}
