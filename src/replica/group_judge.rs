//! What is to be done for one group of shards: which replica of each counts, where the missing ones go, what is too much. Pure.
//!
//! Invariant: each shard counts once and each zone once; a replica is given up only when all shards of the group, in zones of their
//! own and with the group's record beside them, were confirmed a short while ago.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::{BlockId, DeviceId};
use crate::store::Replica;

use super::judge::Court;
use super::placement::{Zone, possible, ranked};
use super::rules::REBALANCE;

/// A shard, and what is known of where it is.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) block: BlockId,
    pub(super) replicas: Vec<Replica>,
    /// Who is being asked something about it.
    pub(super) asked: Vec<DeviceId>,
}

/// The judgement on a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct GroupJudgement {
    /// Shards that count, each in a zone of its own.
    pub(super) have: usize,
    /// All of them do, and their holders have the group's record.
    pub(super) whole: bool,
    /// It cannot be made whole: its blocks are to be replicated one by one.
    pub(super) hopeless: bool,
    /// Urgency; `None` when all is well.
    pub(super) todo: Option<u8>,
    /// The holder that counts, for each shard.
    pub(super) chosen: Vec<Option<DeviceId>>,
    /// Which shard should go where now.
    pub(super) put: Vec<(usize, DeviceId)>,
    /// Who is to be asked for its lease again: it lacks the record, or others wait to be released.
    pub(super) confirm: Vec<(usize, DeviceId)>,
    /// Who need not hold what any more.
    pub(super) release: Vec<(usize, DeviceId)>,
    /// Replicas that are none.
    pub(super) forget: Vec<(usize, DeviceId)>,
}

/// Assigns shards to zones so that as many as possible have one of their own (augmenting paths; H. W. Kuhn, "The Hungarian method for the
/// assignment problem", 1955).
struct Matching<'a> {
    /// For each shard its zones, best first, with the number of the replica there.
    edges: Vec<Vec<(&'a Zone, usize)>>,
    shard_of: BTreeMap<&'a Zone, usize>,
    chosen: Vec<Option<usize>>,
}

impl<'a> Matching<'a> {
    fn augment(&mut self, shard: usize, seen: &mut BTreeSet<&'a Zone>) -> bool {
        for at in 0..self.edges[shard].len() {
            let (zone, replica) = self.edges[shard][at];
            if !seen.insert(zone) {
                continue;
            }
            let other = self.shard_of.get(zone).copied();
            if other.is_none_or(|other| self.augment(other, seen)) {
                self.shard_of.insert(zone, shard);
                self.chosen[shard] = Some(replica);
                return true;
            }
        }
        false
    }

    fn extend(&mut self) {
        for shard in 0..self.edges.len() {
            if self.chosen[shard].is_none() {
                self.augment(shard, &mut BTreeSet::new());
            }
        }
    }
}

impl Court<'_> {
    /// Zones in which a new shard could be placed, now or when their hosts are connected again.
    pub(super) fn usable_zones(&self) -> BTreeSet<&Zone> {
        let usable = self.hosts.iter().filter(|host| {
            let standing = self.standing(&host.device);
            let fit = standing.member && !standing.lost && !standing.full && standing.condemned <= self.secs;
            host.weight > 0 && host.zone != *self.own_zone && fit
        });
        usable.map(|host| &host.zone).collect()
    }

    /// `n`: the group's number; `data`: how many of the shards are enough.
    pub(super) fn judge_group(&self, n: u64, data: usize, shards: &[Shard]) -> GroupJudgement {
        let mut judgement = GroupJudgement::default();
        let mut matching = Matching {
            edges: vec![Vec::new(); shards.len()],
            shard_of: BTreeMap::new(),
            chosen: vec![None; shards.len()],
        };
        // Those that want to be rid of theirs only where nobody else has one.
        for leaving in [false, true] {
            for (at, shard) in shards.iter().enumerate() {
                let mut counted: Vec<(bool, DeviceId, &Zone, usize)> = Vec::new();
                for (number, replica) in shard.replicas.iter().enumerate() {
                    if replica.leaving == leaving
                        && self.counts(replica)
                        && let Some(zone) = self.zone(&replica.holder)
                    {
                        counted.push((replica.record != n, replica.holder, zone, number));
                    }
                }
                counted.sort_unstable();
                matching.edges[at].extend(counted.into_iter().map(|(_, _, zone, number)| (zone, number)));
            }
            matching.extend();
        }
        let chosen: Vec<Option<&Replica>> = matching
            .chosen
            .iter()
            .zip(shards)
            .map(|(chosen, shard)| chosen.map(|number| &shard.replicas[number]))
            .collect();
        judgement.have = chosen.iter().flatten().count();
        judgement.chosen = chosen.iter().map(|c| c.map(|replica| replica.holder)).collect();
        let complete = judgement.have == shards.len();
        judgement.whole = complete && chosen.iter().flatten().all(|replica| replica.record == n);
        self.place(shards, &chosen, &matching.shard_of, &mut judgement);
        let reach: BTreeSet<&Zone> = self
            .usable_zones()
            .into_iter()
            .chain(matching.shard_of.keys().copied())
            .collect();
        let bound = shards.iter().any(|shard| !shard.asked.is_empty());
        judgement.hopeless = possible(self.hosts, self.own_zone) < shards.len()
            || (judgement.have <= data && reach.len() < shards.len() && !bound);
        self.tidy(n, shards, &chosen, &mut judgement);
        judgement.todo = if !complete {
            // As with replicas: how many of it could be lost, and one more.
            Some(
                (judgement.have + 1)
                    .saturating_sub(data)
                    .min(usize::from(REBALANCE) - 1) as u8,
            )
        } else if !judgement.whole {
            Some((shards.len() + 1 - data) as u8)
        } else if judgement.put.is_empty() && judgement.release.is_empty() && judgement.confirm.is_empty() {
            None
        } else {
            Some(REBALANCE)
        };
        judgement
    }

    /// Where the shards go that are nowhere, and those whose holders want to be rid of them.
    fn place<'a>(
        &'a self,
        shards: &[Shard],
        chosen: &[Option<&Replica>],
        shard_of: &BTreeMap<&'a Zone, usize>,
        judgement: &mut GroupJudgement,
    ) {
        let asked = shards.iter().flat_map(|shard| &shard.asked);
        let mut taken: BTreeSet<&Zone> = shard_of.keys().copied().collect();
        taken.extend(asked.filter_map(|device| self.zone(device)));
        taken.insert(self.own_zone);
        for (at, shard) in shards.iter().enumerate() {
            let is_placed = chosen[at].is_some_and(|replica| !replica.leaving);
            let has = |device: &DeviceId| shard.replicas.iter().find(|replica| replica.holder == *device);
            // While somebody is asked who is not known to have it, it may be on its way there.
            if is_placed || shard.asked.iter().any(|device| has(device).is_none()) {
                continue;
            }
            let takes = |host: &&super::placement::Host| {
                let standing = self.standing(&host.device);
                let can = standing.connected && !standing.full && !standing.busy;
                can && standing.condemned <= self.secs && !has(&host.device).is_some_and(|r| r.leaving)
            };
            let best = ranked(&shard.block, self.hosts.iter().filter(takes), &taken);
            if let Some(host) = best.first() {
                taken.insert(&host.zone);
                judgement.put.push((at, host.device));
            }
        }
    }

    /// What is too much, and what has to be asked before.
    fn tidy(&self, n: u64, shards: &[Shard], chosen: &[Option<&Replica>], judgement: &mut GroupJudgement) {
        let can_be_asked = |device: &DeviceId| {
            let standing = self.standing(device);
            standing.connected && !standing.busy
        };
        for (at, shard) in shards.iter().enumerate() {
            let is_over = |replica: &&Replica| self.is_over(replica);
            judgement.forget.extend(
                shard
                    .replicas
                    .iter()
                    .filter(is_over)
                    .map(|replica| (at, replica.holder)),
            );
            if let Some(replica) = chosen[at]
                && replica.record != n
                && can_be_asked(&replica.holder)
            {
                judgement.confirm.push((at, replica.holder));
            }
        }
        if !judgement.whole {
            return;
        }
        let mut surplus = Vec::new();
        for (at, shard) in shards.iter().enumerate() {
            let others = shard
                .replicas
                .iter()
                .filter(|replica| judgement.chosen[at] != Some(replica.holder) && !self.is_over(replica));
            let told = others.filter(|replica| self.standing(&replica.holder).connected);
            surplus.extend(told.map(|replica| (at, replica.holder)));
        }
        if surplus.is_empty() {
            return;
        }
        let is_fresh = |replica: &Replica| replica.granted.saturating_add(self.rules.fresh_secs) > self.secs;
        let stale: Vec<(usize, DeviceId)> = chosen
            .iter()
            .enumerate()
            .filter_map(|(at, replica)| Some((at, (*replica)?)))
            .filter(|(_, replica)| !is_fresh(replica))
            .map(|(at, replica)| (at, replica.holder))
            .collect();
        if stale.is_empty() {
            judgement.release = surplus;
        } else {
            judgement.confirm = stale
                .into_iter()
                .filter(|(_, holder)| can_be_asked(holder))
                .collect();
        }
    }
}
