//! What sealing costs: MB/s per core of each stage and of the whole way, for text and for bytes that do not compress,
//! and what the pool makes of all cores. Run with `cargo bench --bench seal`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use dfs::base::BlockId;
use dfs::base::limits::{CHUNK_AVG, CHUNK_MAX};
use dfs::keys::{RootSecret, VolumeKeys};
use dfs::seal::{Chunker, Opener, Piece, SealPool, Sealer, plain_hash};

const FILE_LEN: usize = 16 << 20;

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Words with the frequencies of a language: compresses to about a third.
fn text(len: usize) -> Vec<u8> {
    let letters = noise(1, 40_000);
    let words: Vec<&[u8]> = letters
        .chunks_exact(10)
        .map(|word| &word[..2 + usize::from(word[9] % 8)])
        .collect();
    let mut out = Vec::with_capacity(len + 16);
    for pick in noise(2, len).chunks_exact(4) {
        // The product of two uniform numbers: few words are frequent, most are rare.
        let common = (usize::from(pick[0]) * usize::from(pick[1]) * usize::from(pick[2]) * words.len()) >> 24;
        out.extend(words[common].iter().map(|byte| b'a' + byte % 26));
        out.push(if pick[3] < 20 { b'\n' } else { b' ' });
        if out.len() >= len {
            break;
        }
    }
    out.resize(len, b'.');
    out
}

fn keys() -> VolumeKeys {
    VolumeKeys::from_root(&RootSecret::from_bytes([1; 32]), 1).unwrap()
}

fn cut(chunker: &Chunker, file: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut out) = (0, Vec::new());
    while let Some(piece) = chunker.cut(&file[at..], true) {
        if let Piece::Data(len) = piece {
            out.push(file[at..at + len].to_vec());
        }
        at += piece.len();
    }
    out
}

fn group<'a>(c: &'a mut Criterion, name: &str, len: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::BytesDecimal(len as u64));
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    group
}

/// One stage after another, on one chunk of the average size.
fn stages(c: &mut Criterion, kind: &str, file: &[u8]) {
    let keys = keys();
    let (epoch, key) = keys.current();
    let chunker = Chunker::new(keys.chunk_key());
    let chunk = &file[..CHUNK_AVG];
    let mut sealer = Sealer::new(Sealer::DEFAULT_LEVEL).unwrap();
    let (_, block) = sealer.seal(epoch, key, chunk).unwrap();

    group(c, kind, file.len()).bench_function("chunk", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Some(piece) = chunker.cut(&file[at..], true) {
                at += piece.len();
            }
            black_box(at)
        });
    });
    let mut group = group(c, kind, chunk.len());
    group.bench_function("hash", |b| {
        b.iter(|| plain_hash(keys.index_key(), black_box(chunk)))
    });
    let (mut zstd, mut out) = (
        zstd::bulk::Compressor::new(Sealer::DEFAULT_LEVEL).unwrap(),
        vec![0; CHUNK_MAX],
    );
    group.bench_function("compress", |b| {
        b.iter(|| {
            zstd.compress_to_buffer(black_box(chunk), &mut out[..chunk.len() - 1])
                .ok()
        });
    });
    group.bench_function("encrypt", |b| {
        use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
        let cipher = XChaCha20Poly1305::new(&[1; 32].into());
        let mut bytes = chunk.to_vec();
        b.iter(|| {
            cipher
                .encrypt_inout_detached(&XNonce::default(), b"", bytes.as_mut_slice().into())
                .unwrap()
        });
    });
    group.bench_function("name", |b| b.iter(|| BlockId::of(black_box(chunk))));
    group.bench_function("seal", |b| {
        b.iter(|| sealer.seal(epoch, key, black_box(chunk)).unwrap())
    });
    let (mut opener, mut plain) = (Opener::new(), Vec::new());
    group.bench_function("open", |b| {
        b.iter(|| opener.open(key, black_box(&block), &mut plain).unwrap())
    });
    group.finish();
}

/// A whole file: cut, hashed, sealed and named on one core, the way back with the check of ids, and sealed on all cores.
fn pipeline(c: &mut Criterion, kind: &str, file: &[u8]) {
    let keys = keys();
    let (epoch, key) = keys.current();
    let chunker = Chunker::new(keys.chunk_key());
    let mut sealer = Sealer::new(Sealer::DEFAULT_LEVEL).unwrap();
    let mut group = group(c, kind, file.len());
    group.bench_function("write, one core", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Some(piece) = chunker.cut(&file[at..], true) {
                let chunk = &file[at..at + piece.len()];
                black_box(plain_hash(keys.index_key(), chunk));
                black_box(sealer.seal(epoch, key, chunk).unwrap());
                at += piece.len();
            }
        });
    });
    let chunks = cut(&chunker, file);
    let blocks: Vec<_> = chunks
        .iter()
        .map(|chunk| sealer.seal(epoch, key, chunk).unwrap())
        .collect();
    let (mut opener, mut plain) = (Opener::new(), Vec::new());
    group.bench_function("read, one core", |b| {
        b.iter(|| {
            for (id, block) in &blocks {
                assert!(id.matches(block));
                opener.open(key, block, &mut plain).unwrap();
            }
        });
    });
    let pool = SealPool::new(0, Sealer::DEFAULT_LEVEL).unwrap();
    group.bench_function("hash and seal, all cores", |b| {
        b.iter(|| pool.seal_all(epoch, key, keys.index_key(), &chunks, &|_| None));
    });
    group.finish();
}

fn zeros(c: &mut Criterion) {
    let chunker = Chunker::new(&[1; 32]);
    let file = vec![0; FILE_LEN];
    group(c, "zeros", file.len()).bench_function("chunk", |b| b.iter(|| chunker.cut(black_box(&file), true)));
}

fn all(c: &mut Criterion) {
    for (kind, file) in [("text", text(FILE_LEN)), ("incompressible", noise(3, FILE_LEN))] {
        stages(c, kind, &file);
        pipeline(c, kind, &file);
    }
    zeros(c);
}

criterion_group!(benches, all);
criterion_main!(benches);
