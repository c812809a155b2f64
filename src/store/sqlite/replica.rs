//! What the store remembers of replication: the tables that `docs/store.md` describes, changed in the same commits as the blocks.
//!
//! Invariant: `held.bytes` is the sum over the blocks that are leased or idle.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};

use super::SqliteStore;
use super::tables::Change;
use super::writer::Task;
use crate::base::{BlockId, DeviceId};
use crate::store::{
    Health, Kept, Lease, MemberState, Number, Replica, ReplicaChange, ReplicaStore, StoreError,
};

/// Step 2 of the schema: see `schema::MIGRATIONS`.
pub(super) const SCHEMA: &str = "
    -- Rights of others that this device keeps a block.
    CREATE TABLE lease (
        block BLOB NOT NULL,
        owner BLOB NOT NULL,
        until INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        PRIMARY KEY (block, owner)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX lease_by_end ON lease (owner, until);
    -- Blocks whose last lease has ended, and until when they stay.
    CREATE TABLE idle (
        block BLOB PRIMARY KEY,
        until INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idle_by_end ON idle (until);
    -- One row: bytes of the blocks in the two tables above.
    CREATE TABLE held (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        bytes INTEGER NOT NULL
    ) STRICT;
    INSERT INTO held VALUES (1, 0);
    -- Blocks that this device retains, and where their replicas are.
    CREATE TABLE kept (
        block BLOB PRIMARY KEY,
        len INTEGER NOT NULL,
        wanted INTEGER NOT NULL,
        pinned INTEGER NOT NULL,
        mark INTEGER NOT NULL,
        copies INTEGER NOT NULL,
        todo INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX kept_by_todo ON kept (todo, block) WHERE todo IS NOT NULL;
    CREATE TABLE replica (
        block BLOB NOT NULL,
        holder BLOB NOT NULL,
        until INTEGER NOT NULL,
        renew INTEGER NOT NULL,
        granted INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        leaving INTEGER NOT NULL,
        PRIMARY KEY (block, holder)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX replica_by_renewal ON replica (holder, renew);
    CREATE INDEX replica_by_holder ON replica (holder, block);
    -- Leases to be given back.
    CREATE TABLE owed (
        holder BLOB NOT NULL,
        block BLOB NOT NULL,
        PRIMARY KEY (holder, block)
    ) STRICT, WITHOUT ROWID;
    -- Blocks whose space the user wants.
    CREATE TABLE to_free (block BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;
    CREATE TABLE member (
        device BLOB PRIMARY KEY,
        clock INTEGER NOT NULL,
        condemned INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE number (
        name INTEGER PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT;
";

/// Changes on their way through the writer, and what came of them.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) changes: Vec<ReplicaChange>,
    pub(super) durable: bool,
    pub(super) effects: Arc<Mutex<Vec<bool>>>,
}

impl Change<'_> {
    /// Makes the changes of a batch; true when one had an effect.
    pub(super) fn replica(&mut self, batch: &Batch) -> rusqlite::Result<bool> {
        let mut effects = Vec::with_capacity(batch.changes.len());
        for change in &batch.changes {
            effects.push(self.replica_change(change)?);
        }
        let changed = effects.contains(&true);
        // Also when this is a second try, after a commit that failed.
        *batch.effects.lock() = effects;
        Ok(changed)
    }

    fn replica_change(&mut self, change: &ReplicaChange) -> rusqlite::Result<bool> {
        match *change {
            ReplicaChange::Lease(lease) => self.lease(&lease),
            ReplicaChange::EndLease { block, owner, idle } => {
                let ended = self.run(
                    "DELETE FROM lease WHERE block = ?1 AND owner = ?2",
                    params![blob(&block), owner.as_bytes()],
                )?;
                if ended {
                    self.run(
                        "INSERT INTO idle (block, until) SELECT ?1, ?2
                         WHERE NOT EXISTS (SELECT 1 FROM lease WHERE block = ?1)",
                        params![blob(&block), idle as i64],
                    )?;
                }
                Ok(ended)
            }
            ReplicaChange::EndIdle { block } => {
                let ended = self.run("DELETE FROM idle WHERE block = ?1", params![blob(&block)])?;
                if ended {
                    self.count_held(&block, -1)?;
                    self.forget_records(&block)?;
                }
                Ok(ended)
            }
            ReplicaChange::Remove { block } => {
                let removed = self.remove(&block)?;
                if removed {
                    self.run("DELETE FROM to_free WHERE block = ?1", params![blob(&block)])?;
                    self.forget_records(&block)?;
                }
                Ok(removed)
            }
            ReplicaChange::Keep(kept) => self.run(
                "INSERT OR REPLACE INTO kept (block, len, wanted, pinned, mark, copies, todo, shards)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    blob(&kept.block),
                    kept.len,
                    kept.wanted,
                    kept.pinned,
                    kept.mark as i64,
                    kept.copies,
                    kept.todo,
                    kept.group.map(|n| n as i64)
                ],
            ),
            ReplicaChange::Unkeep { block } => {
                self.run(
                    "INSERT OR IGNORE INTO owed (holder, block) SELECT holder, block FROM replica WHERE block = ?1",
                    params![blob(&block)],
                )?;
                self.run("DELETE FROM replica WHERE block = ?1", params![blob(&block)])?;
                self.run("DELETE FROM kept WHERE block = ?1", params![blob(&block)])
            }
            ReplicaChange::Protect { block } => self.set_dirty(&block, true),
            ReplicaChange::Replica(replica) => {
                self.paid(&replica.holder, &replica.block)?;
                self.run(
                    "INSERT OR REPLACE INTO replica (block, holder, until, renew, granted, seq, leaving, record)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                    params![
                        blob(&replica.block),
                        replica.holder.as_bytes(),
                        replica.until as i64,
                        replica.renew as i64,
                        replica.granted as i64,
                        replica.seq as i64,
                        replica.leaving,
                        replica.record as i64
                    ],
                )
            }
            ReplicaChange::NoReplica { block, holder } => self.no_replica(&block, &holder),
            ReplicaChange::Owe { holder, block } => {
                self.no_replica(&block, &holder)?;
                self.run(
                    "INSERT OR IGNORE INTO owed (holder, block) VALUES (?1, ?2)",
                    params![holder.as_bytes(), blob(&block)],
                )
            }
            ReplicaChange::Paid { holder, block } => self.paid(&holder, &block),
            ReplicaChange::Free { block } => self.run(
                "INSERT OR IGNORE INTO to_free (block) VALUES (?1)",
                params![blob(&block)],
            ),
            ReplicaChange::Unfree { block } => {
                self.run("DELETE FROM to_free WHERE block = ?1", params![blob(&block)])
            }
            ReplicaChange::Member(member) => self.run(
                "INSERT OR REPLACE INTO member (device, clock, condemned) VALUES (?1, ?2, ?3)",
                params![
                    member.device.as_bytes(),
                    member.clock as i64,
                    member.condemned as i64
                ],
            ),
            ReplicaChange::Number(number, value) => self.run(
                "INSERT OR REPLACE INTO number (name, value) VALUES (?1, ?2)",
                params![number as i64, value as i64],
            ),
            ReplicaChange::Group(ref change) => self.group_change(change),
        }
    }

    fn lease(&mut self, lease: &Lease) -> rusqlite::Result<bool> {
        let is_here = self
            .conn
            .prepare_cached("SELECT 1 FROM block WHERE id = ?1")?
            .exists(params![blob(&lease.block)])?;
        if !is_here {
            return Ok(false);
        }
        self.set_dirty(&lease.block, true)?;
        let was_idle = self.run("DELETE FROM idle WHERE block = ?1", params![blob(&lease.block)])?;
        let was_leased = self
            .conn
            .prepare_cached("SELECT 1 FROM lease WHERE block = ?1")?
            .exists(params![blob(&lease.block)])?;
        if !was_idle && !was_leased {
            self.count_held(&lease.block, 1)?;
        }
        self.run(
            "INSERT OR REPLACE INTO lease (block, owner, until, seq) VALUES (?1, ?2, ?3, ?4)",
            params![
                blob(&lease.block),
                lease.owner.as_bytes(),
                lease.until as i64,
                lease.seq as i64
            ],
        )
    }

    fn count_held(&self, block: &BlockId, sign: i64) -> rusqlite::Result<bool> {
        self.run(
            "UPDATE held SET bytes = max(0, bytes + ?2 * coalesce((SELECT len FROM block WHERE id = ?1), 0))",
            params![blob(block), sign],
        )
    }

    fn no_replica(&self, block: &BlockId, holder: &DeviceId) -> rusqlite::Result<bool> {
        self.run(
            "DELETE FROM replica WHERE block = ?1 AND holder = ?2",
            params![blob(block), holder.as_bytes()],
        )
    }

    fn paid(&self, holder: &DeviceId, block: &BlockId) -> rusqlite::Result<bool> {
        self.run(
            "DELETE FROM owed WHERE holder = ?1 AND block = ?2",
            params![holder.as_bytes(), blob(block)],
        )
    }

    pub(super) fn run(&self, sql: &str, params: &[&dyn ToSql]) -> rusqlite::Result<bool> {
        Ok(self.conn.prepare_cached(sql)?.execute(params)? > 0)
    }
}

pub(super) fn blob(block: &BlockId) -> &[u8] {
    &block.as_bytes()[..]
}

pub(super) fn block_in(row: &Row<'_>, at: usize) -> rusqlite::Result<BlockId> {
    row.get(at).map(BlockId)
}

pub(super) fn device_in(row: &Row<'_>, at: usize) -> rusqlite::Result<DeviceId> {
    row.get(at).map(DeviceId)
}

pub(super) fn secs_in(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(at).map(|secs| secs as u64)
}

fn lease_in(row: &Row<'_>) -> rusqlite::Result<Lease> {
    Ok(Lease {
        block: block_in(row, 0)?,
        owner: device_in(row, 1)?,
        until: secs_in(row, 2)?,
        seq: secs_in(row, 3)?,
    })
}

pub(super) const KEPT: &str = "SELECT block, len, wanted, pinned, mark, copies, todo, shards FROM kept";

pub(super) fn kept_in(row: &Row<'_>) -> rusqlite::Result<Kept> {
    Ok(Kept {
        block: block_in(row, 0)?,
        len: row.get(1)?,
        wanted: row.get(2)?,
        pinned: row.get(3)?,
        mark: secs_in(row, 4)?,
        copies: row.get(5)?,
        todo: row.get(6)?,
        group: row.get::<_, Option<i64>>(7)?.map(|n| n as u64),
    })
}

const REPLICA: &str = "SELECT block, holder, until, renew, granted, seq, leaving, record FROM replica";

fn replica_in(row: &Row<'_>) -> rusqlite::Result<Replica> {
    Ok(Replica {
        block: block_in(row, 0)?,
        holder: device_in(row, 1)?,
        until: secs_in(row, 2)?,
        renew: secs_in(row, 3)?,
        granted: secs_in(row, 4)?,
        seq: secs_in(row, 5)?,
        leaving: row.get(6)?,
        record: secs_in(row, 7)?,
    })
}

/// What all keys are greater than.
const NOTHING: &[u8] = &[];

fn key(after: &Option<BlockId>) -> &[u8] {
    after.as_ref().map_or(NOTHING, blob)
}

pub(super) fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

impl SqliteStore {
    pub(super) fn select<T>(
        &self,
        sql: &str,
        params: &[&dyn ToSql],
        row: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        self.read(|conn: &Connection| conn.prepare_cached(sql)?.query_map(params, row)?.collect())
    }

    pub(super) fn select_one<T>(
        &self,
        sql: &str,
        params: &[&dyn ToSql],
        row: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        self.read(|conn| conn.prepare_cached(sql)?.query_row(params, row).optional())
    }
}

impl ReplicaStore for SqliteStore {
    fn apply(&self, changes: &[ReplicaChange], durable: bool) -> Result<Vec<bool>, StoreError> {
        let batch = Batch {
            changes: changes.to_vec(),
            durable,
            effects: Arc::default(),
        };
        let effects = Arc::clone(&batch.effects);
        if durable {
            self.sync_ahead();
        }
        self.run(Task::Replica(batch))?;
        Ok(std::mem::take(&mut *effects.lock()))
    }

    fn length(&self, block: &BlockId) -> Result<Option<u32>, StoreError> {
        self.select_one(
            "SELECT len FROM block WHERE id = ?1",
            params![blob(block)],
            |row| row.get(0),
        )
    }

    fn held_bytes(&self) -> Result<u64, StoreError> {
        let bytes = self.select_one("SELECT bytes FROM held WHERE one = 1", &[], |row| secs_in(row, 0))?;
        Ok(bytes.unwrap_or(0))
    }

    fn balance(&self, member: &DeviceId, secs: u64) -> Result<(u64, u64), StoreError> {
        let sum = |sql, params: &[&dyn rusqlite::ToSql]| self.select_one(sql, params, |row| secs_in(row, 0));
        let here = sum(
            "SELECT coalesce(sum(len), 0) FROM lease JOIN block ON block.id = lease.block WHERE owner = ?1",
            params![member.0],
        )?;
        let there = sum(
            "SELECT coalesce(sum(len), 0) FROM replica JOIN kept USING (block) WHERE holder = ?1 AND until > ?2",
            params![member.0, secs as i64],
        )?;
        Ok((here.unwrap_or(0), there.unwrap_or(0)))
    }

    fn leases(&self, block: &BlockId) -> Result<Vec<Lease>, StoreError> {
        self.select(
            "SELECT block, owner, until, seq FROM lease WHERE block = ?1 ORDER BY owner",
            params![blob(block)],
            lease_in,
        )
    }

    fn leases_ending(&self, owner: &DeviceId, until: u64, limit: usize) -> Result<Vec<Lease>, StoreError> {
        self.select(
            "SELECT block, owner, until, seq FROM lease WHERE owner = ?1 AND until < ?2 ORDER BY until, block LIMIT ?3",
            params![owner.as_bytes(), until as i64, rows(limit)],
            lease_in,
        )
    }

    fn idle(&self, until: u64, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        self.select(
            "SELECT block FROM idle WHERE until < ?1 ORDER BY until, block LIMIT ?2",
            params![until as i64, rows(limit)],
            |row| block_in(row, 0),
        )
    }

    fn strays(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        self.select(
            "SELECT id FROM block WHERE id > ?1 AND dirty = 0
             AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.block = block.id)
             AND NOT EXISTS (SELECT 1 FROM idle WHERE idle.block = block.id)
             AND NOT EXISTS (SELECT 1 FROM kept WHERE kept.block = block.id)
             ORDER BY id LIMIT ?2",
            params![key(&after), rows(limit)],
            |row| block_in(row, 0),
        )
    }

    fn kept(&self, block: &BlockId) -> Result<Option<Kept>, StoreError> {
        self.select_one(&format!("{KEPT} WHERE block = ?1"), params![blob(block)], kept_in)
    }

    fn kept_after(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<Kept>, StoreError> {
        self.select(
            &format!("{KEPT} WHERE block > ?1 ORDER BY block LIMIT ?2"),
            params![key(&after), rows(limit)],
            kept_in,
        )
    }

    fn kept_todo(&self, after: Option<(u8, BlockId)>, limit: usize) -> Result<Vec<Kept>, StoreError> {
        let (todo, block) = match &after {
            Some((todo, block)) => (i64::from(*todo), blob(block)),
            None => (-1, NOTHING),
        };
        self.select(
            &format!(
                "{KEPT} WHERE todo IS NOT NULL AND (todo, block) > (?1, ?2) ORDER BY todo, block LIMIT ?3"
            ),
            params![todo, block, rows(limit)],
            kept_in,
        )
    }

    fn health(&self) -> Result<Vec<Health>, StoreError> {
        self.select(
            "SELECT copies, wanted, count(*), sum(len) FROM kept
             WHERE shards IS NULL OR shards = 0
                OR (wanted > 0 AND shards IN (SELECT n FROM shard_group WHERE ending = 1))
             GROUP BY copies, wanted ORDER BY copies, wanted",
            &[],
            |row| {
                Ok(Health {
                    copies: row.get(0)?,
                    wanted: row.get(1)?,
                    blocks: secs_in(row, 2)?,
                    bytes: secs_in(row, 3)?,
                })
            },
        )
    }

    fn replicas(&self, block: &BlockId) -> Result<Vec<Replica>, StoreError> {
        self.select(
            &format!("{REPLICA} WHERE block = ?1 ORDER BY holder"),
            params![blob(block)],
            replica_in,
        )
    }

    fn replicas_due(&self, holder: &DeviceId, renew: u64, limit: usize) -> Result<Vec<Replica>, StoreError> {
        self.select(
            &format!("{REPLICA} WHERE holder = ?1 AND renew < ?2 ORDER BY renew, block LIMIT ?3"),
            params![holder.as_bytes(), renew as i64, rows(limit)],
            replica_in,
        )
    }

    fn replicas_at(
        &self,
        holder: &DeviceId,
        after: Option<BlockId>,
        limit: usize,
    ) -> Result<Vec<Replica>, StoreError> {
        self.select(
            &format!("{REPLICA} WHERE holder = ?1 AND block > ?2 ORDER BY block LIMIT ?3"),
            params![holder.as_bytes(), key(&after), rows(limit)],
            replica_in,
        )
    }

    fn owed(&self, holder: &DeviceId, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        self.select(
            "SELECT block FROM owed WHERE holder = ?1 ORDER BY block LIMIT ?2",
            params![holder.as_bytes(), rows(limit)],
            |row| block_in(row, 0),
        )
    }

    fn owed_to(&self) -> Result<Vec<DeviceId>, StoreError> {
        self.select("SELECT DISTINCT holder FROM owed ORDER BY holder", &[], |row| {
            device_in(row, 0)
        })
    }

    fn to_free(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<BlockId>, StoreError> {
        self.select(
            "SELECT block FROM to_free WHERE block > ?1 ORDER BY block LIMIT ?2",
            params![key(&after), rows(limit)],
            |row| block_in(row, 0),
        )
    }

    fn members(&self) -> Result<Vec<MemberState>, StoreError> {
        self.select(
            "SELECT device, clock, condemned FROM member ORDER BY device",
            &[],
            |row| {
                Ok(MemberState {
                    device: device_in(row, 0)?,
                    clock: secs_in(row, 1)?,
                    condemned: secs_in(row, 2)?,
                })
            },
        )
    }

    fn number(&self, number: Number) -> Result<u64, StoreError> {
        let value = self.select_one(
            "SELECT value FROM number WHERE name = ?1",
            params![number as i64],
            |row| secs_in(row, 0),
        )?;
        Ok(value.unwrap_or(0))
    }
}
