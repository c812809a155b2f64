//! What each operation does to the tables, inside a transaction of the writer.
//!
//! Invariant: `meta`'s totals equal what the tables hold, and the bytes of a block that is known to be damaged are never freed: their
//! chain of pages may lead into another block's, and its row may name another's address.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use super::meta::Meta;
use super::segments::{Appender, IN_ROW_MAX, Segments};
use crate::base::BlockId;
use crate::store::{CommitSeq, Put, PutKind};

/// Victims of eviction that are looked up at once.
const EVICT_STEP: i64 = 64;

/// Where the bytes of a block are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In this row of `data`.
    Row(i64),
    /// At this address of the segments.
    Segment(u64),
}

impl Place {
    /// As the column `place` says it.
    pub(super) fn from_column(place: i64) -> Self {
        if place < 0 {
            Self::Segment(!place as u64)
        } else {
            Self::Row(place)
        }
    }

    fn column(self) -> i64 {
        match self {
            Self::Row(n) => n,
            Self::Segment(at) => !(at as i64),
        }
    }
}

/// What is known of a block besides its bytes.
struct Known {
    place: Place,
    len: u64,
    dirty: bool,
    /// Somebody has a lease on it, or had one until recently.
    held: bool,
}

/// A block whose bytes are in the segments.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) id: Vec<u8>,
}

/// One transaction on its way.
pub(super) struct Change<'a> {
    pub(super) conn: &'a Connection,
    pub(super) meta: &'a mut Meta,
    pub(super) segments: &'a Segments,
    /// Blocks whose bytes go to the segments.
    pub(super) appender: Appender,
    /// Address and length of blocks in the segments that are deleted.
    pub(super) freed: Vec<(u64, u64)>,
    /// Bytes of blocks that go to the database.
    pub(super) in_rows: u64,
    /// Damage was seen: nothing is freed that was not read back.
    pub(super) careful: bool,
}

impl Change<'_> {
    /// Stores one block in commit `meta.seq`. False when it was there already and nothing changed.
    pub(super) fn put(&mut self, put: &Put) -> rusqlite::Result<bool> {
        let known = self.find(&put.id)?;
        let mut changed = match &put.plain {
            // The hash now stands for this block and no other.
            Some(hash) => {
                self.conn
                    .prepare_cached("UPDATE block SET plain = NULL WHERE plain = ?1 AND id <> ?2")?
                    .execute(params![&hash.as_bytes()[..], &put.id.as_bytes()[..]])?
                    > 0
            }
            None => false,
        };
        let Some(known) = known else {
            let place = self.insert_bytes(&put.id, &put.bytes)?;
            let dirty = put.kind == PutKind::Dirty;
            self.conn
                .prepare_cached(
                    "INSERT INTO block (id, place, len, seq, dirty, used, plain) VALUES (?1, ?2, ?3, ?4, ?5, ?4, ?6)",
                )?
                .execute(params![
                    &put.id.as_bytes()[..],
                    place.column(),
                    put.bytes.len() as i64,
                    self.meta.seq as i64,
                    dirty,
                    put.plain.as_ref().map(|hash| &hash.as_bytes()[..]),
                ])?;
            let len = put.bytes.len() as u64;
            self.meta.blocks += 1;
            self.meta.bytes += len;
            self.meta.dirty_bytes += if dirty { len } else { 0 };
            return Ok(true);
        };
        if !self.is_intact(&known, &put.id) {
            tracing::warn!(block = %put.id, "a damaged block of the local store was replaced");
            let place = self.insert_bytes(&put.id, &put.bytes)?;
            self.conn
                .prepare_cached("UPDATE block SET place = ?2, len = ?3, seq = ?4, used = ?4 WHERE id = ?1")?
                .execute(params![
                    &put.id.as_bytes()[..],
                    place.column(),
                    put.bytes.len() as i64,
                    self.meta.seq as i64
                ])?;
            let len = put.bytes.len() as u64;
            self.meta.bytes = (self.meta.bytes + len).saturating_sub(known.len);
            if known.dirty {
                self.meta.dirty_bytes = (self.meta.dirty_bytes + len).saturating_sub(known.len);
            }
            changed = true;
        }
        if put.kind == PutKind::Dirty && !known.dirty {
            changed |= self.set_dirty(&put.id, true)?;
        }
        if let Some(hash) = &put.plain {
            let rows = self
                .conn
                .prepare_cached("UPDATE block SET plain = ?2 WHERE id = ?1 AND plain IS NOT ?2")?
                .execute(params![&put.id.as_bytes()[..], &hash.as_bytes()[..]])?;
            changed |= rows > 0;
        }
        Ok(changed)
    }

    /// Deletes one block; false when it was not there, or is kept for somebody else.
    pub(super) fn remove(&mut self, id: &BlockId) -> rusqlite::Result<bool> {
        match self.find(id)? {
            Some(known) if !known.held => self.delete(id, &known).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Deletes the row of a block whose bytes a power cut took.
    pub(super) fn forget_lost(&mut self, id: &BlockId) -> rusqlite::Result<()> {
        match self.find(id)? {
            Some(known) => self.delete(id, &known),
            None => Ok(()),
        }
    }

    fn delete(&mut self, id: &BlockId, known: &Known) -> rusqlite::Result<()> {
        if !self.careful || self.is_intact(known, id) {
            match known.place {
                Place::Row(n) => {
                    self.conn
                        .prepare_cached("DELETE FROM data WHERE n = ?1")?
                        .execute([n])?;
                }
                Place::Segment(at) => {
                    // Both rows have to say the same: what one flipped bit made of an address is not freed.
                    let rows = self
                        .conn
                        .prepare_cached("DELETE FROM extent WHERE at = ?1 AND len = ?2 AND id = ?3")?
                        .execute(params![at as i64, known.len as i64, &id.as_bytes()[..]])?;
                    if rows > 0 {
                        self.freed.push((at, known.len));
                    }
                }
            }
        }
        self.conn
            .prepare_cached("DELETE FROM block WHERE id = ?1")?
            .execute([&id.as_bytes()[..]])?;
        self.meta.blocks = self.meta.blocks.saturating_sub(1);
        self.meta.bytes = self.meta.bytes.saturating_sub(known.len);
        if known.dirty {
            self.meta.dirty_bytes = self.meta.dirty_bytes.saturating_sub(known.len);
        }
        Ok(())
    }

    /// Marks one block as dirty or cached; false when it was so already or is not here.
    pub(super) fn set_dirty(&mut self, id: &BlockId, dirty: bool) -> rusqlite::Result<bool> {
        let len: Option<i64> = self
            .conn
            .prepare_cached(
                "UPDATE block SET dirty = ?2, used = ?3 WHERE id = ?1 AND dirty <> ?2
                 AND (?2 OR NOT EXISTS (SELECT 1 FROM lease WHERE block = ?1)) RETURNING len",
            )?
            .query_row(params![&id.as_bytes()[..], dirty, self.meta.seq as i64], |row| {
                row.get(0)
            })
            .optional()?;
        let Some(len) = len else { return Ok(false) };
        if dirty {
            self.meta.dirty_bytes += len as u64;
        } else {
            self.meta.dirty_bytes = self.meta.dirty_bytes.saturating_sub(len as u64);
        }
        Ok(true)
    }

    /// Records that a block was read since the last commit.
    pub(super) fn touch(&self, id: &BlockId) -> rusqlite::Result<()> {
        self.conn
            .prepare_cached("UPDATE block SET used = ?2 WHERE id = ?1")?
            .execute(params![&id.as_bytes()[..], self.meta.seq as i64])?;
        Ok(())
    }

    /// Deletes the cached blocks that were not used for longest until at least `free` bytes are gone or none is left.
    pub(super) fn evict(&mut self, free: u64) -> rusqlite::Result<()> {
        let mut freed = 0;
        while freed < free {
            let victims: Vec<Vec<u8>> = self
                .conn
                .prepare_cached("SELECT id FROM block WHERE dirty = 0 ORDER BY used LIMIT ?1")?
                .query_map([EVICT_STEP], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            if victims.is_empty() {
                break;
            }
            let mut removed = false;
            for id in victims.iter().filter_map(|id| BlockId::from_slice(id)) {
                if freed >= free {
                    break;
                }
                let before = self.meta.bytes;
                removed |= self.remove(&id)?;
                freed += before - self.meta.bytes;
            }
            if !removed {
                break;
            }
        }
        Ok(())
    }

    fn insert_bytes(&mut self, id: &BlockId, bytes: &Bytes) -> rusqlite::Result<Place> {
        if bytes.len() <= IN_ROW_MAX {
            self.conn
                .prepare_cached("INSERT INTO data (bytes) VALUES (?1)")?
                .execute([&bytes[..]])?;
            self.in_rows += bytes.len() as u64;
            return Ok(Place::Row(self.conn.last_insert_rowid()));
        }
        let at = self.appender.place(bytes);
        self.conn
            .prepare_cached("INSERT INTO extent (at, len, id) VALUES (?1, ?2, ?3)")?
            .execute(params![at as i64, bytes.len() as i64, &id.as_bytes()[..]])?;
        Ok(Place::Segment(at))
    }

    fn find(&self, id: &BlockId) -> rusqlite::Result<Option<Known>> {
        self.conn
            .prepare_cached(
                "SELECT place, len, dirty, EXISTS (SELECT 1 FROM lease WHERE lease.block = ?1)
                 OR EXISTS (SELECT 1 FROM idle WHERE idle.block = ?1) FROM block WHERE id = ?1",
            )?
            .query_row([&id.as_bytes()[..]], |row| {
                Ok(Known {
                    place: Place::from_column(row.get(0)?),
                    len: row.get::<_, i64>(1)? as u64,
                    dirty: row.get(2)?,
                    held: row.get(3)?,
                })
            })
            .optional()
    }

    /// Whether the stored bytes are the block. A read that fails counts as damage.
    fn is_intact(&self, known: &Known, id: &BlockId) -> bool {
        match known.place {
            Place::Row(n) => self
                .conn
                .prepare_cached("SELECT bytes FROM data WHERE n = ?1")
                .and_then(|mut statement| {
                    statement.query_row([n], |row| Ok(id.matches(row.get_ref(0)?.as_blob()?)))
                })
                .unwrap_or(false),
            Place::Segment(at) => {
                // This very commit may have put it.
                let pending = self.appender.blocks();
                match pending.binary_search_by_key(&at, |(at, _)| *at) {
                    Ok(_) => true,
                    Err(_) => self
                        .segments
                        .read(at, known.len)
                        .is_ok_and(|bytes| id.matches(&bytes)),
                }
            }
        }
    }
}

/// Up to where the segments are durable, and where the last of their blocks ends.
pub(super) fn tail(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    let synced: i64 = conn.query_row("SELECT synced FROM tail WHERE one = 1", [], |row| row.get(0))?;
    let end: Option<i64> = conn
        .query_row(
            "SELECT at + len FROM extent ORDER BY at DESC LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()?;
    Ok((synced as u64, end.unwrap_or(0) as u64))
}

/// Writes down that the segments are durable up to `synced`.
pub(super) fn save_tail(conn: &Connection, synced: u64) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE tail SET synced = ?1 WHERE one = 1")?
        .execute([synced as i64])?;
    Ok(())
}

/// The first blocks in the segments from address `from` to `to`, in ascending order, at most `limit`.
pub(super) fn extents(conn: &Connection, from: u64, to: u64, limit: usize) -> rusqlite::Result<Vec<Extent>> {
    conn.prepare_cached("SELECT at, len, id FROM extent WHERE at >= ?1 AND at < ?2 ORDER BY at LIMIT ?3")?
        .query_map(params![from as i64, to as i64, limit as i64], |row| {
            Ok(Extent {
                at: row.get::<_, i64>(0)? as u64,
                len: row.get::<_, i64>(1)? as u64,
                id: row.get(2)?,
            })
        })?
        .collect()
}

/// The commit that stored a block in the segments, if `extent` and the block's own row agree.
pub(super) fn commit_of(conn: &Connection, extent: &Extent) -> rusqlite::Result<Option<CommitSeq>> {
    conn.prepare_cached("SELECT seq FROM block WHERE id = ?1 AND place = ?2 AND len = ?3")?
        .query_row(
            params![extent.id, Place::Segment(extent.at).column(), extent.len as i64],
            |row| Ok(row.get::<_, i64>(0)? as u64),
        )
        .optional()
}
