//! What the death of the process, a power cut and a full disk leave behind.
//!
//! A power cut is played by what it does to files: of what was written since the last sync, some never reached the disk.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::meta::JUMP;
use super::tests::{blocks_dir, dir_and_path, open};
use super::*;
use crate::store::PutKind;
use crate::store::conformance::{block, put};

/// Tells a test process that it is the child, and where its store is.
const CHILD: &str = "DFS_TEST_STORE";

/// Never in a test.
const NO_TIDYING: Duration = Duration::from_secs(3600);

fn id_of(seed: u64) -> BlockId {
    BlockId::of(&block(seed, 20_000))
}

/// This test, alone, in a process of its own.
fn child(name: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            &format!("store::sqlite::crash_tests::{name}"),
            "--exact",
            "--nocapture",
        ])
        .env(CHILD, path);
    command
}

#[test]
fn what_a_put_returned_for_survives_sigkill() {
    if let Some(path) = std::env::var_os(CHILD) {
        put_for_ever(Path::new(&path));
    }
    let (_dir, path) = dir_and_path();
    let mut known: BTreeMap<u64, CommitSeq> = BTreeMap::new();
    let mut identity = None;
    for _ in 0..3 {
        let before = known.len();
        let mut child = child("what_a_put_returned_for_survives_sigkill", &path)
            .env("DFS_TEST_FIRST", (1000 * before).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            // What it had written when it died counts too: read on to the end.
            if let Some((seed, seq)) = line.strip_prefix("put ").and_then(|rest| rest.split_once(' ')) {
                known.insert(seed.parse().unwrap(), seq.parse().unwrap());
                if known.len() == before + 40 {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(known.len() >= before + 40, "the child died by itself");

        let store = open(&path, 0);
        assert!(store.opened_unclean());
        assert_eq!(*identity.get_or_insert(store.id()), store.id());
        for (seed, seq) in &known {
            let found = store.get(&id_of(*seed)).unwrap();
            assert_eq!(found, Some(block(*seed, 20_000)), "block {seed}");
            assert!(!store.may_be_lost(&store.id(), *seq), "nothing is lost by a kill");
        }
        let newest = *known.values().max().unwrap();
        assert!(
            store.may_be_lost(&store.id(), newest + 1000),
            "numbers that the jump skipped"
        );
        assert!(store.last_seq() >= newest + JUMP / 2);
        // Dies once more, without a word, before it is opened by the next child.
        store
            .put(vec![put(&block(u64::MAX, 10), PutKind::Dirty)])
            .unwrap();
        drop(store);
    }
}

/// Two threads put, sync and remove until the process is killed, and say what they put once the store has said so.
fn put_for_ever(path: &Path) -> ! {
    let first: u64 = std::env::var("DFS_TEST_FIRST").unwrap().parse().unwrap();
    let store = open(path, 0);
    std::thread::scope(|scope| {
        for lane in 0..2 {
            let store = &store;
            scope.spawn(move || {
                for seed in (first + 1 + lane..).step_by(2) {
                    let gone = block(1 << 40 | seed, 500);
                    let batch = vec![
                        put(&block(seed, 20_000), PutKind::Dirty),
                        put(&gone, PutKind::Cached),
                    ];
                    let seq = store.put(batch).unwrap();
                    let said = writeln!(std::io::stdout(), "put {seed} {seq}");
                    if said.is_err() || seed > first + 100_000 {
                        std::process::exit(1);
                    }
                    if seed % 8 == 0 {
                        store.sync().unwrap();
                    }
                    store.remove(&[BlockId::of(&gone)]).unwrap();
                }
            });
        }
    });
    std::process::exit(1)
}

/// Copies a store as a power cut would leave it: the database, the blocks beside it, and of its log what `tail` makes of it.
pub(super) fn cut(from: &Path, to: &Path, tail: impl FnOnce(&mut Vec<u8>)) {
    std::fs::copy(from, to).unwrap();
    std::fs::create_dir(blocks_dir(to)).unwrap();
    for entry in std::fs::read_dir(blocks_dir(from)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), blocks_dir(to).join(entry.file_name())).unwrap();
    }
    let mut log = std::fs::read(schema::beside(from, "-wal")).unwrap();
    tail(&mut log);
    std::fs::write(schema::beside(to, "-wal"), log).unwrap();
}

/// How much of a log holds frames; behind them it is only kept for more (<https://sqlite.org/walformat.html>).
fn used(log: &Path) -> usize {
    let log = std::fs::read(log).unwrap();
    let (header, frames) = log.split_at(32.min(log.len()));
    let page = header
        .get(8..12)
        .map_or(0, |page| u32::from_be_bytes(page.try_into().unwrap()));
    let frame = 24 + page as usize;
    let count = frames
        .chunks_exact(frame)
        .take_while(|frame| frame[8..16] == header[16..24])
        .count();
    if count == 0 { 0 } else { 32 + count * frame }
}

#[test]
fn after_a_power_cut_what_was_synced_is_there_and_the_lost_numbers_stay_lost() {
    let (dir, path) = dir_and_path();
    let store = SqliteStore::open_tidying_after(&path, StoreOptions::default(), NO_TIDYING).unwrap();
    let log = schema::beside(&path, "-wal");
    let mut seqs = Vec::new();
    let mut synced = (0, 0, 0);
    for seed in 0..30 {
        seqs.push((
            seed,
            store
                .put(vec![put(&block(seed, 20_000), PutKind::Dirty)])
                .unwrap(),
        ));
        if seed == 12 {
            synced = (
                store.sync().unwrap(),
                used(&log),
                std::fs::metadata(blocks_dir(&path).join("00000000"))
                    .unwrap()
                    .len(),
            );
        }
    }
    let newest = store.last_seq();
    let whole = used(&log);
    assert!(0 < synced.1 && synced.1 < whole, "{synced:?} {whole}");
    let mut losses = Vec::new();
    // Cut anywhere after the sync; or lose a page in the middle, as writes reach the disk in any order.
    for step in 0..8 {
        let keep = synced.1 + (whole - synced.1) * step / 7;
        let copy = dir.path().join(format!("cut{step}.sqlite"));
        cut(&path, &copy, |log| log.truncate(keep));
        losses.push(copy);
        let copy = dir.path().join(format!("hole{step}.sqlite"));
        cut(&path, &copy, |log| {
            let end = (keep + 4096).min(log.len());
            log[keep.min(end)..end].fill(0);
        });
        losses.push(copy);
        // The log whole, but of the blocks beside the database what was written last is missing, or a page of it.
        let segment = |copy: &Path| blocks_dir(copy).join("00000000");
        let whole_log = |name: String| {
            let copy = dir.path().join(name);
            cut(&path, &copy, |_| {});
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(segment(&copy))
                .unwrap();
            (copy, file)
        };
        let end = std::fs::metadata(segment(&path)).unwrap().len();
        let page = synced.2 + (end - synced.2) * step as u64 / 8 / 4096 * 4096;
        let (copy, file) = whole_log(format!("short{step}.sqlite"));
        file.set_len(page).unwrap();
        losses.push(copy);
        let (copy, file) = whole_log(format!("page{step}.sqlite"));
        file.write_all_at(&[0; 4096], page).unwrap();
        losses.push(copy);
    }
    let mut last_numbers = Vec::new();
    for copy in losses {
        let store = open(&copy, 0);
        let id = store.id();
        assert!(store.opened_unclean());
        let kept: Vec<_> = seqs
            .iter()
            .filter(|(_, seq)| !store.may_be_lost(&id, *seq))
            .collect();
        last_numbers.push(kept.len());
        assert!(kept.len() > 12, "what was synced is there");
        assert!(
            kept.iter().all(|(_, seq)| *seq <= seqs[kept.len() - 1].1),
            "a prefix"
        );
        for (seed, _) in &kept {
            assert!(
                store.get(&id_of(*seed)).unwrap().is_some(),
                "block {seed} of a number that is not lost"
            );
        }
        let next = store.put(vec![put(&block(99, 100), PutKind::Dirty)]).unwrap();
        assert!(next > newest, "no number is used twice");
        store.close().unwrap();
        drop(store);
        // However far numbers go on.
        let store = open(&copy, 0);
        assert!(!store.opened_unclean() && store.last_seq() > newest);
        for (i, (_, seq)) in seqs.iter().enumerate() {
            assert_eq!(store.may_be_lost(&id, *seq), i >= kept.len(), "number {seq}");
        }
        assert!(!store.may_be_lost(&id, next));
    }
    assert!(
        last_numbers.contains(&30) && last_numbers.iter().any(|n| *n < 30),
        "{last_numbers:?}"
    );
}

#[test]
fn a_sync_makes_small_blocks_durable_without_a_commit_and_without_a_longer_log() {
    let (dir, path) = dir_and_path();
    let store = SqliteStore::open_tidying_after(&path, StoreOptions::default(), NO_TIDYING).unwrap();
    let log = schema::beside(&path, "-wal");
    let reserved = std::fs::metadata(&log).unwrap().len();
    for seed in 0..20 {
        let put = store.put(vec![put(&block(seed, 2_000), PutKind::Dirty)]).unwrap();
        assert_eq!(store.sync().unwrap(), put, "the sync is no commit of its own");
        let copy = dir.path().join(format!("cut{seed}.sqlite"));
        let end = used(&log);
        cut(&path, &copy, |log| log[end..].fill(0xee));
        let after = open(&copy, 0);
        assert!(!after.may_be_lost(&after.id(), put));
        assert_eq!(
            after.get(&BlockId::of(&block(seed, 2_000))).unwrap(),
            Some(block(seed, 2_000))
        );
    }
    assert_eq!(std::fs::metadata(&log).unwrap().len(), reserved);
    assert!((used(&log) as u64) < reserved);
}

#[test]
fn the_start_after_a_crash_is_durable_before_any_number_is_given() {
    let (dir, path) = dir_and_path();
    let store = SqliteStore::open_tidying_after(&path, StoreOptions::default(), NO_TIDYING).unwrap();
    let seq = store.put(vec![put(&block(1, 20_000), PutKind::Dirty)]).unwrap();
    // Killed: the log is in the page cache, not on the disk.
    let killed = dir.path().join("killed.sqlite");
    cut(&path, &killed, |_| {});
    let second = SqliteStore::open_tidying_after(&killed, StoreOptions::default(), NO_TIDYING).unwrap();
    let jumped = second.last_seq();
    second.put(vec![put(&block(2, 20_000), PutKind::Dirty)]).unwrap();
    // The power fails at once: all that was written since the start is lost, the log with it.
    let dark = dir.path().join("dark.sqlite");
    cut(&killed, &dark, |log| log.clear());
    let third = open(&dark, 0);
    assert_eq!(
        third.get(&id_of(1)).unwrap(),
        Some(block(1, 20_000)),
        "made durable by the start"
    );
    assert!(!third.may_be_lost(&third.id(), seq) && !third.may_be_lost(&third.id(), jumped));
    assert!(third.may_be_lost(&third.id(), second.last_seq()));
    assert!(third.last_seq() > second.last_seq() + JUMP / 2);
}

#[test]
fn a_full_disk_refuses_keeps_and_goes_on() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return fill(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    // A file system of its own, in a mount namespace that ends with the process.
    let script = "mount -t tmpfs -o size=32m none \"$0\" || exit 77; exec \"$@\"";
    let run = child("a_full_disk_refuses_keeps_and_goes_on", dir.path());
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(dir.path())
        .arg(run.get_program())
        .args(run.get_args())
        .env(CHILD, dir.path())
        .status();
    match status {
        Ok(status)
            if status.code() != Some(77) && (status.success() || rustix::process::geteuid().is_root()) =>
        {
            assert!(status.success(), "{status}");
        }
        other => eprintln!(
            "SKIPPED a_full_disk_refuses_keeps_and_goes_on: needs root to mount a tmpfs ({other:?})"
        ),
    }
}

fn fill(dir: &Path) {
    let path: PathBuf = dir.join("store.sqlite");
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let store = open(&path, 0);
    let mut kept = Vec::new();
    let try_put = |seed: u64, store: &SqliteStore| {
        store
            .put(vec![
                put(&block(seed, 200_000), PutKind::Dirty),
                put(&block(seed, 300_000), PutKind::Dirty),
            ])
            .map(|_| seed)
    };
    let cached: Vec<Put> = (0..4)
        .map(|seed| put(&block(9000 + seed, 900_000), PutKind::Cached))
        .collect();
    store.put(cached).unwrap();
    for seed in 0..1000 {
        match try_put(seed, &store) {
            Ok(seed) => kept.push(seed),
            Err(StoreError::NoSpace(at)) => {
                assert!(at.contains("store.sqlite"), "{at}");
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let check = |store: &SqliteStore, kept: &[u64]| {
        for seed in kept {
            for len in [200_000, 300_000] {
                let bytes = block(*seed, len);
                assert_eq!(store.get(&BlockId::of(&bytes)).unwrap(), Some(bytes));
            }
        }
    };
    assert!(kept.len() > 5 && kept.len() < 1000, "{}", kept.len());
    check(&store, &kept);
    assert!(matches!(try_put(5000, &store), Err(StoreError::NoSpace(_))));
    assert!(
        !store.contains(&BlockId::of(&block(5000, 200_000))).unwrap(),
        "all or nothing"
    );
    assert_eq!(
        store.stats().unwrap().blocks,
        2 * kept.len() as u64,
        "cached blocks went first"
    );

    std::fs::remove_file(&ballast).unwrap();
    for seed in 2000..2004 {
        kept.push(try_put(seed, &store).unwrap());
    }
    store.sync().unwrap();
    check(&store, &kept);
    store.close().unwrap();
    drop(store);
    let store = open(&path, 0);
    check(&store, &kept);
    assert_eq!(store.check().unwrap(), Vec::<String>::new());
}
