//! One of the two slots of a `.f`: a clear, authenticated header and the sealed content. At most `SLOT_LEN` bytes.
//!
//! Invariant: what `decode` accepts is exactly what some `encode` under this volume's keys gave; bytes after it are left from an older,
//! longer version and ignored. Called by `folder` and `volume`.

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::{FILE_MAX, SLOT_LEN};
use crate::base::{FileId, StoreId};
use crate::keys::VolumeKeys;
use crate::seal::{PAYLOAD_OVERHEAD, PayloadError, open_payload, seal_payload, seal_payload_with_nonce};

use super::content::{Content, Extent, Inconsistent, Manifest};

const MAGIC: [u8; 4] = *b"dfsm";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 72;

/// Longest encoded content that fits a slot, in bytes.
const CONTENT_MAX: usize = SLOT_LEN - HEADER_LEN - PAYLOAD_OVERHEAD;

/// Why a slot could not be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The content does not fit: move it to index blocks.
    #[error("content of {0} bytes does not fit a slot")]
    TooLarge(usize),
    /// The manifest contradicts itself.
    #[error("manifest is inconsistent: {0}")]
    Inconsistent(#[from] Inconsistent),
    /// No random nonce.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    /// Does not begin as a slot does.
    #[error("not a dfs manifest")]
    NotAManifest,
    /// Written by a newer dfs.
    #[error("manifest format {0} is not known to this version of dfs: update it")]
    Version(u8),
    /// Sealed under an epoch that these keys do not include.
    #[error("manifest was sealed under key epoch {0}, which this device has no key for")]
    UnknownEpoch(u32),
    /// Damaged, or another volume's.
    #[error("manifest does not authenticate: it is damaged or belongs to another volume")]
    NotAuthentic,
    /// Cut off, or not as dfs writes it.
    #[error("malformed manifest: {0}")]
    Malformed(#[from] DecodeError),
}

/// Longest file that can be inline, in bytes.
pub const fn inline_max() -> usize {
    CONTENT_MAX - 1
}

/// How many extents always fit.
pub const fn extents_max() -> usize {
    (CONTENT_MAX - 5) / Extent::ENCODED_MAX
}

/// Whether the content fits a slot.
pub fn fits(content: &Content) -> bool {
    content.encoded_len() <= CONTENT_MAX
}

/// A slot that holds the manifest, sealed under the newest epoch with a fresh random nonce.
pub fn encode(manifest: &Manifest, keys: &VolumeKeys) -> Result<Vec<u8>, SlotError> {
    encode_with(manifest, keys, None)
}

/// As [`encode`] with the caller's nonce, which must never be used again: for golden files only.
#[doc(hidden)]
pub fn encode_with_nonce(
    manifest: &Manifest,
    keys: &VolumeKeys,
    nonce: [u8; 24],
) -> Result<Vec<u8>, SlotError> {
    encode_with(manifest, keys, Some(nonce))
}

fn encode_with(
    manifest: &Manifest,
    keys: &VolumeKeys,
    nonce: Option<[u8; 24]>,
) -> Result<Vec<u8>, SlotError> {
    let content = &manifest.content;
    if !fits(content) {
        return Err(SlotError::TooLarge(content.encoded_len()));
    }
    content.check()?;
    if content.len() != Some(manifest.size) {
        return Err(Inconsistent("the content does not add up to the size").into());
    }
    let mut payload = Writer::with_capacity(content.encoded_len());
    content.encode(&mut payload);
    let payload = payload.into_vec();

    let (epoch, key) = keys.current();
    let mut header = Writer::with_capacity(SLOT_LEN);
    header.raw(&MAGIC).u8(VERSION).u8(0);
    header
        .u16((payload.len() + PAYLOAD_OVERHEAD) as u16)
        .u32(epoch)
        .u32(0);
    header
        .raw(manifest.file_id.as_bytes())
        .u64(manifest.generation)
        .u64(manifest.size);
    header.raw(manifest.store.as_bytes()).u64(manifest.seq);
    let mut slot = header.into_vec();
    let sealed = match nonce {
        None => seal_payload(key, &slot, &payload),
        Some(nonce) => seal_payload_with_nonce(key, nonce, &slot, &payload),
    };
    slot.extend_from_slice(&sealed.map_err(|_| SlotError::NoRandomness)?);
    Ok(slot)
}

/// The manifest in a slot of up to `SLOT_LEN` bytes; `None` where nothing was ever written: no bytes, or zeros only.
pub fn decode(slot: &[u8], keys: &VolumeKeys) -> Result<Option<Manifest>, SlotError> {
    if slot.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let mut reader = Reader::new(slot);
    if reader.array()? != MAGIC {
        return Err(SlotError::NotAManifest);
    }
    let version = reader.u8()?;
    if version != VERSION {
        return Err(SlotError::Version(version));
    }
    let reserved = reader.u8()?;
    let sealed_len = usize::from(reader.u16()?);
    let epoch = reader.u32()?;
    if reserved != 0 || reader.u32()? != 0 {
        return Err(DecodeError::Invalid("reserved bytes are not zero").into());
    }
    if sealed_len > CONTENT_MAX + PAYLOAD_OVERHEAD {
        return Err(DecodeError::Invalid("content is longer than a slot").into());
    }
    let file_id = FileId(reader.array()?);
    let generation = reader.u64()?;
    let size = reader.u64()?;
    let store = StoreId(reader.array()?);
    let seq = reader.u64()?;
    let sealed = reader.take(sealed_len)?;

    let key = keys.epoch(epoch).ok_or(SlotError::UnknownEpoch(epoch))?;
    let payload = open_payload(key, &slot[..HEADER_LEN], sealed).map_err(|error| match error {
        PayloadError::Truncated => SlotError::Malformed(DecodeError::Invalid("content is cut off")),
        PayloadError::NoRandomness | PayloadError::NotAuthentic => SlotError::NotAuthentic,
    })?;
    let content = Content::decode(&payload)?;
    if size > FILE_MAX || content.len() != Some(size) {
        return Err(DecodeError::Invalid("the content does not add up to the size").into());
    }
    Ok(Some(Manifest {
        file_id,
        generation,
        size,
        store,
        seq,
        content,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::content::IndexRef;
    use super::*;
    use crate::base::BlockId;
    use crate::base::limits::CHUNK_MAX;
    use crate::keys::RootSecret;

    fn keys(epochs: u32) -> VolumeKeys {
        VolumeKeys::from_root(&RootSecret::from_bytes([1; 32]), epochs).unwrap()
    }

    fn manifest(content: Content) -> Manifest {
        Manifest {
            file_id: FileId([3; 16]),
            generation: 7,
            size: content.len().unwrap(),
            store: StoreId([4; 16]),
            seq: 9,
            content,
        }
    }

    fn extents(count: usize) -> Content {
        let block = |n| Extent {
            len: 5,
            block: Some(BlockId([n as u8; 32])),
        };
        Content::Extents((0..count).map(block).collect())
    }

    #[test]
    fn the_largest_content_fits_and_one_more_does_not() {
        let at_most = [Content::Inline(vec![1; inline_max()]), extents(extents_max())];
        let beyond = [
            Content::Inline(vec![1; inline_max() + 1]),
            extents(extents_max() + 1),
        ];
        for (good, bad) in at_most.into_iter().zip(beyond) {
            assert!(fits(&good) && !fits(&bad));
            let good = manifest(good);
            let slot = encode(&good, &keys(1)).unwrap();
            assert!(slot.len() <= SLOT_LEN);
            assert_eq!(decode(&slot, &keys(1)), Ok(Some(good)));
            assert!(matches!(
                encode(&manifest(bad), &keys(1)),
                Err(SlotError::TooLarge(_))
            ));
        }
        assert!(inline_max() > 3900 && extents_max() > 100);
    }

    #[test]
    fn absent_is_not_damaged() {
        assert_eq!(decode(&[], &keys(1)), Ok(None));
        assert_eq!(decode(&[0; SLOT_LEN], &keys(1)), Ok(None));
        let mut almost = [0; SLOT_LEN];
        almost[100] = 1;
        assert_eq!(decode(&almost, &keys(1)), Err(SlotError::NotAManifest));
    }

    #[test]
    fn what_an_older_version_left_behind_the_slot_does_not_matter() {
        let manifest = manifest(Content::Inline(b"short".to_vec()));
        let mut slot = encode(&manifest, &keys(1)).unwrap();
        slot.resize(SLOT_LEN, 0xee);
        assert_eq!(decode(&slot, &keys(1)), Ok(Some(manifest)));
    }

    #[test]
    fn epochs_are_told_apart() {
        let manifest = manifest(Content::Inline(b"text".to_vec()));
        let slot = encode(&manifest, &keys(2)).unwrap();
        assert_eq!(decode(&slot, &keys(3)), Ok(Some(manifest)));
        assert_eq!(decode(&slot, &keys(1)), Err(SlotError::UnknownEpoch(2)));
        let other = VolumeKeys::from_root(&RootSecret::from_bytes([2; 32]), 2).unwrap();
        assert_eq!(decode(&slot, &other), Err(SlotError::NotAuthentic));
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_not_written() {
        let hole = |len| Extent { len, block: None };
        let long = Extent {
            len: CHUNK_MAX as u64 + 1,
            block: Some(BlockId([1; 32])),
        };
        let index = |depth, len| Content::Index {
            depth,
            refs: vec![IndexRef {
                len,
                id: BlockId([1; 32]),
            }],
        };
        let empty = Content::Index {
            depth: 1,
            refs: vec![],
        };
        for content in [
            Content::Extents(vec![hole(0)]),
            Content::Extents(vec![long]),
            index(0, 1),
            index(7, 1),
            index(1, 0),
            empty,
        ] {
            let shown = format!("{content:?}");
            let refused = encode(&manifest(content), &keys(1));
            assert!(matches!(refused, Err(SlotError::Inconsistent(_))), "{shown}");
        }
        let mut wrong = manifest(Content::Inline(b"text".to_vec()));
        wrong.size += 1;
        assert!(matches!(
            encode(&wrong, &keys(1)),
            Err(SlotError::Inconsistent(_))
        ));
        let beyond = Manifest {
            size: u64::MAX,
            content: Content::Extents(vec![hole(FILE_MAX), hole(FILE_MAX)]),
            ..wrong
        };
        assert!(matches!(
            encode(&beyond, &keys(1)),
            Err(SlotError::Inconsistent(_))
        ));
    }

    fn contents() -> impl Strategy<Value = Content> {
        let id = || any::<[u8; 32]>().prop_map(BlockId);
        let block = (1..=CHUNK_MAX as u64, id()).prop_map(|(len, id)| Extent { len, block: Some(id) });
        let hole = (1..FILE_MAX / 200).prop_map(|len| Extent { len, block: None });
        let entry = (1..FILE_MAX / 100, id()).prop_map(|(len, id)| IndexRef { len, id });
        let refs = proptest::collection::vec(entry, 1..90);
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..=inline_max()).prop_map(Content::Inline),
            proptest::collection::vec(prop_oneof![3 => block, 1 => hole], 0..=extents_max())
                .prop_map(Content::Extents),
            (1_u8..=6, refs).prop_map(|(depth, refs)| Content::Index { depth, refs }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn round_trips_and_no_flipped_bit_goes_unseen(
            content in contents(),
            generation: u64,
            seq: u64,
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let manifest = Manifest { generation, seq, ..manifest(content) };
            let keys = keys(2);
            let mut slot = encode(&manifest, &keys).unwrap();
            prop_assert_eq!(decode(&slot, &keys), Ok(Some(manifest)));
            let at = at.index(slot.len());
            if at > 0 {
                prop_assert!(decode(&slot[..at], &keys).is_err());
            }
            slot[at] ^= 1 << bit;
            prop_assert!(decode(&slot, &keys).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let keys = keys(1);
            prop_assert!(matches!(decode(&bytes, &keys), Ok(None) | Err(_)));
            // As the content of an authentic slot: what decodes is exactly what encodes.
            if let Ok(content) = Content::decode(&bytes) {
                let mut writer = Writer::default();
                content.encode(&mut writer);
                prop_assert_eq!(writer.into_vec(), bytes);
            }
        }
    }
}
