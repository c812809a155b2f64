//! Index blocks: lists of extents, or of index blocks, too long for a slot. This is their plaintext; they are sealed like any chunk.
//!
//! Invariant: where a list is cut depends on the ids in it, so that an insertion changes the index blocks around it only.
//! Called by `volume`.

use std::ops::Range;

use crate::base::BlockId;
use crate::base::codec::{DecodeError, Reader, Writer};

use super::content::{Extent, IndexRef, entries, total};

const MAGIC: [u8; 4] = *b"dfsx";
/// The newest version: what 1 is, and parts of blocks. Each block is written in the oldest that can say it.
const VERSION: u8 = 2;
const EXTENTS: u8 = 1;
const REFS: u8 = 2;
const HEADER_LEN: usize = 12;

/// Fewest entries of an index block that is not the last: with it, a level has at most 1/256 of the entries of the one below.
pub const ENTRIES_MIN: usize = 256;
/// Entries of an index block, on average.
pub const ENTRIES_AVG: usize = 1024;
/// Most entries of an index block.
pub const ENTRIES_MAX: usize = 3072;
/// Longest index block, in bytes of plaintext.
pub const ENCODED_MAX: usize = 144 << 10;

const _: () = assert!(HEADER_LEN + ENTRIES_MAX * IndexRef::ENCODED_LEN <= ENCODED_MAX);
const _: () = assert!(HEADER_LEN + ENTRIES_MAX * Extent::ENCODED_MAX <= ENCODED_MAX);

/// An index block's plaintext that lists extents: at most `ENTRIES_MAX`.
pub fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let version = 1 + u8::from(extents.iter().any(Extent::is_part));
    let mut writer = begin(version, EXTENTS, extents.len(), Extent::ENCODED_MAX);
    extents.iter().for_each(|extent| extent.encode(&mut writer));
    writer.into_vec()
}

/// An index block's plaintext that lists index blocks: at most `ENTRIES_MAX`.
pub fn encode_refs(refs: &[IndexRef]) -> Vec<u8> {
    let mut writer = begin(1, REFS, refs.len(), IndexRef::ENCODED_LEN);
    refs.iter().for_each(|entry| entry.encode(&mut writer));
    writer.into_vec()
}

/// The extents that an index block lists: 1 to `ENTRIES_MAX`, each within its bounds, all together no longer than a file.
pub fn decode_extents(bytes: &[u8]) -> Result<Vec<Extent>, DecodeError> {
    let (version, extents) = decode(bytes, EXTENTS, Extent::decode)?;
    if version != 1 + u8::from(extents.iter().any(Extent::is_part)) {
        return Err(DecodeError::Invalid(
            "an index block of a version that it does not need",
        ));
    }
    check_total(extents.iter().map(|extent| extent.len))?;
    Ok(extents)
}

/// The index blocks that an index block lists: 1 to `ENTRIES_MAX`, all together no longer than a file.
pub fn decode_refs(bytes: &[u8]) -> Result<Vec<IndexRef>, DecodeError> {
    let (version, refs) = decode(bytes, REFS, IndexRef::decode)?;
    if version != 1 {
        return Err(DecodeError::Invalid(
            "an index block of a version that it does not need",
        ));
    }
    check_total(refs.iter().map(|entry| entry.len))?;
    Ok(refs)
}

/// Cuts a list of extents into index blocks: consecutive ranges that cover it.
pub fn cut_extents(extents: &[Extent]) -> Vec<Range<usize>> {
    cut(extents.len(), |at| {
        extents[at].block.as_ref().is_some_and(ends_block)
    })
}

/// Cuts a list of index blocks into index blocks of the next level: consecutive ranges that cover it.
pub fn cut_refs(refs: &[IndexRef]) -> Vec<Range<usize>> {
    cut(refs.len(), |at| ends_block(&refs[at].id))
}

fn begin(version: u8, kind: u8, count: usize, entry_len: usize) -> Writer {
    debug_assert!(
        count <= ENTRIES_MAX,
        "an index block holds at most {ENTRIES_MAX} entries"
    );
    let mut writer = Writer::with_capacity(HEADER_LEN + count * entry_len);
    writer.raw(&MAGIC).u8(version).u8(kind).u16(0).u32(count as u32);
    writer
}

fn decode<T>(
    bytes: &[u8],
    kind: u8,
    entry: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<(u8, Vec<T>), DecodeError> {
    if bytes.len() > ENCODED_MAX {
        return Err(DecodeError::Invalid("too long for an index block"));
    }
    let mut reader = Reader::new(bytes);
    if reader.array()? != MAGIC {
        return Err(DecodeError::Invalid("not an index block"));
    }
    let version = reader.u8()?;
    if !(1..=VERSION).contains(&version) {
        return Err(DecodeError::Invalid("an index block of a newer dfs: update it"));
    }
    if reader.u8()? != kind || reader.u16()? != 0 {
        return Err(DecodeError::Invalid("an index block of another kind"));
    }
    let count = reader.u32()?;
    if count == 0 || count as usize > ENTRIES_MAX {
        return Err(DecodeError::Invalid(
            "an index block with too few or too many entries",
        ));
    }
    let entries = entries(&mut reader, count, entry)?;
    reader.finish()?;
    Ok((version, entries))
}

fn check_total(lens: impl Iterator<Item = u64>) -> Result<(), DecodeError> {
    total(lens).map(|_| ()).ok_or(DecodeError::Invalid(
        "an index block covers more than a file can hold",
    ))
}

/// Whether an index block ends after this entry: one in `ENTRIES_AVG - ENTRIES_MIN` does. Block ids are uniformly distributed.
fn ends_block(id: &BlockId) -> bool {
    let [a, b, c, d, ..] = *id.as_bytes();
    u32::from_le_bytes([a, b, c, d]) % (ENTRIES_AVG - ENTRIES_MIN) as u32 == 0
}

fn cut(len: usize, ends: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut ranges = Vec::with_capacity(len / ENTRIES_AVG + 1);
    let mut start = 0;
    while start < len {
        let stop = len.min(start + ENTRIES_MAX);
        let from = start + ENTRIES_MIN - 1;
        let end = (from..stop).find(|at| ends(*at)).map_or(stop, |at| at + 1);
        ranges.push(start..end);
        start = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::limits::{CHUNK_MAX, FILE_MAX};

    fn id(n: usize) -> BlockId {
        BlockId::of(&n.to_le_bytes())
    }

    fn extents(ids: impl Iterator<Item = usize>) -> Vec<Extent> {
        ids.map(|n| Extent::data(100, id(n))).collect()
    }

    fn lists(extents: &[Extent]) -> Vec<BlockId> {
        let encoded = |range| BlockId::of(&encode_extents(&extents[range]));
        cut_extents(extents).into_iter().map(encoded).collect()
    }

    #[test]
    fn the_largest_fits_its_bound() {
        let full: Vec<Extent> = (0..ENTRIES_MAX).map(|n| Extent::part(9, id(n), 1, 100)).collect();
        assert!(encode_extents(&full).len() <= ENCODED_MAX && ENCODED_MAX <= CHUNK_MAX);
        assert_eq!(decode_extents(&encode_extents(&full)).unwrap(), full);
        let refs: Vec<IndexRef> = (0..ENTRIES_MAX).map(|n| IndexRef { len: 9, id: id(n) }).collect();
        assert!(encode_refs(&refs).len() <= ENCODED_MAX);
        assert_eq!(decode_refs(&encode_refs(&refs)).unwrap(), refs);
    }

    #[test]
    fn sizes_are_within_bounds_and_about_the_average() {
        let many = extents(0..200_000);
        let ranges = cut_extents(&many);
        for range in &ranges[..ranges.len() - 1] {
            assert!((ENTRIES_MIN..=ENTRIES_MAX).contains(&range.len()));
        }
        let average = many.len() / ranges.len();
        assert!(
            (ENTRIES_AVG * 3 / 4..ENTRIES_AVG * 5 / 4).contains(&average),
            "{average}"
        );
    }

    #[test]
    fn an_insertion_changes_few_index_blocks() {
        let before = extents(0..100_000);
        let after = extents(std::iter::once(999_999_999).chain(0..100_000));
        let (old, new) = (lists(&before), lists(&after));
        let changed = new.iter().filter(|id| !old.contains(id)).count();
        assert!(changed <= 3, "{changed} of {}", new.len());
    }

    #[test]
    fn holes_alone_are_cut_at_the_maximum() {
        let holes = vec![Extent::hole(1); ENTRIES_MAX + 1];
        assert_eq!(
            cut_extents(&holes),
            [0..ENTRIES_MAX, ENTRIES_MAX..ENTRIES_MAX + 1]
        );
        assert!(cut_extents(&[]).is_empty());
    }

    #[test]
    fn one_kind_is_not_read_as_the_other() {
        let refs = encode_refs(&[IndexRef { len: 1, id: id(1) }]);
        assert!(decode_extents(&refs).is_err() && decode_refs(&refs).is_ok());
        assert!(decode_refs(&encode_extents(&extents(0..1))).is_err());
    }

    #[test]
    fn out_of_bounds_is_refused() {
        assert!(decode_extents(&encode_extents(&[])).is_err());
        let huge = Extent::hole(FILE_MAX);
        assert!(decode_extents(&encode_extents(&[huge])).is_ok());
        assert!(decode_extents(&encode_extents(&[huge, huge])).is_err());
        let mut lying = encode_extents(&extents(0..2));
        lying[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode_extents(&lying).is_err());
        assert!(decode_extents(&vec![0; ENCODED_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn ranges_cover_the_list(len in 0_usize..10_000, salt: u16) {
            let refs: Vec<IndexRef> =
                (0..len).map(|n| IndexRef { len: 1, id: id(n * usize::from(salt)) }).collect();
            let mut at = 0;
            for range in cut_refs(&refs) {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > at && range.len() <= ENTRIES_MAX);
                at = range.end;
            }
            prop_assert_eq!(at, len);
        }

        #[test]
        fn what_decodes_is_what_encodes(
            kind in 0_u8..4,
            count in 0_u32..6,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            holes: bool,
        ) {
            let mut block = [&b"dfsx\x01"[..], &[kind, 0, 0], &count.to_le_bytes()].concat();
            if holes {
                (0..count).for_each(|n| block.extend_from_slice(&[0, n as u8 + 1, 0, 0, 0, 0, 0, 0, 0]));
            } else {
                block.extend_from_slice(&bytes);
            }
            if let Ok(extents) = decode_extents(&block) {
                prop_assert_eq!(encode_extents(&extents), &block[..]);
            }
            if let Ok(refs) = decode_refs(&block) {
                prop_assert_eq!(encode_refs(&refs), &block[..]);
            }
            prop_assert!(decode_extents(&bytes).is_err());
        }
    }
}
