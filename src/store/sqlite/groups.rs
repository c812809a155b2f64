//! What the store remembers of erasure coding: the tables that `docs/store.md` describes, changed in the same commits as the blocks.
//!
//! Invariant: `record_of` has exactly the rows that the `shards` of the rows in `record` name.

use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, params};

use super::SqliteStore;
use super::replica::{KEPT, blob, kept_in, rows, secs_in};
use super::tables::Change;
use crate::base::{BlockId, DeviceId};
use crate::store::groups::prefix;
use crate::store::{GroupChange, GroupHealth, GroupStore, Kept, ShardGroup, StoreError};

/// Step 3 of the schema: see `schema::MIGRATIONS`.
pub(super) const SCHEMA: &str = "
    -- NULL: never in a group; 0: may join one; else the number of its group.
    ALTER TABLE kept ADD COLUMN shards INTEGER;
    CREATE INDEX kept_loose ON kept (len, block) WHERE shards = 0;
    -- The group whose record its holder has with it; 0: none.
    ALTER TABLE replica ADD COLUMN record INTEGER NOT NULL DEFAULT 0;
    -- Groups of this device's blocks.
    CREATE TABLE shard_group (
        n INTEGER PRIMARY KEY,
        record BLOB NOT NULL,
        data INTEGER NOT NULL,
        parity INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        have INTEGER NOT NULL,
        ending INTEGER NOT NULL
    ) STRICT;
    -- Records of others' groups, beside the shards that are held for them.
    CREATE TABLE record (
        n INTEGER PRIMARY KEY,
        block BLOB NOT NULL,
        owner BLOB NOT NULL,
        seq INTEGER NOT NULL,
        record BLOB NOT NULL,
        shards BLOB NOT NULL,
        UNIQUE (block, owner)
    ) STRICT;
    -- By the first eight bytes of every shard that a record names.
    CREATE TABLE record_of (
        shard INTEGER NOT NULL,
        n INTEGER NOT NULL,
        PRIMARY KEY (shard, n)
    ) STRICT, WITHOUT ROWID;
";

impl Change<'_> {
    pub(super) fn group_change(&mut self, change: &GroupChange) -> rusqlite::Result<bool> {
        match change {
            GroupChange::Set(group) => self.run(
                "INSERT OR REPLACE INTO shard_group (n, record, data, parity, bytes, have, ending)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    group.n as i64,
                    &group.record[..],
                    group.data,
                    group.parity,
                    group.bytes as i64,
                    group.have,
                    group.ending
                ],
            ),
            GroupChange::State { n, have, ending } => self.run(
                "UPDATE shard_group SET have = ?2, ending = ?3 WHERE n = ?1",
                params![*n as i64, have, ending],
            ),
            GroupChange::Forget { n } => self.run("DELETE FROM shard_group WHERE n = ?1", params![*n as i64]),
            GroupChange::Todo { block, todo } => self.run(
                "UPDATE kept SET todo = ?2 WHERE block = ?1 AND todo IS NOT ?2",
                params![blob(block), todo],
            ),
            GroupChange::Record {
                block,
                owner,
                seq,
                record,
                shards,
            } => self.record(block, owner, *seq, record, shards),
        }
    }

    fn record(
        &self,
        block: &BlockId,
        owner: &DeviceId,
        seq: u64,
        record: &[u8],
        shards: &[BlockId],
    ) -> rusqlite::Result<bool> {
        let is_leased = self
            .conn
            .prepare_cached("SELECT 1 FROM lease WHERE block = ?1 AND owner = ?2")?
            .exists(params![blob(block), owner.as_bytes()])?;
        let newest: Option<i64> = self
            .conn
            .prepare_cached("SELECT seq FROM record WHERE block = ?1 AND owner = ?2")?
            .query_row(params![blob(block), owner.as_bytes()], |row| row.get(0))
            .optional()?;
        if !is_leased || newest.is_some_and(|newest| newest as u64 >= seq) {
            return Ok(false);
        }
        self.forget_where("owner = ?2 AND block = ?1", block, Some(owner))?;
        let prefixes: Vec<u8> = shards
            .iter()
            .flat_map(|shard| prefix(shard).to_le_bytes())
            .collect();
        self.run(
            "INSERT INTO record (block, owner, seq, record, shards) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![blob(block), owner.as_bytes(), seq as i64, record, prefixes],
        )?;
        let n = self.conn.last_insert_rowid();
        for shard in shards {
            self.run(
                "INSERT OR IGNORE INTO record_of (shard, n) VALUES (?1, ?2)",
                params![prefix(shard), n],
            )?;
        }
        Ok(true)
    }

    /// The block is not held any more, and neither are the records beside it.
    pub(super) fn forget_records(&self, block: &BlockId) -> rusqlite::Result<()> {
        self.forget_where("block = ?1 AND ?2 IS NULL", block, None)
    }

    fn forget_where(&self, which: &str, block: &BlockId, owner: Option<&DeviceId>) -> rusqlite::Result<()> {
        let owner = owner.map(|owner| &owner.as_bytes()[..]);
        let found: Vec<(i64, Vec<u8>)> = self
            .conn
            .prepare_cached(&format!("SELECT n, shards FROM record WHERE {which}"))?
            .query_map(params![blob(block), owner], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (n, prefixes) in found {
            for eight in prefixes.as_chunks::<8>().0 {
                self.run(
                    "DELETE FROM record_of WHERE shard = ?1 AND n = ?2",
                    params![i64::from_le_bytes(*eight), n],
                )?;
            }
            self.run("DELETE FROM record WHERE n = ?1", params![n])?;
        }
        Ok(())
    }
}

fn group_in(row: &Row<'_>) -> rusqlite::Result<ShardGroup> {
    let record: Vec<u8> = row.get(1)?;
    Ok(ShardGroup {
        n: secs_in(row, 0)?,
        record: record.into(),
        data: row.get(2)?,
        parity: row.get(3)?,
        bytes: secs_in(row, 4)?,
        have: row.get(5)?,
        ending: row.get(6)?,
    })
}

impl GroupStore for SqliteStore {
    fn group(&self, n: u64) -> Result<Option<ShardGroup>, StoreError> {
        self.select_one(
            "SELECT n, record, data, parity, bytes, have, ending FROM shard_group WHERE n = ?1",
            params![n as i64],
            group_in,
        )
    }

    fn loose(&self, after: Option<(u32, BlockId)>, limit: usize) -> Result<Vec<Kept>, StoreError> {
        let (len, block) = after
            .as_ref()
            .map_or((-1, &[][..]), |(len, block)| (i64::from(*len), blob(block)));
        self.select(
            &format!("{KEPT} WHERE shards = 0 AND (len, block) > (?1, ?2) ORDER BY len, block LIMIT ?3"),
            params![len, block, rows(limit)],
            kept_in,
        )
    }

    fn group_health(&self) -> Result<Vec<GroupHealth>, StoreError> {
        self.select(
            "SELECT have, data, parity, count(*), sum(bytes) FROM shard_group WHERE ending = 0
             GROUP BY have, data, parity ORDER BY have, data, parity",
            &[],
            |row| {
                Ok(GroupHealth {
                    have: row.get(0)?,
                    data: row.get(1)?,
                    parity: row.get(2)?,
                    groups: secs_in(row, 3)?,
                    bytes: secs_in(row, 4)?,
                })
            },
        )
    }

    fn records_of(&self, shard: &BlockId, limit: usize) -> Result<Vec<Arc<[u8]>>, StoreError> {
        self.select(
            "SELECT DISTINCT record FROM record WHERE n IN (SELECT n FROM record_of WHERE shard = ?1) LIMIT ?2",
            params![prefix(shard), rows(limit)],
            |row| Ok(Arc::from(row.get::<_, Vec<u8>>(0)?)),
        )
    }

    fn is_to_free(&self, block: &BlockId) -> Result<bool, StoreError> {
        let found = self.select_one(
            "SELECT 1 FROM to_free WHERE block = ?1",
            params![blob(block)],
            |_| Ok(()),
        )?;
        Ok(found.is_some())
    }
}
