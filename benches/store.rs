//! How fast blocks go into the SQLite store and come out: `cargo bench --bench store`. Figures in MB/s of blocks of 256 KiB.
//!
//! Compare with what the disk and SQLite alone do; `docs/store.md` says what was measured when the store was tuned.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use dfs::base::BlockId;
use dfs::store::{BlockStore, NoFetch, Put, PutKind, SqliteStore, StoreOptions, Tiered, Want};

/// Length of a block, in bytes.
const LEN: usize = 256 << 10;

/// Blocks in one put: about what one write-back hands over.
const BATCH: usize = 16;

/// Blocks that are read: more than SQLite's own caches hold, less than the page cache.
const READ: usize = 512;

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A batch of new blocks.
fn batch(kind: PutKind) -> Vec<Put> {
    let put = |_| {
        let mut bytes = vec![0; LEN];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        hasher.finalize_xof().fill(&mut bytes);
        Put {
            id: BlockId::of(&bytes),
            bytes: Bytes::from(bytes),
            kind,
            plain: None,
        }
    };
    (0..BATCH).map(put).collect()
}

fn store(dir: &tempfile::TempDir, cache_size: u64) -> SqliteStore {
    let name = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    SqliteStore::open(&dir.path().join(name), StoreOptions { cache_size }).unwrap()
}

/// Times `put` alone, not the making of the blocks.
fn time_puts(store: &SqliteStore, rounds: u64, kind: PutKind, sync: bool) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let batch = batch(kind);
        let start = Instant::now();
        store.put(batch).unwrap();
        if sync {
            store.sync().unwrap();
        }
        spent += start.elapsed();
    }
    spent
}

fn group<'a>(c: &'a mut Criterion, name: &str, bytes: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(4))
        .throughput(Throughput::Bytes(bytes as u64));
    group
}

fn puts(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let mut group = group(c, "store/put", BATCH * LEN);
    for (name, cache_size, kind, sync) in [
        ("dirty", 0, PutKind::Dirty, false),
        ("dirty, each synced", 0, PutKind::Dirty, true),
        ("cached, evicting", 256 << 20, PutKind::Cached, false),
    ] {
        let store = store(&dir, cache_size);
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| time_puts(&store, rounds, kind, sync))
        });
        store.close().unwrap();
        std::fs::remove_file(store.path()).unwrap();
    }
}

fn gets(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(store(&dir, 0));
    let mut ids = Vec::new();
    while ids.len() < READ {
        let batch = batch(PutKind::Dirty);
        ids.extend(batch.iter().map(|put| put.id));
        store.put(batch).unwrap();
    }
    store.tidy().unwrap();
    let mut group = group(c, "store/get", LEN);
    let mut turn = ids.iter().cycle();
    group.bench_function("verified, from the page cache", |b| {
        b.iter(|| black_box(store.get(turn.next().unwrap()).unwrap()));
    });
    let tiered = Tiered::new(store, Arc::new(NoFetch), Duration::from_secs(1));
    group.bench_function("tiered, store", |b| {
        b.iter(|| {
            let want = Want {
                id: *turn.next().unwrap(),
                root: None,
                ahead: false,
            };
            black_box(tiered.get(want).unwrap())
        });
    });
    let want = Want {
        id: ids[0],
        root: None,
        ahead: false,
    };
    group.bench_function("tiered, memory", |b| {
        b.iter(|| black_box(tiered.get(want).unwrap()))
    });
}

criterion_group!(benches, puts, gets);
criterion_main!(benches);
