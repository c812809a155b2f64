//! Blocks: any bytes as they are, and the same bytes as the authentic body of a block, so that decompression and padding are reached.
#![no_main]

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use dfs::base::limits::CHUNK_MAX;
use dfs::seal::{EpochKey, Opener, epoch_of};
use libfuzzer_sys::fuzz_target;

const SECRET: [u8; 32] = [7; 32];

fuzz_target!(|data: &[u8]| {
    let key = EpochKey::derive(&SECRET);
    let mut opener = Opener::new();
    let mut out = Vec::new();
    let _ = epoch_of(data);
    assert!(
        opener.open(&key, data, &mut out).is_err(),
        "a forged block was opened"
    );
    assert!(out.is_empty());

    let Some((compression, body)) = data.split_first() else {
        return;
    };
    let block = authentic(*compression, body);
    match opener.open(&key, &block, &mut out) {
        Ok(()) => assert!((1..=CHUNK_MAX).contains(&out.len())),
        Err(_) => assert!(out.is_empty()),
    }
});

/// A block with a right tag over whatever body, as in `seal::block`.
fn authentic(compression: u8, body: &[u8]) -> Vec<u8> {
    let mut block = b"dfsb\x01".to_vec();
    block.extend_from_slice(&[compression & 1, 0, 0, 1, 0, 0, 0]);
    let header = block.clone();
    let nonce = XNonce::default();
    let key = blake3::derive_key("dfs 2026 v1 block encryption key", &SECRET);
    let mut sealed = body.to_vec();
    let tag = XChaCha20Poly1305::new((&key).into())
        .encrypt_inout_detached(&nonce, &header, sealed.as_mut_slice().into())
        .expect("the body is short");
    block.extend_from_slice(&nonce);
    block.extend_from_slice(&sealed);
    block.extend_from_slice(&tag);
    block
}
