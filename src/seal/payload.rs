//! Sealing of what changes in place (manifest slots, key files): a random nonce each time, the clear header as associated data.
//!
//! A sealed payload is nonce (24 bytes) ‖ ciphertext ‖ tag (16 bytes). Called by `keys::key_file` and `object::slot`.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use super::EpochKey;

/// Length of a nonce, in bytes.
const NONCE_LEN: usize = 24;

/// Bytes that a sealed payload is longer than its plaintext: nonce and tag.
pub const PAYLOAD_OVERHEAD: usize = NONCE_LEN + 16;

/// Why a payload could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    /// Shorter than nonce and tag.
    #[error("sealed payload is truncated")]
    Truncated,
    /// Damaged, or sealed under another key or header.
    #[error("sealed payload does not authenticate: it is damaged or belongs to another key")]
    NotAuthentic,
}

/// Seals `plaintext` under the epoch's payload key with a fresh random nonce; `header` is authenticated with it.
pub fn seal_payload(key: &EpochKey, header: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, PayloadError> {
    seal_with_key(key.payload(), header, plaintext)
}

/// As [`seal_payload`] with the caller's nonce, which must never be used again: for golden files only.
#[doc(hidden)]
pub fn seal_payload_with_nonce(
    key: &EpochKey,
    nonce: [u8; 24],
    header: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, PayloadError> {
    seal_with(key.payload(), nonce, header, plaintext)
}

/// Opens what [`seal_payload`] sealed under the same header.
pub fn open_payload(key: &EpochKey, header: &[u8], sealed: &[u8]) -> Result<Vec<u8>, PayloadError> {
    open_with_key(key.payload(), header, sealed)
}

/// Seals under a key that has no other use, with a fresh random nonce.
pub(crate) fn seal_with_key(
    key: &[u8; 32],
    header: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, PayloadError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|_| PayloadError::NoRandomness)?;
    seal_with(key, nonce, header, plaintext)
}

/// Opens what [`seal_with_key`] sealed.
pub(crate) fn open_with_key(key: &[u8; 32], header: &[u8], sealed: &[u8]) -> Result<Vec<u8>, PayloadError> {
    if sealed.len() < PAYLOAD_OVERHEAD {
        return Err(PayloadError::Truncated);
    }
    let (nonce, ciphertext) = sealed.split_at(NONCE_LEN);
    let nonce = XNonce::try_from(nonce).map_err(|_| PayloadError::Truncated)?;
    XChaCha20Poly1305::new(key.into())
        .decrypt(
            &nonce,
            Payload {
                msg: ciphertext,
                aad: header,
            },
        )
        .map_err(|_| PayloadError::NotAuthentic)
}

fn seal_with(
    key: &[u8; 32],
    nonce: [u8; NONCE_LEN],
    header: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, PayloadError> {
    let nonce = XNonce::from(nonce);
    let ciphertext = XChaCha20Poly1305::new(key.into())
        .encrypt(
            &nonce,
            Payload {
                msg: plaintext,
                aad: header,
            },
        )
        .map_err(|_| PayloadError::NotAuthentic)?;
    let mut sealed = Vec::with_capacity(NONCE_LEN + ciphertext.len());
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(&ciphertext);
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> EpochKey {
        EpochKey::derive(&[1; 32])
    }

    #[test]
    fn nonces_differ_from_call_to_call() {
        let a = seal_payload(&key(), b"h", b"same").unwrap();
        let b = seal_payload(&key(), b"h", b"same").unwrap();
        assert_ne!(a[..24], b[..24]);
        assert_ne!(a[24..], b[24..]);
    }

    #[test]
    fn another_header_or_key_does_not_open_it() {
        let sealed = seal_payload(&key(), b"header", b"text").unwrap();
        assert_eq!(open_payload(&key(), b"header", &sealed).unwrap(), b"text");
        assert_eq!(
            open_payload(&key(), b"heades", &sealed),
            Err(PayloadError::NotAuthentic)
        );
        let other = EpochKey::derive(&[2; 32]);
        assert_eq!(
            open_payload(&other, b"header", &sealed),
            Err(PayloadError::NotAuthentic)
        );
    }

    proptest! {
        #[test]
        fn round_trips_and_no_flipped_bit_goes_unseen(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            header in proptest::collection::vec(any::<u8>(), 0..40),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let mut sealed = seal_payload(&key(), &header, &text).unwrap();
            prop_assert_eq!(sealed.len(), text.len() + PAYLOAD_OVERHEAD);
            prop_assert_eq!(open_payload(&key(), &header, &sealed).unwrap(), text);
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            prop_assert!(open_payload(&key(), &header, &sealed).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_open(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(open_payload(&key(), b"", &bytes).is_err());
        }
    }
}
