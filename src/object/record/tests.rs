//! Records: what decodes is what was encoded, and what no file can be is refused.

use proptest::prelude::*;

use super::super::content::{Extent, IndexRef};
use super::*;
use crate::base::BlockId;

fn meta() -> impl Strategy<Value = Meta> {
    let time = (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos });
    let bytes = |least| proptest::collection::vec(1..=255_u8, least..20).prop_map(Vec::into_boxed_slice);
    let xattrs = proptest::collection::btree_map(bytes(1), bytes(0), 0..4);
    (0..=0o7777_u32, any::<(u32, u32)>(), time, xattrs).prop_map(|(mode, owner, mtime, xattrs)| Meta {
        mode,
        owner,
        mtime,
        xattrs,
    })
}

fn content() -> impl Strategy<Value = Content> {
    let inline = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Content::Inline);
    let extent = (1..1_000_000_u32, any::<Option<[u8; 32]>>()).prop_map(|(len, id)| match id {
        Some(id) => Extent::data(len, BlockId(id)),
        None => Extent::hole(u64::from(len)),
    });
    let extents = proptest::collection::vec(extent, 0..5).prop_map(Content::Extents);
    let entry = (1..1_000_000_u64, any::<[u8; 32]>()).prop_map(|(len, id)| IndexRef { len, id: BlockId(id) });
    let index = (1..=6_u8, proptest::collection::vec(entry, 1..4));
    let index = index.prop_map(|(depth, refs)| Content::Index { depth, refs });
    prop_oneof![inline, extents, index]
}

fn body() -> impl Strategy<Value = Body> {
    let file = (content(), any::<[u8; 32]>()).prop_map(|(content, author)| Body::File {
        size: content.len().unwrap(),
        content,
        author: DeviceId(author),
    });
    let target = proptest::collection::vec(1..=255_u8, 1..100);
    let special = prop_oneof![
        Just(Body::Special(FileKind::Fifo, 0)),
        Just(Body::Special(FileKind::Socket, 0)),
        any::<u64>().prop_map(|number| Body::Special(FileKind::CharDevice, number)),
        any::<u64>().prop_map(|number| Body::Special(FileKind::BlockDevice, number)),
    ];
    prop_oneof![
        file,
        target.prop_map(|target| Body::Symlink(target.into())),
        special
    ]
}

fn place() -> impl Strategy<Value = Place> {
    (any::<[u8; 16]>(), "[a-zä]{1,30}").prop_map(|(parent, name)| Place {
        parent: FileId(parent),
        name: name.into_bytes().into(),
    })
}

fn record() -> impl Strategy<Value = Record> {
    let id = || (1..u128::MAX).prop_map(|n| FileId(n.to_le_bytes()));
    let own = (place(), meta()).prop_map(|(Place { parent, name }, meta)| Record::Own { parent, name, meta });
    let shared = (proptest::collection::btree_set(place(), 2..5), meta(), body());
    prop_oneof![
        (id(), meta(), body()).prop_map(|(id, meta, body)| Record::Node { id, meta, body }),
        id().prop_map(|id| Record::Directory { id }),
        own,
        id().prop_map(|id| Record::Link { id }),
        shared.prop_map(|(places, meta, body)| Record::Shared { places, meta, body }),
    ]
}

proptest! {
    #[test]
    fn records_round_trip_and_bytes_have_one_meaning(record in record(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = record.encode();
        prop_assert_eq!(Record::decode(&bytes), Ok(record));
        let at = at.index(bytes.len());
        prop_assert!(Record::decode(&bytes[..at]).is_err());
        bytes[at] = byte;
        if let Ok(other) = Record::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
        }
    }
}

fn file(content: Content, size: u64) -> Record {
    Record::Node {
        id: FileId([1; 16]),
        meta: Meta::default(),
        body: Body::File {
            content,
            size,
            author: DeviceId([2; 32]),
        },
    }
}

fn own(name: &[u8], meta: Meta) -> Record {
    Record::Own {
        parent: ROOT,
        name: name.into(),
        meta,
    }
}

#[test]
fn what_no_file_can_be_is_refused() {
    let with_body = |body| Record::Node {
        id: FileId([1; 16]),
        meta: Meta::default(),
        body,
    };
    let with_meta = |change: fn(&mut Meta)| {
        let mut meta = Meta::default();
        change(&mut meta);
        own(b"d", meta)
    };
    let wrong = [
        file(Content::Inline(vec![0; 5]), 6),
        file(
            Content::Inline(vec![0; packed_max() + 1]),
            packed_max() as u64 + 1,
        ),
        with_body(Body::Symlink([].into())),
        with_body(Body::Symlink(b"a\0b".as_slice().into())),
        with_body(Body::Symlink(vec![b'a'; SYMLINK_MAX + 1].into())),
        with_body(Body::Special(FileKind::Fifo, 1)),
        with_body(Body::Special(FileKind::Regular, 0)),
        own(b"", Meta::default()),
        own(b"..", Meta::default()),
        own(b"a/b", Meta::default()),
        own(&[b'n'; 254], Meta::default()),
        with_meta(|meta| meta.mode = 0o10000),
        with_meta(|meta| meta.mtime.nanos = 1_000_000_000),
        with_meta(|meta| drop(meta.xattrs.insert([].into(), [].into()))),
        with_meta(|meta| {
            drop(
                meta.xattrs
                    .insert([1].into(), vec![0; XATTR_VALUE_MAX + 1].into()),
            )
        }),
        Record::Directory { id: ROOT },
        Record::Shared {
            places: BTreeSet::new(),
            meta: Meta::default(),
            body: Body::Special(FileKind::Fifo, 0),
        },
    ];
    for record in wrong {
        let refused = Record::decode(&record.encode());
        assert!(matches!(refused, Err(DecodeError::Invalid(_))), "{record:?}");
    }
}

#[test]
fn a_record_belongs_at_a_key_of_its_kind() {
    let id = FileId([7; 16]);
    let (named, by_id) = (key(&id, b"name"), own_key(&id));
    let directory = Record::Directory { id }.encode();
    let own = own(b"d", Meta::default()).encode();
    let entry = Record::decode_entry(&named, &directory);
    assert_eq!(entry, Ok((id, b"name".as_slice(), Record::Directory { id })));
    assert!(Record::decode_entry(&by_id, &own).is_ok());
    assert!(Record::decode_entry(&by_id, &directory).is_err());
    assert!(Record::decode_entry(&named, &own).is_err());
    assert!(Record::decode_entry(&own_key(&ROOT), &own).is_err());
    assert!(Record::decode_entry(&key(&id, b".."), &directory).is_err());
    assert!(Record::decode_entry(&[7; 15], &directory).is_err());
}

#[test]
fn a_file_has_one_record_or_one_by_its_id_and_one_for_each_name() {
    let place = |name: &str| Place {
        parent: ROOT,
        name: name.as_bytes().into(),
    };
    let entries = |id, names: &[&str]| {
        let places = names.iter().copied().map(place).collect();
        file_entries(id, places, Meta::default(), Body::Special(FileKind::Fifo, 0))
    };
    let (drawn, derived) = (FileId([7; 16]), FileId::derived(&[7; 32]));
    for (id, names, count) in [
        (drawn, &["a"][..], 1),
        (derived, &["a"], 2),
        (drawn, &["a", "b"], 3),
    ] {
        let entries = entries(id, names);
        assert_eq!(entries.len(), count);
        for (key, record) in entries {
            assert!(Record::decode_entry(&key, &record.encode()).is_ok(), "{record:?}");
        }
    }
    let (key, alone) = entries(drawn, &["a"]).pop_first().unwrap();
    let Record::Node { meta, body, .. } = alone else {
        panic!("one record")
    };
    let hidden = Record::Node {
        id: derived,
        meta,
        body,
    };
    assert!(Record::decode_entry(&key, &hidden.encode()).is_err());
    let shared = entries(derived, &["a"])[&own_key(&derived)].encode();
    assert!(Record::decode_entry(&own_key(&drawn), &shared).is_err());
    for (key, record) in directory_entries(drawn, place("d"), Meta::default()) {
        assert!(Record::decode_entry(&key, &record.encode()).is_ok(), "{record:?}");
    }
}

#[test]
fn equal_contents_have_equal_versions() {
    let hash = |bytes: &[u8]| version_hash(&Content::Inline(bytes.to_vec()));
    assert_eq!(hash(b"a"), hash(b"a"));
    assert_ne!(hash(b"a"), hash(b"b"));
}
