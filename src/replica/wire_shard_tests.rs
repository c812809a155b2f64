//! Messages about groups and their shards.

use std::sync::Arc;

use super::erasure::{Group, SHARDS_MAX};
use super::message::Request;
use super::wire::{SHARDS_BODY_MAX, Said, Told, shards_max};
use crate::base::BlockId;

fn group() -> Group {
    Group {
        data: vec![(BlockId([1; 32]), 100), (BlockId([2; 32]), 65_537)],
        parity: vec![BlockId([3; 32])],
    }
}

#[test]
fn shards_and_groups_come_back_as_they_were() {
    let shards = vec![
        (BlockId([2; 32]), Arc::new(group())),
        (BlockId([3; 32]), Arc::new(group())),
    ];
    let said = [
        Said::Request(Request::Shards {
            seq: 9,
            shards,
            sent: true,
        }),
        Said::Which(BlockId([1; 32])),
    ];
    let told = Told::Groups(vec![group()]);
    let bytes: Vec<u8> = said.iter().flat_map(Said::encode).chain(told.encode()).collect();
    assert_eq!(
        blake3::hash(&bytes).to_hex().as_str(),
        "d5040a2eff92b4c9898fc6521125b572a1eaed3f706374159af3c0205bb47b53",
        "the messages about groups changed: raise the version of the protocol"
    );
    assert_eq!(Told::decode(&told.encode()), Ok(told));
    for said in said {
        assert_eq!(Said::decode(&said.encode()), Ok(said));
    }
    let of_another = Request::Shards {
        seq: 9,
        shards: vec![(BlockId([4; 32]), Arc::new(group()))],
        sent: false,
    };
    assert!(Said::decode(&Said::Request(of_another).encode()).is_err());
}

#[test]
fn as_many_shards_as_go_into_a_message_do() {
    for shards in [1, 8, SHARDS_MAX] {
        let group = Arc::new(Group {
            data: vec![(BlockId([1; 32]), 100); shards],
            parity: vec![BlockId([3; 32]); shards],
        });
        let most = shards_max(&group);
        let request = Request::Shards {
            seq: 9,
            shards: vec![(BlockId([1; 32]), group); most],
            sent: false,
        };
        let len = Said::Request(request).encode().len();
        assert!(
            most > 0 && len <= SHARDS_BODY_MAX,
            "{most} of {shards}: {len} bytes"
        );
    }
}
