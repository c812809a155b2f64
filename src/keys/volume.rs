//! What a reader of a volume holds: its id, the keys of chunker and index, and the secrets of every epoch so far.
//!
//! Invariant: epochs are numbered from 1 without gaps. A device that joins gets them encoded over the authenticated channel;
//! only admins can derive them from the root secret, and so only admins can begin a new epoch. Called by `object`, `volume`, `node`.

use std::fmt;

use zeroize::Zeroizing;

use super::RootSecret;
use crate::base::VolumeId;
use crate::base::codec::{DecodeError, Reader};
use crate::seal::EpochKey;

const VOLUME_CONTEXT: &str = "dfs 2026 v1 volume id";
const CHUNK_CONTEXT: &str = "dfs 2026 v1 chunk key";
const INDEX_CONTEXT: &str = "dfs 2026 v1 index key";
const EPOCH_CONTEXT: &str = "dfs 2026 v1 epoch secret";

const MAGIC: [u8; 4] = *b"dfsv";
const VERSION: u8 = 1;

/// The number of a volume's first epoch.
pub const FIRST_EPOCH: u32 = 1;

/// The highest epoch number: one is used up each time a member is removed, and their secrets must fit a message.
pub const EPOCH_MAX: u32 = 4096;

/// Why volume keys could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Epochs are numbered 1 to `EPOCH_MAX`.
    #[error("epoch {0} is out of bounds: epochs are numbered {FIRST_EPOCH} to {EPOCH_MAX}")]
    Epoch(u32),
    /// Written by a newer dfs.
    #[error("volume key format {0} is not known to this version of dfs: update it")]
    Version(u8),
    /// Not an encoding of volume keys.
    #[error("not volume keys: {0}")]
    Malformed(#[from] DecodeError),
}

/// The keys of a volume, as far as reading and writing need them.
pub struct VolumeKeys {
    volume: VolumeId,
    chunk_key: Zeroizing<[u8; 32]>,
    index_key: Zeroizing<[u8; 32]>,
    /// The first epoch's comes first; never empty.
    epochs: Vec<Epoch>,
}

struct Epoch {
    secret: Zeroizing<[u8; 32]>,
    key: EpochKey,
}

impl Epoch {
    fn new(secret: [u8; 32]) -> Self {
        Self {
            key: EpochKey::derive(&secret),
            secret: Zeroizing::new(secret),
        }
    }
}

impl VolumeKeys {
    /// Everything up to and including epoch `newest_epoch` (1 for a new volume).
    pub fn from_root(root: &RootSecret, newest_epoch: u32) -> Result<Self, KeyError> {
        if !(FIRST_EPOCH..=EPOCH_MAX).contains(&newest_epoch) {
            return Err(KeyError::Epoch(newest_epoch));
        }
        let derive = |context| Zeroizing::new(blake3::derive_key(context, root.as_bytes()));
        let mut volume = [0; VolumeId::LEN];
        volume.copy_from_slice(&derive(VOLUME_CONTEXT)[..VolumeId::LEN]);
        Ok(Self {
            volume: VolumeId(volume),
            chunk_key: derive(CHUNK_CONTEXT),
            index_key: derive(INDEX_CONTEXT),
            epochs: (FIRST_EPOCH..=newest_epoch)
                .map(|epoch| Epoch::new(epoch_secret(root, epoch)))
                .collect(),
        })
    }

    /// The volume they belong to.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Key of the chunker's gear table.
    pub fn chunk_key(&self) -> &[u8; 32] {
        &self.chunk_key
    }

    /// Key of the plaintext hashes in the local index.
    pub fn index_key(&self) -> &[u8; 32] {
        &self.index_key
    }

    /// The newest epoch, which everything new is sealed under.
    pub fn newest_epoch(&self) -> u32 {
        self.epochs.len() as u32
    }

    /// The newest epoch and its key.
    pub fn current(&self) -> (u32, &EpochKey) {
        let newest = &self.epochs[self.epochs.len() - 1];
        (self.newest_epoch(), &newest.key)
    }

    /// The key of an epoch; `None` when the epoch does not exist or began after these keys were made.
    pub fn epoch(&self, epoch: u32) -> Option<&EpochKey> {
        let index = epoch.checked_sub(FIRST_EPOCH)?;
        self.epochs.get(index as usize).map(|epoch| &epoch.key)
    }

    /// The keys as bytes: secret. For the key file, and for a device that joins as reader or writer.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(88 + 32 * self.epochs.len()));
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(self.volume.as_bytes());
        bytes.extend_from_slice(self.chunk_key());
        bytes.extend_from_slice(self.index_key());
        bytes.extend_from_slice(&self.newest_epoch().to_le_bytes());
        for epoch in &self.epochs {
            bytes.extend_from_slice(&*epoch.secret);
        }
        bytes
    }

    /// The keys from the bytes that `encode` gave.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyError> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != MAGIC {
            return Err(DecodeError::Invalid("wrong magic").into());
        }
        let version = reader.u8()?;
        if version != VERSION {
            return Err(KeyError::Version(version));
        }
        if reader.array()? != [0; 3] {
            return Err(DecodeError::Invalid("reserved bytes are not zero").into());
        }
        let volume = VolumeId(reader.array()?);
        let chunk_key = Zeroizing::new(reader.array()?);
        let index_key = Zeroizing::new(reader.array()?);
        let newest = reader.u32()?;
        if !(FIRST_EPOCH..=EPOCH_MAX).contains(&newest) {
            return Err(KeyError::Epoch(newest));
        }
        let epochs = (0..newest)
            .map(|_| reader.array().map(Epoch::new))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self {
            volume,
            chunk_key,
            index_key,
            epochs,
        })
    }
}

/// The secret of one epoch: knowing some tells nothing about the others.
fn epoch_secret(root: &RootSecret, epoch: u32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(EPOCH_CONTEXT);
    hasher.update(root.as_bytes()).update(&epoch.to_le_bytes());
    *hasher.finalize().as_bytes()
}

impl fmt::Debug for VolumeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeKeys")
            .field("volume", &self.volume)
            .field("newest_epoch", &self.newest_epoch())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn root() -> RootSecret {
        RootSecret::from_bytes([1; 32])
    }

    #[test]
    fn a_new_epoch_keeps_everything_else() {
        let (one, three) = (
            VolumeKeys::from_root(&root(), 1).unwrap(),
            VolumeKeys::from_root(&root(), 3).unwrap(),
        );
        assert_eq!(one.volume(), three.volume());
        assert_eq!(one.chunk_key(), three.chunk_key());
        assert_eq!(one.index_key(), three.index_key());
        assert_eq!((one.current().0, three.current().0), (1, 3));
        assert_eq!(*one.epochs[0].secret, *three.epochs[0].secret);
        assert_ne!(*three.epochs[1].secret, *three.epochs[2].secret);
        assert!(one.epoch(0).is_none() && one.epoch(2).is_none() && three.epoch(2).is_some());
        assert_ne!(one.chunk_key(), one.index_key());
    }

    #[test]
    fn epochs_are_bounded() {
        assert_eq!(VolumeKeys::from_root(&root(), 0).unwrap_err(), KeyError::Epoch(0));
        let beyond = VolumeKeys::from_root(&root(), u32::MAX);
        assert_eq!(beyond.unwrap_err(), KeyError::Epoch(u32::MAX));
        let most = VolumeKeys::from_root(&root(), EPOCH_MAX).unwrap();
        assert!(most.encode().len() <= crate::keys::key_file::SECRET_MAX);
    }

    #[test]
    fn another_root_is_another_volume() {
        let other = VolumeKeys::from_root(&RootSecret::from_bytes([2; 32]), 1).unwrap();
        assert_ne!(
            other.volume(),
            VolumeKeys::from_root(&root(), 1).unwrap().volume()
        );
    }

    #[test]
    fn debug_shows_no_key() {
        let keys = VolumeKeys::from_root(&root(), 1).unwrap();
        let text = format!("{keys:?}");
        assert!(text.contains(&keys.volume().short()) && text.len() < 80, "{text}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn encodings_round_trip(bytes: [u8; 32], epochs in 1_u32..20, cut in any::<prop::sample::Index>()) {
            let keys = VolumeKeys::from_root(&RootSecret::from_bytes(bytes), epochs).unwrap();
            let encoded = keys.encode();
            let decoded = VolumeKeys::decode(&encoded).unwrap();
            prop_assert_eq!(&*decoded.encode(), &*encoded);
            prop_assert_eq!(decoded.current().0, epochs);
            prop_assert!(VolumeKeys::decode(&encoded[..cut.index(encoded.len())]).is_err());
            let longer = [&encoded[..], &[0]].concat();
            prop_assert!(VolumeKeys::decode(&longer).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), as_keys: bool) {
            if as_keys && bytes.len() > 8 {
                bytes[..8].copy_from_slice(b"dfsv\x01\0\0\0");
            }
            if let Ok(keys) = VolumeKeys::decode(&bytes) {
                prop_assert_eq!(&*keys.encode(), &bytes);
            }
        }
    }
}
