//! One flipped bit anywhere in the database: an error that names the file, a block that is missing or damaged, never wrong bytes,
//! never a panic, and nothing deleted.

use super::tests::{blocks_dir, dir_and_path};
use super::*;
use crate::base::PlainHash;
use crate::store::PutKind;
use crate::store::conformance::{block, put};

/// Bytes of SQLite's header (<https://sqlite.org/fileformat2.html>).
const HEADER_LEN: usize = 100;

/// Flips beyond the header.
const FLIPS: u64 = 150;

fn flip_and_use(whole: &[u8], segment: &Path, path: &Path, bit: usize, blocks: &[Bytes]) -> bool {
    let mut bytes = whole.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    for suffix in ["-wal", "-shm", "-lock"] {
        let _ = std::fs::remove_file(schema::beside(path, suffix));
    }
    std::fs::write(path, &bytes).unwrap();
    std::fs::remove_dir_all(blocks_dir(path)).ok();
    std::fs::create_dir(blocks_dir(path)).unwrap();
    std::fs::copy(segment, blocks_dir(path).join("00000000")).unwrap();
    let store = match SqliteStore::open(path, StoreOptions::default()) {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert_eq!(
                std::fs::read(path).unwrap(),
                bytes,
                "bit {bit}: a file that is refused is left alone"
            );
            return false;
        }
    };
    for bytes in blocks {
        if let Ok(Some(found)) = store.get(&BlockId::of(bytes)) {
            assert_eq!(&found, bytes, "bit {bit}");
        }
    }
    // None of these has to succeed; none may panic or lie.
    let fresh = block(77, 30_000);
    if store.put(vec![put(&fresh, PutKind::Dirty)]).is_ok() {
        assert!(!matches!(store.get(&BlockId::of(&fresh)), Ok(Some(found)) if found != fresh));
    }
    let _ = store.find_plain(&PlainHash([1; 32]));
    let _ = store.list(None, 100);
    let _ = store.remove(&[BlockId::of(&blocks[0]), BlockId::of(&blocks[3])]);
    let _ = store.tidy();
    // What was freed belonged to no other block.
    for bytes in [&blocks[2], &blocks[5]] {
        if let Ok(Some(found)) = store.get(&BlockId::of(bytes)) {
            assert_eq!(&found, bytes, "bit {bit}");
        }
    }
    let _ = store.check();
    let _ = store.sync();
    let _ = store.close();
    true
}

#[test]
fn one_flipped_bit_anywhere() {
    // In memory where possible: hundreds of stores are opened, and each start syncs.
    let dir = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let path = dir.path().join("store.sqlite");
    let store = SqliteStore::open(&path, StoreOptions::default()).unwrap();
    let blocks: Vec<Bytes> = (0..6)
        .map(|seed| block(seed, 1 + 9_000 * seed as usize))
        .collect();
    for (n, bytes) in blocks.iter().enumerate() {
        let plain = Some(PlainHash([n as u8; 32]));
        store
            .put(vec![Put {
                plain,
                ..put(bytes, PutKind::Dirty)
            }])
            .unwrap();
    }
    store.close().unwrap();
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let segment = blocks_dir(&path).join("00000000");
    let copy = dir.path().join("flipped.sqlite");
    let mut opened = 0;
    for byte in 0..HEADER_LEN {
        opened += u64::from(flip_and_use(
            &whole,
            &segment,
            &copy,
            byte * 8 + byte % 8,
            &blocks,
        ));
    }
    assert!(opened < HEADER_LEN as u64, "most of the header matters");
    for n in 0..FLIPS {
        let hash = blake3::hash(&n.to_le_bytes());
        let mut number = [0; 8];
        number.copy_from_slice(&hash.as_bytes()[..8]);
        let anywhere = u64::from_le_bytes(number) as usize % (whole.len() * 8);
        // Half of them where the trees' own bookkeeping is: the first bytes of a page.
        let bit = if n % 2 == 0 {
            anywhere
        } else {
            anywhere / 131_072 * 131_072 + anywhere % 512
        };
        flip_and_use(&whole, &segment, &copy, bit, &blocks);
    }
}

#[test]
fn a_flipped_bit_in_the_state_row_is_noticed() {
    let (_dir, path) = dir_and_path();
    SqliteStore::open(&path, StoreOptions::default())
        .unwrap()
        .close()
        .unwrap();
    for change in [
        "seq = seq + 1",
        "clean = 0",
        "dirty_bytes = 1",
        "voids = zeroblob(16)",
    ] {
        let conn = Connection::open(&path).unwrap();
        let before = conn.query_row("SELECT seq, clean FROM meta", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
        });
        conn.execute_batch(&format!("UPDATE meta SET {change}")).unwrap();
        drop(conn);
        let error = SqliteStore::open(&path, StoreOptions::default()).unwrap_err();
        assert!(error.to_string().contains("state row"), "{change}: {error}");
        let (seq, clean) = before.unwrap();
        Connection::open(&path)
            .unwrap()
            .execute(
                "UPDATE meta SET seq = ?1, clean = ?2, dirty_bytes = 0, voids = x''",
                [seq, clean],
            )
            .unwrap();
    }
    SqliteStore::open(&path, StoreOptions::default()).unwrap();
}
