//! What a change of a volume of a million files costs in nodes of its map: `cargo bench --bench map`.
//!
//! Nodes are kept in memory; each new one is sealed as well, to see how much would be stored. `docs/decisions/snapshots.md` has the figures.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first fault and prints what it found"
)]

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs::base::tree::{Meta, Place, ROOT};
use dfs::base::types::Timestamp;
use dfs::base::{BlockId, DeviceId, FileId};
use dfs::keys::{RootSecret, VolumeKeys};
use dfs::object::map::{Edits, MemoryNodes, Nodes, Root, diff, scan, update};
use dfs::object::record::{Body, Record, directory_entries, file_entries, key, own_key};
use dfs::object::{Content, Extent};
use dfs::seal::Sealer;

const FILES: u64 = 1_000_000;
const FILES_IN_DIRECTORY: u64 = 200;
const ROUNDS: u64 = 1000;

/// Nodes in memory that counts and seals what is put.
struct Counted {
    nodes: MemoryNodes,
    keys: VolumeKeys,
    sealer: RefCell<Sealer>,
    read: Cell<u64>,
    written: Cell<u64>,
    bytes: Cell<u64>,
    sealed: Cell<u64>,
    sealing: Cell<Duration>,
}

impl Nodes for Counted {
    type Error = Infallible;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Infallible> {
        self.read.set(self.read.get() + 1);
        self.nodes.get(id)
    }

    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>, Infallible> {
        let start = Instant::now();
        let (epoch, key) = self.keys.current();
        for node in nodes {
            let (_, block) = self.sealer.borrow_mut().seal(epoch, key, node).unwrap();
            self.written.set(self.written.get() + 1);
            self.bytes.set(self.bytes.get() + node.len() as u64);
            self.sealed.set(self.sealed.get() + block.len() as u64);
        }
        self.sealing.set(self.sealing.get() + start.elapsed());
        self.nodes.put(nodes)
    }
}

fn hash(of: &str, n: u64) -> [u8; 32] {
    *blake3::Hasher::new()
        .update(of.as_bytes())
        .update(&n.to_le_bytes())
        .finalize()
        .as_bytes()
}

fn id(of: &str, n: u64) -> FileId {
    let mut id = FileId([0; 16]);
    id.0.copy_from_slice(&hash(of, n)[..16]);
    id
}

fn meta(secs: u64) -> Meta {
    Meta {
        mode: 0o644,
        owner: (1000, 1000),
        mtime: Timestamp {
            secs: 1_700_000_000 + secs as i64,
            nanos: (secs * 7919 % 1_000_000_000) as u32,
        },
        ..Meta::default()
    }
}

/// A photograph of one chunk, in its `version`.
fn file(n: u64, version: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let place = Place {
        parent: id("directory", n / FILES_IN_DIRECTORY),
        name: format!("IMG_{n:07}.jpg").into_bytes().into(),
    };
    let len = 100_000 + (n % 100_000) as u32;
    let extent = Extent::data(len, BlockId(hash("block", n + version * 2 * FILES)));
    let body = Body::File {
        content: Content::Extents(vec![extent]),
        size: u64::from(len),
        author: DeviceId(hash("device", n % 3)),
    };
    encoded(file_entries(
        id("file", n),
        [place].into(),
        meta(n + version),
        body,
    ))
}

fn directory(n: u64, name: &str, secs: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let place = Place {
        parent: ROOT,
        name: format!("{name} {n}").into_bytes().into(),
    };
    encoded(directory_entries(id("directory", n), place, meta(secs)))
}

fn encoded(entries: impl IntoIterator<Item = (Vec<u8>, Record)>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    entries
        .into_iter()
        .map(|(key, record)| (key, Some(record.encode())))
        .collect()
}

/// Makes `ROUNDS` changes of a map, each of its own.
fn changes(nodes: &Counted, root: &Root, what: &str, make: impl Fn(u64) -> Edits) {
    let (mut spent, mut most) = (Duration::ZERO, [0; 4]);
    let mut sum = [0; 4];
    nodes.sealing.take();
    for round in 0..ROUNDS {
        let edits = make(round * 7919 % FILES);
        for counter in [&nodes.read, &nodes.written, &nodes.bytes, &nodes.sealed] {
            counter.take();
        }
        let start = Instant::now();
        update(nodes, root, &edits).unwrap();
        spent += start.elapsed();
        let found = [&nodes.read, &nodes.written, &nodes.bytes, &nodes.sealed].map(Cell::take);
        for n in 0..4 {
            sum[n] += found[n];
            most[n] = most[n].max(found[n]);
        }
    }
    let mean = sum.map(|sum| sum / ROUNDS);
    println!(
        "{what}: {:.2} ms, of it {:.2} ms sealing; nodes read {} (most {}), written {} ({}), bytes {} ({}), sealed {} ({})",
        spent.as_secs_f64() * 1e3 / ROUNDS as f64,
        nodes.sealing.take().as_secs_f64() * 1e3 / ROUNDS as f64,
        mean[0],
        most[0],
        mean[1],
        most[1],
        mean[2],
        most[2],
        mean[3],
        most[3],
    );
}

fn main() {
    let nodes = Counted {
        nodes: MemoryNodes::default(),
        keys: VolumeKeys::from_root(&RootSecret::from_bytes([1; 32]), 1).unwrap(),
        sealer: RefCell::new(Sealer::new(1).unwrap()),
        read: Cell::new(0),
        written: Cell::new(0),
        bytes: Cell::new(0),
        sealed: Cell::new(0),
        sealing: Cell::new(Duration::ZERO),
    };
    let mut edits: Edits = (0..FILES).flat_map(|n| file(n, 0)).collect();
    edits.extend((0..FILES / FILES_IN_DIRECTORY).flat_map(|n| directory(n, "Holidays", n)));
    let start = Instant::now();
    let root = update(&nodes, &Root::EMPTY, &edits).unwrap();
    println!(
        "build {} entries: {:.2} s, of it {:.2} s sealing; depth {}, {} nodes, {} bytes, {} sealed",
        root.len,
        start.elapsed().as_secs_f64(),
        nodes.sealing.take().as_secs_f64(),
        root.depth,
        nodes.written.take(),
        nodes.bytes.take(),
        nodes.sealed.take(),
    );
    drop(edits);

    changes(&nodes, &root, "write to a file", |n| {
        file(n, 1).into_iter().collect()
    });
    changes(&nodes, &root, "create a file", |n| {
        let in_directory = n / FILES_IN_DIRECTORY;
        let mut edits: Edits = directory(in_directory, "Holidays", n + FILES)
            .into_iter()
            .collect();
        let (_, value) = file(n, 1).remove(0);
        edits.insert(
            key(&id("directory", in_directory), format!("new {n}").as_bytes()),
            value,
        );
        edits
    });
    changes(&nodes, &root, "rename a directory", |n| {
        let n = n / FILES_IN_DIRECTORY;
        let mut edits: Edits = directory(n, "Holidays", n)
            .into_iter()
            .map(|(key, _)| (key, None))
            .collect();
        edits.extend(directory(n, "Vacation", n));
        assert!(edits.len() == 3 && edits.contains_key(&own_key(&id("directory", n))));
        edits
    });

    let changed = update(&nodes, &root, &file(FILES / 2, 1).into_iter().collect()).unwrap();
    nodes.read.take();
    let (start, mut found) = (Instant::now(), 0);
    diff(&nodes, &root, &changed, |_, _, _| {
        found += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    println!(
        "compare with one change: {:.0} µs, {} nodes read, {found} found",
        start.elapsed().as_secs_f64() * 1e6,
        nodes.read.take()
    );
    let (start, mut found) = (Instant::now(), 0);
    scan(&nodes, &root, b"", |_, _| {
        found += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    println!("read all {found} entries: {:.2} s", start.elapsed().as_secs_f64());
}
