//! What every [`ReplicaStore`] must do, as functions that the tests of each implementation call with a fresh store.

use std::sync::Arc;

use super::conformance::{block, put};
use super::{
    BlockStore, GroupChange, GroupHealth, Health, Kept, Lease, MemberState, Number, PutKind, Replica,
    ReplicaChange, ReplicaStore, ShardGroup,
};
use crate::base::{BlockId, DeviceId};

/// A store of both kinds.
pub trait Store: BlockStore + ReplicaStore {}
impl<T: BlockStore + ReplicaStore> Store for T {}

/// All checks, each on a store of its own.
pub fn all<S: Store>(mut fresh: impl FnMut() -> Arc<S>) {
    a_leased_block_stays(&*fresh());
    idle_time_follows_the_last_lease(&*fresh());
    who_keeps_how_much_for_whom(&*fresh());
    leases_end_in_order(&*fresh());
    what_is_retained_is_found_by_urgency(&*fresh());
    replicas_are_found_from_both_ends(&*fresh());
    what_is_not_retained_is_owed_back(&*fresh());
    strays_are_what_nobody_wants(&*fresh());
    small_things_are_remembered(&*fresh());
    groups_are_remembered(&*fresh());
    records_stay_as_long_as_their_shards(&*fresh());
}

fn device(n: u8) -> DeviceId {
    DeviceId([n; 32])
}

fn id(n: u8) -> BlockId {
    BlockId([n; 32])
}

fn lease(block: BlockId, owner: u8, until: u64) -> ReplicaChange {
    ReplicaChange::Lease(Lease {
        block,
        owner: device(owner),
        until,
        seq: 1,
    })
}

fn kept(n: u8, copies: u8, todo: Option<u8>) -> Kept {
    Kept {
        block: id(n),
        len: 10,
        wanted: 2,
        pinned: n == 1,
        mark: u64::from(n),
        copies,
        todo,
        group: None,
    }
}

fn replica(n: u8, holder: u8, renew: u64) -> Replica {
    Replica {
        block: id(n),
        holder: device(holder),
        until: renew + 50,
        renew,
        granted: 3,
        seq: 9,
        leaving: false,
        record: 0,
    }
}

fn effects(store: &impl Store, changes: &[ReplicaChange]) -> Vec<bool> {
    store.apply(changes, changes.len().is_multiple_of(2)).unwrap()
}

fn a_leased_block_stays(store: &impl Store) {
    let bytes = block(1, 5000);
    let id = BlockId::of(&bytes);
    assert_eq!(effects(store, &[lease(id, 1, 10)]), [false], "it is not here");
    assert_eq!(store.length(&id).unwrap(), None);
    store.put(vec![put(&bytes, PutKind::Cached)]).unwrap();
    assert_eq!(store.length(&id).unwrap(), Some(5000));
    assert_eq!(
        effects(store, &[lease(id, 1, 10), lease(id, 1, 20), lease(id, 2, 30)]),
        [true; 3]
    );
    assert_eq!(store.stats().unwrap().dirty_bytes, 5000, "never evicted");
    store.set_dirty(&[id], false).unwrap();
    assert_eq!(store.stats().unwrap().dirty_bytes, 5000, "not even when asked");
    store.remove(&[id]).unwrap();
    assert_eq!(effects(store, &[ReplicaChange::Remove { block: id }]), [false]);
    assert_eq!(store.get(&id).unwrap(), Some(bytes));
    let until: Vec<u64> = store
        .leases(&id)
        .unwrap()
        .iter()
        .map(|lease| lease.until)
        .collect();
    assert_eq!(until, [20, 30]);
    assert_eq!(store.held_bytes().unwrap(), 5000, "counted once");
}

fn who_keeps_how_much_for_whom(store: &impl Store) {
    for n in 1..3_u64 {
        let bytes = block(n, 1000 * n as usize);
        store.put(vec![put(&bytes, PutKind::Cached)]).unwrap();
        effects(store, &[lease(BlockId::of(&bytes), 1, 10)]);
    }
    let changes = [
        ReplicaChange::Keep(kept(1, 1, None)),
        ReplicaChange::Keep(kept(2, 1, None)),
        ReplicaChange::Replica(replica(1, 1, 100)),
        ReplicaChange::Replica(replica(2, 1, 200)),
        ReplicaChange::Replica(replica(1, 2, 200)),
    ];
    effects(store, &changes);
    assert_eq!(store.balance(&device(1), 0).unwrap(), (3000, 20));
    assert_eq!(
        store.balance(&device(1), 150).unwrap(),
        (3000, 10),
        "one has ended"
    );
    assert_eq!(store.balance(&device(2), 0).unwrap(), (0, 10));
    assert_eq!(store.balance(&device(3), 0).unwrap(), (0, 0));
}

fn idle_time_follows_the_last_lease(store: &impl Store) {
    let bytes = block(2, 20_000);
    let id = BlockId::of(&bytes);
    let end = |owner, idle| ReplicaChange::EndLease {
        block: id,
        owner: device(owner),
        idle,
    };
    store.put(vec![put(&bytes, PutKind::Cached)]).unwrap();
    effects(store, &[lease(id, 1, 10), lease(id, 2, 10)]);
    assert_eq!(effects(store, &[end(3, 100), end(1, 100)]), [false, true]);
    assert!(
        store.idle(u64::MAX >> 1, 9).unwrap().is_empty(),
        "another lease is left"
    );
    assert_eq!(effects(store, &[end(2, 100)]), [true]);
    assert_eq!(store.idle(101, 9).unwrap(), [id]);
    assert!(store.idle(100, 9).unwrap().is_empty());
    assert_eq!(effects(store, &[ReplicaChange::Remove { block: id }]), [false]);
    store.remove(&[id]).unwrap();
    assert!(store.contains(&id).unwrap(), "idle blocks stay too");
    assert_eq!(store.held_bytes().unwrap(), 20_000);
    // Somebody takes it up again.
    effects(store, &[lease(id, 3, 10)]);
    assert!(store.idle(101, 9).unwrap().is_empty());
    assert_eq!(store.held_bytes().unwrap(), 20_000);
    let over = [
        end(3, 5),
        ReplicaChange::EndIdle { block: id },
        ReplicaChange::Remove { block: id },
    ];
    assert_eq!(effects(store, &over), [true; 3]);
    assert!(!store.contains(&id).unwrap());
    assert_eq!(
        (store.held_bytes().unwrap(), store.stats().unwrap().bytes),
        (0, 0)
    );
    assert_eq!(effects(store, &[ReplicaChange::EndIdle { block: id }]), [false]);
}

fn leases_end_in_order(store: &impl Store) {
    let blocks: Vec<_> = (0..4).map(|n| block(n, 100)).collect();
    store
        .put(blocks.iter().map(|b| put(b, PutKind::Cached)).collect())
        .unwrap();
    let ids: Vec<BlockId> = blocks.iter().map(|b| BlockId::of(b)).collect();
    effects(
        store,
        &[
            lease(ids[0], 1, 40),
            lease(ids[1], 1, 20),
            lease(ids[2], 1, 30),
            lease(ids[3], 2, 1),
        ],
    );
    let ending = |until, limit| -> Vec<BlockId> {
        let leases = store.leases_ending(&device(1), until, limit).unwrap();
        leases.iter().map(|lease| lease.block).collect()
    };
    assert_eq!(ending(40, 9), [ids[1], ids[2]]);
    assert_eq!(ending(41, 2), [ids[1], ids[2]]);
    assert_eq!(ending(20, 9), []);
}

fn what_is_retained_is_found_by_urgency(store: &impl Store) {
    let rows = [
        kept(1, 2, None),
        kept(2, 1, Some(1)),
        kept(3, 0, Some(0)),
        kept(4, 1, Some(1)),
    ];
    effects(store, &rows.map(ReplicaChange::Keep));
    assert_eq!(store.kept(&id(2)).unwrap(), Some(rows[1]));
    assert_eq!(store.kept(&id(9)).unwrap(), None);
    assert_eq!(store.kept_todo(None, 9).unwrap(), [rows[2], rows[1], rows[3]]);
    assert_eq!(store.kept_todo(Some((0, id(3))), 1).unwrap(), [rows[1]]);
    assert_eq!(store.kept_todo(Some((1, id(2))), 9).unwrap(), [rows[3]]);
    assert_eq!(store.kept_after(None, 2).unwrap(), rows[..2]);
    assert_eq!(store.kept_after(Some(id(2)), 9).unwrap(), rows[2..]);
    effects(
        store,
        &[
            ReplicaChange::Keep(kept(3, 2, None)),
            ReplicaChange::Keep(kept(2, 1, Some(0))),
        ],
    );
    assert_eq!(store.kept_todo(None, 9).unwrap(), [kept(2, 1, Some(0)), rows[3]]);
    let line = |copies, blocks| Health {
        copies,
        wanted: 2,
        blocks,
        bytes: blocks * 10,
    };
    assert_eq!(store.health().unwrap(), [line(1, 2), line(2, 2)]);
}

fn replicas_are_found_from_both_ends(store: &impl Store) {
    let rows = [
        replica(1, 1, 30),
        replica(1, 2, 20),
        replica(2, 1, 10),
        replica(3, 1, 40),
    ];
    effects(store, &rows.map(ReplicaChange::Replica));
    assert_eq!(store.replicas(&id(1)).unwrap(), rows[..2]);
    assert_eq!(store.replicas_due(&device(1), 40, 9).unwrap(), [rows[2], rows[0]]);
    assert_eq!(store.replicas_due(&device(1), 40, 1).unwrap(), [rows[2]]);
    assert_eq!(
        store.replicas_at(&device(1), None, 2).unwrap(),
        [rows[0], rows[2]]
    );
    assert_eq!(store.replicas_at(&device(1), Some(id(2)), 9).unwrap(), [rows[3]]);
    let gone = ReplicaChange::NoReplica {
        block: id(1),
        holder: device(2),
    };
    assert_eq!(effects(store, &[gone.clone(), gone]), [true, false]);
    let leaving = Replica {
        leaving: true,
        renew: 5,
        ..rows[0]
    };
    effects(store, &[ReplicaChange::Replica(leaving)]);
    assert_eq!(store.replicas(&id(1)).unwrap(), [leaving]);
    assert_eq!(store.replicas_due(&device(1), 6, 9).unwrap(), [leaving]);
}

fn what_is_not_retained_is_owed_back(store: &impl Store) {
    let unkeep = ReplicaChange::Unkeep { block: id(1) };
    effects(
        store,
        &[
            ReplicaChange::Keep(kept(1, 2, Some(1))),
            ReplicaChange::Replica(replica(1, 1, 10)),
            ReplicaChange::Replica(replica(1, 2, 10)),
            ReplicaChange::Replica(replica(2, 2, 10)),
        ],
    );
    assert_eq!(effects(store, &[unkeep.clone(), unkeep]), [true, false]);
    assert_eq!(store.kept(&id(1)).unwrap(), None);
    assert!(store.kept_todo(None, 9).unwrap().is_empty());
    assert!(store.replicas(&id(1)).unwrap().is_empty());
    let owe = ReplicaChange::Owe {
        holder: device(2),
        block: id(2),
    };
    assert_eq!(effects(store, &[owe.clone(), owe]), [true, false]);
    assert!(store.replicas(&id(2)).unwrap().is_empty());
    assert_eq!(store.owed_to().unwrap(), [device(1), device(2)]);
    assert_eq!(store.owed(&device(2), 9).unwrap(), [id(1), id(2)]);
    assert_eq!(store.owed(&device(2), 1).unwrap(), [id(1)]);
    // A new grant takes the place of what is owed.
    effects(store, &[ReplicaChange::Replica(replica(1, 2, 10))]);
    assert_eq!(store.owed(&device(2), 9).unwrap(), [id(2)]);
    let paid = ReplicaChange::Paid {
        holder: device(2),
        block: id(2),
    };
    assert_eq!(effects(store, &[paid.clone(), paid]), [true, false]);
    assert_eq!(store.owed_to().unwrap(), [device(1)]);
}

fn strays_are_what_nobody_wants(store: &impl Store) {
    let blocks: Vec<_> = (0..5).map(|n| block(n, 100)).collect();
    let mut ids: Vec<BlockId> = blocks.iter().map(|b| BlockId::of(b)).collect();
    for (n, bytes) in blocks.iter().enumerate() {
        let kind = if n == 0 { PutKind::Dirty } else { PutKind::Cached };
        store.put(vec![put(bytes, kind)]).unwrap();
    }
    effects(
        store,
        &[
            lease(ids[1], 1, 10),
            ReplicaChange::Keep(Kept {
                block: ids[2],
                ..kept(1, 0, None)
            }),
        ],
    );
    ids.drain(..3);
    ids.sort();
    assert_eq!(store.strays(None, 9).unwrap(), ids);
    assert_eq!(store.strays(Some(ids[0]), 9).unwrap(), ids[1..]);
    assert_eq!(
        effects(store, &[ReplicaChange::Protect { block: ids[0] }]),
        [true]
    );
    assert_eq!(store.strays(None, 9).unwrap(), ids[1..]);
    let free = ReplicaChange::Free { block: ids[1] };
    assert_eq!(effects(store, &[free.clone(), free]), [true, false]);
    assert_eq!(effects(store, &[ReplicaChange::Remove { block: ids[1] }]), [true]);
    assert!(
        store.to_free(None, 9).unwrap().is_empty(),
        "the wish is fulfilled"
    );
}

fn small_things_are_remembered(store: &impl Store) {
    assert_eq!(store.number(Number::Mark).unwrap(), 0);
    effects(
        store,
        &[
            ReplicaChange::Number(Number::Mark, 7),
            ReplicaChange::Number(Number::Wall, 8),
        ],
    );
    effects(store, &[ReplicaChange::Number(Number::Mark, 9)]);
    assert_eq!(
        (
            store.number(Number::Mark).unwrap(),
            store.number(Number::Wall).unwrap()
        ),
        (9, 8)
    );
    let member = |n, clock| MemberState {
        device: device(n),
        clock,
        condemned: 3,
    };
    effects(
        store,
        &[
            ReplicaChange::Member(member(2, 1)),
            ReplicaChange::Member(member(1, 1)),
        ],
    );
    effects(store, &[ReplicaChange::Member(member(1, 5))]);
    assert_eq!(store.members().unwrap(), [member(1, 5), member(2, 1)]);
    effects(store, &[1, 2, 3].map(|n| ReplicaChange::Free { block: id(n) }));
    assert_eq!(store.to_free(Some(id(1)), 1).unwrap(), [id(2)]);
    let unfree = ReplicaChange::Unfree { block: id(2) };
    assert_eq!(effects(store, &[unfree.clone(), unfree]), [true, false]);
    assert_eq!(store.to_free(None, 9).unwrap(), [id(1), id(3)]);
    assert!(store.owed_to().unwrap().is_empty() && store.health().unwrap().is_empty());
}

fn groups_are_remembered(store: &impl Store) {
    let change = |change| effects(store, &[ReplicaChange::Group(change)])[0];
    let joins = |n, len, group| {
        let old = kept(n, 1, None);
        ReplicaChange::Keep(Kept { len, group, ..old })
    };
    effects(
        store,
        &[
            joins(1, 30, Some(0)),
            joins(2, 10, Some(0)),
            joins(3, 20, None),
            joins(4, 10, Some(0)),
        ],
    );
    let loose = |after, limit| -> Vec<BlockId> {
        let found = store.loose(after, limit).unwrap();
        found.iter().map(|kept| kept.block).collect()
    };
    assert_eq!(loose(None, 9), [id(2), id(4), id(1)]);
    assert_eq!(loose(Some((10, id(2))), 1), [id(4)]);
    let group = ShardGroup {
        n: 7,
        record: vec![1, 2, 3].into(),
        data: 2,
        parity: 1,
        bytes: 20,
        have: 0,
        ending: false,
    };
    assert_eq!(store.group(7).unwrap(), None);
    assert!(change(GroupChange::Set(group.clone())));
    assert_eq!(store.group(7).unwrap(), Some(group.clone()));
    effects(store, &[joins(2, 10, Some(7)), joins(4, 10, Some(7))]);
    assert_eq!(loose(None, 9), [id(1)]);
    assert_eq!(store.kept(&id(4)).unwrap().unwrap().group, Some(7));
    let single = || {
        store
            .health()
            .unwrap()
            .iter()
            .map(|line| line.blocks)
            .sum::<u64>()
    };
    assert_eq!(single(), 2, "grouped blocks are counted with their groups");
    let line = GroupHealth {
        have: 3,
        data: 2,
        parity: 1,
        groups: 1,
        bytes: 20,
    };
    let state = |n, have, ending| GroupChange::State { n, have, ending };
    assert!(change(state(7, 3, false)));
    assert!(!change(state(8, 3, false)));
    assert_eq!(store.group_health().unwrap(), [line]);
    assert!(change(state(7, 2, true)));
    assert!(store.group_health().unwrap().is_empty());
    assert_eq!(single(), 4, "those of a group that is ending by themselves again");
    effects(
        store,
        &[ReplicaChange::Keep(Kept {
            wanted: 0,
            ..store.kept(&id(4)).unwrap().unwrap()
        })],
    );
    assert_eq!(single(), 3, "but not what is kept for the others only");
    let todo = |n, todo| GroupChange::Todo { block: id(n), todo };
    assert!(change(todo(2, Some(5))));
    assert!(!change(todo(9, Some(5))));
    assert_eq!(store.kept_todo(None, 9).unwrap()[0].block, id(2));
    assert!(change(todo(2, None)));
    assert!(store.kept_todo(None, 9).unwrap().is_empty());
    assert!(change(GroupChange::Forget { n: 7 }));
    assert!(!change(GroupChange::Forget { n: 7 }));
    assert_eq!(store.group(7).unwrap(), None);
    assert!(!store.is_to_free(&id(1)).unwrap());
    effects(store, &[ReplicaChange::Free { block: id(1) }]);
    assert!(store.is_to_free(&id(1)).unwrap());
}

fn records_stay_as_long_as_their_shards(store: &impl Store) {
    let bytes = block(5, 9000);
    let shard = BlockId::of(&bytes);
    let record = |owner, seq, text: &[u8], others: &[u8]| {
        let shards: Vec<BlockId> = others.iter().map(|n| id(*n)).chain([shard]).collect();
        ReplicaChange::Group(GroupChange::Record {
            block: shard,
            owner: device(owner),
            seq,
            record: text.into(),
            shards: shards.into(),
        })
    };
    let found = |of: &BlockId| -> Vec<Vec<u8>> {
        let found = store.records_of(of, 9).unwrap();
        let mut found: Vec<Vec<u8>> = found.iter().map(|record| record.to_vec()).collect();
        found.sort();
        found
    };
    store.put(vec![put(&bytes, PutKind::Cached)]).unwrap();
    assert_eq!(
        effects(store, &[record(1, 5, b"a", &[2, 3])]),
        [false],
        "no lease"
    );
    effects(store, &[lease(shard, 1, 10), record(1, 5, b"a", &[2, 3])]);
    effects(store, &[lease(shard, 2, 10), record(2, 1, b"b", &[3, 4])]);
    assert_eq!(found(&shard), [b"a", b"b"]);
    assert_eq!(found(&id(2)), [b"a"]);
    assert_eq!(found(&id(3)), [b"a", b"b"]);
    assert!(found(&id(5)).is_empty());
    assert_eq!(effects(store, &[record(1, 5, b"c", &[5])]), [false], "not newer");
    assert_eq!(effects(store, &[record(1, 6, b"c", &[5])]), [true]);
    assert_eq!(found(&id(5)), [b"c"]);
    assert!(found(&id(2)).is_empty(), "one owner has one group for a shard");
    assert_eq!(store.records_of(&shard, 1).unwrap().len(), 1);
    let end = |owner| ReplicaChange::EndLease {
        block: shard,
        owner: device(owner),
        idle: 100,
    };
    effects(store, &[end(1), end(2)]);
    assert_eq!(
        found(&shard),
        [b"b", b"c"],
        "idle: its owner may take it up again"
    );
    effects(store, &[ReplicaChange::EndIdle { block: shard }]);
    assert!(found(&shard).is_empty() && found(&id(4)).is_empty());
    effects(store, &[lease(shard, 1, 10), record(1, 1, b"d", &[6])]);
    assert_eq!(found(&id(6)), [b"d"]);
    let over = [
        end(1),
        ReplicaChange::EndIdle { block: shard },
        ReplicaChange::Remove { block: shard },
    ];
    assert_eq!(effects(store, &over), [true; 3]);
    assert!(found(&id(6)).is_empty());
}
