//! Carries out what the machine of `replica` decides: one thread that owns it, a few that read blocks, prove and check, and the node between.
//!
//! Invariant: only the thread touches the machine, and no call from the volume, the node or a command waits for it (but those that ask it
//! something). What the volume stored is told to it about once a second, at the end too; after an unclean stop everything is named anew.

mod carrier;
mod ears;
mod fetch;
mod met;
mod profiles;
mod prove;
mod reports;
mod room;
mod shards;
mod shared;
mod unleased;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;

use self::carrier::{Carrier, Job};
use self::ears::Ears;
pub(super) use self::fetch::ShardFetch;
use self::profiles::Profiles;
use self::room::Room;
pub(super) use self::shards::Shards;
use self::shared::Shared;
use self::unleased::Unleased;
use super::network::SharedNode;
use crate::base::clock::{Clock, SystemClock};
use crate::base::{BlockId, DeviceId};
use crate::folder::state::StateDir;
use crate::keys::{DeviceKey, Role};
use crate::node::{self, partner};
use crate::replica::message::{Action, Answer, Checked, Event, Member, Request, Unfreed};
use crate::replica::rules::Rules;
use crate::replica::{Machine, Setup};
use crate::store::{GroupHealth, GroupStore, Health, ReplicaStore, Share, SqliteStore, StoreError, Tiered};
use crate::volume::Volume;

/// How often what the volume stored is told to the machine, and the members are looked at.
const STEP: Duration = Duration::from_secs(1);

/// How often it is looked whether everything is to be named.
const LOOK: Duration = Duration::from_millis(200);

/// Threads that read blocks, prove and check.
const CARRIERS: usize = 2;

/// Pause before a machine whose store failed is started anew.
const AGAIN: Duration = Duration::from_secs(10);

/// What replication needs to know of this device.
pub(super) struct Own {
    pub(super) key: DeviceKey,
    pub(super) zone: String,
    pub(super) quota: u64,
    /// Bytes of the quota that guests may have altogether; zero: no guest is kept anything for or relied on.
    pub(super) public: u64,
    /// Bytes that each may have beyond what it keeps for this device.
    pub(super) allowance: u64,
    pub(super) reserve: u64,
    pub(super) wanted: u8,
    /// Data and parity shards of a group.
    pub(super) groups: Option<(u8, u8)>,
    pub(super) has_volume: bool,
    /// Bytes of blocks kept here; zero: no bound.
    pub(super) cache_size: u64,
}

/// How far a request to free space has come.
#[derive(Debug, Clone, Default)]
pub(super) struct Freed {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    /// What stays, and why.
    pub(super) kept: BTreeMap<Unfreed, u64>,
}

/// What the thread hears.
enum Msg {
    Event(Event),
    /// A request of the member with this public key, and where its answer goes.
    Heard([u8; 32], Request, partner::Answer),
    Profile(DeviceId, u64, String),
    Reachable(DeviceId, bool),
    /// Tell the machine at once what the volume stored.
    Look,
    /// How far is the check of all holders?
    Checked(Sender<Checked>),
    /// Free these blocks, and say what came of each.
    Free(Vec<BlockId>, Sender<Freed>),
    Stop,
}

/// The running replication.
pub(super) struct Replication {
    inbox: Sender<Msg>,
    shared: Arc<Shared>,
    store: Arc<SqliteStore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Replication {
    /// Starts the threads and lets the node tell them what members want.
    pub(super) fn start(
        own: Own,
        store: &Arc<SqliteStore>,
        tiered: &Arc<Tiered>,
        shards: &Arc<Shards>,
        state: &StateDir,
    ) -> std::io::Result<Self> {
        let node = &shards.node;
        let (inbox, messages) = unbounded();
        let (jobs, work) = unbounded();
        let shared = Arc::new(Shared::new(store, &shards.met, own.wanted));
        let key = Arc::new(own.key);
        let mut threads = Vec::new();
        for n in 0..CARRIERS {
            let carrier = Carrier {
                key: Arc::clone(&key),
                store: Arc::clone(store),
                tiered: Arc::clone(tiered),
                node: Arc::clone(node),
                shared: Arc::clone(&shared),
                shards: Arc::clone(shards),
                inbox: inbox.clone(),
                jobs: jobs.clone(),
            };
            let work: Receiver<Job> = work.clone();
            let thread = std::thread::Builder::new().name(format!("dfs-carry-{n}"));
            threads.push(thread.spawn(move || carrier.run(&work))?);
        }
        let setup = Setup {
            device: key.id(),
            zone: own.zone.as_str().into(),
            quota: own.quota,
            public: own.public.min(own.quota),
            allowance: own.allowance,
            reserve: own.reserve,
            has_volume: own.has_volume,
            wanted: own.wanted,
            groups: own.groups,
            rules: Rules::default(),
        };
        let replicator = Replicator {
            setup,
            store: Arc::clone(store),
            node: Arc::clone(node),
            shared: Arc::clone(&shared),
            profiles: Profiles::load(state),
            jobs: jobs.clone(),
            started: Instant::now(),
            answers: HashMap::new(),
            frees: Vec::new(),
            room: Room::new(own.cache_size),
            guests: own.public > 0,
            told: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("dfs-replica".into());
        threads.push(thread.spawn(move || replicator.run(&messages))?);
        let listener = Ears {
            inbox: inbox.clone(),
            jobs,
            shards: Arc::clone(shards),
            quota: own.quota,
            public: own.public,
            unleased: Mutex::new(Unleased::new(!own.has_volume)),
        };
        node.set_partner(Arc::new(listener));
        Ok(Self {
            inbox,
            shared,
            store: Arc::clone(store),
            threads: Mutex::new(threads),
        })
    }

    /// Has everything that the volume needs named when that is due: there is a host, and not all was named while there was none.
    pub(super) fn name_for(&self, volume: &Arc<Volume>) -> std::io::Result<()> {
        let (volume, shared) = (Arc::downgrade(volume), Arc::clone(&self.shared));
        let thread = std::thread::Builder::new()
            .name("dfs-name".into())
            .spawn(move || {
                let mut due = Instant::now();
                while !shared.ending.load(Ordering::Acquire) {
                    std::thread::sleep(LOOK);
                    let wanted = shared.is_naming_due();
                    let Some(volume) = volume.upgrade().filter(|_| wanted && due <= Instant::now()) else {
                        continue;
                    };
                    if let Err(error) = volume.name_all() {
                        tracing::info!(%error, "what is to be replicated is looked for again in a while");
                        shared.name_again();
                        due = Instant::now() + AGAIN;
                    }
                }
            })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Frees blocks as far as that is safe, and waits for what comes of it, at most so long.
    pub(super) fn free(&self, blocks: Vec<BlockId>, at_most: Duration) -> Option<Freed> {
        let (tell, told) = bounded(1);
        self.inbox.send(Msg::Look).ok()?;
        self.inbox.send(Msg::Free(blocks, tell)).ok()?;
        told.recv_timeout(at_most).ok()
    }

    /// Blocks by how many replicas they have.
    pub(super) fn health(&self) -> Result<Vec<Health>, StoreError> {
        self.store.health()
    }

    /// Groups by how many of their shards others have.
    pub(super) fn groups(&self) -> Result<Vec<GroupHealth>, StoreError> {
        self.store.group_health()
    }

    /// Whether everything that the volume stored has been told to the machine, and it has done what there was to do at once.
    pub(super) fn is_settled(&self) -> bool {
        // Once more: what a member offers may have been heard meanwhile, and then there is more to do.
        self.shared.is_settled()
            && self.inbox.send(Msg::Look).is_ok()
            && self.checked().is_some()
            && self.shared.is_settled()
    }

    /// Waits until the machine knows all that the volume needs, at most so long.
    pub(super) fn settle(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        while !self.is_settled() && Instant::now() < until {
            std::thread::sleep(LOOK / 4);
        }
    }

    /// Has all that the holders here have checked from now on.
    pub(super) fn verify(&self) {
        let _ = self.inbox.send(Msg::Event(Event::Verify));
    }

    /// How far that is; `None` when the machine does not answer.
    pub(super) fn checked(&self) -> Option<Checked> {
        let (tell, told) = bounded(1);
        self.inbox.send(Msg::Checked(tell)).ok()?;
        told.recv_timeout(STEP * 30).ok()
    }

    /// What others hold for this device.
    pub(super) fn stored_at(&self) -> Result<Vec<Share>, StoreError> {
        self.store.stored_at()
    }

    /// What this device holds for others.
    pub(super) fn held_for(&self) -> Result<Vec<Share>, StoreError> {
        self.store.held_for()
    }

    /// Blocks and bytes for which something is to be done.
    pub(super) fn queued(&self) -> Result<(u64, u64), StoreError> {
        self.store.queued()
    }

    /// Members that can be asked.
    pub(super) fn reachable(&self) -> HashSet<DeviceId> {
        self.shared.met.all()
    }

    /// Bytes a second that went to other members lately.
    pub(super) fn bytes_per_sec(&self) -> u64 {
        self.shared.rate.load(Ordering::Relaxed)
    }

    /// Distinct zones of hosts.
    pub(super) fn possible(&self) -> u8 {
        self.shared.possible()
    }

    /// Bytes that this device keeps for others.
    pub(super) fn held_bytes(&self) -> Result<u64, StoreError> {
        self.store.held_bytes()
    }

    /// Ends the threads. What the volume stored before is remembered.
    pub(super) fn stop(&self) {
        self.shared.ending.store(true, Ordering::Release);
        let _ = self.inbox.send(Msg::Stop);
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a thread of replication ended by a fault");
            }
        }
    }
}

/// Who wants to know what came of freeing.
struct Freeing {
    left: HashMap<BlockId, u64>,
    freed: Freed,
    tell: Sender<Freed>,
}

/// The thread's state.
struct Replicator {
    setup: Setup,
    store: Arc<SqliteStore>,
    node: Arc<SharedNode>,
    shared: Arc<Shared>,
    profiles: Profiles,
    jobs: Sender<Job>,
    started: Instant,
    /// Where answers go, by who asked and the number of its request.
    answers: HashMap<(DeviceId, u64), ([u8; 32], partner::Answer)>,
    frees: Vec<Freeing>,
    room: Room,
    /// Guests are relied on.
    guests: bool,
    /// The members as the machine knows them.
    told: Vec<Member>,
}

impl Replicator {
    fn run(mut self, messages: &Receiver<Msg>) {
        loop {
            match self.live(messages) {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(%error, "replication stands still: its store failed; it starts anew in a while");
                    // What it was about to be told, and a marking under way, are lost.
                    self.shared.name_again();
                    std::thread::sleep(AGAIN);
                    self.told.clear();
                    self.answers.clear();
                }
            }
        }
        for _ in 0..CARRIERS {
            let _ = self.jobs.send(Job::Stop);
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn live(&mut self, messages: &Receiver<Msg>) -> Result<(), crate::store::StoreError> {
        let mut seed = [0; 8];
        if let Err(error) = getrandom::fill(&mut seed) {
            tracing::debug!(%error, "replication goes on without random numbers of the system");
        }
        let store = Arc::clone(&self.store) as Arc<dyn ReplicaStore>;
        let wall = SystemClock.now();
        let now = self.now_ms();
        let mut machine = Machine::start(store, self.setup.clone(), wall, now, u64::from_le_bytes(seed))?;
        let mut wake = 0;
        let mut step = Instant::now();
        for device in self.shared.met.all() {
            wake = self.tell(&mut machine, Event::Connected(device))?;
        }
        loop {
            if step <= Instant::now() {
                step = Instant::now() + STEP;
                self.shared.measure();
                for event in self.news() {
                    wake = self.tell(&mut machine, event)?;
                }
                if let Some(event) = self.make_room() {
                    wake = self.tell(&mut machine, event)?;
                }
            }
            let tick = self.started + Duration::from_millis(wake);
            let event = match messages.recv_deadline(tick.min(step)) {
                Ok(Msg::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    for event in self.stored() {
                        self.tell(&mut machine, event)?;
                    }
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < tick => continue,
                Err(RecvTimeoutError::Timeout) => Event::Tick,
                Ok(Msg::Look) => {
                    step = Instant::now();
                    continue;
                }
                Ok(Msg::Checked(tell)) => {
                    let _ = tell.send(machine.checked());
                    continue;
                }
                Ok(Msg::Event(event)) => event,
                Ok(Msg::Heard(public, request, answer)) => {
                    let from = device_of(&public);
                    match request_seq(&request) {
                        Some(seq) => drop(self.answers.insert((from, seq), (public, answer))),
                        None => answer(crate::replica::wire::Told::Noted.encode()),
                    }
                    Event::Request(from, request)
                }
                Ok(Msg::Profile(device, quota, zone)) => {
                    self.profiles.set(device, quota, &zone);
                    self.shared.met.said(&device);
                    continue;
                }
                Ok(Msg::Reachable(device, true)) => {
                    self.offer(device);
                    Event::Connected(device)
                }
                Ok(Msg::Reachable(device, false)) => {
                    self.answers.retain(|(from, _), _| *from != device);
                    Event::Disconnected(device)
                }
                Ok(Msg::Free(blocks, tell)) => {
                    let length = |block: &BlockId| Some((*block, u64::from(self.store.length(block).ok()??)));
                    let left: HashMap<BlockId, u64> = blocks.iter().filter_map(length).collect();
                    let event = Event::Free(left.keys().copied().collect());
                    self.frees.push(Freeing {
                        left,
                        freed: Freed::default(),
                        tell,
                    });
                    event
                }
            };
            wake = self.tell(&mut machine, event)?;
            self.end_frees();
        }
    }

    /// Tells the machine, and carries out what it says. Returns when to wake it.
    fn tell(&mut self, machine: &mut Machine, event: Event) -> Result<u64, crate::store::StoreError> {
        let mut wake = 0;
        for action in machine.handle(event, self.now_ms())? {
            match action {
                Action::Ask(to, request) => drop(self.jobs.send(Job::Ask(to, request))),
                Action::Answer(to, answer, challenge) => self.answer(to, answer, challenge),
                Action::Encode(blocks, parity) => drop(self.jobs.send(Job::Encode(blocks, parity))),
                Action::Wake(at) => wake = at,
                Action::Freed(block) => self.freed(&block, None),
                Action::Unfreed(block, why) => self.freed(&block, Some(why)),
                Action::Report(report) => reports::log(&report),
            }
        }
        Ok(wake)
    }

    /// Tells a member what is kept for it here at most.
    fn offer(&self, to: DeviceId) {
        let is_guest = |member: node::Member| member.device == to && member.role == Some(Role::Guest);
        let listed = self.node.belonging();
        let quota = match listed.is_ok_and(|all| all.into_iter().any(is_guest)) {
            true => self.setup.public,
            false => self.setup.quota,
        };
        let _ = self
            .jobs
            .send(Job::Profile(to, quota, self.setup.zone.to_string()));
    }

    fn answer(&mut self, to: DeviceId, answer: Answer, challenge: Option<[u8; 32]>) {
        if let Some((owner, carry)) = self.answers.remove(&(to, answer.seq())) {
            let _ = self.jobs.send(Job::Answer(owner, answer, challenge, carry));
        }
    }

    /// What changed since the last look: members, free space, what the volume stored.
    fn news(&mut self) -> Vec<Event> {
        let mut events = self.stored();
        if let Ok(listed) = self.node.belonging() {
            let own = self.setup.device;
            let mut members: Vec<Member> = listed
                .into_iter()
                .map(|listed| match listed.device == own {
                    true => Member {
                        device: own,
                        zone: Arc::clone(&self.setup.zone),
                        quota: self.setup.quota,
                        guest: listed.role == Some(Role::Guest),
                    },
                    false => self.profiles.member(&listed, self.guests),
                })
                .collect();
            members.sort_by_key(|member| member.device);
            if members != self.told {
                let hosts = members
                    .iter()
                    .any(|member| member.device != own && member.quota > 0);
                let zones: HashSet<&str> = members
                    .iter()
                    .filter(|member| member.quota > 0 && member.zone != self.setup.zone)
                    .map(|member| &*member.zone)
                    .collect();
                self.shared.set_hosts(hosts, zones.len().min(255) as u8);
                self.told.clone_from(&members);
                events.push(Event::Roster(members));
            }
        }
        if let Some(parent) = self.store.path().parent()
            && let Ok(disk) = rustix::fs::statvfs(parent)
        {
            events.push(Event::Disk(disk.f_bavail.saturating_mul(disk.f_frsize)));
        }
        events
    }

    fn stored(&self) -> Vec<Event> {
        self.shared.take_stored().into_iter().map(Event::Retain).collect()
    }

    fn freed(&mut self, block: &BlockId, why_not: Option<Unfreed>) {
        for free in &mut self.frees {
            if let Some(len) = free.left.remove(block) {
                match why_not {
                    None => {
                        free.freed.blocks += 1;
                        free.freed.bytes += len;
                    }
                    Some(why) => *free.freed.kept.entry(why).or_default() += 1,
                }
            }
        }
        self.end_frees();
    }

    fn end_frees(&mut self) {
        self.frees.retain(|free| {
            let over = free.left.is_empty();
            if over {
                let _ = free.tell.send(free.freed.clone());
            }
            !over
        });
    }
}

/// The device with a public key.
fn device_of(public: &[u8; 32]) -> DeviceId {
    DeviceId(*blake3::hash(public).as_bytes())
}

fn request_seq(request: &Request) -> Option<u64> {
    match request {
        Request::Put { seq, .. }
        | Request::Lease { seq, .. }
        | Request::Release { seq, .. }
        | Request::Shards { seq, .. }
        | Request::Audit { seq, .. } => Some(*seq),
        Request::Move { .. } => None,
    }
}
