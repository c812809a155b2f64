//! Our blocks on others: those that lack replicas get them, least replicated first; what is too much is given back.
//!
//! Invariant: before a holder is told that it need not keep a block, that it does not counts here durably; no block is asked of a holder
//! by two requests at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::base::{BlockId, DeviceId};
use crate::store::{Kept, Replica, ReplicaChange, StoreError};

use super::erasure::Group;
use super::groups::todo;
use super::judge::Judgement;
use super::machine::{Machine, Purpose, STEP};
use super::message::Request;
use super::rules::{BLOCKS_MAX, REBALANCE};

/// Shards, each with its group.
type ShardsOfGroups = Vec<(BlockId, Arc<Group>)>;

/// Requests in the making.
#[derive(Default)]
pub(super) struct Plan {
    puts: BTreeMap<DeviceId, (Vec<BlockId>, u64)>,
    claims: BTreeMap<DeviceId, Vec<BlockId>>,
    pub(super) shard_puts: BTreeMap<DeviceId, (ShardsOfGroups, u64)>,
    pub(super) shard_claims: BTreeMap<DeviceId, ShardsOfGroups>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.puts.values().all(|(blocks, _)| blocks.is_empty())
            && self.claims.values().all(Vec::is_empty)
            && self.shard_puts.values().all(|(shards, _)| shards.is_empty())
            && self.shard_claims.values().all(Vec::is_empty)
    }
}

impl Machine {
    /// The judgement on a block, and what changes by it in the store.
    pub(super) fn settle(
        &self,
        kept: &Kept,
        replicas: &[Replica],
        changes: &mut Vec<ReplicaChange>,
    ) -> Judgement {
        let judgement = self.court().judge(kept, replicas);
        self.note_judgement(kept, &judgement, changes);
        judgement
    }

    fn note_judgement(&self, kept: &Kept, judgement: &Judgement, changes: &mut Vec<ReplicaChange>) {
        changes.extend(judgement.forget.iter().map(|holder| ReplicaChange::NoReplica {
            block: kept.block,
            holder: *holder,
        }));
        if judgement.copies < judgement.need.max(1) {
            // The copy here, fetched only to be read, may be the last.
            changes.push(ReplicaChange::Protect { block: kept.block });
        }
        if (kept.copies, kept.todo) != (judgement.copies, judgement.todo) {
            changes.push(ReplicaChange::Keep(Kept {
                copies: judgement.copies,
                todo: judgement.todo,
                ..*kept
            }));
        }
    }

    /// Looks at the next blocks after a change of the hosts.
    pub(super) fn review_step(&mut self) -> Result<(), StoreError> {
        let (Some(after), true) = (self.review, self.knows_hosts()) else {
            return Ok(());
        };
        let page = self.store.kept_after(after, STEP)?;
        let mut changes = Vec::new();
        let mut more = false;
        for kept in &page {
            let kept = &self.renew_settings(kept, &mut changes)?;
            if self.is_grouped(kept, &mut changes)? {
                more = true;
                continue;
            }
            if self.is_waiting(kept) && self.can_group() {
                continue;
            }
            let judgement = self.court().judge(kept, &self.store.replicas(&kept.block)?);
            // Whose surplus is to be released is found again when there is something to do.
            let judgement = Judgement {
                todo: judgement
                    .todo
                    .or((!judgement.release.is_empty()).then_some(REBALANCE)),
                ..judgement
            };
            more |= judgement.todo.is_some();
            self.note_judgement(kept, &judgement, &mut changes);
        }
        self.store.apply(&changes, false)?;
        if more {
            self.hurry();
        }
        self.review = if page.len() == STEP {
            Some(page.last().map(|kept| kept.block))
        } else if std::mem::take(&mut self.review_again) {
            Some(None)
        } else {
            if self.setup.groups.is_some() {
                // What may join a group is known now.
                self.gather_soon();
            }
            None
        };
        Ok(())
    }

    /// Goes on with the pass over what is to be done, until every holder has enough to do.
    pub(super) fn work(&mut self) -> Result<(), StoreError> {
        let due = self.next_pass_ms.is_some_and(|at| at <= self.now_ms);
        if !due || !self.knows_hosts() {
            return Ok(());
        }
        for _ in 0..4 {
            let page = self.store.kept_todo(self.pass, STEP)?;
            let mut plan = Plan::default();
            let mut changes = Vec::new();
            // Groups that may have come to their end.
            let mut ending = BTreeSet::new();
            for kept in &page {
                match self.group_of(kept)? {
                    Some((group, record)) if !group.ending => {
                        self.work_group(&group, record, &mut plan, &mut changes)?;
                        continue;
                    }
                    Some((group, _)) => {
                        ending.insert(group.n);
                        if kept.wanted == 0 {
                            changes.push(todo(kept.block, None));
                            continue;
                        }
                    }
                    None => {}
                }
                let replicas = self.store.replicas(&kept.block)?;
                let judgement = self.court().judge(kept, &replicas);
                let dropping = self.is_dropping(&kept.block);
                let releasable =
                    |holder: &&DeviceId| !self.pairs.contains(&(kept.block, **holder)) && !dropping;
                let release: Vec<DeviceId> = judgement.release.iter().filter(releasable).copied().collect();
                let left = release.len() < judgement.release.len();
                let judgement = Judgement {
                    todo: judgement.todo.or(left.then_some(REBALANCE)),
                    ..judgement
                };
                self.note_judgement(kept, &judgement, &mut changes);
                for holder in release {
                    changes.push(ReplicaChange::Owe {
                        holder,
                        block: kept.block,
                    });
                }
                self.plan(kept, &judgement, &mut plan)?;
            }
            let durable = changes.iter().any(|c| matches!(c, ReplicaChange::Owe { .. }));
            self.store.apply(&changes, durable)?;
            for n in &ending {
                self.finish_group(*n)?;
            }
            self.pass = page.last().and_then(|kept| Some((kept.todo?, kept.block)));
            let asks = !plan.is_empty();
            self.carry_out(plan)?;
            if page.len() < STEP {
                // What is left waits for an answer, or for somebody to come.
                let nothing = self.pass.is_none() && page.is_empty();
                self.pass = None;
                let rest = !nothing || !self.store.kept_todo(None, 1)?.is_empty();
                let wait = (self.rules.retry_ms << self.vain_passes.min(16)).min(self.rules.sleep_ms);
                self.vain_passes += 1;
                if asks && self.has_idle_holder() {
                    // Until each has as much to do as it may.
                    self.hurry();
                    self.next_pass_ms = Some(self.now_ms + 1);
                    return self.pay();
                }
                self.next_pass_ms = rest.then_some(self.now_ms + wait);
                self.pay()?;
                return Ok(());
            }
            if !self.has_idle_holder() {
                break;
            }
        }
        self.next_pass_ms = Some(
            self.now_ms
                + if self.has_idle_holder() {
                    1
                } else {
                    self.rules.retry_ms
                },
        );
        self.pay()
    }

    fn has_idle_holder(&self) -> bool {
        let puts = self.rules.puts_open;
        self.peers
            .values()
            .any(|peer| peer.is_open(self.now_ms) && peer.quota > 0 && peer.open.puts < puts)
    }

    fn plan(&self, kept: &Kept, judgement: &Judgement, plan: &mut Plan) -> Result<(), StoreError> {
        let block = kept.block;
        let unavailable = self.unavailable.get(&block);
        if unavailable.is_some_and(|(until, _)| self.now_ms < *until) {
            return Ok(());
        }
        for holder in judgement.put.iter().chain(&judgement.confirm) {
            let Some(peer) = self.peers.get(holder) else {
                continue;
            };
            if self.pairs.contains(&(block, *holder)) || !peer.is_open(self.now_ms) {
                continue;
            }
            // What was written here is nowhere else; of what came from others, the holder may have it already.
            let is_new = kept.copies == 0 && self.store.length(&block)?.is_some();
            let lacks = self.absent.contains(&(block, *holder));
            let (open, most) = (peer.open.puts, self.rules.puts_open);
            if judgement.put.contains(holder) && (is_new || lacks) {
                let (blocks, bytes) = plan.puts.entry(*holder).or_default();
                let fits = blocks.is_empty() || *bytes + u64::from(kept.len) <= self.rules.put_bytes;
                let started = blocks.len() / self.rules.put_blocks.max(1);
                if fits && open + started < most && blocks.len() < self.rules.put_blocks {
                    blocks.push(block);
                    *bytes += u64::from(kept.len);
                }
            } else if peer.open.claims == 0 {
                let blocks = plan.claims.entry(*holder).or_default();
                if blocks.len() < BLOCKS_MAX {
                    blocks.push(block);
                }
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, plan: Plan) -> Result<(), StoreError> {
        for (holder, (blocks, _)) in plan.puts {
            if !blocks.is_empty() {
                let seq = self.next_seq();
                let request = Request::Put {
                    seq,
                    blocks: blocks.clone(),
                };
                self.ask(holder, seq, request, blocks, Purpose::Put);
            }
        }
        for (holder, blocks) in plan.claims {
            self.ask_lease(holder, blocks, None, Purpose::Claim);
        }
        for (holder, (shards, _)) in plan.shard_puts {
            self.ask_for_shards(holder, shards, true)?;
        }
        for (holder, shards) in plan.shard_claims {
            self.ask_for_shards(holder, shards, false)?;
        }
        Ok(())
    }

    pub(super) fn ask_lease(
        &mut self,
        holder: DeviceId,
        blocks: Vec<BlockId>,
        challenge: Option<[u8; 32]>,
        purpose: Purpose,
    ) {
        if blocks.is_empty() {
            return;
        }
        let seq = self.next_seq();
        let request = Request::Lease {
            seq,
            blocks: blocks.clone(),
            challenge,
        };
        self.ask(holder, seq, request, blocks, purpose);
    }

    /// Gives back leases that are not needed any more.
    pub(super) fn pay(&mut self) -> Result<(), StoreError> {
        if self
            .peers
            .values()
            .all(|peer| !peer.is_open(self.now_ms) || peer.open.releases > 0)
        {
            return Ok(());
        }
        for holder in self.store.owed_to()? {
            let Some(peer) = self.peers.get(&holder) else {
                continue;
            };
            if peer.open.releases > 0 || !peer.is_open(self.now_ms) {
                continue;
            }
            let mut blocks = self.store.owed(&holder, BLOCKS_MAX)?;
            blocks.retain(|block| !self.pairs.contains(&(*block, holder)));
            if blocks.is_empty() {
                continue;
            }
            let seq = self.next_seq();
            let request = Request::Release {
                seq,
                blocks: blocks.clone(),
            };
            self.ask(holder, seq, request, blocks, Purpose::Release);
        }
        Ok(())
    }

    /// What is owed to former members will not be asked for.
    pub(super) fn forgive(&mut self) -> Result<(), StoreError> {
        if !self.knows_hosts() {
            return Ok(());
        }
        for holder in self.store.owed_to()? {
            if self.peers.get(&holder).is_some_and(|peer| peer.member) {
                continue;
            }
            loop {
                let blocks = self.store.owed(&holder, STEP)?;
                let paid = |block: &BlockId| ReplicaChange::Paid {
                    holder,
                    block: *block,
                };
                self.store
                    .apply(&blocks.iter().map(paid).collect::<Vec<_>>(), false)?;
                if blocks.len() < STEP {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Renews leases well before they end.
    pub(super) fn renew(&mut self) -> Result<(), StoreError> {
        if !self.knows_hosts() {
            return Ok(());
        }
        let due: Vec<DeviceId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.is_open(self.now_ms) && peer.open.renewals == 0)
            .filter(|(_, peer)| self.now_ms >= peer.next_renewal_ms)
            .map(|(device, _)| *device)
            .collect();
        for holder in due {
            let found = self.store.replicas_due(&holder, self.secs(), BLOCKS_MAX)?;
            let all = found.len() == BLOCKS_MAX;
            let free = |replica: &&Replica| !self.pairs.contains(&(replica.block, holder));
            let blocks: Vec<BlockId> = found.iter().filter(free).map(|replica| replica.block).collect();
            if let Some(peer) = self.peers.get_mut(&holder) {
                let wait = if all {
                    self.rules.retry_ms.min(1000)
                } else {
                    self.rules.sleep_ms
                };
                peer.next_renewal_ms = self.now_ms + wait;
            }
            self.ask_lease(holder, blocks, None, Purpose::Renewal);
        }
        Ok(())
    }

    /// A holder wants to be rid of blocks.
    pub(super) fn leaving(&mut self, from: DeviceId, blocks: &[BlockId]) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        for block in blocks.iter().take(BLOCKS_MAX) {
            let mut replicas = self.store.replicas(block)?;
            let Some(replica) = replicas.iter_mut().find(|r| r.holder == from && !r.leaving) else {
                continue;
            };
            replica.leaving = true;
            changes.push(ReplicaChange::Replica(*replica));
            if let Some(kept) = self.store.kept(block)?
                && self.knows_hosts()
                && !self.is_grouped(&kept, &mut changes)?
            {
                let judgement = self.settle(&kept, &replicas, &mut changes);
                if judgement.todo.is_none() && !judgement.release.is_empty() {
                    changes.push(ReplicaChange::Keep(Kept {
                        todo: Some(REBALANCE),
                        ..kept
                    }));
                }
            }
        }
        self.store.apply(&changes, false)?;
        self.hurry();
        Ok(())
    }

    /// Without a roster nobody is a member, and no conclusion may be drawn from that.
    pub(super) fn knows_hosts(&self) -> bool {
        !self.hosts.is_empty()
    }
}
