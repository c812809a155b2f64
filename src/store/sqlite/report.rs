//! Questions about replication that people ask, not the machine: sums over tables, and what was not used for long.
//!
//! They read all rows of a table, or nearly: for commands, and for now and then.

use rusqlite::params;

use super::SqliteStore;
use super::replica::{blob, block_in, device_in, secs_in};
use crate::base::BlockId;
use crate::store::{Cold, Share, StoreError};

impl SqliteStore {
    /// What others hold for this device, by holder.
    pub fn stored_at(&self) -> Result<Vec<Share>, StoreError> {
        self.select(
            "SELECT holder, count(*), coalesce(sum(len), 0) FROM replica JOIN kept USING (block) GROUP BY holder",
            &[],
            share_in,
        )
    }

    /// What this device holds for others, by owner.
    pub fn held_for(&self) -> Result<Vec<Share>, StoreError> {
        self.select(
            "SELECT owner, count(*), coalesce(sum(len), 0) FROM lease JOIN block ON block.id = lease.block GROUP BY owner",
            &[],
            share_in,
        )
    }

    /// Blocks and bytes for which something is to be done.
    pub fn queued(&self) -> Result<(u64, u64), StoreError> {
        let sums = self.select_one(
            "SELECT count(*), coalesce(sum(len), 0) FROM kept WHERE todo IS NOT NULL",
            &[],
            |row| Ok((secs_in(row, 0)?, secs_in(row, 1)?)),
        )?;
        Ok(sums.unwrap_or_default())
    }

    /// Blocks here that are protected only because they are this volume's own and that could be freed: replicated as wanted or as far as
    /// `possible`, not pinned, held for nobody; least recently used first.
    pub fn cold(&self, possible: u8, limit: usize) -> Result<Vec<Cold>, StoreError> {
        self.select(
            "SELECT block.id, block.len, block.used FROM kept JOIN block ON block.id = kept.block
             WHERE block.dirty = 1 AND kept.pinned = 0 AND kept.copies > 0 AND kept.copies >= min(kept.wanted, ?1)
             AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.block = block.id)
             ORDER BY block.used LIMIT ?2",
            params![possible, i64::try_from(limit).unwrap_or(i64::MAX)],
            cold_in,
        )
    }

    /// Those of the blocks that are here, least recently used first.
    pub fn by_use(&self, blocks: &[BlockId]) -> Result<Vec<Cold>, StoreError> {
        let mut found = Vec::with_capacity(blocks.len());
        for block in blocks {
            let row = self.select_one(
                "SELECT id, len, used FROM block WHERE id = ?1",
                params![blob(block)],
                cold_in,
            )?;
            found.extend(row);
        }
        found.sort_by_key(|cold| (cold.used, cold.block));
        Ok(found)
    }

    /// Those of the blocks that nobody holds a right to, with their lengths.
    pub fn unleased(&self, blocks: &[BlockId]) -> Result<Vec<(BlockId, u64)>, StoreError> {
        let mut found = Vec::new();
        for block in blocks {
            let row = self.select_one(
                "SELECT id, len FROM block WHERE id = ?1
                 AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.block = block.id)
                 AND NOT EXISTS (SELECT 1 FROM idle WHERE idle.block = block.id)",
                params![blob(block)],
                |row| Ok((block_in(row, 0)?, secs_in(row, 1)?)),
            )?;
            found.extend(row);
        }
        Ok(found)
    }
}

fn share_in(row: &rusqlite::Row<'_>) -> rusqlite::Result<Share> {
    Ok(Share {
        device: device_in(row, 0)?,
        blocks: secs_in(row, 1)?,
        bytes: secs_in(row, 2)?,
    })
}

fn cold_in(row: &rusqlite::Row<'_>) -> rusqlite::Result<Cold> {
    Ok(Cold {
        block: block_in(row, 0)?,
        len: secs_in(row, 1)?,
        used: secs_in(row, 2)?,
    })
}
