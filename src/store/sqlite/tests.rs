//! The SQLite store as a whole: conformance, opening, eviction, damage.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::*;
use crate::store::PutKind;
use crate::store::conformance::{self, block, put};
use crate::store::replica_conformance;

pub(super) fn open(path: &Path, cache_size: u64) -> SqliteStore {
    SqliteStore::open(path, StoreOptions { cache_size }).unwrap()
}

pub(super) fn dir_and_path() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.sqlite");
    (dir, path)
}

/// The segment files of the store at `path`.
pub(super) fn blocks_dir(path: &Path) -> PathBuf {
    schema::beside(path, "-blocks")
}

/// Overwrites the bytes of a block in the segments with zeros.
fn zero(path: &Path, id: &BlockId) {
    let (place, len): (i64, i64) = Connection::open(path)
        .unwrap()
        .query_row(
            "SELECT place, len FROM block WHERE id = ?1",
            [&id.as_bytes()[..]],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    let Place::Segment(at) = Place::from_column(place) else {
        panic!("{id} is in the database")
    };
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(blocks_dir(path).join("00000000"))
        .unwrap();
    file.write_all_at(&vec![0; len as usize], at).unwrap();
}

/// Bytes that the segments take on the disk.
fn disk_bytes(path: &Path) -> u64 {
    std::fs::read_dir(blocks_dir(path))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum()
}

/// The tables' own totals, to compare with what the store says of itself.
fn counted(path: &Path) -> (u64, u64, u64, u64) {
    let conn = Connection::open(path).unwrap();
    conn.query_row(
        "SELECT (SELECT count(*) FROM block), (SELECT coalesce(sum(len), 0) FROM block),
                (SELECT coalesce(sum(len), 0) FROM block WHERE dirty),
                (SELECT count(*) FROM data) + (SELECT count(*) FROM extent)",
        [],
        |row| {
            let n = |i| row.get::<_, i64>(i).map(|n| n as u64);
            Ok((n(0)?, n(1)?, n(2)?, n(3)?))
        },
    )
    .unwrap()
}

#[test]
fn conforms() {
    let (dir, _) = dir_and_path();
    let mut stores = 0;
    conformance::all(|| {
        stores += 1;
        Arc::new(open(&dir.path().join(format!("{stores}.sqlite")), 0))
    });
}

#[test]
fn conforms_as_memory_of_replication() {
    let (dir, _) = dir_and_path();
    let mut stores = 0;
    replica_conformance::all(|| {
        stores += 1;
        Arc::new(open(&dir.path().join(format!("{stores}.sqlite")), 0))
    });
}

#[test]
fn a_clean_reopen_finds_everything_and_numbers_go_on() {
    let (_dir, path) = dir_and_path();
    let store = open(&path, 0);
    assert!(!store.opened_unclean());
    let (id, bytes) = (store.id(), block(1, 70_000));
    let seq = store.put(vec![put(&bytes, PutKind::Dirty)]).unwrap();
    store.close().unwrap();
    assert!(matches!(store.put(vec![]), Err(StoreError::Closed)));
    assert!(matches!(store.get(&BlockId::of(&bytes)), Err(StoreError::Closed)));
    assert!(store.close().is_ok(), "closing twice");
    drop(store);

    let store = open(&path, 0);
    assert!(!store.opened_unclean());
    assert_eq!(store.id(), id);
    assert!(store.last_seq() > seq && store.last_seq() < seq + 10, "no jump");
    assert!(!store.may_be_lost(&id, seq));
    assert_eq!(store.get(&BlockId::of(&bytes)).unwrap(), Some(bytes));
}

#[test]
fn only_the_owner_can_read_the_files() {
    let (dir, path) = dir_and_path();
    let store = open(&path, 0);
    store.put(vec![put(&block(1, 100), PutKind::Dirty)]).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let wanted = if meta.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(
            meta.permissions().mode() & 0o777,
            wanted,
            "{}",
            entry.path().display()
        );
        files += 1;
    }
    assert!(files >= 3, "database, log and lock");
}

#[test]
fn a_second_opener_is_refused_while_the_first_lives() {
    let (_dir, path) = dir_and_path();
    let store = open(&path, 0);
    let error = SqliteStore::open(&path, StoreOptions::default()).unwrap_err();
    assert!(matches!(&error, StoreError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("another dfs"), "{error}");
    drop(store);
    open(&path, 0);
}

#[test]
fn eviction_takes_the_least_recently_used_and_never_a_dirty_block() {
    let (_dir, path) = dir_and_path();
    let store = open(&path, 100_000);
    let dirty = block(1000, 30_000);
    store.put(vec![put(&dirty, PutKind::Dirty)]).unwrap();
    let cached: Vec<Bytes> = (0..7).map(|seed| block(seed, 10_000)).collect();
    for bytes in &cached {
        store.put(vec![put(bytes, PutKind::Cached)]).unwrap();
    }
    assert_eq!(store.stats().unwrap().bytes, 100_000, "just full");
    assert!(
        store.get(&BlockId::of(&cached[0])).unwrap().is_some(),
        "used again"
    );
    for seed in 100..103 {
        store
            .put(vec![put(&block(seed, 10_000), PutKind::Cached)])
            .unwrap();
    }
    assert!(store.stats().unwrap().bytes <= 100_000);
    assert!(store.contains(&BlockId::of(&cached[0])).unwrap());
    for gone in &cached[1..4] {
        assert!(!store.contains(&BlockId::of(gone)).unwrap());
    }
    // Dirty blocks alone beyond the bound: all stay.
    let many: Vec<Bytes> = (200..220).map(|seed| block(seed, 10_000)).collect();
    store
        .put(many.iter().map(|b| put(b, PutKind::Dirty)).collect())
        .unwrap();
    store.sync().unwrap();
    for bytes in many.iter().chain([&dirty]) {
        assert_eq!(store.get(&BlockId::of(bytes)).unwrap().as_ref(), Some(bytes));
    }
    // Once held elsewhere they may go.
    store
        .set_dirty(&many.iter().map(|b| BlockId::of(b)).collect::<Vec<_>>(), false)
        .unwrap();
    store.sync().unwrap();
    let stats = store.stats().unwrap();
    assert!(stats.bytes <= 100_000, "{stats:?}");
    assert!(store.contains(&BlockId::of(&dirty)).unwrap());
    store.close().unwrap();
    assert_eq!(
        counted(&path),
        (stats.blocks, stats.bytes, stats.dirty_bytes, stats.blocks)
    );
}

#[test]
fn deleted_space_goes_back_to_the_file_system() {
    let (_dir, path) = dir_and_path();
    let store = open(&path, 0);
    let blocks: Vec<Bytes> = (0..96).map(|seed| block(seed, 256 << 10)).collect();
    store
        .put(blocks.iter().map(|b| put(b, PutKind::Dirty)).collect())
        .unwrap();
    store.tidy().unwrap();
    let full = disk_bytes(&path);
    assert!(full >= 96 * (256 << 10));
    let ids: Vec<BlockId> = blocks.iter().map(|b| BlockId::of(b)).collect();
    store.remove(&ids[..90]).unwrap();
    store.tidy().unwrap();
    let left = disk_bytes(&path);
    assert!(left < full / 12, "{left} of {full} bytes left");
    for bytes in &blocks[90..] {
        assert_eq!(store.get(&BlockId::of(bytes)).unwrap().as_ref(), Some(bytes));
    }
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

#[test]
fn files_that_are_not_ours_are_refused_and_left_alone() {
    let (dir, path) = dir_and_path();
    let foreign = dir.path().join("foreign.sqlite");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE mine (x)")
        .unwrap();
    open(&path, 0).close().unwrap();
    let newer = dir.path().join("newer.sqlite");
    std::fs::copy(&path, &newer).unwrap();
    Connection::open(&newer)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    std::fs::remove_file(dir.path().join("newer.sqlite-wal")).ok();
    let text = dir.path().join("text.sqlite");
    std::fs::write(&text, "not a database at all, but longer than its header").unwrap();
    let short = dir.path().join("short.sqlite");
    std::fs::write(&short, "SQLite").unwrap();
    let emptied = dir.path().join("emptied.sqlite");
    std::fs::write(&emptied, "").unwrap();
    std::fs::write(dir.path().join("emptied.sqlite-wal"), "blocks").unwrap();
    for (file, word) in [
        (&foreign, "not one of dfs"),
        (&newer, "newer dfs"),
        (&text, "does not begin like"),
        (&short, "cut short"),
        (&emptied, "its log"),
    ] {
        let before = std::fs::read(file).unwrap();
        let error = SqliteStore::open(file, StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(word) && text.contains(file.to_str().unwrap()),
            "{text}"
        );
        if word != "newer dfs" && word != "not one of dfs" {
            assert_eq!(std::fs::read(file).unwrap(), before);
        }
    }
    assert_eq!(
        std::fs::read(dir.path().join("emptied.sqlite-wal")).unwrap(),
        b"blocks"
    );
}

#[test]
fn a_damaged_block_is_never_returned_and_a_put_heals_it() {
    let (_dir, path) = dir_and_path();
    let store = open(&path, 0);
    let (bad, good) = (block(1, 100_000), block(2, 100_000));
    let id = BlockId::of(&bad);
    store
        .put(vec![put(&bad, PutKind::Dirty), put(&good, PutKind::Dirty)])
        .unwrap();
    store.tidy().unwrap();
    zero(&path, &id);
    assert!(matches!(store.get(&id), Err(StoreError::Damaged(found)) if found == id));
    assert_eq!(store.get(&BlockId::of(&good)).unwrap(), Some(good));
    store.put(vec![put(&bad, PutKind::Cached)]).unwrap();
    assert_eq!(store.get(&id).unwrap(), Some(bad));
    let stats = store.stats().unwrap();
    assert_eq!(
        (stats.blocks, stats.bytes, stats.dirty_bytes),
        (2, 200_000, 200_000)
    );
    store.close().unwrap();
    let (blocks, bytes, dirty, _) = counted(&path);
    assert_eq!((blocks, bytes, dirty), (2, 200_000, 200_000));
}

#[test]
fn small_blocks_too_give_their_space_back() {
    let (_dir, path) = dir_and_path();
    let store = open(&path, 0);
    let blocks: Vec<Bytes> = (0..4000).map(|seed| block(seed, 8000)).collect();
    store
        .put(blocks.iter().map(|b| put(b, PutKind::Dirty)).collect())
        .unwrap();
    store.tidy().unwrap();
    let full = std::fs::metadata(&path).unwrap().len();
    assert_eq!(disk_bytes(&path), 0, "they are in the database");
    let ids: Vec<BlockId> = blocks.iter().map(|b| BlockId::of(b)).collect();
    store.remove(&ids[..3900]).unwrap();
    store.tidy().unwrap();
    let left = std::fs::metadata(&path).unwrap().len();
    assert!(left < full / 3, "{left} of {full} bytes left");
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}

#[test]
fn space_that_a_killed_process_did_not_come_to_give_back_is_found() {
    let (dir, path) = dir_and_path();
    let blocks: Vec<Bytes> = (0..32).map(|seed| block(seed, 256 << 10)).collect();
    let ids: Vec<BlockId> = blocks.iter().map(|b| BlockId::of(b)).collect();
    let store =
        SqliteStore::open_tidying_after(&path, StoreOptions::default(), Duration::from_secs(3600)).unwrap();
    store
        .put(blocks.iter().map(|b| put(b, PutKind::Dirty)).collect())
        .unwrap();
    store.remove(&ids[4..28]).unwrap();
    // Killed here.
    let copy = dir.path().join("killed.sqlite");
    super::crash_tests::cut(&path, &copy, |_| {});
    let store = open(&copy, 0);
    assert!(disk_bytes(&copy) >= 32 * (256 << 10));
    store.tidy().unwrap();
    let left = disk_bytes(&copy);
    assert!(left <= 9 * (256 << 10), "{left} bytes");
    for (n, (id, bytes)) in ids.iter().zip(&blocks).enumerate() {
        let there = !(4..28).contains(&n);
        assert_eq!(store.get(id).unwrap().as_ref(), there.then_some(bytes));
    }
}

#[test]
fn a_store_of_schema_version_1_is_read_and_grows_on() {
    let (_dir, path) = dir_and_path();
    let old = block(1, 100_000);
    let id = BlockId::of(&old);
    let store = open(&path, 0);
    store.close().unwrap();
    drop(store);
    // As version 1 would have it: the bytes in the database.
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch(
        "DROP TABLE extent; DROP TABLE tail; ALTER TABLE block RENAME COLUMN place TO data; PRAGMA user_version = 1;
         DROP TABLE lease; DROP TABLE idle; DROP TABLE held; DROP TABLE kept; DROP TABLE replica; DROP TABLE owed;
         DROP TABLE to_free; DROP TABLE member; DROP TABLE number; DROP TABLE shard_group; DROP TABLE record; DROP TABLE record_of;",
    )
    .unwrap();
    conn.execute("INSERT INTO data VALUES (7, ?1)", [&old[..]])
        .unwrap();
    conn.execute(
        "INSERT INTO block (id, data, len, seq, dirty, used) VALUES (?1, 7, 100000, 1, 1, 1)",
        [&id.as_bytes()[..]],
    )
    .unwrap();
    let mut meta = Meta::load(&conn).unwrap();
    (meta.blocks, meta.bytes, meta.dirty_bytes) = (1, 100_000, 100_000);
    meta.save(&conn).unwrap();
    drop(conn);

    let store = open(&path, 0);
    assert_eq!(store.get(&id).unwrap(), Some(old));
    let new = block(2, 100_000);
    store.put(vec![put(&new, PutKind::Dirty)]).unwrap();
    assert_eq!(store.get(&BlockId::of(&new)).unwrap(), Some(new));
    store.remove(&[id]).unwrap();
    assert!(!store.contains(&id).unwrap());
    store.close().unwrap();
    let stats = (1, 100_000, 100_000, 1);
    assert_eq!(counted(&path), stats);
}
