//! Groups of shards in the simulated world: made, found, made again; and what of them is really there.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Device, Happening, SECOND, World};
use crate::base::BlockId;
use crate::replica::erasure::{self, Group};
use crate::replica::message::Event;
use crate::replica::placement::Zone;
use crate::store::{BlockStore, GroupStore, Put, PutKind, ReplicaStore};

/// Groups that a device knows to hold a block.
fn known(device: &Device, block: &BlockId) -> Vec<Group> {
    let store = &device.disk.inner;
    let mut records = store.records_of(block, usize::MAX).unwrap();
    if let Some(n) = store.kept(block).unwrap().and_then(|kept| kept.group)
        && let Some(group) = store.group(n).unwrap()
    {
        records.push(group.record);
    }
    let groups = records.iter().map(|record| Group::decode(record).unwrap());
    groups.filter(|group| group.ids().any(|id| id == block)).collect()
}

impl World {
    /// This device puts its blocks into groups.
    pub(in crate::replica) fn protect(&mut self, at: usize, data: u8, parity: u8) {
        let setup = &mut self.devices[at].setup;
        (setup.groups, setup.wanted) = (Some((data, parity)), parity + 1);
    }

    /// Computes the parity of blocks that are at hand.
    pub(super) fn encode(&mut self, at: usize, blocks: Vec<BlockId>, parity: u8) {
        let store = &self.devices[at].disk.inner;
        let data: Option<Vec<Bytes>> = blocks.iter().map(|block| store.get(block).ok()?).collect();
        let event = match data.map(|data| erasure::protect(&data, usize::from(parity)).unwrap()) {
            Some((group, made)) => {
                for (id, bytes) in group.parity.iter().zip(made) {
                    self.contents.insert(*id, bytes.clone());
                    let put = Put {
                        id: *id,
                        bytes,
                        kind: PutKind::Cached,
                        plain: None,
                    };
                    self.devices[at].disk.inner.put(vec![put]).unwrap();
                }
                Event::Encoded(group)
            }
            None => Event::Unencoded(blocks),
        };
        let (time, booted_ms) = (self.now + 1 + self.dice.below(SECOND), self.devices[at].booted_ms);
        let computed = Happening::Computed { at, booted_ms, event };
        self.at(time, computed);
    }

    fn near(&self, at: usize) -> impl Iterator<Item = &Device> {
        let near =
            std::iter::once(at).chain((0..self.devices.len()).filter(move |other| self.linked(at, *other)));
        near.map(|n| &self.devices[n])
    }

    /// What a reader at this device gets: the block, or what is made of its group.
    pub(super) fn fetch(&self, at: usize, block: &BlockId) -> Option<Bytes> {
        let direct = |block: &BlockId| {
            let holder = self.near(at).find(|device| device.has(block))?;
            holder.disk.inner.get(block).ok().flatten()
        };
        direct(block).or_else(|| {
            let groups = self
                .near(at)
                .filter(|device| !device.gone)
                .flat_map(|device| known(device, block));
            let made = |group: Group| {
                let shards: Vec<Bytes> = group.ids().filter_map(direct).collect();
                let all = erasure::restore(&group, &shards).ok()?;
                all.into_iter().find(|bytes| block.matches(bytes))
            };
            groups.filter_map(made).next()
        })
    }

    /// Whether some honest device has a block, or they together have enough of a group that one of them knows.
    pub(super) fn is_there(&self, block: &BlockId) -> bool {
        let has = |block: &BlockId| self.devices.iter().any(|device| device.has(block));
        let honest = self
            .devices
            .iter()
            .filter(|device| !device.gone && device.lie.is_none());
        has(block)
            || honest
                .flat_map(|device| known(device, block))
                .any(|group| group.ids().filter(|id| has(id)).count() >= group.data.len())
    }

    /// Bytes that all devices keep for others.
    pub(in crate::replica) fn held(&self) -> u64 {
        let living = self.devices.iter().filter(|device| !device.gone);
        living.map(|device| device.disk.inner.held_bytes().unwrap()).sum()
    }

    /// Length of a block, in bytes.
    pub(in crate::replica) fn len(&self, block: &BlockId) -> u64 {
        self.contents[block].len() as u64
    }

    /// Whether an owner has a block kept for the sake of others of its group.
    pub(in crate::replica) fn is_shard(&self, owner: &Device, block: &BlockId) -> bool {
        let kept = owner.disk.inner.kept(block).unwrap();
        kept.is_some_and(|kept| kept.group > Some(0))
    }

    /// The group of an owner that a block is in, unless that is ending.
    pub(in crate::replica) fn group_of(&self, owner: usize, block: &BlockId) -> Option<Group> {
        let store = &self.devices[owner].disk.inner;
        let n = store.kept(block).unwrap()?.group?;
        let group = store.group(n).unwrap().filter(|group| !group.ending)?;
        Some(Group::decode(&group.record).unwrap())
    }

    /// Shards of a group that honest holders have under leases of this owner and with its record, each in a zone of its own.
    pub(in crate::replica) fn honest_shards(&self, owner: usize, group: &Group) -> usize {
        let me = &self.devices[owner].setup;
        let zones_of = |id: &BlockId| -> Vec<Zone> {
            let holds = |device: &&Device| {
                let leases = device.disk.inner.leases(id).unwrap();
                device.has(id)
                    && device.setup.zone != me.zone
                    && leases.iter().any(|lease| lease.owner == me.device)
                    && known(device, id).contains(group)
            };
            let holders = self.devices.iter().filter(holds);
            holders.map(|device| device.setup.zone.clone()).collect()
        };
        let zones: Vec<Vec<Zone>> = group.ids().map(zones_of).collect();
        let mut taken: BTreeMap<Zone, usize> = BTreeMap::new();
        let find = |shard: &usize| assign(*shard, &zones, &mut taken, &mut BTreeSet::new());
        (0..zones.len()).filter(find).count()
    }
}

/// Finds a zone for a shard, moving others if need be.
fn assign(
    shard: usize,
    zones: &[Vec<Zone>],
    taken: &mut BTreeMap<Zone, usize>,
    seen: &mut BTreeSet<Zone>,
) -> bool {
    for zone in &zones[shard] {
        if !seen.insert(zone.clone()) {
            continue;
        }
        let other = taken.get(zone).copied();
        if other.is_none_or(|other| assign(other, zones, taken, seen)) {
            taken.insert(zone.clone(), shard);
            return true;
        }
    }
    false
}
