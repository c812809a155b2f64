//! Receipts: a device's signed word that it holds a block on its disk until a date. Pure.
//!
//! Invariant: a receipt is made only after the store synced the block (`serve`), and believed only after [`Receipt::verify`].

use crate::base::BlockId;
use crate::base::clock::UnixSecs;
use crate::base::codec::{DecodeError, Reader, Writer};
use crate::keys::{DeviceKey, verify};

const MAGIC: &[u8; 4] = b"dfsR";
const VERSION: u8 = 1;
const CONTEXT: &[u8] = b"dfs receipt v1\0";

/// What a holder promises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The block.
    pub block: BlockId,
    /// Its length, in bytes.
    pub len_bytes: u32,
    /// Public key of the device that holds it.
    pub holder: [u8; 32],
    /// Public key of the device that it is held for.
    pub owner: [u8; 32],
    /// When it was given.
    pub issued: UnixSecs,
    /// Until when the block is held at least.
    pub until: UnixSecs,
    signature: [u8; 64],
}

impl Receipt {
    /// A receipt signed by the holder.
    pub(super) fn issue(
        holder: &DeviceKey,
        owner: [u8; 32],
        block: BlockId,
        len_bytes: u32,
        issued: UnixSecs,
        until: UnixSecs,
    ) -> Self {
        let mut receipt = Self {
            block,
            len_bytes,
            holder: holder.public(),
            owner,
            issued,
            until,
            signature: [0; 64],
        };
        receipt.signature = holder.sign(&receipt.signed_bytes());
        receipt
    }

    /// Whether the holder named in it signed it.
    pub fn verify(&self) -> bool {
        verify(&self.holder, &self.signed_bytes(), &self.signature)
    }

    /// Binary form, 185 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.body();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads the binary form. Nothing is verified.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array::<4>()? != *MAGIC || r.u8()? != VERSION {
            return Err(DecodeError::Invalid("not a receipt of a known version"));
        }
        let receipt = Self {
            block: BlockId(r.array()?),
            len_bytes: r.u32()?,
            holder: r.array()?,
            owner: r.array()?,
            issued: r.u64()?,
            until: r.u64()?,
            signature: r.array()?,
        };
        r.finish()?;
        Ok(receipt)
    }

    fn body(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(192);
        w.raw(MAGIC)
            .u8(VERSION)
            .raw(self.block.as_bytes())
            .u32(self.len_bytes)
            .raw(&self.holder)
            .raw(&self.owner)
            .u64(self.issued)
            .u64(self.until);
        w.into_vec()
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        bytes.extend_from_slice(&self.body());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn receipt() -> Receipt {
        Receipt::issue(
            &DeviceKey::from_bytes(&[1; 32]),
            [2; 32],
            BlockId([3; 32]),
            4,
            5,
            6,
        )
    }

    #[test]
    fn golden_bytes_of_version_1() {
        let bytes = receipt().encode();
        assert_eq!(bytes.len(), 185);
        assert_eq!(&bytes[..5], b"dfsR\x01");
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "56584e7fc6415da548621f251f761925b2d8028e4dcbc6f8cee98c30026ebea1",
            "the receipt format changed: raise its version"
        );
    }

    proptest! {
        #[test]
        fn one_flipped_bit_is_never_believed(bit in 0usize..185 * 8) {
            let mut bytes = receipt().encode();
            prop_assert!(Receipt::decode(&bytes).unwrap().verify());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!Receipt::decode(&bytes).is_ok_and(|r| r.verify()));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Receipt::decode(&bytes);
        }
    }
}
