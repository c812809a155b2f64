//! What a reader of a volume holds: its id, the keys of chunker and index, and the secrets of every epoch so far.
//!
//! Invariant: epochs are numbered from 1 without gaps, and one that is there never changes. A device that joins gets them encoded over the
//! authenticated channel; only admins can derive them from the root secret, and so only admins can begin a new epoch. A running volume
//! learns new ones in place ([`VolumeKeys::extend`]): what it seals from then on is under the newest. Called by `object`, `volume`, `node`.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use zeroize::Zeroizing;

use super::RootSecret;
use crate::base::VolumeId;
use crate::base::codec::{DecodeError, Reader};
use crate::seal::EpochKey;

const VOLUME_CONTEXT: &str = "dfs 2026 v1 volume id";
const CHUNK_CONTEXT: &str = "dfs 2026 v1 chunk key";
const INDEX_CONTEXT: &str = "dfs 2026 v1 index key";
const EPOCH_CONTEXT: &str = "dfs 2026 v1 epoch secret";
const COMMITMENT_CONTEXT: &str = "dfs 2026 v1 epoch commitment";

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
    /// They are the keys of another volume, or have another secret for an epoch.
    #[error("the keys are not those of this volume")]
    OtherVolume,
    /// Not an encoding of volume keys.
    #[error("not volume keys: {0}")]
    Malformed(#[from] DecodeError),
}

/// The keys of a volume, as far as reading and writing need them.
pub struct VolumeKeys {
    volume: VolumeId,
    chunk_key: Zeroizing<[u8; 32]>,
    index_key: Zeroizing<[u8; 32]>,
    first: Epoch,
    /// A place for each epoch after the first; those up to `newest` are filled.
    later: Box<[OnceLock<Box<Epoch>>]>,
    newest: AtomicU32,
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
        let epoch = |epoch| Epoch::new(epoch_secret(root, epoch));
        let derive = |context| Zeroizing::new(blake3::derive_key(context, root.as_bytes()));
        let mut volume = [0; VolumeId::LEN];
        volume.copy_from_slice(&derive(VOLUME_CONTEXT)[..VolumeId::LEN]);
        Ok(Self::with(
            VolumeId(volume),
            derive(CHUNK_CONTEXT),
            derive(INDEX_CONTEXT),
            epoch(FIRST_EPOCH),
            (FIRST_EPOCH + 1..=newest_epoch).map(epoch).collect(),
        ))
    }

    fn with(
        volume: VolumeId,
        chunk_key: Zeroizing<[u8; 32]>,
        index_key: Zeroizing<[u8; 32]>,
        first: Epoch,
        later: Vec<Epoch>,
    ) -> Self {
        let keys = Self {
            volume,
            chunk_key,
            index_key,
            first,
            later: (FIRST_EPOCH..EPOCH_MAX).map(|_| OnceLock::new()).collect(),
            newest: AtomicU32::new(FIRST_EPOCH),
        };
        keys.fill(later);
        keys
    }

    /// Fills the places of the epochs after the first. Two who do so at once have the same: each is filled once.
    fn fill(&self, epochs: Vec<Epoch>) {
        let newest = FIRST_EPOCH + epochs.len() as u32;
        for (place, epoch) in self.later.iter().zip(epochs) {
            place.get_or_init(|| Box::new(epoch));
        }
        self.newest.fetch_max(newest, Ordering::AcqRel);
    }

    /// Takes the epochs that `other`, keys of the same volume, has beyond these. Whether there were any. Whoever seals from now on does so
    /// under the newest.
    pub fn extend(&self, other: &Self) -> Result<bool, KeyError> {
        let known = self.newest_epoch().min(other.newest_epoch());
        let same = |epoch| self.commitment(epoch) == other.commitment(epoch);
        if self.volume != other.volume
            || blake3::Hash::from_bytes(*self.chunk_key) != blake3::Hash::from_bytes(*other.chunk_key)
            || blake3::Hash::from_bytes(*self.index_key) != blake3::Hash::from_bytes(*other.index_key)
            || !(FIRST_EPOCH..=known).all(same)
        {
            return Err(KeyError::OtherVolume);
        }
        let more = other.newest_epoch() > self.newest_epoch();
        if more {
            let secrets = other.filled().skip(1).map(|epoch| Epoch::new(*epoch.secret));
            self.fill(secrets.collect());
        }
        Ok(more)
    }

    /// What an admin states of the secret of an epoch, so that others can tell whether they were handed the right one. Tells nothing of it.
    pub fn commitment(&self, epoch: u32) -> Option<[u8; 32]> {
        let epoch = self.place(epoch)?;
        Some(blake3::derive_key(COMMITMENT_CONTEXT, &*epoch.secret))
    }

    fn place(&self, epoch: u32) -> Option<&Epoch> {
        match epoch.checked_sub(FIRST_EPOCH)? {
            0 => Some(&self.first),
            index => self.later.get(index as usize - 1)?.get().map(|epoch| &**epoch),
        }
    }

    fn filled(&self) -> impl Iterator<Item = &Epoch> {
        (FIRST_EPOCH..=self.newest_epoch()).filter_map(|epoch| self.place(epoch))
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
        self.newest.load(Ordering::Acquire)
    }

    /// The newest epoch and its key.
    pub fn current(&self) -> (u32, &EpochKey) {
        let newest = self.newest_epoch();
        match self.place(newest) {
            Some(epoch) => (newest, &epoch.key),
            None => (FIRST_EPOCH, &self.first.key),
        }
    }

    /// The key of an epoch; `None` when the epoch does not exist or began after these keys were made.
    pub fn epoch(&self, epoch: u32) -> Option<&EpochKey> {
        self.place(epoch).map(|epoch| &epoch.key)
    }

    /// The keys as bytes: secret. For the key file, and for a device that joins as reader or writer.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let newest = self.newest_epoch();
        let mut bytes = Zeroizing::new(Vec::with_capacity(92 + 32 * newest as usize));
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(self.volume.as_bytes());
        bytes.extend_from_slice(self.chunk_key());
        bytes.extend_from_slice(self.index_key());
        bytes.extend_from_slice(&newest.to_le_bytes());
        for epoch in self.filled().take(newest as usize) {
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
        let first = Epoch::new(reader.array()?);
        let later = (FIRST_EPOCH..newest)
            .map(|_| reader.array().map(Epoch::new))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self::with(volume, chunk_key, index_key, first, later))
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
        assert_eq!(one.commitment(1), three.commitment(1));
        assert_ne!(three.commitment(2), three.commitment(3));
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
    fn keys_in_use_learn_new_epochs_of_their_own_volume_only() {
        let keys = VolumeKeys::from_root(&root(), 1).unwrap();
        let old = keys.current().0;
        assert_eq!(keys.extend(&VolumeKeys::from_root(&root(), 3).unwrap()), Ok(true));
        assert_eq!((old, keys.current().0), (1, 3));
        assert_eq!(
            *keys.encode(),
            *VolumeKeys::from_root(&root(), 3).unwrap().encode()
        );
        assert_eq!(
            keys.extend(&VolumeKeys::from_root(&root(), 2).unwrap()),
            Ok(false)
        );
        assert_eq!(keys.current().0, 3);
        let other = VolumeKeys::from_root(&RootSecret::from_bytes([2; 32]), 4).unwrap();
        assert_eq!(keys.extend(&other), Err(KeyError::OtherVolume));
        // Of this volume, but with another secret for an epoch that is known.
        let mut forged = keys.encode();
        let at = forged.len() - 1;
        forged[at] ^= 1;
        let forged = VolumeKeys::decode(&forged).unwrap();
        assert_eq!(keys.extend(&forged), Err(KeyError::OtherVolume));
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
