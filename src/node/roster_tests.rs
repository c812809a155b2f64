//! Groups of real nodes in which members are removed, change roles, are copied: who hears of it, and what follows.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::tests::{Log, Member, admin, connected, eventually, fetch, group};
use super::*;
use crate::base::clock::SystemClock;
use crate::keys::{Role, Roster};

/// How long what must not happen is waited for.
const WHILE: Duration = Duration::from_millis(1500);

fn removed(node: &Node, device: &Node) -> bool {
    node.group().is_removed(&device.device())
}

fn role(node: &Node, of: &Node) -> Option<Role> {
    let members = node.members().unwrap();
    members.into_iter().find(|m| m.device == of.device())?.role
}

/// Waits until the node knows the other one from the roster.
fn known(node: &Node, other: &Node) -> bool {
    eventually(|| {
        let members = node.members().unwrap();
        members
            .iter()
            .any(|m| m.device == other.device() && m.since.is_some())
    })
}

/// An admin's node that has entered itself, as making a volume does.
fn first(admin: &Member) -> Node {
    let node = admin.start();
    enter(&node, admin);
    node
}

/// Enters a member into the roster of an admin's node, as admitting it does.
fn enter(admin: &Node, member: &Member) {
    admin.group().certify(&member.certificate).unwrap();
}

#[test]
fn a_removed_member_is_cut_off_at_once_and_refused_by_all_who_hear_of_it() {
    let key = group(40);
    let a = admin(40);
    let id = a.keep(1);
    let node_a = first(&a);
    let b = Member::new(&key, Role::Writer).knowing(&node_a);
    let node_b = b.start();
    let mut c = Member::new(&key, Role::Writer).knowing(&node_a);
    let node_c = c.start();
    for member in [&b, &c] {
        enter(&node_a, member);
    }
    assert!(known(&node_b, &node_c) && known(&node_c, &node_b));
    assert!(eventually(|| connected(&node_a) == 2));
    // B is away meanwhile.
    let addresses = node_b.addresses().unwrap();
    let port: u16 = addresses[0].rsplit('/').next().unwrap().parse().unwrap();
    node_b.shutdown();
    node_a.group().remove(&node_c.device()).unwrap();
    assert!(eventually(|| connected(&node_c) == 0), "its connection is closed");
    assert!(fetch(&node_c, id, None, WHILE).is_err());
    Log::get().wait_for(&[
        "refused a device",
        &node_c.device().short(),
        "was removed from the group on",
    ]);
    assert!(eventually(|| {
        let warnings = node_c.group().warnings();
        warnings
            .iter()
            .any(|w| w.contains("does not accept this device") && w.contains("was removed"))
    }));
    // B comes back, knows nothing, and lets C in until it has met A.
    node_a.shutdown();
    let mut b = b;
    b.config.listen[0].set_port(port);
    b.config.known_peers.clear();
    c.config.known_peers = addresses;
    node_c.shutdown();
    let node_b = b.start();
    let node_c = c.start();
    assert!(
        eventually(|| connected(&node_b) == 1),
        "what it has not heard it cannot know"
    );
    let mut a = a;
    a.config.known_peers.clone_from(&c.config.known_peers);
    let node_a = a.start();
    assert!(eventually(|| removed(&node_b, &node_c)));
    assert!(eventually(|| connected(&node_c) == 0));
    std::thread::sleep(WHILE);
    assert_eq!((connected(&node_c), connected(&node_b)), (0, 1));
    assert!(
        node_b
            .peers()
            .unwrap()
            .iter()
            .all(|p| p.device != node_c.device())
    );
    let members = node_b.members().unwrap();
    let gone = members.iter().find(|m| m.device == node_c.device()).unwrap();
    assert!(gone.removed.is_some() && gone.role.is_none());
    // Also after a restart, from the disk.
    node_a.shutdown();
    node_b.shutdown();
    let node_b = b.start();
    std::thread::sleep(WHILE);
    assert_eq!((connected(&node_b), connected(&node_c)), (0, 0));
}

#[test]
fn news_reaches_those_who_never_meet_the_admin() {
    let key = group(41);
    let (a, first) = (admin(41), admin(41));
    let node_a = a.start();
    let node_middle = Member::new(&key, Role::Host).knowing(&node_a).start();
    assert!(eventually(|| connected(&node_a) == 1));
    let far = Member::new(&key, Role::Reader).knowing(&node_middle);
    let node_far = far.start();
    let stranger = crate::base::DeviceId([9; 32]);
    node_a.group().remove(&stranger).unwrap();
    assert!(eventually(|| node_far.group().is_removed(&stranger)));
    // Both ways: what the far end has heard elsewhere goes to A.
    let node_first = first.start();
    let other = crate::base::DeviceId([8; 32]);
    node_first.group().remove(&other).unwrap();
    node_far.dial(&node_first.addresses().unwrap()[0]).unwrap();
    assert!(eventually(|| node_a.group().is_removed(&other)));
    assert!(eventually(|| node_first.group().is_removed(&stranger)));
}

#[test]
fn a_role_changes_for_the_others_at_once() {
    let key = group(42);
    let a = admin(42);
    let node_a = first(&a);
    let b = Member::new(&key, Role::Reader).knowing(&node_a);
    let node_b = b.start();
    assert!(
        node_a.group().set_role(&node_b.device(), Role::Host).is_err(),
        "not in the roster"
    );
    enter(&node_a, &b);
    assert!(known(&node_b, &node_a));
    assert_eq!(
        node_a.group().set_role(&node_b.device(), Role::Writer),
        Ok(Role::Reader)
    );
    assert!(eventually(|| role(&node_b, &node_b) == Some(Role::Writer)));
    assert_eq!(node_b.group().role(), Role::Writer);
    // The connection begins anew, in the new role.
    assert!(eventually(|| {
        connected(&node_a) == 1 && node_a.peers().unwrap()[0].role == Some(Role::Writer)
    }));
    // Who is no admin states nothing.
    assert!(node_b.group().remove(&node_a.device()).is_err());
    assert!(node_b.group().set_role(&node_b.device(), Role::Admin).is_err());
}

#[test]
fn a_removed_admin_admits_nobody_that_others_let_in() {
    let key = group(43);
    let (a, mut b) = (admin(43), admin(43));
    let node_a = first(&a);
    enter(&node_a, &b);
    b.config.known_peers = node_a.addresses().unwrap();
    let node_b = b.start();
    assert!(known(&node_a, &node_b) && known(&node_b, &node_a));
    node_b.shutdown();
    let b_device = b.key().id();
    node_a.group().remove(&b_device).unwrap();
    // Alone and without having heard of it, B lets in D.
    b.config.known_peers.clear();
    b.state.forget(StateFile::Peers);
    let node_b = b.start();
    let d = Member::new(&key, Role::Writer).knowing(&node_b);
    enter(&node_b, &d);
    let mut d = d;
    let node_d = d.start();
    assert!(known(&node_d, &node_b));
    node_d.shutdown();
    node_b.shutdown();
    // D meets A, which D tells who let it in.
    d.config.known_peers = node_a.addresses().unwrap();
    let node_d = d.start();
    Log::get().wait_for(&[
        &node_d.device().short(),
        "was admitted by one who was an admin no more",
    ]);
    assert!(eventually(|| connected(&node_a) == 0 && connected(&node_d) == 0));
    std::thread::sleep(WHILE);
    assert_eq!(connected(&node_a), 0);
}

/// Keys of a member, as numbers.
struct TestKeys {
    newest: Mutex<u32>,
    root: bool,
}

impl TestKeys {
    fn up_to(newest: u32, root: bool) -> Arc<Self> {
        let newest = Mutex::new(newest);
        Arc::new(Self { newest, root })
    }
}

impl Keys for TestKeys {
    fn newest_epoch(&self) -> u32 {
        *self.newest.lock()
    }
    fn has_root(&self) -> bool {
        self.root
    }
    fn give(&self, _: Role) -> Option<Zeroizing<Vec<u8>>> {
        Some(Zeroizing::new(self.newest.lock().to_le_bytes().to_vec()))
    }
    fn take(&self, gift: &[u8], roster: &Roster) -> Result<(), String> {
        let given = u32::from_le_bytes(gift.try_into().map_err(|_| "not a number")?);
        assert!(given <= roster.epoch());
        *self.newest.lock() = given;
        Ok(())
    }
    fn heard(&self, roster: &Roster) -> Result<(), String> {
        if self.root {
            *self.newest.lock() = roster.epoch();
        }
        Ok(())
    }
}

#[test]
fn the_keys_of_a_new_epoch_go_to_readers_from_any_member_and_never_to_hosts_or_the_removed() {
    let key = group(44);
    let mut a = admin(44);
    let keys_of = |keys: &Arc<TestKeys>| Some(Arc::clone(keys) as Arc<dyn Keys>);
    a.keys = keys_of(&TestKeys::up_to(1, true));
    let node_a = first(&a);
    let member = |role, newest: u32, at: &Node| {
        let mut member = Member::new(&key, role).knowing(at);
        let keys = TestKeys::up_to(newest, false);
        member.keys = keys_of(&keys);
        enter(&node_a, &member);
        let node = member.start();
        (node, keys)
    };
    let (node_b, keys_b) = member(Role::Writer, 1, &node_a);
    let (node_c, keys_c) = member(Role::Reader, 1, &node_a);
    // The host has no keys, the other end of it is a reader that meets only B.
    let (node_host, keys_host) = member(Role::Host, 0, &node_a);
    let (node_far, keys_far) = member(Role::Reader, 1, &node_b);
    assert!(known(&node_far, &node_a) && known(&node_host, &node_c));
    assert!(eventually(|| connected(&node_c) > 0));
    node_a.group().remove(&node_c.device()).unwrap();
    assert_eq!(node_a.group().epoch(), 2);
    assert!(eventually(|| *keys_b.newest.lock() == 2));
    assert!(eventually(|| *keys_far.newest.lock() == 2));
    assert!(eventually(|| node_host.group().epoch() == 2));
    std::thread::sleep(WHILE);
    assert_eq!((*keys_c.newest.lock(), *keys_host.newest.lock()), (1, 0));
}

#[test]
fn a_device_that_runs_twice_is_recognised_by_others_and_by_itself() {
    let key = group(45);
    let a = admin(45);
    let node_a = a.start();
    let b = Member::new(&key, Role::Writer).knowing(&node_a);
    enter(&node_a, &b);
    b.start().shutdown();
    // A copy of the state directory, while neither runs.
    let mut copy = Member::new(&key, Role::Writer).knowing(&node_a);
    (copy.seed, copy.certificate) = (b.seed, b.certificate.clone());
    copy.state = Arc::new(b.state.copy());
    let node_b = b.start();
    // Otherwise the first one would be taken for the copy.
    assert!(eventually(|| node_a.group().seen(&node_b.device()) == Some(2)));
    assert!(node_a.group().warnings().is_empty());
    let node_copy = copy.start();
    let warned = |node: &Node| node.group().warnings().iter().any(|w| w.contains("was copied"));
    assert!(eventually(|| warned(&node_a)), "{:?}", node_a.group().warnings());
    assert!(eventually(|| warned(&node_copy)));
    Log::get().wait_for(&["ERROR", &node_b.device().short(), "shows two states"]);
}

#[test]
fn a_state_that_was_put_back_is_recognised_and_goes_on_after_the_number_that_was_seen() {
    let key = group(46);
    let node_a = admin(46).start();
    let b = Member::new(&key, Role::Writer).knowing(&node_a);
    let start = |b: &Member, seen| {
        let node = b.start();
        assert!(eventually(|| node_a.group().seen(&node.device()) == Some(seen)));
        node
    };
    start(&b, 1).shutdown();
    let backup = b.state.copy();
    for number in 2..5 {
        start(&b, number).shutdown();
    }
    let warned = |node: &Node| node.group().warnings().iter().any(|w| w.contains("put back"));
    assert!(!warned(&node_a));
    let mut old = Member::new(&key, Role::Writer).knowing(&node_a);
    (old.seed, old.certificate, old.state) = (b.seed, b.certificate.clone(), Arc::new(backup));
    let node = start(&old, 4);
    assert!(eventually(|| warned(&node_a) && warned(&node)));
    node.shutdown();
    let node = start(&old, 5);
    std::thread::sleep(WHILE);
    assert!(
        !warned(&node),
        "its numbers are new again: {:?}",
        node.group().warnings()
    );
}

#[test]
fn nothing_of_the_group_is_lost_with_the_process() {
    let a = admin(47);
    let node_a = a.start();
    let gone = crate::base::DeviceId([9; 32]);
    node_a.group().remove(&gone).unwrap();
    drop(node_a);
    let node_a = a.start();
    assert!(node_a.group().is_removed(&gone));
    assert_eq!(node_a.group().remove(&gone), Err("it was removed already".into()));
    assert_eq!(node_a.group().epoch(), 2);
    node_a.shutdown();
    // A roster that cannot be read would let everybody in again.
    let mut bytes = a.state.load(StateFile::Roster).unwrap().unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    a.state.save(StateFile::Roster, &bytes).unwrap();
    let identity = Identity {
        device: a.key(),
        certificate: a.certificate.clone(),
        group_public: a.group_public,
    };
    let state = Arc::clone(&a.state) as Arc<dyn NodeState>;
    let opened = Members::open(&identity, "", state, Arc::new(SystemClock), None, None, false);
    assert!(matches!(opened, Err(NodeError::State(why)) if why.contains("roster")));
}

fn opened(member: &Member) -> Arc<Members> {
    let identity = Identity {
        device: member.key(),
        certificate: member.certificate.clone(),
        group_public: member.group_public,
    };
    let state = Arc::clone(&member.state) as Arc<dyn NodeState>;
    let admit = member.admit.clone();
    Arc::new(Members::open(&identity, "", state, Arc::new(SystemClock), admit, None, false).unwrap())
}

#[test]
fn the_dht_answers_with_what_each_node_knows_and_teaches_it_what_it_is_given() {
    use libp2p::kad::store::RecordStore;
    use libp2p::kad::{Record, RecordKey};
    let (a, b) = (admin(48), Member::new(&group(48), Role::Host));
    let (of_a, of_b) = (opened(&a), opened(&b));
    let gone = crate::base::DeviceId([9; 32]);
    of_a.remove(&gone).unwrap();
    let store = |member: &Member, members| {
        let clock = Arc::new(SystemClock);
        let (group, own) = (crate::keys::group_id(&a.group_public), member.key().public());
        let state = Arc::clone(&member.state) as Arc<dyn NodeState>;
        let heads = Arc::new(heads::Heads::open(group, own, Arc::clone(members), &state));
        records::Records::new(libp2p::PeerId::random(), a.group_public, clock).with(members, &heads)
    };
    let (at_a, mut at_b) = (store(&a, &of_a), store(&b, &of_b));
    let key = RecordKey::new(&of_a.record_key());
    let record = at_a.get(&key).unwrap().into_owned();
    assert!(record.value.len() < 12 << 10);
    at_b.put(record).unwrap();
    of_b.open_mail();
    assert!(of_b.is_removed(&gone));
    assert_eq!(at_b.get(&key).unwrap().value, at_a.get(&key).unwrap().value);
    // Garbage and forgeries change nothing.
    assert!(at_b.put(Record::new(key.clone(), b"garbage".to_vec())).is_err());
    assert!(at_b.put(Record::new(key.clone(), vec![0; 13 << 10])).is_err());
    let foreign = opened(&admin(49));
    foreign.remove(&crate::base::DeviceId([8; 32])).unwrap();
    at_b.put(Record::new(key, foreign.record())).unwrap();
    of_b.open_mail();
    assert_eq!(of_b.digest(), of_a.digest());
}

#[test]
fn a_statement_that_is_not_the_groups_is_the_fault_of_who_sends_it() {
    let a = opened(&admin(50));
    let foreign = opened(&admin(51));
    foreign.remove(&crate::base::DeviceId([8; 32])).unwrap();
    let theirs = foreign.beyond(Vec::new());
    assert!(!theirs.is_empty());
    assert!(a.hear(&theirs).is_err());
    assert!(a.hear(&[b"garbage".to_vec()]).is_err());
    assert_eq!(a.known(&a.digest()), None);
    assert_eq!(a.known(&[0; 32]), Some(Vec::new()));
}
