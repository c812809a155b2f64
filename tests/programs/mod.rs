//! Programs that people use, inside a mount: what they check themselves is the test.

mod posix;

use std::fs;
use std::time::Duration;

use crate::harness::command::Cmd;
use crate::harness::tree;
use crate::harness::volume::TestVolume;

/// For programs that build or pack.
const MINUTES: Duration = Duration::from_secs(240);

#[test]
fn git_clones_commits_packs_and_finds_nothing_wrong() {
    let volume = TestVolume::mounted();
    let script = r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main origin
cd origin
for n in $(seq 300); do mkdir -p "d$((n % 7))"; seq "$n" $((n * 9)) > "d$((n % 7))/$n"; done
git add .
git commit -qm one
cd ..
git clone -q origin clone
cd clone
for n in $(seq 40); do echo "$n" >> "d$((n % 7))/$n" 2>/dev/null || echo "$n" > "new$n"; git add -A; git commit -qm "$n"; done
git gc -q --aggressive --prune=now
git fsck --full --strict
git push -q origin HEAD:refs/heads/other
git -C ../origin fsck --full --strict
git checkout -q HEAD~20
git status --porcelain
git worktree add -q ../second main
"#;
    let said = Cmd::bash(script).dir(volume.mountpoint()).within(MINUTES).ok();
    assert_eq!(
        said.lines().filter(|line| !line.starts_with("dangling")).count(),
        0,
        "{said}"
    );
}

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

#[test]
fn rsync_keeps_everything_and_has_nothing_to_do_the_second_time() {
    let volume = TestVolume::mounted();
    let source = volume.place().join("source");
    tree::real_tree(&source, 500);
    fs::create_dir(source.join("odd")).unwrap();
    tree::odd_tree(&source.join("odd"));
    let rsync = || {
        let from = format!("{}/", source.display());
        Cmd::new("rsync")
            .args(["-aHAXi", &from])
            .arg(volume.at("copy"))
            .within(MINUTES)
    };
    rsync().ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("copy")));
    assert_eq!(rsync().ok(), "", "the second run found differences");
    let checked = rsync().arg("--checksum").ok();
    assert_eq!(checked, "", "the checksums differ");
    let back = volume.place().join("back");
    let from = format!("{}/", volume.at("copy").display());
    Cmd::new("rsync")
        .args(["-aHAX", &from])
        .arg(&back)
        .within(MINUTES)
        .ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&back));
}

#[test]
fn tar_packs_and_unpacks() {
    let volume = TestVolume::mounted();
    let source = volume.place().join("source");
    tree::real_tree(&source, 800);
    fs::create_dir(source.join("odd")).unwrap();
    tree::odd_tree(&source.join("odd"));
    let script = r#"
tar --xattrs --acls --sparse -cf "$MOUNT/packed.tar" -C "$SOURCE" .
mkdir "$MOUNT/unpacked"
tar --xattrs --xattrs-include='user.*' --acls --same-owner -xpf "$MOUNT/packed.tar" -C "$MOUNT/unpacked"
tar --compare -f "$MOUNT/packed.tar" -C "$MOUNT/unpacked"
"#;
    Cmd::bash(script)
        .env("MOUNT", volume.mountpoint())
        .env("SOURCE", &source)
        .within(MINUTES)
        .ok();
    tree::assert_same(&tree::snapshot(&source), &tree::snapshot(&volume.at("unpacked")));
}

#[test]
fn cargo_builds_and_runs_a_small_program() {
    let mut volume = TestVolume::mounted();
    let script = r#"
unset CARGO_TARGET_DIR
cargo new --quiet --vcs none --name small small
cd small
mkdir -p src/deep
for n in $(seq 20); do echo "pub fn f$n() -> u32 { $n }" > "src/m$n.rs"; echo "mod m$n;" >> src/mods.txt; done
{ cat src/mods.txt; echo 'fn main() { println!("{}", m1::f1() + m20::f20()'; seq 2 19 | sed 's/.*/+ m&::f&()/'; echo '); }'; } > src/main.rs
cargo build --quiet --offline
touch src/m3.rs
cargo build --quiet --offline
./target/debug/small
"#;
    let said = Cmd::bash(script).dir(volume.mountpoint()).within(MINUTES).ok();
    assert_eq!(said, "210\n");
    volume.remount();
    assert_eq!(Cmd::new(volume.at("small/target/debug/small")).ok(), "210\n");
}

#[test]
fn locks_maps_and_appends_of_several_processes() {
    let volume = TestVolume::mounted();
    let script = r#"
for p in 1 2 3 4; do
  ( for n in $(seq 50); do flock lock -c "echo $p-$n >> log"; done ) &
done
wait
wc -l < log
sort -u log | wc -l
(for p in 1 2 3 4; do ( for n in $(seq 200); do echo "$p $n padding padding" >> appended; done ) & done; wait)
sort -u appended | wc -l
cp /bin/ls own-ls && ./own-ls own-ls
"#;
    let said = Cmd::bash(script).dir(volume.mountpoint()).within(MINUTES).ok();
    assert_eq!(said, "200\n200\n800\nown-ls\n");
}
