//! [`Node`]: starts the tasks on a runtime of their own and is their face to the rest of the house, for callers that are not async.
//!
//! Invariant: no call here waits without a bound, and dropping a node ends all its tasks; pending fetches end with `Closed`.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use libp2p::Swarm;
use libp2p::swarm::SwarmEvent;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::base::clock::Clock;
use crate::base::{BlockId, DeviceId, GroupId, RootId, VolumeId};
use crate::keys::Head;
use crate::store::{BlockStore, Fetch, FetchDone, FetchError, Want};

use super::admission::Admissions;
use super::admit::{Admit, Desk};
use super::announce::{BUDGET_MAX, Schedule};
use super::bans::Bans;
use super::behaviour::{self, Behaviour};
use super::config::{NodeConfig, NodeError, multiaddr};
use super::exchange::{EVENTS, Exchange, ToExchange};
use super::heads::{HeadListener, Heads, PublishError};
use super::local::{ABUSE, Command, Identity, Local, keypair};
use super::members::{Keys, Member, Members};
use super::partner::{Done, Partner};
use super::peers::{Book, PeerInfo};
use super::publish::key_of_root;
use super::slots::{self, Slots};
use super::state::{NodeState, StateFile};
use super::swarm::Actor;
use super::throttle::Limits;
use super::work::WorkDone;

/// Commands that wait for the swarm actor.
const COMMANDS: usize = 1024;
/// Threads of the runtime: one moves bytes while the other checks them.
const THREADS: usize = 2;
/// How long the node may take to answer a question about itself.
const ANSWER: Duration = Duration::from_secs(5);
/// How long listening may take to begin.
const LISTEN: Duration = Duration::from_secs(5);
/// How long tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(3);

/// What a node is made of.
pub struct NodeParts {
    /// Who this device is.
    pub identity: Identity,
    /// Where its blocks are.
    pub store: Arc<dyn BlockStore>,
    /// Where it keeps what has to survive a restart.
    pub state: Arc<dyn NodeState>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// On an admin's device: what is given to those whom it admits.
    pub admit: Option<Arc<dyn Admit>>,
    /// The device's keys; none: it neither gives any to other members nor takes any.
    pub keys: Option<Arc<dyn Keys>>,
    /// What this computer is called, for other members to see; may be empty.
    pub name: String,
}

/// A running node.
pub struct Node {
    local: Arc<Local>,
    runtime: Option<Runtime>,
    actor: Option<tokio::task::JoinHandle<()>>,
}

impl Node {
    /// Starts a node and returns once it listens. Call it from an ordinary thread, not from async code.
    pub fn start(config: &NodeConfig, parts: NodeParts) -> Result<Self, NodeError> {
        let identity = parts.identity;
        let now = parts.clock.now();
        identity
            .certificate
            .verify_for(&identity.device.public(), &identity.group_public, now)?;
        for address in &config.known_peers {
            multiaddr(address)?;
        }
        let members = Arc::new(Members::open(
            &identity,
            &parts.name,
            Arc::clone(&parts.state),
            Arc::clone(&parts.clock),
            parts.admit.clone(),
            parts.keys,
            true,
        )?);
        let desk = match parts.admit {
            Some(admit) => {
                let state = Arc::clone(&parts.state);
                let desk = Desk::new(admit, Arc::clone(&members), state).map_err(NodeError::State)?;
                Some(Arc::new(desk))
            }
            None => None,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(slots::ALL + 8)
            .thread_name("dfs-node")
            .enable_all()
            .build()
            .map_err(|e| NodeError::Transport(e.to_string()))?;
        let (actor, commands) = mpsc::channel(COMMANDS);
        let (exchange, events) = mpsc::channel(EVENTS);
        let keypair = keypair(&identity.device)?;
        let device = identity.device.id();
        let group = GroupId(*blake3::hash(&identity.group_public).as_bytes());
        let own = identity.device.public();
        let heads = Arc::new(Heads::open(group, own, Arc::clone(&members), &parts.state));
        let local = Arc::new(Local {
            announced: Mutex::default(),
            searches: Mutex::default(),
            work: Arc::default(),
            group,
            identity,
            members,
            heads,
            store: parts.store,
            clock: parts.clock,
            slots: Arc::new(Slots::new()),
            limits: Limits::new(config.upload, config.download, config.limit_lan),
            bans: Mutex::new(Bans::new(ABUSE)),
            hello_timeout: config.hello_timeout,
            stall_timeout: config.stall_timeout,
            partner: OnceLock::new(),
            desk: desk.clone(),
            actor: actor.clone(),
            exchange,
        });
        let (book, schedule) = remembered(device, config, &*parts.state);
        // Before anybody can ask for a block.
        let _ = local.exchange.try_send(ToExchange::Prospects(book.prospects()));
        let admissions = Admissions::default();
        let swarm = {
            let _inside = runtime.enter();
            behaviour::build(config, &local, keypair, &admissions)?
        };
        let swarm = runtime.block_on(listen(swarm, config))?;
        runtime.spawn(Exchange::new(actor, desk, Arc::clone(&local.work)).run(events));
        let task = Actor::new(
            swarm,
            Arc::clone(&local),
            parts.state,
            admissions,
            book,
            schedule,
            config.relay,
        );
        let task = runtime.spawn(task.run(commands));
        Ok(Self {
            local,
            runtime: Some(runtime),
            actor: Some(task),
        })
    }

    /// Id of this device.
    pub fn device(&self) -> DeviceId {
        self.local.identity.device.id()
    }

    /// Connects to an address: `host:port` or a multiaddr. Returns at once; the address is tried again until a member answers there.
    pub fn dial(&self, address: &str) -> Result<(), NodeError> {
        let address = multiaddr(address)?.to_string();
        self.command(Command::Dial(address))
    }

    /// Tells the DHT that this device has blocks of the file. Returns at once; done within seconds under a budget, and renewed.
    pub fn announce(&self, root: RootId) {
        let mut announced = self.local.announced.lock();
        announced.push_back(root);
        if announced.len() > BUDGET_MAX {
            announced.pop_front();
        }
    }

    /// All known peers.
    pub fn peers(&self) -> Result<Vec<PeerInfo>, NodeError> {
        self.ask(Command::Peers)
    }

    /// Everybody who belongs to the group, and who was removed from it.
    pub fn members(&self) -> Result<Vec<Member>, NodeError> {
        Ok(self.local.members.list(&self.peers()?))
    }

    /// The group as this node knows it. Its calls may block on the disk.
    pub fn group(&self) -> &Arc<Members> {
        &self.local.members
    }

    /// Addresses at which this device can be reached, in multiaddr form: confirmed ones first, then those it listens on, loopback last.
    pub fn addresses(&self) -> Result<Vec<String>, NodeError> {
        self.ask(Command::Addresses)
    }

    /// What was asked of others since the start.
    pub fn work(&self) -> WorkDone {
        self.local.work.done()
    }

    /// Brings a block to a connected device, which stores it for a while. `done` hears of it by `deadline`.
    pub fn put(&self, device: DeviceId, id: BlockId, block: Bytes, deadline: Instant, done: Done) {
        self.send(ToExchange::Put {
            device,
            id,
            block,
            deadline,
            done,
        });
    }

    /// Brings a message to the partner of a connected device. `done` gets its answer by `deadline`.
    pub fn say(&self, device: DeviceId, body: Bytes, deadline: Instant, done: Done) {
        self.send(ToExchange::Say {
            device,
            body,
            deadline,
            done,
        });
    }

    /// Says who takes what other members want kept and say. Once; before that nothing is kept for them.
    pub fn set_partner(&self, partner: Arc<dyn Partner>) {
        if self.local.partner.set(Arc::clone(&partner)).is_ok() {
            self.send(ToExchange::Partner(partner));
        }
    }

    /// Tells all members of a new head of this device: those that are connected at once, others through the DHT and through members that meet
    /// them later. Returns once it is saved here.
    pub fn publish_head(&self, head: &Head) -> Result<(), PublishError> {
        self.local.heads.publish(head)
    }

    /// The newest known head of each device that writes to the volume, this one among them.
    pub fn heads(&self, volume: &VolumeId) -> Vec<Head> {
        self.local.heads.of(volume)
    }

    /// Says who hears of new heads from now on. Once; what is known before is in [`Node::heads`].
    pub fn set_head_listener(&self, listener: Arc<dyn HeadListener>) {
        self.local.heads.set_listener(listener);
    }

    /// What the node knows of heads.
    #[cfg(test)]
    pub(super) fn known_heads(&self) -> &Arc<Heads> {
        &self.local.heads
    }

    fn send(&self, event: ToExchange) {
        if let Err(TrySendError::Full(event) | TrySendError::Closed(event)) =
            self.local.exchange.try_send(event)
            && let ToExchange::Put { done, .. } | ToExchange::Say { done, .. } = event
        {
            done(Err("the node does not take more".into()));
        }
    }

    /// Ends the node: saves what it knows, closes connections, ends pending fetches with `Closed`. At most a few seconds.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        // Full queues: the tasks end with the runtime.
        let _ = self.local.actor.try_send(Command::Shutdown);
        let _ = self.local.exchange.try_send(ToExchange::Shutdown);
        if let Some(actor) = self.actor.take() {
            let end = Instant::now() + SHUTDOWN;
            while !actor.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if tokio::runtime::Handle::try_current().is_ok() {
            runtime.shutdown_background();
        } else {
            runtime.shutdown_timeout(SHUTDOWN);
        }
    }

    fn command(&self, command: Command) -> Result<(), NodeError> {
        self.local.actor.try_send(command).map_err(|_| NodeError::Gone)
    }

    fn ask<T>(&self, question: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, NodeError> {
        let (answer, answered) = sync_channel(1);
        self.command(question(answer))?;
        answered.recv_timeout(ANSWER).map_err(|_| NodeError::Gone)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Fetch for Node {
    fn start(&self, want: Want, deadline: Instant, done: FetchDone) {
        let partner = self.local.partner.get();
        let event = ToExchange::Want {
            holders: partner.map(|p| p.holders(&want.id)).unwrap_or_default(),
            want,
            deadline,
            done,
        };
        match self.local.exchange.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(ToExchange::Want { want, done, .. })) => {
                let asked = "nobody: too many blocks are being fetched".into();
                done(Err(FetchError::Unavailable { id: want.id, asked }));
            }
            Err(TrySendError::Closed(ToExchange::Want { done, .. })) => done(Err(FetchError::Closed)),
            Err(_) => {}
        }
    }

    fn hurry(&self, id: &BlockId) {
        // Where there is no room for it, the block comes in its turn.
        let _ = self.local.exchange.try_send(ToExchange::Hurry(*id));
    }
}

/// The members that were remembered when a node last ran with this state, for commands while none does.
pub fn remembered_peers(device: DeviceId, state: &dyn NodeState) -> Vec<PeerInfo> {
    let (book, _) = remembered(device, &NodeConfig::default(), state);
    book.list(|_| (0, 0))
}

/// What the node knew when it last ran, and what the settings say. What cannot be read is found again.
fn remembered(device: DeviceId, config: &NodeConfig, state: &dyn NodeState) -> (Book, Schedule) {
    let now = Instant::now();
    let (mut book, mut schedule) = (Book::new(device), Schedule::new(config.announce_budget));
    let load = |what: StateFile| {
        let loaded = state.load(what);
        loaded
            .inspect_err(|e| tracing::warn!("{} cannot be read: {e}", what.name()))
            .ok()
            .flatten()
    };
    if let Some(bytes) = load(StateFile::Peers)
        && let Err(e) = book.load(&bytes, now)
    {
        tracing::warn!("the list of peers cannot be read and begins anew: {e}");
    }
    if let Some(bytes) = load(StateFile::Announced)
        && let Err(e) = schedule.load(&bytes, key_of_root)
    {
        tracing::warn!("the list of announced files cannot be read and begins anew: {e}");
    }
    for address in &config.known_peers {
        if let Ok(address) = multiaddr(address) {
            book.add_seed(address.to_string(), now);
        }
    }
    (book, schedule)
}

/// Listens on the configured addresses; an error when none of them works.
async fn listen(mut swarm: Swarm<Behaviour>, config: &NodeConfig) -> Result<Swarm<Behaviour>, NodeError> {
    let mut reason = String::from("no address was given");
    let mut waiting = 0usize;
    for socket in &config.listen {
        let started = multiaddr(&socket.to_string()).and_then(|address| {
            let listening = swarm.listen_on(address);
            listening.map_err(|e| NodeError::Transport(e.to_string()))
        });
        match started {
            Ok(_) => waiting += 1,
            Err(e) => {
                tracing::warn!("cannot listen on {socket}: {e}");
                reason = e.to_string();
            }
        }
    }
    let begun = async {
        let mut listening = 0;
        while waiting > 0 {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    tracing::info!(%address, "listening");
                    listening += 1;
                    // A wildcard gives several addresses; one is enough to go on.
                    waiting = waiting.saturating_sub(1);
                }
                SwarmEvent::ListenerClosed { reason: Err(e), .. } => {
                    reason = e.to_string();
                    waiting = waiting.saturating_sub(1);
                }
                _ => {}
            }
        }
        listening
    };
    let listening = tokio::time::timeout(LISTEN, begun).await.unwrap_or(0);
    if listening == 0 && swarm.listeners().next().is_none() {
        let addresses: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
        return Err(NodeError::Listen {
            addresses: addresses.join(", "),
            reason,
        });
    }
    Ok(swarm)
}
