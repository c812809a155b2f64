//! The keys that seal under one epoch. Invariant: each is used for one purpose only, and is wiped when dropped.

use std::fmt;

use zeroize::Zeroizing;

const BLOCK_CONTEXT: &str = "dfs 2026 v1 block encryption key";
const NONCE_CONTEXT: &str = "dfs 2026 v1 block nonce key";
const PAYLOAD_CONTEXT: &str = "dfs 2026 v1 manifest payload key";

/// What one epoch's secret gives: the key of blocks, the key of their synthetic nonces, and the key of what changes in place.
pub struct EpochKey {
    block: Zeroizing<[u8; 32]>,
    nonce: Zeroizing<[u8; 32]>,
    payload: Zeroizing<[u8; 32]>,
}

impl EpochKey {
    /// Derives the keys with BLAKE3's key derivation mode; the contexts are listed in `docs/security.md`.
    pub fn derive(epoch_secret: &[u8; 32]) -> Self {
        Self {
            block: Zeroizing::new(blake3::derive_key(BLOCK_CONTEXT, epoch_secret)),
            nonce: Zeroizing::new(blake3::derive_key(NONCE_CONTEXT, epoch_secret)),
            payload: Zeroizing::new(blake3::derive_key(PAYLOAD_CONTEXT, epoch_secret)),
        }
    }

    /// Key of the AEAD that seals blocks.
    pub(super) fn block(&self) -> &[u8; 32] {
        &self.block
    }

    /// Key of the hash that gives a block its nonce.
    pub(super) fn nonce(&self) -> &[u8; 32] {
        &self.nonce
    }

    /// Key of the AEAD that seals manifest payloads, with random nonces.
    pub(super) fn payload(&self) -> &[u8; 32] {
        &self.payload
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKey(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_purpose_has_its_own_key_and_debug_shows_none() {
        let key = EpochKey::derive(&[7; 32]);
        assert_ne!(key.block(), key.nonce());
        assert_ne!(key.block(), key.payload());
        assert_ne!(key.nonce(), key.payload());
        assert_ne!(key.block(), EpochKey::derive(&[8; 32]).block());
        assert_eq!(format!("{key:?}"), "EpochKey(secret)");
    }
}
