//! The one row that says what the store is and how far it has come: identity, commit number, clean flag, totals, void ranges.
//!
//! Invariant: the row changes in the same transaction as what it counts, and carries a checksum of itself, because a commit number
//! that is wrong by a flipped bit would make files fall back to older versions without a word.

use rusqlite::{Connection, OptionalExtension, params};

use crate::base::StoreId;
use crate::store::{CommitSeq, StoreStats};

/// How far commit numbers jump after an unclean stop. A session may lose its unsynced numbers in a power cut and the next must
/// not use them again; it cannot know how many there were, but the writer syncs long before there are this many.
pub(super) const JUMP: u64 = 1 << 32;

/// Length of a void range on disk, in bytes: two numbers.
const VOID_LEN: usize = 16;

/// Commit numbers from the first to the second, both included, that were never given to a commit that survived.
pub(super) type Void = (CommitSeq, CommitSeq);

/// State of the store as of its newest commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) store: StoreId,
    pub(super) seq: CommitSeq,
    /// Whether the store was closed with everything durable and has not been opened since.
    pub(super) clean: bool,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) dirty_bytes: u64,
    /// In ascending order.
    pub(super) voids: Vec<Void>,
}

/// Why there is no [`Meta`].
#[derive(Debug, thiserror::Error)]
pub(super) enum MetaError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error("its state row is missing or damaged")]
    Damaged,
}

impl Meta {
    /// The state of a store that was just created.
    pub(super) fn new(store: StoreId) -> Self {
        Self {
            store,
            seq: 0,
            clean: true,
            blocks: 0,
            bytes: 0,
            dirty_bytes: 0,
            voids: Vec::new(),
        }
    }

    /// Makes the numbers after the newest commit void for ever and goes on far beyond them.
    pub(super) fn jump(&mut self) {
        self.voids.push((self.seq + 1, self.seq + JUMP - 1));
        self.seq += JUMP;
    }

    pub(super) fn stats(&self, cache_size: u64) -> StoreStats {
        StoreStats {
            blocks: self.blocks,
            bytes: self.bytes,
            dirty_bytes: self.dirty_bytes,
            cache_size,
        }
    }

    /// Reads and checks the row.
    pub(super) fn load(conn: &Connection) -> Result<Self, MetaError> {
        let row = conn
            .prepare_cached(
                "SELECT store, seq, clean, blocks, bytes, dirty_bytes, voids, checksum FROM meta WHERE one = 1",
            )?
            .query_row([], |row| {
                Ok((
                    row.get::<_, Vec<u8>>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, bool>(2)?,
                    [row.get::<_, i64>(3)?, row.get(4)?, row.get(5)?],
                    row.get::<_, Vec<u8>>(6)?,
                    row.get::<_, Vec<u8>>(7)?,
                ))
            })
            .optional()?;
        let (store, seq, clean, totals, voids, checksum) = row.ok_or(MetaError::Damaged)?;
        let meta = Self {
            store: StoreId::from_slice(&store).ok_or(MetaError::Damaged)?,
            seq: seq as u64,
            clean,
            blocks: totals[0] as u64,
            bytes: totals[1] as u64,
            dirty_bytes: totals[2] as u64,
            voids: decode_voids(&voids).ok_or(MetaError::Damaged)?,
        };
        if meta.checksum()[..] != checksum[..] {
            return Err(MetaError::Damaged);
        }
        Ok(meta)
    }

    /// Writes the row, as part of the caller's transaction.
    pub(super) fn save(&self, conn: &Connection) -> rusqlite::Result<()> {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO meta (one, store, seq, clean, blocks, bytes, dirty_bytes, voids, checksum)
             VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            &self.store.as_bytes()[..],
            self.seq as i64,
            self.clean,
            self.blocks as i64,
            self.bytes as i64,
            self.dirty_bytes as i64,
            encode_voids(&self.voids),
            &self.checksum()[..],
        ])?;
        Ok(())
    }

    fn checksum(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.store.as_bytes());
        hasher.update(&[u8::from(self.clean)]);
        for number in [self.seq, self.blocks, self.bytes, self.dirty_bytes] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&encode_voids(&self.voids));
        *hasher.finalize().as_bytes()
    }
}

/// Whether no surviving commit can have had number `seq`, with these void ranges and `last` the newest commit.
pub(super) fn is_void(voids: &[Void], last: CommitSeq, seq: CommitSeq) -> bool {
    if seq > last {
        return true;
    }
    let after = voids.partition_point(|void| void.0 <= seq);
    after > 0 && seq <= voids[after - 1].1
}

fn encode_voids(voids: &[Void]) -> Vec<u8> {
    let mut out = Vec::with_capacity(voids.len() * VOID_LEN);
    for (first, last) in voids {
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&last.to_le_bytes());
    }
    out
}

fn decode_voids(bytes: &[u8]) -> Option<Vec<Void>> {
    let (pairs, rest) = bytes.as_chunks::<VOID_LEN>();
    let number = |half: &[u8]| half.try_into().ok().map(u64::from_le_bytes);
    rest.is_empty().then_some(())?;
    pairs
        .iter()
        .map(|pair| Some((number(&pair[..8])?, number(&pair[8..])?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_skipped_stay_void_and_the_others_never_are() {
        let mut meta = Meta::new(StoreId([1; 16]));
        meta.seq = 10;
        meta.jump();
        let second = meta.seq;
        meta.seq += 5;
        meta.jump();
        for kept in [1, 10, second, second + 5, meta.seq] {
            assert!(!is_void(&meta.voids, meta.seq, kept), "{kept}");
        }
        for lost in [11, second - 1, second + 6, meta.seq - 1, meta.seq + 1, u64::MAX] {
            assert!(is_void(&meta.voids, meta.seq, lost), "{lost}");
        }
    }

    #[test]
    fn void_ranges_round_trip() {
        let voids = vec![(1, 2), (u64::MAX - 1, u64::MAX)];
        assert_eq!(decode_voids(&encode_voids(&voids)), Some(voids));
        assert_eq!(decode_voids(&[0; 17]), None);
    }
}
