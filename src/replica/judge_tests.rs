//! Judgements on single blocks.

use std::collections::BTreeMap;

use super::judge::{Court, Judgement};
use super::peers::Peer;
use super::placement::{Host, Zone};
use super::rules::{REBALANCE, Rules};
use crate::base::{BlockId, DeviceId};
use crate::store::{Kept, Replica};

const NOW_MS: u64 = 50_000_000;
const SECS: u64 = 1_000_000;

fn device(n: u8) -> DeviceId {
    DeviceId([n; 32])
}

struct Case {
    peers: BTreeMap<DeviceId, Peer>,
    hosts: Vec<Host>,
    wanted: u8,
    replicas: Vec<Replica>,
}

impl Case {
    /// Hosts 1 to 5 in zones of their own, all here, two replicas wanted and none there.
    fn new() -> Self {
        let hosts: Vec<Host> = (1..=5)
            .map(|n| Host {
                device: device(n),
                zone: n.to_string().into(),
                weight: 100,
            })
            .collect();
        let mut peers = BTreeMap::new();
        for host in &hosts {
            let mut peer = Peer::new(0, 0, 0);
            peer.set_member(true, 0, &Rules::default());
            peer.set_connected(true, 0, &Rules::default());
            (peer.zone, peer.quota) = (host.zone.clone(), host.weight);
            peers.insert(host.device, peer);
        }
        Self {
            peers,
            hosts,
            wanted: 2,
            replicas: Vec::new(),
        }
    }

    fn peer(&mut self, device: DeviceId) -> &mut Peer {
        self.peers.get_mut(&device).unwrap()
    }

    fn replica(&mut self, holder: DeviceId) -> &mut Replica {
        self.replicas.push(Replica {
            block: BlockId([9; 32]),
            holder,
            until: SECS + 1000,
            renew: SECS + 500,
            granted: SECS - 10,
            seq: 1,
            leaving: false,
            record: 0,
        });
        self.replicas.last_mut().unwrap()
    }

    fn judge(&self) -> Judgement {
        let own: Zone = "own".into();
        let court = Court {
            hosts: &self.hosts,
            peers: &self.peers,
            own_zone: &own,
            rules: &Rules::default(),
            now_ms: NOW_MS,
            secs: SECS,
        };
        let kept = Kept {
            block: BlockId([9; 32]),
            len: 100,
            wanted: self.wanted,
            pinned: false,
            mark: 0,
            copies: 0,
            todo: None,
            group: None,
        };
        court.judge(&kept, &self.replicas)
    }

    /// Both replicas where they belong, the other hosts in the order in which they would follow.
    fn settled() -> (Self, Vec<DeviceId>) {
        let mut case = Self::new();
        case.wanted = 5;
        let order = case.judge().put;
        assert_eq!(order.len(), 5);
        case.wanted = 2;
        case.replica(order[0]);
        case.replica(order[1]);
        assert_eq!(
            case.judge(),
            Judgement {
                copies: 2,
                need: 2,
                ..Judgement::default()
            }
        );
        (case, order)
    }
}

#[test]
fn a_new_block_goes_to_the_best_that_are_here() {
    let (_, order) = Case::settled();
    let mut case = Case::new();
    assert_eq!(
        (case.judge().put, case.judge().todo),
        (order[..2].to_vec(), Some(0))
    );
    case.peer(order[0])
        .set_connected(false, NOW_MS, &Rules::default());
    case.peer(order[1]).full_until_ms = NOW_MS + 1;
    assert_eq!(case.judge().put, order[2..4]);
}

#[test]
fn a_holder_that_is_away_for_a_while_is_not_replaced_and_one_that_is_lost_is() {
    let (mut case, order) = Case::settled();
    case.peer(order[0])
        .set_connected(false, NOW_MS, &Rules::default());
    assert_eq!(case.judge().todo, None);
    case.peer(order[0]).lost = true;
    let judgement = case.judge();
    assert_eq!(
        (judgement.copies, judgement.todo, judgement.put),
        (1, Some(1), vec![order[2]])
    );
    assert!(judgement.forget.is_empty(), "it may come back");
}

#[test]
fn who_comes_back_is_confirmed_before_its_stand_in_is_released() {
    let (mut case, order) = Case::settled();
    case.replicas[0].granted = SECS - 100_000;
    case.replica(order[2]);
    let judgement = case.judge();
    assert_eq!(
        (judgement.todo, judgement.confirm, judgement.release),
        (Some(REBALANCE), vec![order[0]], vec![])
    );
    case.replicas[0].granted = SECS - 1;
    assert_eq!(case.judge().release, [order[2]]);
}

#[test]
fn expired_removed_and_condemned_replicas_do_not_count() {
    let (mut case, order) = Case::settled();
    case.replicas[0].until = SECS;
    let judgement = case.judge();
    assert_eq!((judgement.copies, judgement.forget), (1, vec![order[0]]));
    case.replicas[0].until = SECS + 1;
    case.peer(order[1]).condemned = SECS + 1;
    let judgement = case.judge();
    assert_eq!((judgement.copies, judgement.put), (1, vec![order[2]]));
    // Over, but what it said before is still not believed.
    case.peer(order[1]).condemned = SECS - 1;
    assert_eq!((case.judge().copies, case.judge().put), (1, vec![order[1]]));
    case.replicas[1].granted = SECS;
    assert_eq!(case.judge().copies, 2);
    case.peer(order[1]).set_member(false, NOW_MS, &Rules::default());
    assert_eq!(case.judge().forget, [order[1]]);
}

#[test]
fn a_holder_that_wants_to_leave_goes_when_another_has_come() {
    let (mut case, order) = Case::settled();
    case.replicas[0].leaving = true;
    let judgement = case.judge();
    assert_eq!((judgement.put, judgement.release), (vec![order[2]], vec![]));
    case.replica(order[2]);
    assert_eq!(case.judge().release, [order[0]]);
    // Nobody else there: it stays.
    case.replicas.truncate(2);
    for device in &order[2..] {
        case.peer(*device).set_member(false, NOW_MS, &Rules::default());
        case.hosts.retain(|host| host.device != *device);
    }
    assert_eq!(case.judge().release, []);
}

#[test]
fn two_in_one_zone_count_once_and_hosts_that_shrink_lose_nothing() {
    let (mut case, order) = Case::settled();
    let zone = case.peers[&order[0]].zone.clone();
    case.peer(order[1]).zone = zone;
    assert_eq!(case.judge().copies, 1);
    let (mut case, order) = Case::settled();
    for host in &mut case.hosts {
        host.weight = if host.device == order[0] { 100 } else { 0 };
    }
    let judgement = case.judge();
    assert_eq!(
        (judgement.need, judgement.release),
        (1, vec![]),
        "wanted 2, possible 1: what is there stays"
    );
    for host in &mut case.hosts {
        host.weight = 0;
    }
    assert_eq!(
        (case.judge().need, case.judge().release, case.judge().put),
        (0, vec![], vec![])
    );
}
