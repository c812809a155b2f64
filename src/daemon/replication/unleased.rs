//! What members have placed here and not yet asked leases for: bounded for each, so that nobody fills this disk with what it need not answer for.
//!
//! Invariant: of one member at most [`BYTES_MAX`] are here without a lease, beyond what the store may evict anyway; what has waited for a
//! lease for [`PATIENCE`] leaves a host when room is needed. Used by `Ears`.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::base::{BlockId, DeviceId};
use crate::store::{ReplicaChange, ReplicaStore};

/// Of one member, in bytes: several requests for leases, each about some dozens of blocks, may be on their way at once.
const BYTES_MAX: u64 = 256 << 20;
/// Within this time a lease is asked for, or never.
const PATIENCE: Duration = Duration::from_secs(600);
/// Where there is a volume, what has no lease is left to its cache and its collection after this.
const LEFT_ALONE: Duration = Duration::from_secs(24 * 3600);

struct Placed {
    id: BlockId,
    len: u64,
    at: Instant,
}

/// Blocks without leases, by who placed them, oldest first.
pub(super) struct Unleased {
    members: BTreeMap<DeviceId, VecDeque<Placed>>,
    /// This device has no volume: a block without a lease is nobody's.
    is_host: bool,
    bytes_max: u64,
}

impl Unleased {
    /// Nothing was placed.
    pub(super) fn new(is_host: bool) -> Self {
        Self {
            members: BTreeMap::new(),
            is_host,
            bytes_max: BYTES_MAX,
        }
    }

    /// Notes a block that a member places here; why not, when it has placed too much. May read from the disk.
    pub(super) fn admit(
        &mut self,
        from: DeviceId,
        id: BlockId,
        len: u64,
        store: &dyn ReplicaStore,
        now: Instant,
    ) -> Result<(), String> {
        let placed = self.members.entry(from).or_default();
        let sum = |placed: &VecDeque<Placed>| placed.iter().map(|p| p.len).sum::<u64>();
        if sum(placed) + len > self.bytes_max {
            settle(placed, store, self.is_host, now);
        }
        let waiting = sum(placed);
        if waiting + len > self.bytes_max {
            return Err(format!(
                "{waiting} bytes that you placed here have no lease: ask for leases before you place more"
            ));
        }
        placed.push_back(Placed { id, len, at: now });
        Ok(())
    }
}

/// Forgets what has a lease or is gone. On a host, what was given its time leaves.
fn settle(placed: &mut VecDeque<Placed>, store: &dyn ReplicaStore, is_host: bool, now: Instant) {
    let late: Vec<ReplicaChange> = placed
        .iter()
        .filter(|p| is_host && p.at + PATIENCE <= now)
        .map(|p| ReplicaChange::Remove { block: p.id })
        .collect();
    // Without effect on what has a lease.
    if !late.is_empty()
        && let Err(error) = store.apply(&late, false)
    {
        tracing::warn!(%error, "blocks that members placed here without leases cannot be removed");
    }
    placed.retain(|p| {
        let left_alone = !is_host && p.at + LEFT_ALONE <= now;
        let here = store.length(&p.id).is_ok_and(|len| len.is_some());
        !left_alone && here && store.leases(&p.id).is_ok_and(|leases| leases.is_empty())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{BlockStore, Lease, Put, PutKind, SqliteStore, StoreOptions};

    const A: DeviceId = DeviceId([1; 32]);
    const B: DeviceId = DeviceId([2; 32]);

    fn place(store: &SqliteStore, n: u64) -> BlockId {
        let bytes: bytes::Bytes = n.to_le_bytes().repeat(125).into();
        let id = BlockId::of(&bytes);
        let put = Put {
            id,
            bytes,
            kind: PutKind::Cached,
            plain: None,
        };
        store.put(vec![put]).unwrap();
        id
    }

    #[test]
    fn who_places_without_asking_for_leases_is_refused_and_makes_room_after_a_while() {
        let place_for = tempfile::tempdir().unwrap();
        let store =
            SqliteStore::open(&place_for.path().join("store"), StoreOptions { cache_size: 0 }).unwrap();
        let now = Instant::now();
        let mut unleased = Unleased::new(true);
        unleased.bytes_max = 10_000;
        let ids: Vec<BlockId> = (0..30)
            .map(|n| {
                let id = place(&store, n);
                let admitted = unleased.admit(A, id, 1000, &store, now);
                assert_eq!(admitted.is_ok(), n < 10, "{admitted:?}");
                id
            })
            .collect();
        let why = unleased.admit(A, ids[0], 1000, &store, now).unwrap_err();
        assert!(
            why.contains("10000 bytes") && why.contains("ask for leases"),
            "{why}"
        );
        unleased.admit(B, ids[0], 1000, &store, now).unwrap();
        // It asks for some.
        let lease = |block| {
            ReplicaChange::Lease(Lease {
                block,
                owner: A,
                until: 1000,
                seq: 1,
            })
        };
        store.apply(&[lease(ids[0]), lease(ids[1])], false).unwrap();
        let admitted = ids[10..13]
            .iter()
            .filter(|id| unleased.admit(A, **id, 1000, &store, now).is_ok());
        assert_eq!(admitted.count(), 2, "two have a lease by now");
        // The others leave when they had their time.
        unleased.admit(A, ids[12], 1000, &store, now + PATIENCE).unwrap();
        for (n, id) in ids.iter().enumerate().take(12) {
            assert_eq!(store.contains(id).unwrap(), n < 2, "block {n}");
        }
    }

    #[test]
    fn a_volume_keeps_what_it_may_need_itself() {
        let place_for = tempfile::tempdir().unwrap();
        let store =
            SqliteStore::open(&place_for.path().join("store"), StoreOptions { cache_size: 0 }).unwrap();
        let now = Instant::now();
        let mut unleased = Unleased::new(false);
        unleased.bytes_max = 1000;
        let id = place(&store, 1);
        unleased.admit(A, id, 1000, &store, now).unwrap();
        assert!(
            unleased
                .admit(A, place(&store, 2), 1000, &store, now + PATIENCE)
                .is_err()
        );
        unleased
            .admit(A, place(&store, 3), 1000, &store, now + LEFT_ALONE)
            .unwrap();
        assert!(store.contains(&id).unwrap());
    }
}
