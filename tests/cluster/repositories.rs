//! What consists of many files that belong together, or of one that must be whole: git repositories and databases, on two computers.

use std::fs;

use super::trees::{PATIENCE, come_together, fall_silent, writers};
use crate::harness::command::Cmd;
use crate::harness::namespaces::Switch;
use crate::harness::volume::TestVolume;
use crate::harness::wait_for;

const IDENTITY: &str = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b\n";

fn run(volume: &TestVolume, script: &str) -> String {
    Cmd::bash(&format!("{IDENTITY}{script}"))
        .dir(volume.mountpoint())
        .ok()
}

/// Nothing wrong with the repository, and nothing that is not committed.
fn checked(volume: &TestVolume) -> String {
    run(
        volume,
        "cd repository && git fsck --full --strict && git status --porcelain && git log --format=%s",
    )
}

#[test]
fn a_repository_and_a_database_are_whole_on_the_other_computer() {
    let switch = Switch::new(2);
    let both = writers(&switch, 2);
    let [a, b] = [&both[0], &both[1]];
    run(
        a,
        "git init -q -b main repository && cd repository
for n in $(seq 60); do mkdir -p d$((n % 7)); seq $n $((n * 9)) > d$((n % 7))/$n; done
git add . && git commit -qm first
for n in 1 2 3; do echo $n >> d1/1; git commit -qam change-$n; done
git gc -q && echo loose > loose && git add . && git commit -qm second",
    );
    run(
        a,
        "sqlite3 db \"create table t(a integer primary key, b); \
with recursive c(x) as (select 1 union all select x + 1 from c where x < 20000) insert into t select x, hex(randomblob(40)) from c;\"",
    );
    come_together(&[a, b]);
    assert_eq!(checked(b), "second\nchange-3\nchange-2\nchange-1\nfirst\n");
    let count = "sqlite3 db 'pragma integrity_check; select count(*) from t'";
    assert_eq!(run(b, count), "ok\n20000\n");
    let sum = run(a, "sqlite3 db 'select * from t' | sha256sum");
    assert_eq!(run(b, "sqlite3 db 'select * from t' | sha256sum"), sum);

    // Work goes on where it was left, on the other computer.
    run(
        b,
        "cd repository && echo b > of-b && git add . && git commit -qm third && git repack -qad",
    );
    run(
        b,
        "sqlite3 db 'pragma journal_mode = wal; begin; update t set b = a where a % 3 = 0; insert into t values (30000, 1); commit'",
    );
    wait_for("A has the newest commit", PATIENCE, || {
        fs::read(a.at("repository/of-b")).is_ok_and(|text| text == b"b\n")
    });
    come_together(&[a, b]);
    fall_silent(&[a, b]);
    assert_eq!(checked(a), "third\nsecond\nchange-3\nchange-2\nchange-1\nfirst\n");
    assert_eq!(run(a, count), "ok\n20001\n");
    assert_eq!(
        run(a, "sqlite3 db 'select count(*) from t where a = b'"),
        "6666\n"
    );
}
