//! What an open file consists of, in order: holes, (parts of) sealed blocks, bytes still in memory, and index blocks not looked into yet.
//!
//! Invariant: pieces cover `0..size` without gap or overlap and none is empty. Pure; the owner holds the lock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::base::BlockId;
use crate::base::limits::{CHUNK_MAX, CHUNK_MIN};
use crate::object::{Extent, IndexRef};

/// Where the bytes of a piece are.
#[derive(Debug, Clone)]
pub enum Source {
    /// Zeros that are stored nowhere.
    Hole,
    /// A run of a sealed block's plaintext.
    Block {
        /// The block.
        id: BlockId,
        /// First byte used of its plaintext.
        skip: u32,
        /// Length of its whole plaintext, in bytes.
        whole: u32,
    },
    /// Not sealed yet, or the inline content of a small file.
    Memory {
        /// The bytes; shared by pieces that were cut from one.
        bytes: Arc<Vec<u8>>,
        /// First byte used.
        from: usize,
    },
    /// An index block that stands for all pieces below it.
    Index {
        /// The block.
        id: BlockId,
        /// 1: it lists extents; more: it lists index blocks of one less.
        depth: u8,
    },
}

/// One piece of a file.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Length, in bytes.
    pub len: u64,
    /// Where its bytes are.
    pub source: Source,
    /// Changes whenever the bytes do: tells whether a piece that was sealed meanwhile is still the same.
    pub stamp: u64,
}

impl Piece {
    /// Whether a manifest can name the piece as it is.
    pub fn is_settled(&self) -> bool {
        !matches!(self.source, Source::Memory { .. })
    }

    /// Whether it is not a chunk as the chunker cuts them: part of one, or a short one that was stored by itself.
    pub fn is_loose(&self) -> bool {
        matches!(self.source, Source::Block { whole, .. } if self.len < u64::from(whole) || whole < CHUNK_MIN as u32)
    }

    /// The part of the piece that begins `skip` bytes into it and is `len` long. Index blocks cannot be divided and are returned whole.
    fn part(&self, skip: u64, len: u64) -> Piece {
        let source = match &self.source {
            Source::Block {
                id,
                skip: first,
                whole,
            } => Source::Block {
                id: *id,
                skip: first + skip as u32,
                whole: *whole,
            },
            Source::Memory { bytes, from } => Source::Memory {
                bytes: Arc::clone(bytes),
                from: from + skip as usize,
            },
            other => other.clone(),
        };
        Piece {
            len,
            source,
            stamp: self.stamp,
        }
    }
}

/// The pieces of one file.
#[derive(Debug, Default)]
pub struct Pieces {
    map: BTreeMap<u64, Piece>,
    size: u64,
    in_memory: u64,
    holes: u64,
    loose: usize,
    stamp: u64,
    /// Stretches whose extents came from this index block and have not changed since: they need no new one.
    intact: BTreeMap<u64, IndexRef>,
}

impl Pieces {
    /// Size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of all memory pieces.
    pub fn in_memory(&self) -> u64 {
        self.in_memory
    }

    /// Bytes that are not holes.
    pub fn stored(&self) -> u64 {
        self.size - self.holes
    }

    /// How many pieces are loose.
    pub fn loose(&self) -> usize {
        self.loose
    }

    /// A number that grows with every change.
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// All pieces with their offsets.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Piece)> {
        self.map.iter().map(|(offset, piece)| (*offset, piece))
    }

    /// The pieces that touch `range`, whole, with their offsets.
    pub fn touching(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &Piece)> {
        let first = self.start_of(range.start);
        self.map
            .range(first..)
            .take_while(move |(offset, _)| **offset < range.end)
            .filter(move |(offset, piece)| **offset + piece.len > range.start)
            .map(|(offset, piece)| (*offset, piece))
    }

    /// Appends a piece; used to build the list from a manifest.
    pub fn push(&mut self, len: u64, source: Source) {
        if len > 0 {
            let at = self.size;
            self.size += len;
            self.insert(
                at,
                Piece {
                    len,
                    source,
                    stamp: self.stamp,
                },
            );
        }
    }

    /// Replaces the bytes from `offset` by `data`, growing the file as needed. Index blocks in the way were expanded before.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.stamp += 1;
        let end = offset + data.len() as u64;
        if offset > self.size {
            self.set_size(offset);
        }
        self.touch(offset..end);
        if self.write_in_place(offset, data) {
            return;
        }
        self.clear(offset..end);
        let stamp = self.stamp;
        let mut at = offset;
        for part in data.chunks(CHUNK_MAX) {
            let mut bytes = Vec::with_capacity(part.len());
            bytes.extend_from_slice(part);
            self.insert(
                at,
                Piece {
                    len: part.len() as u64,
                    source: Source::Memory {
                        bytes: Arc::new(bytes),
                        from: 0,
                    },
                    stamp,
                },
            );
            at += part.len() as u64;
        }
        self.size = self.size.max(end);
    }

    /// What `range` consists of, the pieces at its ends cut to it. Index blocks cannot be cut.
    pub fn part(&self, range: Range<u64>) -> Vec<Piece> {
        self.touching(range.clone())
            .map(|(at, piece)| {
                let skip = range.start.saturating_sub(at);
                let end = piece.len.min(range.end - at);
                piece.part(skip, end - skip)
            })
            .collect()
    }

    /// Replaces the bytes from `offset` by those of `pieces`, growing the file as needed. Index blocks in the way were expanded before.
    pub fn put(&mut self, offset: u64, pieces: &[Piece]) {
        self.stamp += 1;
        let end = offset + pieces.iter().map(|piece| piece.len).sum::<u64>();
        if offset > self.size {
            self.set_size(offset);
        }
        self.touch(offset..end);
        self.clear(offset..end);
        self.size = self.size.max(end);
        let mut at = offset;
        for piece in pieces {
            match &piece.source {
                Source::Hole => self.put_hole(at, piece.len),
                source => self.insert(
                    at,
                    Piece {
                        len: piece.len,
                        source: source.clone(),
                        stamp: self.stamp,
                    },
                ),
            }
            at += piece.len;
        }
    }

    /// Cuts the file, or extends it by a hole.
    pub fn set_size(&mut self, size: u64) {
        self.stamp += 1;
        if size < self.size {
            self.touch(size..self.size);
            self.clear(size..self.size);
            self.size = size;
        } else if size > self.size {
            let (at, len) = (self.size, size - self.size);
            self.size = size;
            self.put_hole(at, len);
        }
    }

    /// Makes `range` a hole, within the file.
    pub fn punch(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.size);
        if range.start < range.end {
            self.stamp += 1;
            self.touch(range.clone());
            self.clear(range.clone());
            self.put_hole(range.start, range.end - range.start);
        }
    }

    /// Replaces `range` by pieces of the same total length that hold the same bytes: sealed now, or looked up in the index.
    pub fn replace(&mut self, range: Range<u64>, with: impl IntoIterator<Item = (u64, Source)>) {
        self.touch(range.clone());
        self.clear(range.clone());
        let mut at = range.start;
        for (len, source) in with {
            let stamp = self.stamp;
            self.insert(at, Piece { len, source, stamp });
            at += len;
        }
        debug_assert_eq!(at, range.end);
    }

    /// Replaces an index piece by what it lists, and remembers that the stretch needs no new index block while it stays as it is.
    pub fn expand(&mut self, at: u64, id: BlockId, depth: u8, below: Vec<(u64, Source)>) {
        let Some(piece) = self.map.get(&at) else { return };
        let len = piece.len;
        if !matches!(piece.source, Source::Index { id: here, .. } if here == id) {
            return;
        }
        self.replace(at..at + len, below);
        if depth == 1 {
            self.intact.insert(at, IndexRef { len, id });
        }
    }

    /// The index block that stands for the unchanged stretch that begins at `at`.
    pub fn intact_at(&self, at: u64) -> Option<IndexRef> {
        self.intact.get(&at).copied()
    }

    /// The index blocks that stand for unchanged stretches.
    pub fn intact_blocks(&self) -> impl Iterator<Item = BlockId> {
        self.intact.values().map(|entry| entry.id)
    }

    /// Remembers which index blocks now stand for which stretches.
    pub fn set_intact(&mut self, stretches: impl IntoIterator<Item = (u64, IndexRef)>) {
        self.intact = stretches.into_iter().collect();
    }

    /// First stretch at or after `from` that no manifest can name as it is, to its end.
    pub fn unsettled_after(&self, from: u64) -> Option<Range<u64>> {
        self.stretch_after(from, |piece| !piece.is_settled())
    }

    /// First stretch at or after `from` of pieces that are loose or not settled, to its end.
    pub fn loose_after(&self, from: u64) -> Option<Range<u64>> {
        self.stretch_after(from, |piece| !piece.is_settled() || piece.is_loose())
    }

    /// `range`, which begins and ends with pieces, together with the loose pieces on both sides of it: at most `CHUNK_MAX` bytes each.
    pub fn with_loose_around(&self, range: Range<u64>) -> Range<u64> {
        let mut around = range.clone();
        for (at, piece) in self.map.range(..range.start).rev() {
            if !piece.is_loose() || range.start - at > CHUNK_MAX as u64 {
                break;
            }
            around.start = *at;
        }
        for (at, piece) in self.map.range(range.end..) {
            if !piece.is_loose() || at + piece.len - range.end > CHUNK_MAX as u64 {
                break;
            }
            around.end = at + piece.len;
        }
        around
    }

    /// How many loose pieces of at most `len` bytes lie directly before `at`; counts no further than `most`.
    pub fn loose_before(&self, at: u64, len: u64, most: usize) -> usize {
        let before = self.map.range(..at).rev();
        before
            .take(most)
            .take_while(|(_, piece)| piece.is_loose() && piece.len <= len)
            .count()
    }

    fn stretch_after(&self, from: u64, wanted: impl Fn(&Piece) -> bool) -> Option<Range<u64>> {
        let begin = self.start_of(from);
        let mut pieces = self
            .map
            .range(begin..)
            .skip_while(|(at, piece)| !wanted(piece) || **at + piece.len <= from);
        let (start, first) = pieces.next()?;
        let mut end = start + first.len;
        for (offset, piece) in pieces {
            if !wanted(piece) {
                break;
            }
            end = offset + piece.len;
        }
        Some(*start..end)
    }

    /// Whether every piece can be named by a manifest.
    pub fn is_settled(&self) -> bool {
        self.map.values().all(Piece::is_settled)
    }

    /// The pieces as extents; only meaningful when all are settled and no index block is among them.
    pub fn extent_of(piece: &Piece) -> Extent {
        match &piece.source {
            Source::Block { id, skip, whole } => Extent::part(piece.len, *id, *skip, *whole),
            _ => Extent::hole(piece.len),
        }
    }

    fn start_of(&self, offset: u64) -> u64 {
        self.map
            .range(..=offset)
            .next_back()
            .map_or(0, |(start, _)| *start)
    }

    /// Appends to, or overwrites, memory that nothing else shares. Says whether it could.
    fn write_in_place(&mut self, offset: u64, data: &[u8]) -> bool {
        let stamp = self.stamp;
        let end = offset + data.len() as u64;
        // The piece that holds `offset`, or the one that ends there.
        let Some((&start, piece)) = self.map.range_mut(..=offset).next_back() else {
            return self.append_to_last(offset, data);
        };
        if end <= start + piece.len {
            let Source::Memory { bytes, from } = &mut piece.source else {
                return false;
            };
            let Some(bytes) = Arc::get_mut(bytes) else {
                return false;
            };
            let at = *from + (offset - start) as usize;
            bytes[at..at + data.len()].copy_from_slice(data);
            piece.stamp = stamp;
            return true;
        }
        offset == self.size && self.append_to_last(offset, data)
    }

    fn append_to_last(&mut self, offset: u64, data: &[u8]) -> bool {
        let stamp = self.stamp;
        let Some((&start, piece)) = self.map.iter_mut().next_back() else {
            return false;
        };
        let Source::Memory { bytes, from } = &mut piece.source else {
            return false;
        };
        let Some(bytes) = Arc::get_mut(bytes) else {
            return false;
        };
        let fits = start + piece.len == offset
            && *from + piece.len as usize == bytes.len()
            && bytes.len() + data.len() <= CHUNK_MAX;
        if fits {
            bytes.extend_from_slice(data);
            piece.len += data.len() as u64;
            piece.stamp = stamp;
            self.in_memory += data.len() as u64;
            self.size += data.len() as u64;
        }
        fits
    }

    fn put_hole(&mut self, at: u64, len: u64) {
        let (mut start, mut total) = (at, len);
        if let Some((&before, piece)) = self.map.range(..at).next_back()
            && matches!(piece.source, Source::Hole)
            && before + piece.len == at
            && !self.intact_covers(before)
        {
            start = before;
            total += piece.len;
            self.remove(before);
        }
        if let Some(piece) = self.map.get(&(at + len))
            && matches!(piece.source, Source::Hole)
            && !self.intact_covers(at + len)
        {
            total += piece.len;
            self.remove(at + len);
        }
        let stamp = self.stamp;
        self.insert(
            start,
            Piece {
                len: total,
                source: Source::Hole,
                stamp,
            },
        );
    }

    fn intact_covers(&self, at: u64) -> bool {
        self.intact
            .range(..=at)
            .next_back()
            .is_some_and(|(start, stretch)| at < start + stretch.len)
    }

    fn insert(&mut self, at: u64, piece: Piece) {
        match piece.source {
            Source::Memory { .. } => self.in_memory += piece.len,
            Source::Hole => self.holes += piece.len,
            _ => self.loose += usize::from(piece.is_loose()),
        }
        self.map.insert(at, piece);
    }

    fn remove(&mut self, at: u64) -> Option<Piece> {
        let piece = self.map.remove(&at)?;
        match piece.source {
            Source::Memory { .. } => self.in_memory -= piece.len,
            Source::Hole => self.holes -= piece.len,
            _ => self.loose -= usize::from(piece.is_loose()),
        }
        Some(piece)
    }

    /// Takes out everything in `range`, dividing the pieces at its ends.
    fn clear(&mut self, range: Range<u64>) {
        self.divide(range.start);
        self.divide(range.end);
        let starts: Vec<u64> = self.map.range(range).map(|(offset, _)| *offset).collect();
        for start in starts {
            self.remove(start);
        }
    }

    /// Lets a piece begin at `at`. Changes no byte.
    pub fn divide(&mut self, at: u64) {
        let Some((&start, piece)) = self.map.range(..at).next_back() else {
            return;
        };
        if start + piece.len <= at || matches!(piece.source, Source::Index { .. }) {
            return;
        }
        let head = piece.part(0, at - start);
        let tail = piece.part(at - start, start + piece.len - at);
        self.remove(start);
        self.insert(start, head);
        self.insert(at, tail);
    }

    fn touch(&mut self, range: Range<u64>) {
        let first = self
            .intact
            .range(..=range.start)
            .next_back()
            .map_or(0, |(start, _)| *start);
        let changed: Vec<u64> = self
            .intact
            .range(first..range.end)
            .filter(|(start, stretch)| **start + stretch.len > range.start)
            .map(|(start, _)| *start)
            .collect();
        for start in changed {
            self.intact.remove(&start);
        }
    }
}

#[cfg(test)]
#[path = "pieces_tests.rs"]
mod tests;
