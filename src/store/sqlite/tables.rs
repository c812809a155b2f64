//! What each operation does to the tables, inside a transaction of the writer.
//!
//! Invariant: `meta`'s totals equal what the tables hold, and the bytes of a block that is known to be damaged are never freed: their
//! chain of pages may lead into another block's.

use rusqlite::{Connection, OptionalExtension, params};

use super::meta::Meta;
use crate::base::BlockId;
use crate::store::{Put, PutKind};

/// Victims of eviction that are looked up at once.
const EVICT_STEP: i64 = 64;

/// What is known of a block besides its bytes.
struct Known {
    data: i64,
    len: u64,
    dirty: bool,
}

/// Stores one block in commit `meta.seq`. False when it was there already and nothing changed.
pub(super) fn put(conn: &Connection, meta: &mut Meta, put: &Put) -> rusqlite::Result<bool> {
    let known = find(conn, &put.id)?;
    let mut changed = match &put.plain {
        // The hash now stands for this block and no other.
        Some(hash) => {
            conn.prepare_cached("UPDATE block SET plain = NULL WHERE plain = ?1 AND id <> ?2")?
                .execute(params![&hash.as_bytes()[..], &put.id.as_bytes()[..]])?
                > 0
        }
        None => false,
    };
    let Some(known) = known else {
        let data = insert_data(conn, &put.bytes)?;
        let dirty = put.kind == PutKind::Dirty;
        conn.prepare_cached(
            "INSERT INTO block (id, data, len, seq, dirty, used, plain) VALUES (?1, ?2, ?3, ?4, ?5, ?4, ?6)",
        )?
        .execute(params![
            &put.id.as_bytes()[..],
            data,
            put.bytes.len() as i64,
            meta.seq as i64,
            dirty,
            put.plain.as_ref().map(|hash| &hash.as_bytes()[..]),
        ])?;
        let len = put.bytes.len() as u64;
        meta.blocks += 1;
        meta.bytes += len;
        meta.dirty_bytes += if dirty { len } else { 0 };
        return Ok(true);
    };
    if !is_intact(conn, known.data, &put.id) {
        tracing::warn!(block = %put.id, "a damaged block of the local store was replaced");
        let data = insert_data(conn, &put.bytes)?;
        conn.prepare_cached("UPDATE block SET data = ?2, len = ?3, seq = ?4, used = ?4 WHERE id = ?1")?
            .execute(params![
                &put.id.as_bytes()[..],
                data,
                put.bytes.len() as i64,
                meta.seq as i64
            ])?;
        let len = put.bytes.len() as u64;
        meta.bytes = (meta.bytes + len).saturating_sub(known.len);
        if known.dirty {
            meta.dirty_bytes = (meta.dirty_bytes + len).saturating_sub(known.len);
        }
        changed = true;
    }
    if put.kind == PutKind::Dirty && !known.dirty {
        changed |= set_dirty(conn, meta, &put.id, true)?;
    }
    if let Some(hash) = &put.plain {
        let rows = conn
            .prepare_cached("UPDATE block SET plain = ?2 WHERE id = ?1 AND plain IS NOT ?2")?
            .execute(params![&put.id.as_bytes()[..], &hash.as_bytes()[..]])?;
        changed |= rows > 0;
    }
    Ok(changed)
}

/// Deletes one block; false when it was not there. `careful`: its bytes are freed only if they are undamaged.
pub(super) fn remove(
    conn: &Connection,
    meta: &mut Meta,
    id: &BlockId,
    careful: bool,
) -> rusqlite::Result<bool> {
    let Some(known) = find(conn, id)? else {
        return Ok(false);
    };
    if !careful || is_intact(conn, known.data, id) {
        conn.prepare_cached("DELETE FROM data WHERE n = ?1")?
            .execute([known.data])?;
    }
    conn.prepare_cached("DELETE FROM block WHERE id = ?1")?
        .execute([&id.as_bytes()[..]])?;
    meta.blocks = meta.blocks.saturating_sub(1);
    meta.bytes = meta.bytes.saturating_sub(known.len);
    if known.dirty {
        meta.dirty_bytes = meta.dirty_bytes.saturating_sub(known.len);
    }
    Ok(true)
}

/// Marks one block as dirty or cached; false when it was so already or is not here.
pub(super) fn set_dirty(
    conn: &Connection,
    meta: &mut Meta,
    id: &BlockId,
    dirty: bool,
) -> rusqlite::Result<bool> {
    let len: Option<i64> = conn
        .prepare_cached("UPDATE block SET dirty = ?2, used = ?3 WHERE id = ?1 AND dirty <> ?2 RETURNING len")?
        .query_row(params![&id.as_bytes()[..], dirty, meta.seq as i64], |row| {
            row.get(0)
        })
        .optional()?;
    let Some(len) = len else { return Ok(false) };
    if dirty {
        meta.dirty_bytes += len as u64;
    } else {
        meta.dirty_bytes = meta.dirty_bytes.saturating_sub(len as u64);
    }
    Ok(true)
}

/// Records that a block was read since the last commit.
pub(super) fn touch(conn: &Connection, meta: &Meta, id: &BlockId) -> rusqlite::Result<()> {
    conn.prepare_cached("UPDATE block SET used = ?2 WHERE id = ?1 AND dirty = 0")?
        .execute(params![&id.as_bytes()[..], meta.seq as i64])?;
    Ok(())
}

/// Deletes the cached blocks that were not used for longest until at least `free` bytes are gone or none is left.
pub(super) fn evict(conn: &Connection, meta: &mut Meta, free: u64, careful: bool) -> rusqlite::Result<()> {
    let mut freed = 0;
    while freed < free {
        let victims: Vec<Vec<u8>> = conn
            .prepare_cached("SELECT id FROM block WHERE dirty = 0 ORDER BY used LIMIT ?1")?
            .query_map([EVICT_STEP], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        if victims.is_empty() {
            break;
        }
        for id in victims.iter().filter_map(|id| BlockId::from_slice(id)) {
            if freed >= free {
                break;
            }
            let before = meta.bytes;
            remove(conn, meta, &id, careful)?;
            freed += before - meta.bytes;
        }
    }
    Ok(())
}

fn insert_data(conn: &Connection, bytes: &[u8]) -> rusqlite::Result<i64> {
    conn.prepare_cached("INSERT INTO data (bytes) VALUES (?1)")?
        .execute([bytes])?;
    Ok(conn.last_insert_rowid())
}

fn find(conn: &Connection, id: &BlockId) -> rusqlite::Result<Option<Known>> {
    conn.prepare_cached("SELECT data, len, dirty FROM block WHERE id = ?1")?
        .query_row([&id.as_bytes()[..]], |row| {
            Ok(Known {
                data: row.get(0)?,
                len: row.get::<_, i64>(1)? as u64,
                dirty: row.get(2)?,
            })
        })
        .optional()
}

/// Whether the bytes on disk are the block. A read that fails counts as damage.
fn is_intact(conn: &Connection, data: i64, id: &BlockId) -> bool {
    conn.prepare_cached("SELECT bytes FROM data WHERE n = ?1")
        .and_then(|mut statement| {
            statement.query_row([data], |row| Ok(id.matches(row.get_ref(0)?.as_blob()?)))
        })
        .unwrap_or(false)
}
