//! Groups of real nodes that tell each other of heads: through hosts, over restarts, from copies of a device, from those who may not.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use parking_lot::Mutex;

use super::abuse::Attacker;
use super::frame::Frame;
use super::head_news::HeadNews;
use super::heads::Heads;
use super::tests::{Log, Member, admin, certificate, connected, eventually, group};
use super::wire::write_frame;
use super::{HeadListener, Members, Node, NodeState, PublishError, StateFile};
use crate::base::clock::SystemClock;
use crate::base::{BlockId, GroupId, VolumeId};
use crate::keys::{DeviceKey, Head, Role};

const VOLUME: VolumeId = VolumeId([5; 16]);
/// How long what must not happen is waited for.
const WHILE: Duration = Duration::from_millis(1500);

fn head_of(device: &DeviceKey, group: GroupId, before: Option<&Head>, snapshot: u8) -> Head {
    Head::issue(device, &group, VOLUME, before, BlockId([snapshot; 32]), 1, 7)
}

impl Member {
    fn head(&self, before: Option<&Head>, snapshot: u8) -> Head {
        head_of(
            &self.key(),
            crate::keys::group_id(&self.group_public),
            before,
            snapshot,
        )
    }

    /// Starts it from a copy of its state, as from a backup.
    fn copy(&self) -> Self {
        Self {
            seed: self.seed,
            certificate: self.certificate.clone(),
            group_public: self.group_public,
            store: Arc::clone(&self.store),
            state: Arc::new(self.state.copy()),
            admit: None,
            keys: None,
            config: super::NodeConfig::loopback(),
        }
    }
}

/// An admin's node that has entered itself and these into the roster.
fn first(admin: &Member, members: &[&Member]) -> Node {
    let node = admin.start();
    for member in [&[admin], members].concat() {
        node.group().certify(&member.certificate).unwrap();
    }
    node
}

fn knows(node: &Node, heads: &[&Head]) -> bool {
    let mut known = node.heads(&VOLUME);
    known.sort_by_key(|head| head.device);
    let mut heads: Vec<Head> = heads.iter().copied().cloned().collect();
    heads.sort_by_key(|head| head.device);
    known == heads
}

/// Writes down what it hears.
#[derive(Default)]
struct Ear(Mutex<Vec<(u64, [u8; 32], bool)>>);

impl HeadListener for Ear {
    fn head(&self, head: &Head, fork: bool) {
        self.0.lock().push((head.seq, head.hash(), fork));
    }
}

impl Ear {
    fn of(node: &Node) -> Arc<Self> {
        let ear = Arc::new(Self::default());
        node.set_head_listener(Arc::clone(&ear) as Arc<dyn HeadListener>);
        ear
    }

    fn heard(&self) -> Vec<(u64, [u8; 32], bool)> {
        self.0.lock().clone()
    }
}

#[test]
fn heads_pass_through_a_host_at_once_and_wait_there_for_who_comes_later() {
    let key = group(80);
    let a = admin(80);
    let host = Member::new(&key, Role::Host);
    let (b, c) = (Member::new(&key, Role::Writer), Member::new(&key, Role::Reader));
    let node_a = first(&a, &[&host, &b, &c]);
    let host = host.knowing(&node_a);
    let node_host = host.start();
    let b = b.knowing(&node_host);
    let node_b = b.start();
    let ear = Ear::of(&node_b);
    assert!(eventually(|| connected(&node_a) > 0 && connected(&node_b) > 0));
    // The first may come before the roster has, and waits for it.
    let mut last = a.head(None, 0);
    node_a.publish_head(&last).unwrap();
    assert!(eventually(|| knows(&node_b, &[&last])));
    let mut published = vec![(1, last.hash(), false)];
    for n in 1..50 {
        last = a.head(Some(&last), n);
        node_a.publish_head(&last).unwrap();
        published.push((last.seq, last.hash(), false));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(eventually(|| knows(&node_b, &[&last])));
    assert!(eventually(|| ear.heard().last() == published.last()));
    let heard = ear.heard();
    assert!(heard.is_sorted());
    assert!(heard.iter().all(|head| published.contains(head)));
    // B was never where it could hear C, which comes when all who write have left.
    let of_b = b.head(None, 99);
    node_b.publish_head(&of_b).unwrap();
    assert!(eventually(|| knows(&node_host, &[&last, &of_b])));
    node_a.shutdown();
    node_b.shutdown();
    let c = c.knowing(&node_host);
    let node_c = c.start();
    assert!(eventually(|| knows(&node_c, &[&last, &of_b])));
    // All remember it, and publishing the same again is no fault.
    node_host.shutdown();
    let (node_host, node_b) = (host.start(), b.start());
    assert!(knows(&node_host, &[&last, &of_b]) && knows(&node_b, &[&last, &of_b]));
    node_b.publish_head(&of_b).unwrap();
    assert!(node_b.heads(&VolumeId([6; 16])).is_empty(), "another volume");
}

#[test]
fn only_who_may_write_has_a_head() {
    let key = group(81);
    let a = admin(81);
    let reader = Member::new(&key, Role::Reader);
    let writer = DeviceKey::from_bytes(&[11; 32]);
    let node = first(&a, &[&reader]);
    let reader = reader.knowing(&node);
    let node_reader = reader.start();
    assert!(eventually(|| connected(&node_reader) == 1));
    assert_eq!(
        node_reader.publish_head(&reader.head(None, 1)),
        Err(PublishError::NotWriter(Role::Reader))
    );
    assert_eq!(
        node_reader.publish_head(&a.head(None, 1)),
        Err(PublishError::NotOwn)
    );
    let elsewhere = head_of(&reader.key(), GroupId([1; 32]), None, 1);
    assert_eq!(node_reader.publish_head(&elsewhere), Err(PublishError::NotOwn));
    // Who does not ask its own node: a reader about itself, a writer with a forgery, a head of another group, garbage.
    let of = |device: &DeviceKey, group| head_of(device, group, None, 1).encode(&group);
    let mut forged = of(&a.key(), key.id());
    forged[200] ^= 1;
    let bad = DeviceKey::from_bytes(&[10; 32]);
    let attacks = [
        (10, Role::Reader, of(&bad, key.id()), "none that writes"),
        (
            12,
            Role::Guest,
            of(&DeviceKey::from_bytes(&[12; 32]), key.id()),
            "none that writes",
        ),
        (13, Role::Writer, forged, "did not sign"),
        (14, Role::Writer, of(&writer, GroupId([1; 32])), "another group"),
        (15, Role::Writer, vec![0; 233], "not a head"),
    ];
    for (seed, role, bytes, logged) in attacks {
        let mut attacker = Attacker::new(&key, seed, role, &node);
        tell(&mut attacker, &[bytes], true);
        let device = DeviceKey::from_bytes(&[seed; 32]).id().short();
        Log::get().wait_for(&["WARN", &device, "closing the connection", logged, "shut out"]);
    }
    // A writer that has not heard of what the roster says is not to blame, and heads of devices that nobody knows are not kept.
    let mut honest = Attacker::new(&key, 11, Role::Writer, &node);
    let unknown = DeviceKey::from_bytes(&[16; 32]);
    tell(
        &mut honest,
        &[
            of(&reader.key(), key.id()),
            of(&unknown, key.id()),
            of(&writer, key.id()),
        ],
        false,
    );
    let own = head_of(&writer, key.id(), None, 1);
    assert!(eventually(|| knows(&node, &[&own])));
    std::thread::sleep(WHILE);
    assert!(!honest.is_closed() && knows(&node, &[&own]));
    // Once an admin has said who they are, the other one's counts, too, and both count for those who have only heard of them.
    for device in [&writer, &unknown] {
        let certificate = certificate(&key, &device.public(), Role::Writer, u64::MAX);
        node.group().certify(&certificate).unwrap();
    }
    let unknown = head_of(&unknown, key.id(), None, 1);
    assert!(eventually(
        || knows(&node, &[&own, &unknown]) && knows(&node_reader, &[&own, &unknown])
    ));
}

/// Sends heads; waits until the node has closed the connection, if it is to.
fn tell(attacker: &mut Attacker, heads: &[Vec<u8>], closes: bool) {
    let mut stream = attacker.greet();
    let heads = heads.iter().map(|head| head[..].try_into().unwrap());
    let frame = Frame::Heads(HeadNews::Newer(heads.collect()));
    attacker.runtime.block_on(async {
        write_frame(&mut stream, &frame).await.unwrap();
        stream.flush().await.unwrap();
        if closes {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    if !closes {
        // Dropped, it would end the connection.
        std::mem::forget(stream);
    }
}

#[test]
fn who_was_just_given_the_right_to_write_is_not_blamed_for_using_it() {
    let key = group(88);
    let a = admin(88);
    let (b, host) = (Member::new(&key, Role::Reader), Member::new(&key, Role::Host));
    let node_a = first(&a, &[&b, &host]);
    let b = b.knowing(&node_a);
    let node_b = b.start();
    // The host hears of it after B, from B.
    let host = host.knowing(&node_b);
    let node_host = host.start();
    assert!(eventually(|| connected(&node_b) == 2));
    node_a.group().set_role(&node_b.device(), Role::Writer).unwrap();
    let head = b.head(None, 1);
    assert!(eventually(|| node_b.publish_head(&head).is_ok()));
    assert!(eventually(
        || knows(&node_host, &[&head]) && knows(&node_a, &[&head])
    ));
    assert!(!Log::get().has(&[&node_b.device().short(), "none that writes"]));
}

#[test]
fn a_removed_devices_head_is_dropped_everywhere_and_for_good() {
    let key = group(82);
    let a = admin(82);
    let (b, host) = (Member::new(&key, Role::Writer), Member::new(&key, Role::Host));
    let node_a = first(&a, &[&b, &host]);
    let (b, host) = (b.knowing(&node_a), host.knowing(&node_a));
    let (node_b, node_host) = (b.start(), host.start());
    assert!(eventually(|| connected(&node_a) == 2));
    let (of_a, of_b) = (a.head(None, 1), b.head(None, 2));
    node_a.publish_head(&of_a).unwrap();
    assert!(eventually(|| node_b.publish_head(&of_b).is_ok()));
    assert!(eventually(|| knows(&node_host, &[&of_a, &of_b])));
    node_a.group().remove(&node_b.device()).unwrap();
    assert!(knows(&node_a, &[&of_a]), "as soon as it is stated");
    assert!(eventually(|| knows(&node_host, &[&of_a])));
    let saved = || host.state.load(StateFile::Heads).unwrap();
    assert!(
        eventually(|| saved().is_some_and(|list| list.len() == 7 + 233)),
        "not on the disk either"
    );
    node_host.shutdown();
    let node_host = host.start();
    assert!(knows(&node_host, &[&of_a]));
}

#[test]
fn heads_go_through_the_dht_alone_between_members_that_are_never_on_at_one_time() {
    let key = group(83);
    let a = admin(83);
    let (host, b) = (Member::new(&key, Role::Host), Member::new(&key, Role::Reader));
    let node_a = first(&a, &[&host, &b]);
    let host = host.knowing(&node_a);
    let node_host = host.start();
    for node in [&node_a, &node_host] {
        node.known_heads().mute.store(true, Ordering::Relaxed);
    }
    assert!(eventually(|| connected(&node_host) == 1));
    let head = a.head(None, 1);
    node_a.publish_head(&head).unwrap();
    assert!(eventually(|| knows(&node_host, &[&head])), "put there");
    node_a.shutdown();
    let node_b = b.knowing(&node_host).start();
    assert!(eventually(|| knows(&node_b, &[&head])), "found there");
}

#[test]
fn a_device_that_was_put_back_to_an_earlier_time_hears_its_own_newer_head() {
    let key = group(84);
    let a = admin(84);
    let (b, host) = (Member::new(&key, Role::Writer), Member::new(&key, Role::Host));
    let node_a = first(&a, &[&b, &host]);
    let (mut b, host) = (b.knowing(&node_a), host.knowing(&node_a));
    let (node_b, node_host) = (b.start(), host.start());
    let one = b.head(None, 1);
    assert!(eventually(|| node_b.publish_head(&one).is_ok()));
    assert!(eventually(|| knows(&node_host, &[&one])));
    node_b.shutdown();
    let backup = b.copy();
    let node_b = b.start();
    let two = b.head(Some(&one), 2);
    let three = b.head(Some(&two), 3);
    for head in [&two, &three] {
        node_b.publish_head(head).unwrap();
    }
    assert!(eventually(|| knows(&node_host, &[&three])));
    node_b.shutdown();
    // The backup knows its first only, and goes on from there before it meets anybody.
    b.config.known_peers.clear();
    backup.state.forget(StateFile::Peers);
    let node_b = backup.start();
    let ear = Ear::of(&node_b);
    assert!(knows(&node_b, &[&one]));
    let astray = b.head(Some(&one), 9);
    node_b.publish_head(&astray).unwrap();
    node_b.dial(&node_host.addresses().unwrap()[0]).unwrap();
    assert!(eventually(|| knows(&node_b, &[&three])));
    assert!(eventually(|| ear.heard().first().is_some_and(|head| head.0 == 3)));
    assert!(knows(&node_host, &[&three]), "nobody is rolled back");
    // It cannot say what does not follow, and goes on from what others know.
    let behind = |head: &Head| match node_b.publish_head(head) {
        Err(PublishError::Behind(known)) => assert_eq!(*known, three),
        other => panic!("{other:?}"),
    };
    behind(&b.head(Some(&astray), 10));
    behind(&b.head(Some(&two), 10));
    behind(&b.head(Some(&b.head(Some(&two), 10)), 11));
    let next = b.head(Some(&three), 10);
    node_b.publish_head(&next).unwrap();
    assert!(eventually(
        || knows(&node_host, &[&next]) && knows(&node_a, &[&next])
    ));
}

#[test]
fn two_copies_of_a_device_both_hear_of_the_fork_and_all_choose_the_same() {
    let key = group(85);
    let a = admin(85);
    let (b, host) = (Member::new(&key, Role::Writer), Member::new(&key, Role::Host));
    let node_a = first(&a, &[&b, &host]);
    let host = host.knowing(&node_a);
    let node_host = host.start();
    assert!(eventually(|| connected(&node_host) == 1));
    let (mut low, mut high) = (b.head(None, 1), b.head(None, 2));
    if low.hash() > high.hash() {
        std::mem::swap(&mut low, &mut high);
    }
    let (ear_a, ear_host) = (Ear::of(&node_a), Ear::of(&node_host));
    let b = b.knowing(&node_host);
    let node_b = b.start();
    assert!(eventually(|| node_b.publish_head(&high).is_ok()));
    assert!(eventually(
        || knows(&node_a, &[&high]) && knows(&node_host, &[&high])
    ));
    node_b.shutdown();
    let copy = b.copy();
    copy.state.forget(StateFile::Heads);
    copy.state.forget(StateFile::Head);
    copy.state.forget(StateFile::Peers);
    let node_copy = copy.start();
    node_copy.publish_head(&low).unwrap();
    node_copy.dial(&node_host.addresses().unwrap()[0]).unwrap();
    assert!(eventually(
        || knows(&node_a, &[&low]) && knows(&node_host, &[&low])
    ));
    let both = [(1, high.hash(), false), (1, low.hash(), true)];
    for ear in [&ear_a, &ear_host] {
        assert!(eventually(|| ear.heard() == both), "{:?}", ear.heard());
    }
    Log::get().wait_for(&["WARN", &b.key().id().short(), "two ways from one state"]);
    node_copy.shutdown();
    // The other copy comes back.
    let node_b = b.start();
    assert!(knows(&node_b, &[&high]));
    let ear_b = Ear::of(&node_b);
    assert!(eventually(|| knows(&node_b, &[&low])));
    let fork = [(1, low.hash(), true)];
    assert!(eventually(|| ear_b.heard() == fork), "{:?}", ear_b.heard());
}

/// A disk on which the first list of heads takes its time, until a later one is written or a second has passed.
struct Slow(Arc<super::MemoryState>, Mutex<u32>);

impl NodeState for Slow {
    fn load(&self, what: StateFile) -> std::io::Result<Option<Vec<u8>>> {
        self.0.load(what)
    }

    fn save(&self, what: StateFile, bytes: &[u8]) -> std::io::Result<()> {
        if what == StateFile::Heads {
            let nth = {
                let mut count = self.1.lock();
                *count += 1;
                *count
            };
            let end = Instant::now() + Duration::from_secs(1);
            while nth == 1 && *self.1.lock() == 1 && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(5));
            }
            if nth == 1 {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        self.0.save(what, bytes)
    }
}

#[test]
fn an_older_list_never_comes_to_the_disk_after_a_newer_one() {
    let a = admin(87);
    let slow = Arc::new(Slow(Arc::clone(&a.state), Mutex::new(0)));
    let node = a.start_with(Arc::clone(&slow) as Arc<dyn NodeState>);
    let one = a.head(None, 1);
    node.publish_head(&one).unwrap();
    assert!(eventually(|| *slow.1.lock() == 1), "the first is being written");
    let two = a.head(Some(&one), 2);
    node.publish_head(&two).unwrap();
    node.shutdown();
    assert_eq!(*slow.1.lock(), 2);
    let (_, heads) = opened(&a);
    assert_eq!(heads.of(&VOLUME), [two]);
}

fn opened(member: &Member) -> (Arc<Members>, Arc<Heads>) {
    let identity = super::Identity {
        device: member.key(),
        certificate: member.certificate.clone(),
        group_public: member.group_public,
    };
    let group = crate::keys::group_id(&member.group_public);
    let state = Arc::clone(&member.state) as Arc<dyn NodeState>;
    let admit = member.admit.clone();
    let clock = Arc::new(SystemClock);
    let members = Arc::new(Members::open(&identity, "", state, clock, admit, None, false).unwrap());
    let state = Arc::clone(&member.state) as Arc<dyn NodeState>;
    let heads = Heads::open(group, member.key().public(), Arc::clone(&members), &state);
    (members, Arc::new(heads))
}

#[test]
fn the_dht_holds_the_heads_that_each_node_knows_and_teaches_it_others() {
    use libp2p::kad::store::RecordStore;
    use libp2p::kad::{Record, RecordKey};
    let (a, reader) = (admin(86), Member::new(&group(86), Role::Reader));
    let host = admin(86);
    let (_, of_a) = opened(&a);
    let (members, of_host) = opened(&host);
    for member in [&a, &reader, &host] {
        members.certify(&member.certificate).unwrap();
    }
    let store = |members, heads| {
        let clock = Arc::new(SystemClock);
        super::records::Records::new(libp2p::PeerId::random(), a.group_public, clock).with(members, heads)
    };
    let mut at_host = store(&members, &of_host);
    let key_of = |member: &Member| RecordKey::new(&of_a.key(&member.key().public()));
    let one = a.head(None, 1);
    of_a.publish(&one).unwrap();
    let key = key_of(&a);
    assert!(at_host.get(&key).is_none());
    let value = of_a.record(key.as_ref()).unwrap();
    at_host.put(Record::new(key.clone(), value.clone())).unwrap();
    assert!(of_host.has_mail());
    of_host.open_mail();
    assert_eq!(of_host.of(&VOLUME), std::slice::from_ref(&one));
    assert_eq!(at_host.get(&key).unwrap().value, value);
    // What is older, under another key, forged, a reader's, or garbage changes nothing.
    let group = group(86).id();
    let two = a.head(Some(&one), 2);
    at_host.put(Record::new(key.clone(), two.encode(&group))).unwrap();
    of_host.open_mail();
    at_host.put(Record::new(key.clone(), value)).unwrap();
    assert!(!of_host.has_mail());
    let three = a.head(Some(&two), 3).encode(&group);
    assert!(at_host.put(Record::new(key_of(&host), three.clone())).is_err());
    let mut forged = three;
    forged[230] ^= 1;
    let _ = at_host.put(Record::new(key.clone(), forged));
    let of_reader = reader.head(None, 1).encode(&group);
    let _ = at_host.put(Record::new(key_of(&reader), of_reader));
    assert!(at_host.put(Record::new(key.clone(), vec![0; 233])).is_err());
    of_host.open_mail();
    assert_eq!(of_host.of(&VOLUME), std::slice::from_ref(&two));
    assert_eq!(at_host.get(&key).unwrap().value, two.encode(&group));
    assert!(at_host.get(&key_of(&reader)).is_none());
}
