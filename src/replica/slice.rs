//! Proofs that a device has a block: a random slice that checks against the block's id (audits), and a keyed hash of the whole block
//! (before its owner drops its own copy). Pure.
//!
//! Invariant: a slice that checks came from the bytes that hash to the id; whoever checks reads no more than [`SLICE_MAX`] bytes and
//! needs nothing but the id. Slices are Bao's: <https://github.com/oconnor663/bao/blob/master/docs/spec.md>.

use std::io::{Cursor, Read};

use crate::base::BlockId;
use crate::base::limits::BLOCK_MAX;

/// Bytes of a block that one slice shows: BLAKE3's chunk.
pub const SLICE_LEN: u64 = 1024;

/// Longest slice: the length, two chunks (an offset may fall between), and two hashes for each level of the tree above them.
pub const SLICE_MAX: usize = 8 + 2 * 1024 + 2 * 64 * tree_levels();

const fn tree_levels() -> usize {
    (BLOCK_MAX.div_ceil(1024)).next_power_of_two().trailing_zeros() as usize
}

/// Why a slice proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// It is longer than any slice.
    #[error("the slice is too long")]
    TooLong,
    /// It is not from this block.
    #[error("the slice does not belong to the block")]
    Wrong,
}

/// Where an audit with this random number looks in a block of `len` bytes.
pub fn offset(random: u64, len: u32) -> u64 {
    random % u64::from(len.max(1)) / SLICE_LEN * SLICE_LEN
}

/// The slice of `block` at `offset`, for who knows only its id.
pub fn prove(block: &[u8], offset: u64) -> Vec<u8> {
    let (outboard, _) = bao::encode::outboard(block);
    let mut slice = Vec::with_capacity(SLICE_MAX);
    let mut extractor = bao::encode::SliceExtractor::new_outboard(
        Cursor::new(block),
        Cursor::new(&outboard),
        offset,
        SLICE_LEN,
    );
    // Reading from memory does not fail; a slice that is cut short would not check.
    let _ = extractor.read_to_end(&mut slice);
    slice
}

/// Checks a slice that was asked for at `offset`.
pub fn check(id: &BlockId, offset: u64, slice: &[u8]) -> Result<(), SliceError> {
    if slice.len() > SLICE_MAX {
        return Err(SliceError::TooLong);
    }
    let mut rest = slice;
    let hash = bao::Hash::from(*id.as_bytes());
    let mut decoder = bao::decode::SliceDecoder::new(&mut rest, &hash, offset, SLICE_LEN);
    let mut shown = [0; SLICE_LEN as usize];
    loop {
        match decoder.read(&mut shown) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return Err(SliceError::Wrong),
        }
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(SliceError::Wrong)
    }
}

/// What only a device that has all of the block can answer to a fresh `challenge`.
pub fn possession(challenge: &[u8; 32], block: &[u8]) -> [u8; 32] {
    *blake3::keyed_hash(challenge, block).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new()
            .update(&seed.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        bytes
    }

    #[test]
    fn every_length_up_to_the_largest_block_can_be_audited_anywhere() {
        for len in [0, 1, 1023, 1024, 1025, 4096, 5000, 300_000, BLOCK_MAX] {
            let bytes = block(1, len);
            let id = BlockId::of(&bytes);
            for random in [0, 1, len as u64 / 2, (len as u64).saturating_sub(1), u64::MAX] {
                let at = offset(random, len as u32);
                let slice = prove(&bytes, at);
                assert!(slice.len() <= SLICE_MAX, "{} bytes for {len}", slice.len());
                assert_eq!(check(&id, at, &slice), Ok(()), "{len} at {at}");
            }
        }
    }

    #[test]
    fn an_offset_beyond_the_end_shows_the_end() {
        // Who does not know the length may ask too far; the answer still proves the length and the last chunk.
        let bytes = block(1, 5000);
        let slice = prove(&bytes, 1 << 40);
        assert_eq!(check(&BlockId::of(&bytes), 1 << 40, &slice), Ok(()));
        assert_eq!(
            check(&BlockId::of(&block(2, 5000)), 1 << 40, &slice),
            Err(SliceError::Wrong)
        );
    }

    #[test]
    fn the_answer_to_a_challenge_needs_the_block_and_the_challenge() {
        let bytes = block(1, 5000);
        let answer = possession(&[1; 32], &bytes);
        assert_ne!(answer, possession(&[2; 32], &bytes));
        assert_ne!(answer, possession(&[1; 32], &bytes[..4999]));
    }

    proptest! {
        #[test]
        fn no_altered_slice_checks(len in 1_usize..20_000, random in any::<u64>(), bit in any::<prop::sample::Index>()) {
            let bytes = block(3, len);
            let at = offset(random, len as u32);
            let mut slice = prove(&bytes, at);
            // The length in front is only checked where the last chunk is shown: a wrong one proves no less.
            let bit = 64 + bit.index((slice.len() - 8) * 8);
            slice[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(check(&BlockId::of(&bytes), at, &slice).is_err());
        }

        #[test]
        fn a_slice_of_elsewhere_or_of_another_block_does_not_check(len in 4096_usize..20_000, a in any::<u64>(), b in any::<u64>()) {
            let bytes = block(4, len);
            let (a, b) = (offset(a, len as u32), offset(b, len as u32));
            let slice = prove(&bytes, a);
            prop_assert_eq!(check(&BlockId::of(&bytes), b, &slice).is_ok(), a == b);
            prop_assert!(check(&BlockId::of(&block(5, len)), a, &slice).is_err());
        }

        #[test]
        fn garbage_never_panics(slice in prop::collection::vec(any::<u8>(), 0..3000), at in any::<u64>()) {
            prop_assert!(check(&BlockId([7; 32]), at, &slice).is_err());
        }

        #[test]
        fn a_slice_that_is_cut_or_longer_does_not_check(len in 1_usize..9000, cut in any::<prop::sample::Index>()) {
            let bytes = block(6, len);
            let mut slice = prove(&bytes, 0);
            let short = &slice[..cut.index(slice.len())];
            prop_assert!(check(&BlockId::of(&bytes), 0, short).is_err());
            slice.push(0);
            prop_assert!(check(&BlockId::of(&bytes), 0, &slice).is_err());
        }
    }
}
