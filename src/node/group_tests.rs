//! Groups of real nodes on the loopback address: fetching, joining, refusing, coming back.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::partner::{Answer, Partner};
use super::*;
use crate::base::clock::{Clock, SystemClock, UnixSecs};
use crate::base::{BlockId, DeviceId, RootId, StoreId};
use crate::keys::{
    AdminAddress, Certificate, DeviceKey, Draft, GroupKey, Membership, Role, RootSecret, Statement, Ticket,
};
use crate::store::{BlockStore, CheckedBlock, Fetch, FetchError, MemoryStore, Put, PutKind, Want};

const PATIENCE: Duration = Duration::from_secs(20);

/// What all nodes of this process logged.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(super) fn get() -> &'static Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        LOG.get_or_init(|| {
            let log = Log(Arc::default());
            let writer = log.clone();
            let _ = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_max_level(tracing::Level::INFO)
                .with_writer(move || writer.clone())
                .try_init();
            log
        })
    }

    /// Whether there is a line that contains all of these.
    pub(super) fn has(&self, parts: &[&str]) -> bool {
        let log = self.0.lock();
        let text = String::from_utf8_lossy(&log);
        text.lines().any(|line| parts.iter().all(|p| line.contains(p)))
    }

    /// Waits for a line that contains all of these.
    pub(super) fn wait_for(&self, parts: &[&str]) {
        assert!(
            eventually(|| self.has(parts)),
            "{parts:?} not in:\n{}",
            String::from_utf8_lossy(&self.0.lock())
        );
    }
}

pub(super) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

pub(super) fn group(n: u8) -> GroupKey {
    GroupKey::from_root(&RootSecret::from_bytes([n; 32]))
}

pub(super) fn random_device() -> DeviceKey {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap();
    DeviceKey::from_bytes(&seed)
}

pub(super) fn certificate(group: &GroupKey, device: &[u8; 32], role: Role, expires: UnixSecs) -> Certificate {
    let membership = Membership {
        group: group.id(),
        device: *device,
        role,
        epoch: 1,
        issued: 0,
        expires,
        zone: None,
    };
    Certificate::issue(group, membership)
}

/// A member that can be started, stopped and started again.
pub(super) struct Member {
    pub(super) seed: [u8; 32],
    pub(super) certificate: Certificate,
    pub(super) group_public: [u8; 32],
    pub(super) store: Arc<dyn BlockStore>,
    pub(super) state: Arc<MemoryState>,
    pub(super) admit: Option<Arc<dyn Admit>>,
    pub(super) keys: Option<Arc<dyn Keys>>,
    pub(super) config: NodeConfig,
}

impl Member {
    pub(super) fn new(group: &GroupKey, role: Role) -> Self {
        let device = random_device();
        Self {
            seed: *device.seed(),
            certificate: certificate(group, &device.public(), role, u64::MAX),
            group_public: group.public(),
            store: Arc::new(MemoryStore::new(StoreId([1; 16]))),
            state: Arc::default(),
            admit: None,
            keys: None,
            config: NodeConfig::loopback(),
        }
    }

    pub(super) fn knowing(mut self, other: &Node) -> Self {
        self.config.known_peers = other.addresses().unwrap();
        self
    }

    pub(super) fn key(&self) -> DeviceKey {
        DeviceKey::from_bytes(&self.seed)
    }

    pub(super) fn start(&self) -> Node {
        self.start_with(Arc::clone(&self.state) as Arc<dyn NodeState>)
    }

    pub(super) fn start_with(&self, state: Arc<dyn NodeState>) -> Node {
        Log::get();
        let parts = NodeParts {
            identity: Identity {
                device: self.key(),
                certificate: self.certificate.clone(),
                group_public: self.group_public,
            },
            store: Arc::clone(&self.store),
            state,
            clock: Arc::new(SystemClock),
            admit: self.admit.clone(),
            keys: self.keys.clone(),
            name: String::new(),
        };
        Node::start(&self.config, parts).unwrap()
    }

    pub(super) fn keep(&self, n: u8) -> BlockId {
        let bytes = block(n);
        let id = BlockId::of(&bytes);
        let put = Put {
            id,
            bytes,
            kind: PutKind::Dirty,
            plain: None,
        };
        self.store.put(vec![put]).unwrap();
        id
    }
}

pub(super) fn block(n: u8) -> Bytes {
    Bytes::from(vec![n; 100_000 + usize::from(n)])
}

pub(super) fn fetch(
    node: &Node,
    id: BlockId,
    root: Option<RootId>,
    timeout: Duration,
) -> Result<Bytes, FetchError> {
    let (tell, told) = channel();
    let done = Box::new(move |result| tell.send(result).unwrap());
    Fetch::start(
        node,
        Want {
            id,
            root,
            ahead: false,
        },
        Instant::now() + timeout,
        done,
    );
    let told = told.recv_timeout(timeout + Duration::from_secs(5)).unwrap();
    told.map(|block| block.bytes().clone())
}

pub(super) fn connected(node: &Node) -> usize {
    node.peers().unwrap().iter().filter(|p| p.connected).count()
}

#[test]
fn a_block_is_fetched_from_another_member() {
    let group = group(1);
    let a = Member::new(&group, Role::Admin);
    let id = a.keep(1);
    let node_a = a.start();
    let b = Member::new(&group, Role::Reader).knowing(&node_a);
    let node_b = b.start();
    assert_eq!(fetch(&node_b, id, None, PATIENCE).unwrap(), block(1));
    // Many at once, in both directions, some of which do not exist.
    let ids: Vec<BlockId> = (2..60).map(|n| a.keep(n)).collect();
    let back: Vec<BlockId> = (60..100).map(|n| b.keep(n)).collect();
    std::thread::scope(|scope| {
        for (n, id) in ids.iter().enumerate() {
            let node_b = &node_b;
            scope.spawn(move || assert_eq!(fetch(node_b, *id, None, PATIENCE).unwrap(), block(n as u8 + 2)));
        }
        for (n, id) in back.iter().enumerate() {
            let node_a = &node_a;
            scope.spawn(move || assert_eq!(fetch(node_a, *id, None, PATIENCE).unwrap(), block(n as u8 + 60)));
        }
    });
    let peers = node_b.peers().unwrap();
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].role, Some(Role::Admin));
    assert!(peers[0].bytes_in >= 59 * 100_000 && peers[0].bytes_out >= 40 * 100_000);
    serde_json::to_string(&peers).unwrap();
}

#[test]
fn what_nobody_has_ends_at_once_and_names_who_was_asked() {
    let group = group(2);
    let a = Member::new(&group, Role::Writer);
    let node_a = a.start();
    let node_b = Member::new(&group, Role::Reader).knowing(&node_a).start();
    assert!(eventually(|| connected(&node_b) == 1));
    let started = Instant::now();
    match fetch(&node_b, BlockId([7; 32]), Some(RootId([1; 32])), PATIENCE) {
        Err(FetchError::Unavailable { asked, .. }) => {
            assert!(asked.contains(&node_a.device().short()), "{asked}");
            assert!(asked.contains("does not have it"), "{asked}");
        }
        other => panic!("{other:?}"),
    }
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn alone_is_said_at_once_and_a_dead_peer_ends_by_the_deadline() {
    let group = group(3);
    let node = Member::new(&group, Role::Writer).start();
    let id = BlockId([7; 32]);
    assert!(matches!(
        fetch(&node, id, None, PATIENCE),
        Err(FetchError::Alone { .. })
    ));
    // Nobody listens there, but somebody may come back.
    node.dial("127.0.0.1:1").unwrap();
    assert!(node.dial("nonsense").is_err());
    let short = Duration::from_millis(300);
    assert!(eventually(|| matches!(
        fetch(&node, id, None, short),
        Err(FetchError::Alone { .. })
    )));
}

#[test]
fn a_member_comes_back_by_its_cached_address_after_a_restart() {
    let group = group(4);
    let a = Member::new(&group, Role::Writer);
    let id = a.keep(1);
    let node_a = a.start();
    let mut b = Member::new(&group, Role::Reader).knowing(&node_a);
    let node_b = b.start();
    assert!(eventually(|| connected(&node_b) == 1));
    node_b.shutdown();
    // The settings no longer name A.
    b.config.known_peers.clear();
    let node_b = b.start();
    assert_eq!(fetch(&node_b, id, None, PATIENCE).unwrap(), block(1));
    // A restarts on the same port; a want that is pending meanwhile is served when it is back.
    let mut a = a;
    let address = node_a.addresses().unwrap()[0].clone();
    let port: u16 = address.rsplit('/').next().unwrap().parse().unwrap();
    a.config.listen[0].set_port(port);
    node_a.shutdown();
    assert!(eventually(|| connected(&node_b) == 0));
    let id = a.keep(2);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fetch(&node_b, id, None, PATIENCE));
        let _node_a = a.start();
        assert_eq!(waiting.join().unwrap().unwrap(), block(2));
    });
}

#[test]
fn another_group_and_an_expired_certificate_get_nothing_and_the_log_says_so() {
    let ours = group(5);
    let a = Member::new(&ours, Role::Admin);
    let id = a.keep(1);
    let node_a = a.start();
    // Of another group, with a valid certificate there.
    let other = Member::new(&group(6), Role::Admin).knowing(&node_a).start();
    assert!(fetch(&other, id, None, Duration::from_millis(800)).is_err());
    Log::get().wait_for(&["WARN", "left without showing a certificate of this group"]);
    // Of ours, but its certificate expires while it runs: its own clock is late.
    let mut late = Member::new(&ours, Role::Reader).knowing(&node_a);
    late.certificate = certificate(&ours, &late.key().public(), Role::Reader, 1_000_000);
    let clock = crate::base::clock::ManualClock::at(1_000_000);
    let parts = |member: &Member, clock: Arc<dyn Clock>| NodeParts {
        identity: Identity {
            device: member.key(),
            certificate: member.certificate.clone(),
            group_public: member.group_public,
        },
        store: Arc::clone(&member.store),
        state: Arc::new(MemoryState::default()),
        clock,
        admit: None,
        keys: None,
        name: String::new(),
    };
    let node = Node::start(&late.config, parts(&late, Arc::new(clock))).unwrap();
    assert!(fetch(&node, id, None, Duration::from_millis(800)).is_err());
    Log::get().wait_for(&["WARN", "refused a device", "the certificate expired at 1000000"]);
    // With a right clock it does not even start; nor with another device's certificate.
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    assert!(matches!(
        Node::start(&late.config, parts(&late, Arc::clone(&clock))),
        Err(NodeError::OwnCertificate(_))
    ));
    late.certificate = a.certificate.clone();
    assert!(Node::start(&late.config, parts(&late, clock)).is_err());
    assert_eq!(connected(&node_a), 0);
}

/// Keeps what it is given, and answers every message with who sent it and what it said.
pub(super) struct TestPartner(
    pub(super) Arc<dyn BlockStore>,
    pub(super) std::sync::mpsc::Sender<(DeviceId, bool)>,
);

impl Partner for TestPartner {
    fn keep(&self, _: &Membership, block: CheckedBlock) -> Result<(), String> {
        let put = Put {
            id: *block.id(),
            bytes: block.bytes().clone(),
            kind: PutKind::Cached,
            plain: None,
        };
        self.0
            .put(vec![put])
            .map(|_| ())
            .map_err(|error| error.to_string())
    }

    fn hear(&self, from: &Membership, body: Bytes, answer: Answer) {
        // A message that is not answered is told so.
        if body != "silence" {
            answer([from.role.to_string().as_bytes(), b" says ", &body].concat());
        }
    }

    fn holders(&self, _: &BlockId) -> Vec<DeviceId> {
        Vec::new()
    }

    fn reachable(&self, device: DeviceId, reachable: bool) {
        let _ = self.1.send((device, reachable));
    }
}

#[test]
fn placing_blocks_needs_a_writer_and_messages_reach_the_partner() {
    let group = group(7);
    let host = Member::new(&group, Role::Host);
    let node_host = host.start();
    let put = |node: &Node, n: u8| {
        let (tell, told) = channel();
        let done = Box::new(move |result| tell.send(result).unwrap());
        let bytes = block(n);
        let deadline = Instant::now() + PATIENCE;
        node.put(node_host.device(), BlockId::of(&bytes), bytes, deadline, done);
        told.recv().unwrap()
    };
    let say = |node: &Node, body: &'static str| {
        let (tell, told) = channel();
        let done = Box::new(move |result| tell.send(result).unwrap());
        node.say(node_host.device(), body.into(), Instant::now() + PATIENCE, done);
        told.recv().unwrap()
    };
    let writer = Member::new(&group, Role::Writer).knowing(&node_host);
    let node_writer = writer.start();
    assert!(eventually(|| {
        put(&node_writer, 1).is_err_and(|why| why.contains("keeps nothing for others"))
    }));
    let (tell, told) = channel();
    node_host.set_partner(Arc::new(TestPartner(Arc::clone(&host.store), tell)));
    assert_eq!(told.recv_timeout(PATIENCE), Ok((node_writer.device(), true)));
    assert_eq!(put(&node_writer, 2), Ok(Bytes::new()));
    assert_eq!(
        host.store.get(&BlockId::of(&block(2))).unwrap().unwrap(),
        block(2)
    );
    assert_eq!(say(&node_writer, "hello"), Ok(Bytes::from("writer says hello")));
    assert_eq!(say(&node_writer, "silence"), Err("no answer".into()));
    let node_reader = Member::new(&group, Role::Reader).knowing(&node_host).start();
    assert!(eventually(|| {
        put(&node_reader, 3).is_err_and(|why| why.contains("a reader may not place blocks"))
    }));
    assert_eq!(host.store.get(&BlockId::of(&block(3))).unwrap(), None);
    assert_eq!(told.recv_timeout(PATIENCE), Ok((node_reader.device(), true)));
    node_writer.shutdown();
    assert_eq!(told.recv_timeout(PATIENCE), Ok((writer.key().id(), false)));
}

/// Admits with the group key at hand, as the daemon of an admin does.
pub(super) struct TestAdmit(pub(super) GroupKey);

impl Admit for TestAdmit {
    fn certificate(
        &self,
        device: &[u8; 32],
        role: Role,
        _: Option<&str>,
        now: UnixSecs,
    ) -> Result<Certificate, String> {
        Ok(certificate(&self.0, device, role, now + 1_000_000))
    }

    fn sign(&self, draft: Draft, device: &DeviceKey) -> Statement {
        Statement::sign(draft, &self.0, device)
    }

    fn commitment(&self, epoch: u32) -> Option<[u8; 32]> {
        Some([epoch as u8; 32])
    }

    fn payload(&self, role: Role) -> Result<Zeroizing<Vec<u8>>, String> {
        Ok(Zeroizing::new(format!("keys of a {role}").into_bytes()))
    }
}

fn ticket(key: &GroupKey, admins: &[(&Member, &Node)], role: Role, expires: UnixSecs, uses: u16) -> Ticket {
    let admins = admins.iter().map(|(member, node)| AdminAddress {
        device: member.key().public(),
        address: node.addresses().unwrap()[0].clone(),
    });
    Ticket::issue(key, role, 0, expires, uses, admins.collect()).unwrap()
}

pub(super) fn admin(n: u8) -> Member {
    let mut admin = Member::new(&group(n), Role::Admin);
    admin.admit = Some(Arc::new(TestAdmit(group(n))));
    admin
}

#[test]
fn a_ticket_admits_once_also_after_a_restart_and_the_same_device_may_ask_again() {
    let key = group(8);
    let a = admin(8);
    let id = a.keep(1);
    let node_a = a.start();
    let now = SystemClock.now();
    let ticket = ticket(&key, &[(&a, &node_a)], Role::Reader, now + 3600, 1);
    let device = random_device();
    let joined = join(&ticket, &device, now, PATIENCE).unwrap();
    assert_eq!(&joined.payload[..], b"keys of a reader");
    assert_eq!(joined.certificate.membership().role, Role::Reader);
    assert_eq!(joined.group_public, key.public());
    Log::get().wait_for(&["admitted a new reader", &device.id().short()]);
    // Its answer may have got lost.
    assert!(join(&ticket, &device, now, PATIENCE).is_ok());
    // What it got is enough to read.
    let mut b = Member::new(&key, Role::Reader);
    (b.seed, b.certificate) = (*device.seed(), joined.certificate);
    b.config.known_peers = joined.admins.iter().map(|a| a.address.clone()).collect();
    assert_eq!(fetch(&b.start(), id, None, PATIENCE).unwrap(), block(1));
    // Another device is refused, on both sides, also when the admin restarted.
    let thief = random_device();
    let refused = |result: Result<Joined, JoinError>| match result {
        Err(JoinError::Refused(why)) => assert!(why.contains("used already"), "{why}"),
        other => panic!("{other:?}"),
    };
    refused(join(&ticket, &thief, now, PATIENCE));
    Log::get().wait_for(&[
        "WARN",
        "refused a device that wants to join",
        &thief.id().short(),
        "used already",
    ]);
    let port = node_a.addresses().unwrap()[0]
        .rsplit('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    node_a.shutdown();
    let mut a = a;
    a.config.listen[0].set_port(port);
    let _node_a = a.start();
    refused(join(&ticket, &thief, now, PATIENCE));
}

#[test]
fn expired_forged_and_misdirected_tickets_are_refused() {
    let key = group(9);
    let a = admin(9);
    let node_a = a.start();
    let now = SystemClock.now();
    let device = random_device();
    let old = ticket(&key, &[(&a, &node_a)], Role::Reader, now - 3600, 1);
    match join(&old, &device, now, PATIENCE) {
        Err(JoinError::Refused(why)) => assert!(why.contains("expired"), "{why}"),
        other => panic!("{other:?}"),
    }
    // Issued by another group, but sent to our admin: it does not speak that group's protocol.
    let foreign = ticket(&group(10), &[(&a, &node_a)], Role::Admin, now + 3600, 1);
    assert!(matches!(
        join(&foreign, &device, now, PATIENCE),
        Err(JoinError::Unreachable(_))
    ));
    // Names another device than the one that answers at the address.
    let stranger = Member::new(&key, Role::Admin);
    let misdirected = ticket(&key, &[(&stranger, &node_a)], Role::Admin, now + 3600, 1);
    assert!(matches!(
        join(&misdirected, &device, now, PATIENCE),
        Err(JoinError::Unreachable(_))
    ));
    // Sent to a member that answers invitations but is no admin: it never sees the secret.
    let mut fake = Member::new(&key, Role::Writer);
    fake.admit = Some(Arc::new(TestAdmit(group(9))));
    let node_fake = fake.start();
    let ticket = ticket(&key, &[(&fake, &node_fake)], Role::Admin, now + 3600, 1);
    match join(&ticket, &device, now, PATIENCE) {
        Err(JoinError::Unreachable(why)) => assert!(why.contains("no admin of the group"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn any_admin_admits_and_tells_the_others() {
    let key = group(11);
    let (a, mut b) = (admin(11), admin(11));
    let node_a = a.start();
    b.config.known_peers = node_a.addresses().unwrap();
    let node_b = b.start();
    assert!(eventually(|| connected(&node_a) == 1 && connected(&node_b) == 1));
    let now = SystemClock.now();
    let both = ticket(&key, &[(&a, &node_a), (&b, &node_b)], Role::Writer, now + 3600, 1);
    assert!(join(&both, &random_device(), now, PATIENCE).is_ok());
    // Whoever of the two did not admit it hears of it.
    assert!(eventually(|| {
        let noted = |m: &Member| m.state.load(StateFile::Invitations).unwrap();
        noted(&a).is_some() && noted(&a) == noted(&b)
    }));
    assert!(matches!(
        join(&both, &random_device(), now, PATIENCE),
        Err(JoinError::Refused(_))
    ));
    // One admin is away: the other one does.
    let more = ticket(&key, &[(&a, &node_a), (&b, &node_b)], Role::Host, now + 3600, 2);
    node_a.shutdown();
    let joined = join(&more, &random_device(), now, PATIENCE).unwrap();
    assert_eq!(joined.admins[0].device, b.key().public());
}

#[test]
fn a_file_is_found_through_a_third_node() {
    let key = group(12);
    let middle = Member::new(&key, Role::Host);
    let node_middle = middle.start();
    let holder = Member::new(&key, Role::Writer).knowing(&node_middle);
    let id = holder.keep(1);
    let node_holder = holder.start();
    let root = RootId([3; 32]);
    assert!(eventually(|| connected(&node_middle) == 1));
    node_holder.announce(root);
    // The reader knows only the node in the middle, which does not have the block.
    let reader = Member::new(&key, Role::Reader).knowing(&node_middle);
    let node_reader = reader.start();
    assert!(eventually(|| {
        fetch(&node_reader, id, Some(root), PATIENCE).is_ok_and(|bytes| bytes == block(1))
    }));
    let peers = node_reader.peers().unwrap();
    let found = peers.iter().find(|p| p.device == node_holder.device()).unwrap();
    assert!(found.connected && found.bytes_in > 0);
}
