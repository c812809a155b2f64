//! git and cargo: many small files, renames over what is there, maps, hard links.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::MINUTES;
use crate::harness::command::Cmd;
use crate::harness::long;
use crate::harness::volume::TestVolume;

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

/// A stream for `git fast-import`: `commits` commits on `main`, each with a new file and a changed one.
fn history(commits: usize) -> String {
    let mut stream = String::from("reset refs/heads/main\n");
    let file = |stream: &mut String, number: usize, commit: usize| {
        let text: String = (0..20 + number % 60)
            .map(|line| format!("{} {}\n", line * number, commit % (line + 1)))
            .collect();
        let path = format!("area{}/part{}/file{number}.txt", number % 11, number % 29);
        write!(stream, "M 100644 inline {path}\ndata {}\n{text}\n", text.len()).unwrap();
    };
    for commit in 1..=commits {
        write!(
            stream,
            "commit refs/heads/main\nmark :{commit}\ncommitter a <a@b> {} +0000\n",
            1_700_000_000 + commit
        )
        .unwrap();
        let message = format!("Change number {commit}\n");
        write!(stream, "data {}\n{message}\n", message.len()).unwrap();
        file(&mut stream, commit, commit);
        file(&mut stream, 1 + commit * 7919 % commit, commit);
    }
    stream + "done\n"
}

#[test]
fn git_keeps_a_repository_of_thousands_of_commits() {
    let mut volume = TestVolume::mounted();
    let commits = if long() { 20_000 } else { 3_000 };
    let stream = history(commits);
    let import = "export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git init -q -b main large && cd large && git fast-import --quiet --done && git rev-parse main && git rev-list --count main";
    let import_in = |dir: &Path| {
        Cmd::bash(import)
            .dir(dir)
            .stdin(stream.as_bytes())
            .within(MINUTES)
            .ok()
    };
    // Names of commits are hashes of everything in them: what the host has, the mount has.
    let expected = import_in(volume.place());
    assert_eq!(import_in(volume.mountpoint()), expected);
    assert!(expected.trim().ends_with(&commits.to_string()), "{expected}");
    let script = r#"
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git -C large checkout -q main
test "$(git -C large ls-files | wc -l)" = "$COMMITS"
git -C large gc -q --prune=now
git -C large fsck --full --strict
git clone -q --no-local large copied
git clone -q --local large linked
git -C linked repack -q -adf --threads=2
for repository in large copied linked; do
  git -C $repository fsck --full --strict
  git -C $repository status --porcelain
  git -C $repository diff --stat main~50 main | tail -1 | wc -l
done
"#;
    let said = Cmd::bash(script)
        .dir(volume.mountpoint())
        .env("COMMITS", commits.to_string())
        .within(MINUTES)
        .ok();
    assert_eq!(said, "1\n1\n1\n", "fsck or status found something");
    volume.kill();
    volume.mount();
    let check = "for repository in large copied linked; do git -C $repository fsck --full --strict; git -C $repository status --porcelain
git -C $repository rev-parse main; done";
    let found = Cmd::bash(check).dir(volume.mountpoint()).within(MINUTES).ok();
    let head = expected.lines().next().unwrap();
    assert_eq!(found, format!("{head}\n").repeat(3));
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
#[ignore = "builds dfs with all it depends on: only with --long"]
fn cargo_builds_dfs() {
    let mut volume = TestVolume::mounted();
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
        "src",
        "mount-helpers",
        "benches",
        "fuzz",
        "docs",
        "README.md",
    ] {
        Cmd::new("cp")
            .arg("-a")
            .arg(own.join(part))
            .arg(volume.mountpoint())
            .ok();
    }
    let script = "unset CARGO_TARGET_DIR; CARGO_TERM_COLOR=never cargo build --locked --offline --target-dir target; target/debug/dfs --version";
    let said = Cmd::bash(script).dir(volume.mountpoint()).within(HOUR).ok();
    assert!(said.starts_with("dfs "), "{said}");
    volume.remount();
    assert_eq!(
        Cmd::new(volume.at("target/debug/dfs")).arg("--version").ok(),
        said
    );
    let again = Cmd::bash(
        "CARGO_TERM_COLOR=never cargo build --locked --offline --target-dir target 2>&1 | grep -c Compiling || true",
    );
    assert_eq!(
        again.dir(volume.mountpoint()).within(HOUR).ok(),
        "0\n",
        "cargo built again what was there"
    );
}

/// For a build of dfs on a busy machine.
const HOUR: Duration = Duration::from_secs(3_600);
