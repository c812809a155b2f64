//! Cold fetching over the block protocol against a bare libp2p stream of the same transport, on the loopback address, in one run.
//!
//! Prints MB/s of both and their ratio, and the time of a single fetch. `cargo bench --bench node`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark stops at the first fault and prints what it found"
)]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use dfs::base::clock::SystemClock;
use dfs::base::{BlockId, GroupId, StoreId};
use dfs::keys::{Certificate, DeviceKey, GroupKey, Membership, Role, RootSecret};
use dfs::node::announce::{BUDGET_MAX, messages};
use dfs::node::{Identity, MemoryState, Node, NodeConfig, NodeParts, raw};
use dfs::store::{BlockStore, CheckedBlock, Fetch, MemoryStore, Put, PutKind, Want};

const BLOCK: usize = 256 << 10;
const BLOCKS: usize = 2048;
const OUTSTANDING: usize = 64;
const ROUNDS: usize = 5;

fn node(group: &GroupKey, seed: u8, store: Arc<MemoryStore>, known: Vec<String>) -> Node {
    let device = DeviceKey::from_bytes(&[seed; 32]);
    let membership = Membership {
        group: GroupId([0; 32]),
        device: device.public(),
        role: Role::Writer,
        epoch: 1,
        issued: 0,
        expires: u64::MAX,
        zone: None,
    };
    let parts = NodeParts {
        identity: Identity {
            certificate: Certificate::issue(group, membership),
            device,
            group_public: group.public(),
        },
        store,
        state: Arc::new(MemoryState::default()),
        clock: Arc::new(SystemClock),
        admit: None,
        keys: None,
        name: String::new(),
    };
    let config = NodeConfig {
        known_peers: known,
        ..NodeConfig::loopback()
    };
    Node::start(&config, parts).unwrap()
}

fn fetch_all(node: &Node, ids: &[BlockId], outstanding: usize) -> Duration {
    let (tell, told) = channel();
    let started = Instant::now();
    let deadline = started + Duration::from_secs(120);
    let mut asked = ids.iter();
    let mut ask = || {
        let Some(id) = asked.next() else { return };
        let tell = tell.clone();
        let want = Want {
            id: *id,
            root: None,
            ahead: false,
        };
        let done =
            Box::new(move |got: Result<CheckedBlock, _>| tell.send(got.map(|b| b.bytes().len())).unwrap());
        Fetch::start(node, want, deadline, done);
    };
    (0..outstanding).for_each(|_| ask());
    for _ in ids {
        assert_eq!(told.recv().unwrap().unwrap(), BLOCK);
        ask();
    }
    started.elapsed()
}

fn raw_stream() -> Duration {
    let (tell, told) = channel();
    let len = (BLOCKS * BLOCK) as u64;
    let sender = std::thread::spawn(move || raw::send("127.0.0.1:0".parse().unwrap(), len, &tell).unwrap());
    let took = raw::receive(&told.recv().unwrap(), len).unwrap();
    sender.join().unwrap();
    took
}

/// What the DHT costs; a block is never announced, so their number has no part in it.
fn announcements() {
    println!("messages that keep 100,000 files announced for 20 hours:");
    println!(
        "{:>8} {:>16} {:>16} {:>22}",
        "members", "budget 16,384", "budget 131,072", "one by one (at least)"
    );
    for members in [2u64, 5, 20, 100, 1000] {
        let of = |budget| messages(100_000, budget, members);
        let single = 100_000 * (members - 1).min(20);
        println!(
            "{members:>8} {:>16} {:>16} {single:>22}",
            of(16_384),
            of(BUDGET_MAX)
        );
    }
}

fn main() {
    announcements();
    let group = GroupKey::from_root(&RootSecret::from_bytes([1; 32]));
    let held = Arc::new(MemoryStore::new(StoreId([1; 16])));
    let mut ids = Vec::with_capacity(BLOCKS);
    for n in 0..BLOCKS as u64 {
        let mut bytes = vec![0; BLOCK];
        blake3::Hasher::new()
            .update(&n.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        let id = BlockId::of(&bytes);
        let put = Put {
            id,
            bytes: bytes.into(),
            kind: PutKind::Dirty,
            plain: None,
        };
        held.put(vec![put]).unwrap();
        ids.push(id);
    }
    let a = node(&group, 1, held, Vec::new());
    let empty = Arc::new(MemoryStore::new(StoreId([2; 16])));
    let b = node(&group, 2, empty, a.addresses().unwrap());
    fetch_all(&b, &ids[..1], 1);

    let mut single: Vec<Duration> = ids[..200]
        .iter()
        .map(|id| fetch_all(&b, std::slice::from_ref(id), 1))
        .collect();
    single.sort_unstable();
    println!(
        "one block of {} KiB, median: {:?}",
        BLOCK >> 10,
        single[single.len() / 2]
    );

    let rate = |took: Duration| (BLOCKS * BLOCK) as f64 / took.as_secs_f64() / 1e6;
    let mut ratios = Vec::new();
    for round in 1..=ROUNDS {
        let bare = rate(raw_stream());
        let blocks = rate(fetch_all(&b, &ids, OUTSTANDING));
        println!(
            "round {round}: bare stream {bare:.0} MB/s, blocks {blocks:.0} MB/s, ratio {:.2}",
            blocks / bare
        );
        ratios.push(blocks / bare);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "median ratio {:.2} ({OUTSTANDING} blocks outstanding)",
        ratios[ROUNDS / 2]
    );
}
