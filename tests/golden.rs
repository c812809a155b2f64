//! Every format that dfs has ever written is still read, and the deterministic ones are still written bit by bit the same.
//!
//! The files in `tests/golden/` are never changed. A new format version adds files beside the old ones:
//! `DFS_WRITE_GOLDEN=1 cargo test --test golden` writes those that do not exist yet, from fixed keys and inputs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use dfs::base::limits::CHUNK_MAX;
use dfs::base::tree::{Meta, Place, ROOT};
use dfs::base::types::{FileKind, Timestamp};
use dfs::base::{BlockId, DeviceId, FileId, StoreId};
use dfs::keys::key_file::{self, KdfCost, KeyFileError, KeyKind, Passphrase};
use dfs::keys::{DeviceKey, GroupKey, Head, RootSecret, VolumeKeys, verify};
use dfs::object::map::{Edits, MemoryNodes, Nodes, Root, update};
use dfs::object::record::{Body, Record, version_hash};
use dfs::object::snapshot::{Made, Snapshot};
use dfs::object::{Content, Extent, IndexRef, Manifest, index, slot};
use dfs::seal::{Chunker, Opener, Piece, Sealer, epoch_of, plain_hash};
use zeroize::Zeroizing;

/// The golden file of this name, which is written first when it is asked for and does not exist.
fn golden(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if !path.exists() && std::env::var_os("DFS_WRITE_GOLDEN").is_some() {
        fs::write(&path, make()).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> RootSecret {
    RootSecret::from_bytes(std::array::from_fn(|n| n as u8))
}

fn keys() -> VolumeKeys {
    VolumeKeys::from_root(&root(), 2).unwrap()
}

fn id(n: u8) -> BlockId {
    BlockId::of(&[n])
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(b"golden")
        .finalize_xof()
        .fill(&mut out);
    out
}

fn open(block: &[u8]) -> Vec<u8> {
    let keys = keys();
    let key = keys.epoch(epoch_of(block).unwrap()).unwrap();
    let mut out = Vec::new();
    Opener::new().open(key, block, &mut out).unwrap();
    out
}

fn seal(plaintext: &[u8]) -> Vec<u8> {
    let keys = keys();
    let (epoch, key) = keys.current();
    Sealer::new(1)
        .unwrap()
        .seal(epoch, key, plaintext)
        .unwrap()
        .1
        .to_vec()
}

#[test]
fn blocks() {
    let raw = golden("block-v1-raw.bin", || seal(&noise(1000)));
    assert_eq!(open(&raw), noise(1000));
    assert_eq!(seal(&noise(1000)), raw);
    // What zstd makes of a text may change with its version: this one must open, not be repeated.
    let text = b"Stat rosa pristina nomine, nomina nuda tenemus. ".repeat(50);
    let compressed = golden("block-v1-zstd.bin", || seal(&text));
    assert_eq!(open(&compressed), text);
    assert!(compressed.len() < text.len() / 4);
    assert_eq!((epoch_of(&raw), epoch_of(&compressed)), (Ok(2), Ok(2)));
}

#[test]
fn heads() {
    let (device, group) = (DeviceKey::from_bytes(&[7; 32]), GroupKey::from_root(&root()).id());
    let issue = |before: Option<&Head>, n| {
        let volume = keys().volume();
        Head::issue(&device, &group, volume, before, id(n), 2, 1_700_000_000).encode(&group)
    };
    let first = golden("head-v1-first.bin", || issue(None, 1));
    assert_eq!(issue(None, 1), first);
    let head = Head::decode(&first, &group).unwrap();
    let second = golden("head-v1-second.bin", || issue(Some(&head), 2));
    assert_eq!(issue(Some(&head), 2), second);
    let next = Head::decode(&second, &group).unwrap();
    assert_eq!((next.seq, next.previous), (2, head.hash()));
}

fn extents() -> Vec<Extent> {
    let data = |len, n| Extent::data(len, id(n));
    vec![data(1, 1), Extent::hole(1 << 40), data(CHUNK_MAX as u32, 2)]
}

fn refs() -> Vec<IndexRef> {
    vec![
        IndexRef {
            len: 1 << 28,
            id: id(3),
        },
        IndexRef { len: 5, id: id(4) },
    ]
}

fn manifest(content: Content) -> Manifest {
    Manifest {
        file_id: FileId([0xf1; 16]),
        generation: 0x0102_0304_0506_0708,
        size: content.len().unwrap(),
        store: StoreId([0x51; 16]),
        seq: 0x1112_1314_1516_1718,
        content,
    }
}

#[test]
fn slots() {
    let cases = [
        ("slot-v1-empty.bin", Content::Inline(vec![])),
        ("slot-v1-inline.bin", Content::Inline(b"a small file\n".to_vec())),
        ("slot-v1-extents.bin", Content::Extents(extents())),
        (
            "slot-v1-index.bin",
            Content::Index {
                depth: 2,
                refs: refs(),
            },
        ),
        (
            "slot-v2-parts.bin",
            Content::Extents(vec![Extent::part(9, id(5), 3, 40), Extent::data(40, id(5))]),
        ),
    ];
    for (number, (name, content)) in cases.into_iter().enumerate() {
        let manifest = manifest(content);
        let encode = || slot::encode_with_nonce(&manifest, &keys(), [number as u8; 24]).unwrap();
        let bytes = golden(name, encode);
        assert_eq!(
            slot::decode(&bytes, &keys()),
            Ok(Some(manifest.clone())),
            "{name}"
        );
        assert_eq!(encode(), bytes, "{name}");
    }
}

#[test]
fn packed_slots() {
    // What zstd makes of a text may change with its version: this one must be read, not be repeated.
    let text = b"Stat rosa pristina nomine, nomina nuda tenemus. ".repeat(200);
    let manifest = manifest(Content::Inline(text));
    let encode = || slot::encode_with_nonce(&manifest, &keys(), [9; 24]).unwrap();
    let bytes = golden("slot-v2-packed.bin", encode);
    assert_eq!(slot::decode(&bytes, &keys()), Ok(Some(manifest)));
}

#[test]
fn index_blocks() {
    let parts = vec![Extent::part(9, id(5), 3, 40), Extent::data(40, id(5))];
    let bytes = golden("index-v2-parts.bin", || index::encode_extents(&parts));
    assert_eq!(index::decode_extents(&bytes).unwrap(), parts);
    assert_eq!(index::encode_extents(&parts), bytes);
    let bytes = golden("index-v1-extents.bin", || index::encode_extents(&extents()));
    assert_eq!(index::decode_extents(&bytes).unwrap(), extents());
    assert_eq!(index::encode_extents(&extents()), bytes);
    let bytes = golden("index-v1-refs.bin", || index::encode_refs(&refs()));
    assert_eq!(index::decode_refs(&bytes).unwrap(), refs());
    assert_eq!(index::encode_refs(&refs()), bytes);
}

/// A map of 500 entries of different lengths.
fn map(nodes: &MemoryNodes) -> Root {
    let entry = |n: usize| (format!("key {n:03}").into_bytes(), Some(noise(n * 37 % 300)));
    update(nodes, &Root::EMPTY, &(0..500).map(entry).collect::<Edits>()).unwrap()
}

#[test]
fn nodes_of_maps() {
    let nodes = MemoryNodes::default();
    let root = map(&nodes);
    assert_eq!(root.depth, 1);
    // Of an inner node the bytes say how the leaves were cut and hashed.
    let inner = golden("node-v1-inner.bin", || {
        nodes.get(&root.id.unwrap()).unwrap().to_vec()
    });
    assert_eq!(**nodes.get(&root.id.unwrap()).unwrap(), inner);
    let short = Edits::from([
        (b"a".to_vec(), Some(b"1".to_vec())),
        (b"b".to_vec(), Some(vec![])),
    ]);
    let root = update(&nodes, &Root::EMPTY, &short).unwrap();
    let leaf = golden("node-v1-leaf.bin", || {
        nodes.get(&root.id.unwrap()).unwrap().to_vec()
    });
    assert_eq!(**nodes.get(&root.id.unwrap()).unwrap(), leaf);
}

fn place(parent: FileId, name: &str) -> Place {
    Place {
        parent,
        name: name.as_bytes().into(),
    }
}

#[test]
fn records() {
    let id = FileId([0xf1; 16]);
    let xattrs = [("user.a", "1"), ("user.b", "")];
    let meta = Meta {
        mode: 0o4755,
        owner: (1000, 0x0102_0304),
        mtime: Timestamp {
            secs: -5,
            nanos: 999_999_999,
        },
        xattrs: xattrs
            .map(|(name, value)| (name.as_bytes().into(), value.as_bytes().into()))
            .into(),
    };
    let body = |content: Content| Body::File {
        size: content.len().unwrap(),
        content,
        author: DeviceId([0xd1; 32]),
    };
    let node = |body| Record::Node {
        id,
        meta: meta.clone(),
        body,
    };
    let cases = [
        (
            "record-v1-inline.bin",
            node(body(Content::Inline(b"a small file\n".to_vec()))),
        ),
        ("record-v1-extents.bin", node(body(Content::Extents(extents())))),
        (
            "record-v1-symlink.bin",
            node(Body::Symlink(b"../target".as_slice().into())),
        ),
        (
            "record-v1-device.bin",
            node(Body::Special(FileKind::CharDevice, 0x0105)),
        ),
        ("record-v1-directory.bin", Record::Directory { id }),
        (
            "record-v1-own.bin",
            Record::Own {
                parent: ROOT,
                name: b"a directory".as_slice().into(),
                meta: meta.clone(),
            },
        ),
        ("record-v1-link.bin", Record::Link { id }),
        (
            "record-v1-shared.bin",
            Record::Shared {
                places: [place(ROOT, "one"), place(id, "two")].into(),
                meta: meta.clone(),
                body: body(Content::Index {
                    depth: 2,
                    refs: refs(),
                }),
            },
        ),
    ];
    for (name, record) in cases {
        let bytes = golden(name, || record.encode());
        assert_eq!(Record::decode(&bytes).unwrap(), record, "{name}");
        assert_eq!(record.encode(), bytes, "{name}");
    }
}

#[test]
fn snapshots() {
    let made = Made {
        device: DeviceId([0xd1; 32]),
        seq: 0x0102_0304_0506_0708,
        epoch: 2,
        time: Timestamp {
            secs: 1_790_000_000,
            nanos: 5,
        },
    };
    let root = Root {
        id: Some(id(6)),
        depth: 2,
        len: 1_000_000,
    };
    let mut parents = vec![id(7), id(8)];
    parents.sort_unstable();
    let cases = [
        ("snapshot-v1-first.bin", vec![], Root::EMPTY, Some(made)),
        ("snapshot-v1-merge.bin", parents, root, None),
    ];
    for (name, parents, root, made) in cases {
        let snapshot = Snapshot { parents, root, made };
        let bytes = golden(name, || snapshot.encode());
        assert_eq!(Snapshot::decode(&bytes).unwrap(), snapshot, "{name}");
        assert_eq!(snapshot.encode(), bytes, "{name}");
    }
}

#[test]
fn volume_keys() {
    let bytes = golden("volume-keys-v1.bin", || keys().encode().to_vec());
    assert_eq!(*VolumeKeys::decode(&bytes).unwrap().encode(), bytes);
    assert_eq!(*keys().encode(), bytes);
}

#[test]
fn key_files() {
    let secret = *root().as_bytes();
    let plain = golden("key-file-v1-plain.bin", || {
        key_file::encode(KeyKind::Root, &secret, None).unwrap().to_vec()
    });
    let expected = (KeyKind::Root, Zeroizing::new(secret.to_vec()));
    assert_eq!(key_file::decode(&plain, None).unwrap(), expected);
    assert_eq!(*key_file::encode(KeyKind::Root, &secret, None).unwrap(), plain);

    let words = |text: &str| Passphrase::new(Zeroizing::new(text.to_owned())).unwrap();
    let cost = KdfCost {
        memory_kib: 64,
        passes: 2,
        lanes: 2,
    };
    let sealed = golden("key-file-v1-sealed.bin", || {
        let passphrase = words("Stat rosa pristina nomine");
        let file = key_file::encode_with_cost(KeyKind::Device, &secret, Some((&passphrase, cost)));
        file.unwrap().to_vec()
    });
    let opened = key_file::decode(&sealed, Some(&words("Stat rosa pristina nomine"))).unwrap();
    assert_eq!(opened, (KeyKind::Device, Zeroizing::new(secret.to_vec())));
    let wrong = key_file::decode(&sealed, Some(&words("stat rosa pristina nomine")));
    assert_eq!(wrong, Err(KeyFileError::WrongPassphrase));
}

/// Everything that is derived and compared between devices or versions, as text.
fn derived() -> String {
    let (keys, group) = (keys(), GroupKey::from_root(&root()));
    let device = DeviceKey::from_bytes(&[7; 32]);
    let root_of = |content: Content| content.root().unwrap();
    let index = Content::Index {
        depth: 1,
        refs: refs(),
    };
    let mut text = String::new();
    writeln!(text, "phrase {}", *root().to_phrase()).unwrap();
    writeln!(text, "volume {}", keys.volume()).unwrap();
    writeln!(text, "group {}", group.id()).unwrap();
    writeln!(text, "device {}", device.id()).unwrap();
    writeln!(text, "plain hash {}", plain_hash(keys.index_key(), b"plaintext")).unwrap();
    writeln!(text, "root of extents {}", root_of(Content::Extents(extents()))).unwrap();
    writeln!(text, "root of index {}", root_of(index)).unwrap();
    let signature = BlockId::of(&group.sign(b"message"));
    assert!(verify(&group.public(), b"message", &group.sign(b"message")));
    writeln!(text, "hash of the group's signature {signature}").unwrap();
    text
}

#[test]
fn versions_of_files() {
    let hash = BlockId(version_hash(&Content::Extents(extents())));
    let text = golden("version-v1.txt", || hash.to_string().into_bytes());
    assert_eq!(hash.to_string().into_bytes(), text);
}

#[test]
fn derivations() {
    let text = golden("derived-v1.txt", || derived().into_bytes());
    assert_eq!(derived(), String::from_utf8(text).unwrap());
}

/// Where a file of noise, a hole and a repeated pattern is cut.
fn cuts() -> String {
    let pattern = noise(3000).repeat(300);
    let file = [noise(3 << 20), vec![0; 500_000], noise(100_000), pattern].concat();
    let keys = keys();
    let chunker = Chunker::new(keys.chunk_key());
    let (mut at, mut text) = (0, String::new());
    while let Some(piece) = chunker.cut(&file[at..], true) {
        match piece {
            Piece::Data(len) => writeln!(text, "data {len}").unwrap(),
            Piece::Zeros(len) => writeln!(text, "zeros {len}").unwrap(),
        }
        at += piece.len();
    }
    text
}

#[test]
fn chunk_boundaries() {
    let text = golden("cuts-v1.txt", || cuts().into_bytes());
    assert_eq!(cuts(), String::from_utf8(text).unwrap());
}
