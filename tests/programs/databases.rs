//! SQLite: many small syncs, a shared memory file, and what was committed is there whoever dies.

use super::MINUTES;
use crate::harness::command::{Cmd, Running};
use crate::harness::volume::TestVolume;
use crate::harness::{SOON, long, wait_for};

#[test]
fn sqlite_in_both_journal_modes() {
    let mut volume = TestVolume::mounted();
    for (mode, name) in [("delete", "a.db"), ("wal", "b.db")] {
        let script = format!(
            "PRAGMA journal_mode = {mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO t SELECT i, hex(randomblob(40)) FROM n;
             DELETE FROM t WHERE a % 3 = 0; UPDATE t SET b = upper(b) WHERE a % 5 = 0; VACUUM;"
        );
        let said = Cmd::new("sqlite3")
            .arg(volume.at(name))
            .arg(&script)
            .within(MINUTES)
            .ok();
        assert_eq!(said.trim(), mode);
        let writer = format!(
            "for n in $(seq 25); do sqlite3 -cmd '.timeout 60000' {name} \"INSERT INTO t(b) VALUES('w')\"; done"
        );
        Cmd::bash(&format!(
            "({writer}) & first=$!; ({writer}) & second=$!; wait $first; wait $second"
        ))
        .dir(volume.mountpoint())
        .within(MINUTES)
        .ok();
    }
    volume.remount();
    for name in ["a.db", "b.db"] {
        let check = "PRAGMA integrity_check; SELECT count(*) FROM t; SELECT count(*) FROM t WHERE b = 'w'";
        let said = Cmd::new("sqlite3").arg(volume.at(name)).arg(check).ok();
        assert_eq!(said, "ok\n13384\n50\n", "{name}");
    }
}

/// Transaction after transaction, each synced, each said once it is committed. A transaction appends to a journal table and moves an amount
/// between accounts, so that half of one would be seen.
const WRITER: &str = r#"
import random, sqlite3, sys
path, mode = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None, timeout=60)
assert db.execute("PRAGMA journal_mode=" + mode).fetchone()[0] == mode
db.execute("PRAGMA synchronous=FULL")
db.execute("PRAGMA wal_autocheckpoint=50")
db.execute("CREATE TABLE IF NOT EXISTS done(n INTEGER PRIMARY KEY, pad BLOB)")
db.execute("CREATE TABLE IF NOT EXISTS account(a INTEGER PRIMARY KEY, amount INTEGER)")
db.execute("INSERT OR IGNORE INTO account WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 500) SELECT i, 0 FROM c")
n = db.execute("SELECT coalesce(max(n), 0) FROM done").fetchone()[0]
while True:
    n += 1
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO done VALUES(?, randomblob(?))", (n, random.choice((10, 300, 5000))))
    for _ in range(3):
        amount = random.randrange(1000)
        db.execute("UPDATE account SET amount = amount + ? WHERE a = ?", (amount, random.randrange(1, 501)))
        db.execute("UPDATE account SET amount = amount - ? WHERE a = ?", (amount, random.randrange(1, 501)))
    db.execute("COMMIT")
    print(n, flush=True)
"#;

fn writer(volume: &TestVolume, mode: &str) -> Running {
    let command = Cmd::new("python3")
        .args(["-c", WRITER])
        .arg(volume.at(mode))
        .arg(mode);
    command.dir(volume.place()).start()
}

/// The last transaction that the writer called committed.
fn committed(said: &str) -> Option<u64> {
    said.lines().filter_map(|line| line.parse().ok()).max()
}

/// Panics unless the database is whole and holds every transaction up to `last`, and at most the one after it, whose answer was lost.
#[track_caller]
fn check(volume: &TestVolume, mode: &str, last: u64) {
    let questions = "PRAGMA integrity_check; SELECT max(n) FROM done; SELECT count(*) FROM done; SELECT sum(amount) FROM account;";
    let said = Cmd::new("sqlite3").arg(volume.at(mode)).arg(questions).ok();
    let answers = |n: u64| format!("ok\n{n}\n{n}\n0\n");
    assert!(
        said == answers(last) || said == answers(last + 1),
        "{mode}: {last} were committed, found {said}"
    );
}

fn rounds() -> u64 {
    if long() { 40 } else { 3 }
}

#[test]
fn sqlite_loses_no_commit_when_the_daemon_is_killed() {
    for mode in ["delete", "wal"] {
        let mut volume = TestVolume::mounted();
        let mut last = 0;
        for round in 1..=rounds() {
            let mut running = writer(&volume, mode);
            let enough = last + 20 + 37 * (round % 3);
            wait_for("transactions are committed", SOON, || {
                committed(&running.said()) > Some(enough)
            });
            volume.kill();
            last = committed(&running.kill()).unwrap();
            volume.mount();
            check(&volume, mode, last);
        }
    }
}

#[test]
fn sqlite_loses_no_commit_when_it_is_killed_itself() {
    let mut volume = TestVolume::mounted();
    for mode in ["delete", "wal"] {
        let mut last = 0;
        for round in 1..=rounds() {
            let mut running = writer(&volume, mode);
            let enough = last + 20 + 41 * (round % 3);
            wait_for("transactions are committed", SOON, || {
                committed(&running.said()) > Some(enough)
            });
            last = committed(&running.kill()).unwrap();
            if round % 2 == 0 {
                volume.remount();
            }
            check(&volume, mode, last);
        }
    }
}
