//! What takes its time: blocks are read and sent, slices proven, receipts signed, answers checked. On threads of their own.
//!
//! Invariant: the machine hears only of answers whose signature, proofs and slices were checked here.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::shards::Shards;
use super::shared::Shared;
use super::{Msg, device_of};
use crate::base::clock::{Clock, SystemClock};
use crate::base::{BlockId, DeviceId};
use crate::daemon::network::SharedNode;
use crate::keys::DeviceKey;
use crate::keys::certificate::Membership;
use crate::node::partner;
use crate::replica::message::{Answer, Event, Outcome, Request, Verdict};
use crate::replica::slice;
use crate::replica::wire::{Receipt, Said, Told};
use crate::store::{BlockStore, SqliteStore, Tiered, Want};

/// How long a request may take.
const WITHIN: Duration = Duration::from_secs(55);

/// What is to be done.
pub(super) enum Job {
    /// A member says something.
    Hear(Box<Membership>, Bytes, partner::Answer),
    /// Send a request of the machine.
    Ask(DeviceId, Request),
    /// A member answered, or did not.
    Check(DeviceId, Request, Result<Bytes, String>),
    /// Send an answer of the machine, to the device with this public key.
    Answer([u8; 32], Answer, Option<[u8; 32]>, partner::Answer),
    /// Make the parity of a group.
    Encode(Vec<BlockId>, u8),
    /// Tell a member what this device offers.
    Profile(DeviceId, u64, String),
    Stop,
}

/// A thread's tools.
pub(super) struct Carrier {
    pub(super) key: Arc<DeviceKey>,
    pub(super) store: Arc<SqliteStore>,
    pub(super) tiered: Arc<Tiered>,
    pub(super) node: Arc<SharedNode>,
    pub(super) shared: Arc<Shared>,
    pub(super) shards: Arc<Shards>,
    pub(super) inbox: Sender<Msg>,
    pub(super) jobs: Sender<Job>,
}

/// Why a holder has not got blocks.
enum Unbrought {
    /// One of them could not be had.
    NotHad(String),
    /// The holder could not be reached, or did not take one.
    NotTaken(String),
}

impl Carrier {
    pub(super) fn run(&self, work: &Receiver<Job>) {
        while let Ok(job) = work.recv() {
            match job {
                Job::Hear(from, body, answer) => self.hear(&from, &body, answer),
                Job::Ask(to, request) => self.ask(to, request),
                Job::Check(from, request, result) => self.check(from, &request, result),
                Job::Answer(owner, answer, challenge, carry) => {
                    if let Some(told) = self.tell(owner, answer, challenge) {
                        carry(told.encode());
                    }
                }
                Job::Profile(to, quota, zone) => {
                    let body = Said::Profile { quota, zone }.encode().into();
                    self.node.say(to, body, Instant::now() + WITHIN, Box::new(|_| ()));
                }
                Job::Encode(blocks, parity) => {
                    let event = match self.shards.encode(&blocks, parity) {
                        Ok(group) => Event::Encoded(group),
                        Err(why) => {
                            tracing::debug!(why, "a group could not be formed");
                            Event::Unencoded(blocks)
                        }
                    };
                    let _ = self.inbox.send(Msg::Event(event));
                }
                Job::Stop => break,
            }
        }
    }

    fn hear(&self, from: &Membership, body: &[u8], answer: partner::Answer) {
        let device = device_of(&from.device);
        let said = match Said::decode(body) {
            Ok(said) => said,
            Err(error) => {
                tracing::warn!(device = %device.short(), %error, "a message that cannot be read");
                return;
            }
        };
        match said {
            Said::Profile { quota, zone } => {
                let _ = self.inbox.send(Msg::Profile(device, quota, zone));
                answer(Told::Noted.encode());
            }
            Said::Which(block) => answer(Told::Groups(self.shards.groups_of(&block)).encode()),
            Said::Request(Request::Audit { seq, slices }) => {
                let shown = |slice: &crate::replica::message::Slice| match self.store.get(&slice.block) {
                    Ok(Some(block)) => slice::prove(&block, slice.offset),
                    _ => Vec::new(),
                };
                let slices = slices.iter().map(shown).collect();
                answer(Told::Slices { seq, slices }.encode());
            }
            // Who may not write has no blocks to be kept.
            Said::Request(Request::Put { .. } | Request::Lease { .. } | Request::Shards { .. })
                if !from.role.places_blocks() =>
            {
                tracing::warn!(device = %device.short(), role = %from.role, "asks for leases, which its role does not allow");
            }
            Said::Request(request) => {
                let _ = self.inbox.send(Msg::Heard(from.device, request, answer));
            }
        }
    }

    fn ask(&self, to: DeviceId, request: Request) {
        let sent = match &request {
            Request::Put { seq, blocks } => Some((*seq, blocks.clone())),
            Request::Shards {
                seq,
                shards,
                sent: true,
            } => Some((*seq, shards.iter().map(|(block, _)| *block).collect())),
            _ => None,
        };
        if let Some((seq, blocks)) = sent
            && let Err(unbrought) = self.bring(to, &blocks)
        {
            let (event, why) = match unbrought {
                Unbrought::NotHad(why) => (Event::Unsent(to, seq), why),
                Unbrought::NotTaken(why) => (Event::Unanswered(to, seq), why),
            };
            tracing::debug!(device = %to.short(), why, "blocks could not be brought to a holder");
            let _ = self.inbox.send(Msg::Event(event));
            return;
        }
        let body = Said::Request(request.clone()).encode().into();
        let jobs = self.jobs.clone();
        let done = move |result| drop(jobs.send(Job::Check(to, request, result)));
        self.node.say(to, body, Instant::now() + WITHIN, Box::new(done));
    }

    /// Sends blocks and waits until the holder has stored them.
    fn bring(&self, to: DeviceId, blocks: &[BlockId]) -> Result<(), Unbrought> {
        let deadline = Instant::now() + WITHIN;
        let (tell, told) = bounded(blocks.len());
        for block in blocks {
            let bytes = self.read(block, deadline).map_err(Unbrought::NotHad)?;
            let tell = tell.clone();
            let (shared, len) = (Arc::clone(&self.shared), bytes.len() as u64);
            let done = move |result: Result<Bytes, String>| {
                if result.is_ok() {
                    shared.sent.fetch_add(len, Ordering::Relaxed);
                }
                let _ = tell.send(result.map(|_| ()));
            };
            self.node.put(to, *block, bytes, deadline, Box::new(done));
        }
        for _ in blocks {
            let taken = told.recv_deadline(deadline).map_err(|error| error.to_string());
            taken.and_then(|taken| taken).map_err(Unbrought::NotTaken)?;
        }
        Ok(())
    }

    /// A block that is to be sent: from here, or from others.
    fn read(&self, block: &BlockId, deadline: Instant) -> Result<Bytes, String> {
        if let Some(group) = self.shards.own_group(block) {
            return self.shards.obtain(block, &group, deadline);
        }
        let want = Want {
            id: *block,
            root: None,
            ahead: false,
        };
        self.tiered.get(want).map_err(|error| error.to_string())
    }

    fn check(&self, from: DeviceId, request: &Request, result: Result<Bytes, String>) {
        let Some(seq) = super::request_seq(request) else {
            return;
        };
        let told = result.and_then(|body| Told::decode(&body).map_err(|error| error.to_string()));
        let answer = told.and_then(|told| self.judge(from, request, told));
        let event = match answer {
            Ok(answer) => Event::Answer(from, answer),
            Err(why) => {
                tracing::debug!(device = %from.short(), why, "a request was not answered");
                Event::Unanswered(from, seq)
            }
        };
        let _ = self.inbox.send(Msg::Event(event));
    }

    fn judge(&self, from: DeviceId, request: &Request, told: Told) -> Result<Answer, String> {
        match (request, told) {
            (
                Request::Put { seq, .. } | Request::Lease { seq, .. } | Request::Shards { seq, .. },
                Told::Leased(receipt),
            ) if receipt.seq == *seq => {
                if device_of(&receipt.holder) != from || !receipt.verify(&receipt.holder, &self.key.public())
                {
                    tracing::warn!(device = %from.short(), "a receipt whose signature is not right");
                    return Err("its receipt is not valid".into());
                }
                let challenge = match request {
                    Request::Lease { challenge, .. } => *challenge,
                    _ => None,
                };
                let shown = challenge.map_or_else(HashSet::new, |_| self.shown(from, &receipt));
                let outcomes = receipt.outcomes.iter();
                let outcomes = outcomes.map(|(block, outcome, proof)| match shown.contains(block) {
                    true => (*block, *outcome),
                    false => (*block, self.proven(block, *outcome, challenge, *proof)),
                });
                Ok(Answer::Leased {
                    seq: *seq,
                    term_secs: receipt.term_secs,
                    outcomes: outcomes.collect(),
                })
            }
            (Request::Release { seq, .. }, Told::Released { seq: said }) if said == *seq => {
                Ok(Answer::Released { seq: *seq })
            }
            (
                Request::Audit { seq, slices },
                Told::Slices {
                    seq: said,
                    slices: shown,
                },
            ) if said == *seq && shown.len() == slices.len() => {
                let verdict = |(slice, shown): (&crate::replica::message::Slice, &Vec<u8>)| {
                    let verdict = match shown.is_empty() {
                        true => Verdict::Absent,
                        false if slice::check(&slice.block, slice.offset, shown).is_ok() => Verdict::Right,
                        false => Verdict::Wrong,
                    };
                    (slice.block, verdict)
                };
                Ok(Answer::Audited {
                    seq: *seq,
                    verdicts: slices.iter().zip(&shown).map(verdict).collect(),
                })
            }
            (_, Told::Busy { seq, retry_ms }) => Ok(Answer::Busy { seq, retry_ms }),
            _ => Err("the answer is to something else".into()),
        }
    }

    /// What is granted under a challenge counts only with the proof, which our own copy tells.
    fn proven(
        &self,
        block: &BlockId,
        outcome: Outcome,
        challenge: Option<[u8; 32]>,
        proof: Option<[u8; 32]>,
    ) -> Outcome {
        let (Outcome::Granted, Some(challenge)) = (outcome, challenge) else {
            return outcome;
        };
        let own = self.store.get(block).ok().flatten();
        let right = own.map(|own| slice::possession(&challenge, &own));
        match right.is_some() && right == proof {
            true => Outcome::Granted,
            false => Outcome::Unproven,
        }
    }

    /// The form in which an answer of the machine is sent.
    fn tell(&self, owner: [u8; 32], answer: Answer, challenge: Option<[u8; 32]>) -> Option<Told> {
        Some(match answer {
            Answer::Leased {
                seq,
                term_secs,
                outcomes,
            } => {
                let proven = |(block, outcome): (BlockId, Outcome)| match (outcome, challenge) {
                    (Outcome::Granted, Some(challenge)) => match self.store.get(&block) {
                        Ok(Some(bytes)) => (block, outcome, Some(slice::possession(&challenge, &bytes))),
                        _ => (block, Outcome::Absent, None),
                    },
                    _ => (block, outcome, None),
                };
                let outcomes = outcomes.into_iter().map(proven).collect();
                Told::Leased(Receipt::sign(
                    &self.key,
                    owner,
                    seq,
                    SystemClock.now(),
                    term_secs,
                    outcomes,
                ))
            }
            Answer::Released { seq } => Told::Released { seq },
            Answer::Busy { seq, retry_ms } => Told::Busy { seq, retry_ms },
            Answer::Audited { .. } => return None,
        })
    }
}
