//! The DHT between real nodes: what two that never connect hear of each other through a third, and what a DHT that lies or is empty costs.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::tests::{Member, admin, block, connected, eventually, fetch, group};
use super::{NodeState, StateFile};
use crate::base::{BlockId, RootId};
use crate::keys::Role;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn many_files_are_announced_in_few_messages_and_found_by_who_met_the_holder_never() {
    let key = group(70);
    let middle = Member::new(&key, Role::Host);
    let node_middle = middle.start();
    let holder = Member::new(&key, Role::Writer).knowing(&node_middle);
    let ids: Vec<BlockId> = (0..20).map(|n| holder.keep(n)).collect();
    let node_holder = holder.start();
    assert!(eventually(|| connected(&node_middle) == 1));
    let root = |n: u64| RootId(*blake3::hash(&n.to_le_bytes()).as_bytes());
    for n in 0..2000 {
        node_holder.announce(root(n));
    }
    assert!(eventually(|| node_holder.work().announcements >= 4));
    let reader = Member::new(&key, Role::Reader).knowing(&node_middle);
    let node_reader = reader.start();
    for (n, id) in (0..).zip(&ids) {
        assert!(eventually(|| {
            fetch(&node_reader, *id, Some(root(n)), PATIENCE).is_ok_and(|bytes| bytes == block(n as u8))
        }));
    }
    // Four batches at least; a few more if the second struck in the middle of the two thousand.
    let said = node_holder.work().announcements;
    assert!(said <= 12, "{said}");
    node_holder.shutdown();
    let kept = holder.state.load(StateFile::Announced).unwrap().unwrap();
    assert!(kept.len() > 2000 * 32);
    // After a restart nothing is told again.
    let again = holder.start();
    assert!(eventually(|| connected(&again) > 0));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(again.work().announcements, 0);
}

#[test]
fn a_roster_reaches_who_is_only_connected_to_who_does_not_pass_it_on() {
    // Two admins and a member between them; each admin removes somebody while the other is away, and both are never on at one time.
    let (first, second) = (admin(71), admin(71));
    let middle = Member::new(&group(71), Role::Host);
    let node_middle = middle.start();
    let (gone, other) = (
        Member::new(&group(71), Role::Writer),
        Member::new(&group(71), Role::Writer),
    );
    let first = first.knowing(&node_middle);
    let second = second.knowing(&node_middle);
    let node_first = first.start();
    assert!(eventually(|| connected(&node_first) == 1));
    node_first.group().certify(&gone.certificate).unwrap();
    node_first.group().remove(&gone.key().id()).unwrap();
    assert!(eventually(|| node_middle.group().is_removed(&gone.key().id())));
    node_first.shutdown();
    let node_second = second.start();
    assert!(eventually(|| node_second.group().is_removed(&gone.key().id())));
    node_second.group().certify(&other.certificate).unwrap();
    node_second.group().remove(&other.key().id()).unwrap();
    assert!(eventually(|| node_middle.group().is_removed(&other.key().id())));
    node_second.shutdown();
    let node_first = first.start();
    assert!(eventually(|| node_first.group().is_removed(&other.key().id())));
}

#[test]
fn a_group_goes_on_from_cached_addresses_with_a_dht_that_lies() {
    let key = group(72);
    let holder = Member::new(&key, Role::Writer);
    let id = holder.keep(1);
    let node_holder = holder.start();
    let mut reader = Member::new(&key, Role::Reader).knowing(&node_holder);
    let node_reader = reader.start();
    assert!(eventually(|| connected(&node_reader) == 1));
    node_reader.shutdown();
    reader.config.known_peers.clear();
    // Everybody else whom it will meet tells it that files are where nothing is.
    let liars: Vec<_> = (0..3)
        .map(|_| {
            let liar = Member::new(&key, Role::Writer).start();
            for n in 0..1000u64 {
                liar.announce(RootId(*blake3::hash(&n.to_le_bytes()).as_bytes()));
            }
            reader.config.known_peers.extend(liar.addresses().unwrap());
            liar
        })
        .collect();
    let node_reader = reader.start();
    assert!(eventually(|| connected(&node_reader) == 1 + liars.len()));
    assert!(eventually(|| liars
        .iter()
        .all(|liar| liar.work().announcements > 0)));
    let root = Some(RootId(*blake3::hash(&7u64.to_le_bytes()).as_bytes()));
    assert_eq!(fetch(&node_reader, id, root, PATIENCE).unwrap(), block(1));
    // What nobody has ends with an error, in time, whoever claims to provide it.
    let begun = Instant::now();
    let missing = fetch(&node_reader, BlockId([9; 32]), root, PATIENCE)
        .unwrap_err()
        .to_string();
    assert!(missing.contains("does not have it"), "{missing}");
    assert!(begun.elapsed() < PATIENCE);
}
