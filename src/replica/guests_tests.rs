//! What a guest may have kept: by what it keeps for this device, and never beyond what all guests may have.

use std::sync::Arc;

use bytes::Bytes;

use super::machine::{Machine, Setup};
use super::message::{Action, Answer, Event, Member, Outcome, Report, Request};
use super::rules::Rules;
use crate::base::{BlockId, DeviceId};
use crate::store::{BlockStore, Kept, MemoryStore, Put, PutKind, Replica, ReplicaChange, ReplicaStore};

const OWN: DeviceId = DeviceId([1; 32]);
const GUEST: DeviceId = DeviceId([2; 32]);
const OTHER: DeviceId = DeviceId([3; 32]);
const INVITED: DeviceId = DeviceId([4; 32]);

/// A host with 20,000 bytes of which guests may have 5,000, each of them 1,000 for nothing.
struct Hosting {
    store: Arc<MemoryStore>,
    machine: Machine,
    now: u64,
    next: u64,
}

impl Hosting {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let setup = Setup {
            device: OWN,
            zone: "own".into(),
            quota: 20_000,
            public: 5000,
            allowance: 1000,
            reserve: 0,
            has_volume: false,
            wanted: 1,
            groups: None,
            rules: Rules::default(),
        };
        let disk = Arc::clone(&store) as Arc<dyn ReplicaStore>;
        let mut machine = Machine::start(disk, setup, 1_000_000, 0, 7).unwrap();
        let member = |device: DeviceId, guest| Member {
            device,
            zone: device.short().into(),
            quota: 0,
            guest,
        };
        let members = vec![
            member(OWN, false),
            member(GUEST, true),
            member(OTHER, true),
            member(INVITED, false),
        ];
        machine.handle(Event::Roster(members), 1).unwrap();
        Self {
            store,
            machine,
            now: 1,
            next: 0,
        }
    }

    fn bytes(&mut self) -> (BlockId, Bytes) {
        self.next += 1;
        let mut bytes = vec![7; 400];
        bytes[..8].copy_from_slice(&self.next.to_le_bytes());
        let bytes = Bytes::from(bytes);
        (BlockId::of(&bytes), bytes)
    }

    fn ask(&mut self, from: DeviceId, request: Request) -> (Vec<Outcome>, Vec<Report>) {
        self.now += 1;
        let actions = self
            .machine
            .handle(Event::Request(from, request), self.now)
            .unwrap();
        let mut told = (Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Answer(_, Answer::Leased { outcomes, .. }, _) => {
                    told.0.extend(outcomes.into_iter().map(|(_, outcome)| outcome));
                }
                Action::Report(report) => told.1.push(report),
                _ => {}
            }
        }
        told
    }

    /// Places `n` blocks of 400 bytes; those that were granted, and what was reported.
    fn place(&mut self, from: DeviceId, n: usize) -> (Vec<BlockId>, Vec<Report>) {
        let blocks: Vec<(BlockId, Bytes)> = (0..n).map(|_| self.bytes()).collect();
        for (id, bytes) in &blocks {
            let put = Put {
                id: *id,
                bytes: bytes.clone(),
                kind: PutKind::Cached,
                plain: None,
            };
            self.store.put(vec![put]).unwrap();
        }
        let ids: Vec<BlockId> = blocks.iter().map(|(id, _)| *id).collect();
        let (seq, blocks) = (self.next, ids.clone());
        let (outcomes, reports) = self.ask(from, Request::Put { seq, blocks });
        let granted = ids.into_iter().zip(outcomes);
        let granted = granted.filter(|(_, outcome)| *outcome == Outcome::Granted);
        (granted.map(|(id, _)| id).collect(), reports)
    }

    fn renew(&mut self, from: DeviceId, blocks: &[BlockId]) -> Vec<Outcome> {
        self.next += 1;
        let request = Request::Lease {
            seq: self.next,
            blocks: blocks.to_vec(),
            challenge: None,
        };
        self.ask(from, request).0
    }

    /// `holder` keeps a block of this device of `len` bytes from now on; zero: it does not any more.
    fn kept_there(&mut self, holder: DeviceId, len: u32) {
        let block = BlockId([holder.0[0]; 32]);
        let replica = Replica {
            block,
            holder,
            until: if len == 0 { 0 } else { 1 << 40 },
            renew: 0,
            granted: 0,
            seq: 1,
            leaving: false,
            record: 0,
        };
        let kept = Kept {
            block,
            len,
            wanted: 1,
            pinned: false,
            mark: 0,
            copies: 1,
            todo: None,
            group: None,
        };
        let changes = [ReplicaChange::Keep(kept), ReplicaChange::Replica(replica)];
        self.store.apply(&changes, false).unwrap();
        // It is looked up again about once a minute.
        self.now += 61_000;
    }
}

#[test]
fn a_guest_has_an_allowance_and_what_it_keeps_for_others() {
    let mut host = Hosting::new();
    let (first, reports) = host.place(GUEST, 4);
    assert_eq!(first.len(), 2, "1,000 bytes are two blocks of 400");
    assert!(matches!(reports[..], [Report::GuestRefused(GUEST, 800, 0)]));
    let (more, reports) = host.place(GUEST, 1);
    assert!(more.is_empty() && reports.is_empty(), "said once");
    assert_eq!(
        host.place(INVITED, 9).0.len(),
        9,
        "who was invited is not limited"
    );
    host.kept_there(GUEST, 1000);
    assert_eq!(host.place(GUEST, 9).0.len(), 3, "2,000 bytes are five blocks");
    assert_eq!(host.place(OTHER, 9).0.len(), 2, "each for itself");
}

#[test]
fn what_a_guest_has_stays_for_a_while_when_it_keeps_less() {
    let mut host = Hosting::new();
    host.kept_there(GUEST, 800);
    let (blocks, _) = host.place(GUEST, 4);
    assert_eq!(blocks.len(), 4);
    host.kept_there(GUEST, 0);
    assert_eq!(
        host.renew(GUEST, &blocks),
        [Outcome::Granted; 4],
        "1,600 of 1,000"
    );
    host.kept_there(GUEST, 4000);
    let (more, _) = host.place(GUEST, 4);
    host.kept_there(GUEST, 0);
    assert_eq!(host.renew(GUEST, &more), [Outcome::Full; 4], "3,200 of 1,000");
    host.machine
        .handle(
            Event::Request(
                GUEST,
                Request::Release {
                    seq: u64::MAX >> 1,
                    blocks: more,
                },
            ),
            host.now,
        )
        .unwrap();
    assert_eq!(host.renew(GUEST, &blocks), [Outcome::Granted; 4]);
}

#[test]
fn all_guests_together_stay_within_what_is_for_them() {
    let mut host = Hosting::new();
    host.kept_there(GUEST, 100_000);
    assert_eq!(host.place(GUEST, 20).0.len(), 12, "4,800 of 5,000 bytes");
    assert!(host.place(OTHER, 1).0.is_empty(), "not even of its allowance");
    assert_eq!(
        host.place(INVITED, 20).0.len(),
        20,
        "the rest is for who was invited"
    );
}
