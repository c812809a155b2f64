//! What comes of what was asked.
//!
//! Invariant: an answer counts once, only to a request that waits for it, and only for blocks that the request named.

use std::collections::HashSet;

use crate::base::{BlockId, DeviceId};
use crate::store::{Kept, Replica, ReplicaChange, StoreError};

use super::machine::{Asked, Machine, Purpose};
use super::message::{Answer, Outcome, Report, Verdict};
use super::rules::REBALANCE;

const DAY_MS: u64 = 86_400_000;

/// Audits in a row that a connected holder may leave unanswered before that counts as a failure.
const WITHHELD_MAX: u8 = 3;

impl Asked {
    fn record_of(&self, block: &BlockId) -> Option<u64> {
        let at = self.blocks.iter().position(|other| other == block)?;
        self.records.get(at).copied()
    }
}

impl Machine {
    pub(super) fn answer(&mut self, from: DeviceId, answer: Answer) -> Result<(), StoreError> {
        let Some(asked) = self.close(&from, answer.seq()) else {
            return Ok(());
        };
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.silent = 0;
        }
        if !matches!(asked.purpose, Purpose::Audit(_)) {
            self.hurry();
        }
        match (answer, &asked.purpose) {
            (
                Answer::Leased {
                    seq,
                    term_secs,
                    outcomes,
                },
                Purpose::Put | Purpose::Claim | Purpose::Renewal | Purpose::Confirmation,
            ) => self.leased(from, seq, term_secs, &outcomes, &asked),
            (Answer::Released { .. }, Purpose::Release) => {
                let paid = |block: &BlockId| ReplicaChange::Paid {
                    holder: from,
                    block: *block,
                };
                let changes: Vec<ReplicaChange> = asked.blocks.iter().map(paid).collect();
                self.store.apply(&changes, false).map(|_| ())
            }
            (Answer::Audited { verdicts, .. }, Purpose::Audit(slices)) => {
                let mut failed = Vec::new();
                for (block, verdict) in verdicts {
                    if verdict != Verdict::Right && slices.iter().any(|slice| slice.block == block) {
                        failed.push((block, verdict == Verdict::Wrong));
                    }
                }
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.withheld = 0;
                    if peer.hurried {
                        self.checked.right += slices.len().saturating_sub(failed.len()) as u64;
                        self.checked.wrong += failed.len() as u64;
                    }
                }
                self.walked(&from, failed.is_empty());
                self.audited(from, &failed)
            }
            (Answer::Busy { retry_ms, .. }, _) => {
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.busy_until_ms = self.now_ms + retry_ms.clamp(100, self.rules.sleep_ms);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn leased(
        &mut self,
        from: DeviceId,
        seq: u64,
        term_secs: u64,
        outcomes: &[(BlockId, Outcome)],
        asked: &Asked,
    ) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        let mut failed = Vec::new();
        let mut full = false;
        if asked.purpose == Purpose::Put {
            let answered: HashSet<&BlockId> = outcomes.iter().map(|(block, _)| block).collect();
            let unsent = asked.blocks.iter().filter(|block| !answered.contains(block));
            let unsent: Vec<BlockId> = unsent.copied().collect();
            self.note_unavailable(&unsent);
        }
        for (block, outcome) in outcomes {
            if !asked.blocks.contains(block) {
                continue;
            }
            let mut replicas = self.store.replicas(block)?;
            let old = replicas.iter().position(|replica| replica.holder == from);
            if asked.purpose == Purpose::Confirmation {
                self.confirmed(block, &from, *outcome);
            }
            if *outcome == Outcome::Granted {
                self.absent.remove(&(*block, from));
                self.unavailable.remove(block);
                let replica = self.granted(*block, from, seq, term_secs, asked, old.map(|at| replicas[at]));
                match old {
                    Some(at) => replicas[at] = replica,
                    None => replicas.push(replica),
                }
                changes.push(ReplicaChange::Replica(replica));
            } else if let Some(at) = old {
                let replica = replicas.remove(at);
                changes.push(ReplicaChange::NoReplica {
                    block: *block,
                    holder: from,
                });
                let promised = replica.until > self.secs();
                if promised && matches!(outcome, Outcome::Absent | Outcome::Unproven) {
                    failed.push((*block, *outcome == Outcome::Unproven));
                }
            }
            // What was refused is not offered again at once, or it would go to and fro as fast as the network can.
            let refused = match outcome {
                Outcome::Dropping => true,
                Outcome::Absent | Outcome::Unproven => asked.purpose == Purpose::Put,
                Outcome::Granted | Outcome::Full => false,
            };
            if refused {
                self.note_unavailable(&[*block]);
            }
            match outcome {
                Outcome::Absent => self.note_absent(*block, from),
                Outcome::Full => full = true,
                _ => {}
            }
            match self.store.kept(block)? {
                Some(kept) => self.settle_todo(&kept, &replicas, &mut changes)?,
                // It was given up while the answer was on its way.
                None if *outcome == Outcome::Granted => changes.push(ReplicaChange::Owe {
                    holder: from,
                    block: *block,
                }),
                None => {}
            }
        }
        let durable = changes.iter().any(|c| matches!(c, ReplicaChange::Owe { .. }));
        self.store.apply(&changes, durable)?;
        if full {
            self.is_full(from);
        }
        self.failures(from, &failed)
    }

    fn granted(
        &self,
        block: BlockId,
        holder: DeviceId,
        seq: u64,
        term_secs: u64,
        asked: &Asked,
        old: Option<Replica>,
    ) -> Replica {
        // The holder's clock for us is never faster than ours; a sixteenth is left for clocks that are not exact. What is renewed
        // is spread over an eighth of the term, so that blocks that were stored together do not come due together.
        let term = term_secs.min(self.rules.term_secs);
        let spread = term / 8 * u64::from(block.0[0]) / 256;
        Replica {
            block,
            holder,
            until: asked.at_secs + term * 15 / 16,
            renew: asked.at_secs + term / 2 - spread,
            granted: asked.at_secs,
            seq,
            leaving: old.is_some_and(|old| old.leaving),
            record: asked.record_of(&block).unwrap_or_else(|| {
                old.filter(|old| old.until > self.secs())
                    .map_or(0, |old| old.record)
            }),
        }
    }

    /// As [`Machine::settle`]; what is to be released is found by the next pass.
    pub(super) fn settle_todo(
        &self,
        kept: &Kept,
        replicas: &[Replica],
        changes: &mut Vec<ReplicaChange>,
    ) -> Result<(), StoreError> {
        if !self.knows_hosts() || self.is_grouped(kept, changes)? {
            return Ok(());
        }
        let judgement = self.settle(kept, replicas, changes);
        if judgement.todo.is_none() && !judgement.release.is_empty() {
            changes.push(ReplicaChange::Keep(Kept {
                copies: judgement.copies,
                todo: Some(REBALANCE),
                ..*kept
            }));
        }
        Ok(())
    }

    fn is_full(&mut self, holder: DeviceId) {
        let now = self.now_ms;
        let Some(peer) = self.peers.get_mut(&holder) else {
            return;
        };
        if now < peer.full_until_ms {
            return;
        }
        peer.full_wait_ms = (peer.full_wait_ms * 2).clamp(self.rules.full_ms, DAY_MS);
        peer.full_until_ms = now + peer.full_wait_ms;
        self.report(Report::Full(holder));
        self.look_at_all();
    }

    /// Requests that are not answered any more: the holder is left alone for a while, longer each time.
    pub(super) fn give_up_waiting(&mut self) -> Result<(), StoreError> {
        let now = self.now_ms;
        let late = |asked: &Asked| asked.at_ms + self.rules.answer_ms <= now;
        let over: Vec<(u64, DeviceId)> = self
            .asked
            .iter()
            .filter(|(_, asked)| late(asked))
            .map(|(seq, asked)| (*seq, asked.to))
            .collect();
        for (seq, to) in over {
            let Some(asked) = self.close(&to, seq) else {
                continue;
            };
            self.leave_alone(&to);
            let Some(peer) = self.peers.get_mut(&to) else {
                continue;
            };
            // A member that is connected and does not show what it holds, again and again, withholds it.
            if let Purpose::Audit(slices) = &asked.purpose
                && let Some(slice) = slices.first()
            {
                peer.withheld += 1;
                if peer.withheld >= WITHHELD_MAX {
                    peer.withheld = 0;
                    peer.hurried = false;
                    // Which of its blocks are bad, or whether any is, nobody knows: they count until it is condemned.
                    self.failures(to, &[(slice.block, true)])?;
                }
            }
            self.hurry();
        }
        Ok(())
    }
}
