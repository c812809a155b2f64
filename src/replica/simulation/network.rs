//! The network between simulated devices, and what those that lie make of what they hear.

use bytes::Bytes;

use super::{Lie, Payload, World};
use crate::base::BlockId;
use crate::replica::message::{Answer, Event, Outcome, Request};
use crate::store::{BlockStore, Put, PutKind};

impl World {
    pub(super) fn send_request(&mut self, from: usize, to: usize, request: Request) {
        let sent = &mut self.sent;
        *match &request {
            Request::Put { .. } => &mut sent.puts,
            Request::Lease { challenge: None, .. } => &mut sent.leases,
            Request::Lease { .. } => &mut sent.confirmations,
            Request::Release { .. } => &mut sent.releases,
            Request::Audit { .. } => &mut sent.audits,
            Request::Shards { sent: true, .. } => &mut sent.puts,
            Request::Shards { .. } => &mut sent.leases,
            Request::Move { .. } => &mut sent.moves,
        } += 1;
        match request {
            Request::Put { seq, blocks } => {
                let found = self.read_all(from, &blocks);
                if found.is_empty() {
                    self.sent.puts -= 1;
                    return self.tell(from, Event::Unsent(self.devices[to].setup.device, seq));
                }
                let (blocks, bytes) = found.into_iter().unzip();
                self.send(from, to, Payload::Ask(Request::Put { seq, blocks }, bytes));
            }
            Request::Shards {
                seq,
                shards,
                sent: true,
            } => {
                let blocks: Vec<BlockId> = shards.iter().map(|(block, _)| *block).collect();
                let found = self.read_all(from, &blocks);
                // The carrier sends all or none.
                if found.len() < blocks.len() {
                    self.sent.puts -= 1;
                    return self.tell(from, Event::Unsent(self.devices[to].setup.device, seq));
                }
                let bytes = found.into_iter().map(|(_, bytes)| bytes).collect();
                let request = Request::Shards {
                    seq,
                    shards,
                    sent: true,
                };
                self.send(from, to, Payload::Ask(request, bytes));
            }
            request => self.send(from, to, Payload::Ask(request, Vec::new())),
        }
    }

    fn read_all(&self, from: usize, blocks: &[BlockId]) -> Vec<(BlockId, Bytes)> {
        let read = |block: &BlockId| Some((*block, self.fetch(from, block)?));
        blocks.iter().filter_map(read).collect()
    }

    /// What came along with a request is stored where there is room, not always rightly.
    fn take(&mut self, to: usize, blocks: &[BlockId], bytes: Vec<Bytes>) {
        for (block, bytes) in blocks.iter().zip(bytes) {
            let machine = self.devices[to].machine.as_ref();
            if machine.is_some_and(|m| m.has_room(bytes.len() as u32).unwrap()) {
                let put = Put {
                    id: *block,
                    bytes,
                    kind: PutKind::Cached,
                    plain: None,
                };
                self.devices[to].disk.inner.put(vec![put]).unwrap();
            }
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, payload: Payload) {
        let copies = 1 + u64::from(self.dice.hits(self.weather.twice));
        for _ in 0..copies {
            if self.dice.hits(self.weather.loss) || !self.linked(from, to) {
                continue;
            }
            // Now and then one is very late, and overtaken by others.
            let slow = if self.dice.hits(self.weather.twice) {
                100
            } else {
                1
            };
            let delay = 1 + self.dice.below(self.weather.delay_ms * slow);
            let payload = payload.clone();
            self.at(self.now + delay, super::Happening::Deliver { from, to, payload });
        }
    }

    pub(super) fn deliver(&mut self, from: usize, to: usize, payload: Payload) {
        let sender = self.devices[from].setup.device;
        if !self.devices[to].is_up() || self.devices[from].removed || self.devices[to].removed {
            return;
        }
        let (request, bytes) = match payload {
            Payload::Answer(answer) => return self.tell(to, Event::Answer(sender, answer)),
            Payload::Ask(request, bytes) => (request, bytes),
        };
        let lie = self.devices[to].lie;
        match request {
            Request::Audit { seq, slices } => {
                if lie != Some(Lie::Withholds) {
                    let verdicts = slices.iter().map(|s| (s.block, self.show(to, s))).collect();
                    self.send(to, from, Payload::Answer(Answer::Audited { seq, verdicts }));
                }
            }
            Request::Lease {
                challenge: Some(_), ..
            } if lie == Some(Lie::Withholds) => {}
            Request::Put { .. } | Request::Lease { .. } | Request::Shards { .. }
                if lie == Some(Lie::Drops) =>
            {
                let challenged = matches!(
                    request,
                    Request::Lease {
                        challenge: Some(_),
                        ..
                    }
                );
                let (seq, blocks) = named(&request);
                let answer = Answer::Leased {
                    seq,
                    term_secs: u64::MAX,
                    outcomes: blocks.iter().map(|block| (*block, Outcome::Granted)).collect(),
                };
                let answer = self.prove(to, answer, challenged);
                self.send(to, from, Payload::Answer(answer));
            }
            Request::Put { .. } | Request::Shards { sent: true, .. } => {
                let (_, blocks) = named(&request);
                self.take(to, &blocks, bytes);
                self.tell(to, Event::Request(sender, request));
                if lie == Some(Lie::Corrupts) {
                    for block in blocks {
                        let disk = &self.devices[to].disk;
                        disk.inner.damage(&block, Bytes::from_static(b"rot"));
                    }
                }
            }
            request => self.tell(to, Event::Request(sender, request)),
        }
    }
}

/// Number and blocks of a request for leases.
fn named(request: &Request) -> (u64, Vec<BlockId>) {
    match request {
        Request::Put { seq, blocks } | Request::Lease { seq, blocks, .. } => (*seq, blocks.clone()),
        Request::Shards { seq, shards, .. } => (*seq, shards.iter().map(|(block, _)| *block).collect()),
        _ => (0, Vec::new()),
    }
}
