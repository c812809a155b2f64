//! What the machine does event by event, where the simulation would need luck to see it.

use std::sync::Arc;

use bytes::Bytes;

use super::machine::{Machine, Setup};
use super::message::{Action, Event, Member, Request, Retained};
use super::rules::Rules;
use crate::base::{BlockId, DeviceId};
use crate::store::{BlockStore, MemoryStore, Put, PutKind};

const OWN: DeviceId = DeviceId([1; 32]);
const HOST: DeviceId = DeviceId([2; 32]);

fn member(device: DeviceId, zone: &str) -> Member {
    Member {
        device,
        zone: zone.into(),
        quota: 1 << 30,
        guest: false,
    }
}

/// The number of the PUT among actions.
fn put_in(actions: &[Action]) -> Option<u64> {
    actions.iter().find_map(|action| match action {
        Action::Ask(_, Request::Put { seq, .. }) => Some(*seq),
        _ => None,
    })
}

#[test]
fn a_connection_that_breaks_again_and_again_keeps_no_block_waiting() {
    let store = Arc::new(MemoryStore::default());
    let bytes = Bytes::from_static(b"a block");
    let block = BlockId::of(&bytes);
    let put = Put {
        id: block,
        bytes,
        kind: PutKind::Dirty,
        plain: None,
    };
    store.put(vec![put]).unwrap();
    let setup = Setup {
        device: OWN,
        zone: "own".into(),
        quota: 0,
        public: 0,
        allowance: 0,
        reserve: 0,
        has_volume: true,
        wanted: 1,
        groups: None,
        rules: Rules::default(),
    };
    let mut machine = Machine::start(store, setup, 1_000_000, 0, 7).unwrap();
    let members = vec![member(OWN, "own"), member(HOST, "other")];
    machine.handle(Event::Roster(members), 1).unwrap();
    let retained = Retained {
        block,
        len: 7,
        wanted: 1,
        pinned: false,
    };
    machine.handle(Event::Retain(vec![retained]), 2).unwrap();
    for round in 0..20 {
        // The carrier hears of it before the node says that the member is gone.
        let now = 1000 * (round + 1);
        let asked = put_in(&machine.handle(Event::Connected(HOST), now).unwrap());
        let seq = asked.unwrap_or_else(|| panic!("it waits in round {round}"));
        let actions = machine.handle(Event::Unanswered(HOST, seq), now + 1).unwrap();
        assert_eq!(put_in(&actions), None, "not over the same connection at once");
        machine.handle(Event::Disconnected(HOST), now + 2).unwrap();
    }
    // What cannot be had waits, whoever comes.
    let actions = machine.handle(Event::Connected(HOST), 50_000).unwrap();
    let seq = put_in(&actions).unwrap();
    machine.handle(Event::Unsent(HOST, seq), 50_001).unwrap();
    machine.handle(Event::Disconnected(HOST), 50_002).unwrap();
    let actions = machine.handle(Event::Connected(HOST), 50_003).unwrap();
    assert_eq!(put_in(&actions), None);
}
