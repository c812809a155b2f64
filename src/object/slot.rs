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
use super::packed::{PACKED_MAX, pack, unpack};

const MAGIC: [u8; 4] = *b"dfsm";
/// The newest version: what 1 is, packed content, and parts of blocks. Each slot is written in the oldest that can say it.
const VERSION: u8 = 2;

/// Form of packed content; the others are [`Content`]'s.
const PACKED: u8 = 3;
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

/// Longest file that can always be inline, in bytes.
pub const fn inline_max() -> usize {
    CONTENT_MAX - 1
}

/// Longest file that can be inline, in bytes, if it compresses well enough: [`encode`] tells.
pub const fn packed_max() -> usize {
    PACKED_MAX
}

/// How many extents always fit.
pub const fn extents_max() -> usize {
    (CONTENT_MAX - 5) / Extent::ENCODED_MAX
}

/// Whether the content fits a slot as it is.
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
    content.check()?;
    if content.len() != Some(manifest.size) {
        return Err(Inconsistent("the content does not add up to the size").into());
    }
    let mut payload = Writer::with_capacity(content.encoded_len().min(CONTENT_MAX));
    let version = match content {
        _ if fits(content) => {
            content.encode(&mut payload);
            1 + u8::from(content.has_parts())
        }
        Content::Inline(bytes) => {
            let packed = pack(bytes, CONTENT_MAX - 1 - 4).ok_or(SlotError::TooLarge(bytes.len()))?;
            payload.u8(PACKED).u32(bytes.len() as u32).raw(&packed);
            2
        }
        _ => return Err(SlotError::TooLarge(content.encoded_len())),
    };
    let payload = payload.into_vec();

    let (epoch, key) = keys.current();
    let mut header = Writer::with_capacity(SLOT_LEN);
    header.raw(&MAGIC).u8(version).u8(0);
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
    if !(1..=VERSION).contains(&version) {
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
    let (content, needs) = match payload.split_first() {
        Some((&PACKED, packed)) => (unpack_content(packed)?, 2),
        _ => {
            let content = Content::decode(&payload)?;
            let needs = 1 + u8::from(content.has_parts());
            (content, needs)
        }
    };
    if version != needs {
        return Err(DecodeError::Invalid("a version that it does not need").into());
    }
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

fn unpack_content(packed: &[u8]) -> Result<Content, DecodeError> {
    let mut reader = Reader::new(packed);
    let len = reader.u32()? as usize;
    if len <= inline_max() {
        return Err(DecodeError::Invalid("a file that is packed without need"));
    }
    let bytes = unpack(reader.take(reader.remaining())?, len);
    bytes
        .map(Content::Inline)
        .ok_or(DecodeError::Invalid("a packed file that does not unpack"))
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

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn extents(count: usize) -> Content {
        let block = |n| Extent::part(5, BlockId([n as u8; 32]), 7, 100);
        Content::Extents((0..count).map(block).collect())
    }

    #[test]
    fn the_largest_content_fits_and_one_more_does_not() {
        let at_most = [Content::Inline(noise(inline_max())), extents(extents_max())];
        let beyond = [
            Content::Inline(noise(inline_max() + 1)),
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
        assert!(inline_max() > 3900 && extents_max() > 80);
    }

    #[test]
    fn what_compresses_is_inline_up_to_a_bound() {
        let text = |len: usize| {
            Content::Inline(
                b"to be or not to be, "
                    .iter()
                    .copied()
                    .cycle()
                    .take(len)
                    .collect(),
            )
        };
        for (len, version) in [(inline_max(), 1), (inline_max() + 1, 2), (packed_max(), 2)] {
            let manifest = manifest(text(len));
            let slot = encode(&manifest, &keys(1)).unwrap();
            assert_eq!((slot.len() <= SLOT_LEN, slot[4]), (true, version));
            assert_eq!(decode(&slot, &keys(1)), Ok(Some(manifest)));
        }
        let refused = encode(&manifest(text(packed_max() + 1)), &keys(1));
        assert!(matches!(refused, Err(SlotError::TooLarge(_))));
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
        let hole = Extent::hole;
        let id = BlockId([1; 32]);
        let long = Extent::data(CHUNK_MAX as u32 + 1, id);
        let beyond_block = Extent::part(5, id, 6, 10);
        let beyond_any = Extent::part(5, id, u32::MAX, u32::MAX);
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
            Content::Extents(vec![beyond_block]),
            Content::Extents(vec![beyond_any]),
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
        let block = (1..=CHUNK_MAX as u32, id()).prop_map(|(len, id)| Extent::data(len, id));
        let part = (1..1000_u64, id(), 0..1000_u32, 0..1000_u32)
            .prop_map(|(len, id, skip, rest)| Extent::part(len, id, skip, skip + len as u32 + rest));
        let hole = (1..FILE_MAX / 200).prop_map(Extent::hole);
        let entry = (1..FILE_MAX / 100, id()).prop_map(|(len, id)| IndexRef { len, id });
        let refs = proptest::collection::vec(entry, 1..90);
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..=inline_max()).prop_map(Content::Inline),
            (
                proptest::collection::vec(any::<u8>(), 1..=100),
                inline_max() + 1..=PACKED_MAX
            )
                .prop_map(|(word, len)| Content::Inline(word.into_iter().cycle().take(len).collect())),
            proptest::collection::vec(prop_oneof![3 => block, 1 => part, 1 => hole], 0..=extents_max())
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
            let _ = unpack_content(&bytes);
            // As the content of an authentic slot: what decodes is exactly what encodes.
            if let Ok(content) = Content::decode(&bytes) {
                let mut writer = Writer::default();
                content.encode(&mut writer);
                prop_assert_eq!(writer.into_vec(), bytes);
            }
        }
    }
}
