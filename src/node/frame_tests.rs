//! The frames' bytes, and what is refused.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::base::DeviceId;
use crate::keys::head::HEAD_LEN as HEAD_BYTES;
use crate::node::head_news::{HEADS_AT_ONCE, Place};
use proptest::prelude::*;

fn whole(frame: &Frame) -> Vec<u8> {
    let (mut bytes, tail) = frame.encode();
    if let Some(tail) = tail {
        bytes.extend_from_slice(tail);
    }
    bytes
}

#[test]
fn golden_bytes_of_version_1() {
    let hex = |frame: &Frame| data_encoding::HEXLOWER.encode(&whole(frame));
    let id = BlockId([0xab; 32]);
    assert_eq!(
        hex(&Frame::Get { request: 7, id }),
        format!("250000000407000000{}", "ab".repeat(32))
    );
    assert_eq!(
        hex(&Frame::Data {
            request: 7,
            block: Bytes::from_static(b"xyz")
        }),
        "080000000507000000 78797a".replace(' ', "")
    );
    assert_eq!(hex(&Frame::Missing { request: 1 }), "050000000601000000");
    assert_eq!(
        hex(&Frame::Held {
            request: 1,
            held: vec![true, false, true, false, false, false, false, false, true]
        }),
        "0900000003010000000900 0501".replace(' ', "")
    );
    assert_eq!(hex(&Frame::Cancel { request: 2 }), "050000000902000000");
    assert_eq!(
        hex(&Frame::Busy {
            request: 2,
            retry_ms: 256
        }),
        "090000000a0200000000010000"
    );
    assert_eq!(
        hex(&Frame::Error {
            request: 0,
            code: Code::NotAMember,
            text: "no".into()
        }),
        "0b0000000b00000000010002006e6f"
    );
    assert_eq!(
        hex(&Frame::Provide {
            roots: vec![[0xcd; 32]]
        }),
        format!("23000000170100{}", "cd".repeat(32))
    );
    let find = Find {
        search: [1; 16],
        hops: 2,
        record: vec![9],
        ids: vec![id],
    };
    assert_eq!(
        hex(&Frame::Find(Box::new(find))),
        format!("3700000018{}020100090100{}", "01".repeat(16), "ab".repeat(32))
    );
    assert_eq!(
        hex(&Frame::Found {
            search: [1; 16],
            ids: vec![id]
        }),
        format!("3300000019{}0100{}", "01".repeat(16), "ab".repeat(32))
    );
    assert_eq!(
        hex(&Frame::Heads(HeadNews::Digest([0xcd; 32]))),
        format!("220000001a01{}", "cd".repeat(32))
    );
    let place = Place {
        device: DeviceId([1; 32]),
        seq: 2,
        hash: [3; 32],
    };
    assert_eq!(
        hex(&Frame::Heads(HeadNews::Known(vec![place]))),
        format!(
            "4c0000001a020100{}0200000000000000{}",
            "01".repeat(32),
            "03".repeat(32)
        )
    );
    assert_eq!(
        hex(&Frame::Heads(HeadNews::Newer(vec![[0xef; HEAD_BYTES]]))),
        format!("ed0000001a030100{}", "ef".repeat(HEAD_BYTES))
    );
    assert_eq!(hex(&Frame::Credit { bytes: 1 }), "050000000c01000000");
    assert_eq!(
        hex(&Frame::Hello {
            version: 1,
            window: 2,
            requests: 3,
            certificate: vec![9]
        }),
        "0c00000001010002000000 0300 0100 09".replace(' ', "")
    );
}

#[test]
fn giants_are_refused_by_their_head_alone() {
    let head = |len: u32, kind: u8| {
        let mut bytes = [0; HEAD_LEN];
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4] = kind;
        Head::decode(bytes)
    };
    assert!(head(u32::MAX, DATA).is_err());
    assert!(head(BLOCK_MAX as u32 + 6, DATA).is_err());
    assert!(head(BLOCK_MAX as u32 + 5, DATA).is_ok());
    assert!(head(38, GET).is_err());
    assert!(head(0, GET).is_err());
    assert!(head(1, 0).is_err());
    assert!(head(1, 99).is_err());
}

#[test]
fn no_head_and_too_many_are_refused() {
    let newer = |count: usize| {
        let heads = vec![[0; HEAD_BYTES]; count];
        decode_whole(&whole(&Frame::Heads(HeadNews::Newer(heads))))
    };
    assert!(newer(0).is_err());
    assert!(newer(HEADS_AT_ONCE).is_ok());
    assert!(newer(HEADS_AT_ONCE + 1).is_err());
    let known = |count: usize| {
        let place = Place {
            device: DeviceId([0; 32]),
            seq: 1,
            hash: [0; 32],
        };
        decode_whole(&whole(&Frame::Heads(HeadNews::Known(vec![place; count]))))
    };
    assert!(known(STATEMENTS_MAX).is_ok());
    assert!(known(STATEMENTS_MAX + 1).is_err());
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let id = any::<[u8; 32]>().prop_map(BlockId);
    let block = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let bytes = proptest::collection::vec(any::<u8>(), 0..200);
    let few = proptest::collection::vec(bytes.clone(), 1..4);
    prop_oneof![
        any::<[u8; 32]>().prop_map(|digest| Frame::Roster { digest }),
        (
            any::<[u8; 16]>(),
            0u8..3,
            bytes.clone(),
            proptest::collection::vec(id.clone(), 1..9)
        )
            .prop_map(|(search, hops, record, ids)| Frame::Find(Box::new(Find {
                search,
                hops,
                record,
                ids
            }))),
        (any::<[u8; 16]>(), proptest::collection::vec(id.clone(), 1..9))
            .prop_map(|(search, ids)| Frame::Found { search, ids }),
        proptest::collection::vec(any::<[u8; 32]>(), 1..9).prop_map(|roots| Frame::Provide { roots }),
        proptest::collection::vec(any::<[u8; 16]>().prop_map(StatementId), 0..40)
            .prop_map(|ids| Frame::Known { ids }),
        few.prop_map(|statements| Frame::Statements { statements }),
        bytes.clone().prop_map(|presence| Frame::Presence {
            presence: presence[..presence.len().min(PRESENCE_MAX)].to_vec()
        }),
        (any::<u32>(), any::<bool>()).prop_map(|(newest, root)| Frame::KeysWanted { newest, root }),
        bytes.clone().prop_map(|gift| Frame::Keys {
            gift: Gift(Zeroizing::new(gift))
        }),
        (any::<u16>(), any::<u32>(), any::<u16>(), bytes.clone()).prop_map(
            |(version, window, requests, certificate)| Frame::Hello {
                version,
                window,
                requests,
                certificate
            }
        ),
        (any::<u32>(), proptest::collection::vec(id.clone(), 1..HAVE_MAX))
            .prop_map(|(request, ids)| Frame::Have { request, ids }),
        (
            any::<u32>(),
            proptest::collection::vec(any::<bool>(), 1..HAVE_MAX)
        )
            .prop_map(|(request, held)| Frame::Held { request, held }),
        (any::<u32>(), id.clone()).prop_map(|(request, id)| Frame::Get { request, id }),
        (any::<u32>(), block.clone()).prop_map(|(request, block)| Frame::Data { request, block }),
        any::<u32>().prop_map(|request| Frame::Missing { request }),
        (any::<u32>(), id, block).prop_map(|(request, id, block)| Frame::Put { request, id, block }),
        prop_oneof![
            any::<[u8; 32]>().prop_map(HeadNews::Digest),
            proptest::collection::vec((any::<[u8; 32]>(), any::<u64>()), 0..9).prop_map(|places| {
                let place = |(hash, seq)| Place {
                    device: DeviceId(hash),
                    seq,
                    hash,
                };
                HeadNews::Known(places.into_iter().map(place).collect())
            }),
            proptest::collection::vec(any::<u8>(), 1..9)
                .prop_map(|heads| HeadNews::Newer(heads.into_iter().map(|n| [n; HEAD_BYTES]).collect())),
        ]
        .prop_map(Frame::Heads),
        any::<u32>().prop_map(|request| Frame::Stored { request }),
        (any::<u32>(), bytes.clone()).prop_map(|(request, body)| Frame::Say {
            request,
            body: body.into()
        }),
        (any::<u32>(), bytes).prop_map(|(request, body)| Frame::Said {
            request,
            body: body.into()
        }),
        any::<u32>().prop_map(|request| Frame::Cancel { request }),
        (any::<u32>(), any::<u32>()).prop_map(|(request, retry_ms)| Frame::Busy { request, retry_ms }),
        (any::<u32>(), 1u16..5, "[a-zé]{0,40}").prop_map(|(request, code, text)| Frame::Error {
            request,
            code: Code::from_u16(code).unwrap(),
            text
        }),
        any::<u32>().prop_map(|bytes| Frame::Credit { bytes }),
        (any::<[u8; 16]>(), any::<u64>(), any::<[u8; 32]>()).prop_map(|(id, expires, device)| {
            Frame::Spent {
                invitation: InvitationId(id),
                expires,
                device,
            }
        }),
    ]
}

proptest! {
    #[test]
    fn every_frame_round_trips(frame in any_frame()) {
        prop_assert_eq!(decode_whole(&whole(&frame)), Ok(frame));
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(kind in 0u8..28, body in proptest::collection::vec(any::<u8>(), 0..120)) {
        let mut bytes = (body.len() as u32 + 1).to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend_from_slice(&body);
        if let Ok(frame) = decode_whole(&bytes) {
            prop_assert_eq!(whole(&frame), bytes);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_whole(&bytes);
    }
}
