//! The database file: how it is found, created, locked, recognised and brought to the newest schema.
//!
//! Invariant: nothing here deletes or truncates anything; a file that is not ours, newer than us or damaged is left as it is.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::failure::Failure;
use super::meta::Meta;
use crate::base::{StoreId, work};
use crate::store::StoreError;

/// What marks the file as ours in its header: `dfs1`.
pub(super) const APPLICATION_ID: i32 = i32::from_be_bytes(*b"dfs1");

/// Page size of a new database, in bytes. A commit writes whole pages to the log, mostly for rows of a hundred bytes.
pub(super) const PAGE_SIZE: u32 = 4 << 10;

/// The log is cut back to this when it starts again from its beginning, in bytes.
pub(super) const WAL_LIMIT: u64 = 64 << 20;

/// Page cache of the writer, in KiB: the upper levels of the trees; blocks pass through.
const WRITER_CACHE_KIB: i32 = 8 << 10;

/// Page cache of each reader, in KiB.
const READER_CACHE_KIB: i32 = 1 << 10;

/// How long SQLite waits for a lock that another process (a backup, a curious sqlite3) holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Statements that each connection keeps prepared.
const STATEMENTS: usize = 32;

/// First bytes of every SQLite database (<https://sqlite.org/fileformat2.html>).
const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Step `n` brings a database from schema version `n` to `n + 1`. Steps are never changed once released, only added.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    -- One row: see meta.rs.
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        store BLOB NOT NULL,
        seq INTEGER NOT NULL,
        clean INTEGER NOT NULL,
        blocks INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        dirty_bytes INTEGER NOT NULL,
        voids BLOB NOT NULL,
        checksum BLOB NOT NULL
    ) STRICT;
    -- What is known of each block, apart from its bytes so that changing it does not rewrite them.
    CREATE TABLE block (
        id BLOB PRIMARY KEY,
        data INTEGER NOT NULL,
        len INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        dirty INTEGER NOT NULL,
        used INTEGER NOT NULL,
        plain BLOB
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE data (
        n INTEGER PRIMARY KEY,
        bytes BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX block_by_plain ON block (plain) WHERE plain IS NOT NULL;
    CREATE INDEX block_by_use ON block (used) WHERE dirty = 0;
",
    "
    -- Where the bytes are: row `n` of `data`, or, when negative, address -1 - `place` of the segments.
    ALTER TABLE block RENAME COLUMN data TO place;
    CREATE TABLE extent (
        at INTEGER PRIMARY KEY,
        len INTEGER NOT NULL,
        id BLOB NOT NULL
    ) STRICT;
    -- One row: the address before which all segments are durable.
    CREATE TABLE tail (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        synced INTEGER NOT NULL
    ) STRICT;
    INSERT INTO tail VALUES (1, 0);
",
    super::replica::SCHEMA,
    super::groups::SCHEMA,
];

/// Holds the store for this process as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock file beside the database. (Locks on the database itself are SQLite's, and closing any handle would drop them.)
pub(super) fn lock(failure: &Failure) -> Result<Lock, StoreError> {
    let path = beside(failure.path(), "-lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| failure.io("create its lock file", &error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(failure.unusable("another dfs is using it")),
        Err(error) => Err(failure.io("lock it", &error.into())),
    }
}

/// The writer's connection to the database, created when it does not exist, of the newest schema; and its state.
pub(super) fn open_writer(failure: &Failure) -> Result<(Connection, Meta), StoreError> {
    let created = prepare_file(failure)?;
    let mut conn = connect(failure)?;
    let sql = |error: rusqlite::Error| failure.of(&error);
    let pages: i64 = conn
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .map_err(sql)?;
    if pages == 0 {
        conn.execute_batch(&format!(
            "PRAGMA page_size = {PAGE_SIZE}; PRAGMA auto_vacuum = INCREMENTAL;"
        ))
        .map_err(sql)?;
    }
    let mode: String = conn
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(sql)?;
    if mode != "wal" {
        return Err(failure.unusable(format!("it cannot keep a write-ahead log (mode {mode})")));
    }
    conn.execute_batch(&format!(
        // FULL as `Writer::full` says at the start.
        "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {WAL_LIMIT};
         PRAGMA cache_size = -{WRITER_CACHE_KIB};"
    ))
    .map_err(sql)?;
    migrate(&mut conn, failure, MIGRATIONS)?;
    if created {
        sync_parent(failure)?;
    }
    let meta = Meta::load(&conn).map_err(|error| match error {
        super::meta::MetaError::Sqlite(error) => failure.of(&error),
        super::meta::MetaError::Damaged => failure.unusable(
            "its state row is missing or damaged; keep a copy before you try to recover blocks from it",
        ),
    })?;
    Ok((conn, meta))
}

/// Page size of the database, in bytes.
pub(super) fn page_size(conn: &Connection) -> rusqlite::Result<u64> {
    conn.query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0))
        .map(|bytes| bytes.max(512) as u64)
}

/// A connection that reads.
pub(super) fn open_reader(failure: &Failure) -> Result<Connection, StoreError> {
    let conn = connect(failure)?;
    conn.execute_batch(&format!(
        "PRAGMA query_only = ON; PRAGMA cache_size = -{READER_CACHE_KIB};"
    ))
    .map_err(|error| failure.of(&error))?;
    Ok(conn)
}

fn connect(failure: &Failure) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let mut conn = Connection::open_with_flags(failure.path(), flags)?;
        conn.trace_v2(
            TraceEventCodes::SQLITE_TRACE_STMT,
            Some(|_: TraceEvent<'_>| work::STATEMENTS.add(1)),
        )?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        conn.set_prepared_statement_cache_capacity(STATEMENTS);
        conn.execute_batch(
            "PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0;",
        )?;
        Ok(conn)
    };
    open().map_err(|error: rusqlite::Error| failure.of(&error))
}

/// Creates the file, for its owner alone, or makes sure that it is a database that SQLite will not empty. True when it is new.
fn prepare_file(failure: &Failure) -> Result<bool, StoreError> {
    let io = |what: &'static str| move |error: std::io::Error| failure.io(what, &error);
    let path = failure.path();
    let wal = std::fs::metadata(beside(path, "-wal")).map_or(0, |meta| meta.len());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if wal > 0 {
                return Err(
                    failure.unusable("it is missing, but its log (-wal) is there and may hold blocks")
                );
            }
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(path).map_err(io("create it"))?;
            return Ok(true);
        }
        Err(error) => return Err(failure.io("open it", &error)),
    };
    let meta = file.metadata().map_err(io("stat it"))?;
    if meta.permissions().mode() & 0o077 != 0 {
        file.set_permissions(PermissionsExt::from_mode(0o600))
            .map_err(io("restrict it to its owner"))?;
    }
    if meta.len() == 0 {
        // SQLite deletes the log of an empty database.
        return match wal {
            0 => Ok(true),
            _ => Err(failure.unusable("it is empty, but its log (-wal) is not and may hold blocks")),
        };
    }
    let mut header = [0; MAGIC.len()];
    match file.read_exact(&mut header) {
        Ok(()) if &header == MAGIC => Ok(false),
        Ok(()) => Err(failure.unusable("it does not begin like a SQLite database")),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(failure.unusable("it is cut short")),
        Err(error) => Err(failure.io("read it", &error)),
    }
}

/// Checks that the database is ours and brings it to the schema that `steps` lead to, each step in one transaction.
fn migrate(conn: &mut Connection, failure: &Failure, steps: &[&str]) -> Result<(), StoreError> {
    let sql = |error: rusqlite::Error| failure.of(&error);
    let number = |conn: &Connection, name: &str| -> rusqlite::Result<i64> {
        conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
    };
    let version = number(conn, "user_version").map_err(sql)?;
    let application = number(conn, "application_id").map_err(sql)?;
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sql)?;
    let empty = tables == 0 && version == 0;
    if !empty && application != i64::from(APPLICATION_ID) {
        return Err(failure.unusable("it is a SQLite database, but not one of dfs"));
    }
    let Some(missing) = usize::try_from(version).ok().and_then(|v| steps.get(v..)) else {
        return Err(failure.unusable(format!(
            "it was written by a newer dfs (schema {version}; this one knows up to {}): upgrade dfs",
            steps.len()
        )));
    };
    if !empty && version == 0 {
        return Err(failure.unusable("its schema version is damaged"));
    }
    for (done, step) in missing.iter().enumerate() {
        let next = version + done as i64 + 1;
        let run = |conn: &mut Connection| -> Result<(), rusqlite::Error> {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute_batch(step)?;
            if next == 1 {
                tx.pragma_update(None, "application_id", APPLICATION_ID)?;
                Meta::new(new_store_id()?).save(&tx)?;
            }
            tx.pragma_update(None, "user_version", next)?;
            tx.commit()
        };
        run(conn).map_err(sql)?;
    }
    Ok(())
}

fn new_store_id() -> rusqlite::Result<StoreId> {
    let mut id = [0; StoreId::LEN];
    getrandom::fill(&mut id).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    Ok(StoreId(id))
}

/// Makes the names of the database and its log durable.
fn sync_parent(failure: &Failure) -> Result<(), StoreError> {
    let parent = match failure.path().parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| failure.io("sync its directory", &error))
}

/// The file beside the database that SQLite or dfs keeps for it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_of(conn: &Connection) -> i64 {
        conn.query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn migrations_run_in_order_and_a_failing_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure::new(&dir.path().join("store.sqlite"));
        let (mut conn, meta) = open_writer(&failure).unwrap();
        let last = MIGRATIONS.len() as i64;
        assert_eq!(version_of(&conn), last);

        let mut steps = MIGRATIONS.to_vec();
        steps.push("CREATE TABLE extra (x INTEGER) STRICT;");
        steps.push("CREATE TABLE never (x INTEGER) STRICT; SELECT nonsense FROM nowhere;");
        assert!(migrate(&mut conn, &failure, &steps).is_err());
        assert_eq!(
            version_of(&conn),
            last + 1,
            "the good step stays, the bad one does not"
        );
        assert!(conn.prepare("SELECT x FROM extra").is_ok());
        assert!(conn.prepare("SELECT x FROM never").is_err());
        assert_eq!(Meta::load(&conn).unwrap(), meta);
    }

    #[test]
    fn a_store_of_the_version_before_replication_keeps_its_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure::new(&dir.path().join("store.sqlite"));
        prepare_file(&failure).unwrap();
        let mut conn = connect(&failure).unwrap();
        migrate(&mut conn, &failure, &MIGRATIONS[..2]).unwrap();
        conn.execute_batch(
            "INSERT INTO block VALUES (x'07', 1, 3, 1, 0, 1, NULL); INSERT INTO data VALUES (1, x'010203');",
        )
        .unwrap();
        drop(conn);
        let (conn, _) = open_writer(&failure).unwrap();
        assert_eq!(version_of(&conn), MIGRATIONS.len() as i64);
        let of = |sql: &str| -> i64 { conn.query_row(sql, [], |row| row.get(0)).unwrap() };
        assert_eq!(of("SELECT len FROM block WHERE id = x'07'"), 3);
        assert_eq!(of("SELECT bytes FROM held"), 0);
        for table in [
            "lease",
            "idle",
            "kept",
            "replica",
            "owed",
            "to_free",
            "member",
            "number",
            "shard_group",
            "record",
        ] {
            assert_eq!(of(&format!("SELECT count(*) FROM {table}")), 0);
        }
    }

    #[test]
    fn pragmas_that_are_fixed_at_creation_are_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Failure::new(&dir.path().join("store.sqlite"));
        let (conn, _) = open_writer(&failure).unwrap();
        let number = |name: &str| -> i64 {
            conn.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
                .unwrap()
        };
        assert_eq!(number("page_size"), i64::from(PAGE_SIZE));
        assert_eq!(number("auto_vacuum"), 2, "incremental");
        assert_eq!(number("application_id"), i64::from(APPLICATION_ID));
        assert_eq!(number("journal_size_limit"), WAL_LIMIT as i64);
    }
}
