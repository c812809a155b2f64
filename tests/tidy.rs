//! Holds the shape of the house: storeys, confined crates, short files with heads, nothing forgotten, nothing unfinished.
//!
//! Every rule is tried on a small wrong example as well: a rule that cannot fail would hold nothing.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "tidy/lex.rs"]
mod lex;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/semantics.rs"]
mod semantics;

use std::fs;
use std::path::{Path, PathBuf};

use rules::Source;

/// What the rules look at: everything that is read as text, beside golden files.
const PARTS: &[&str] = &[
    "src",
    "mount-helpers",
    "tests",
    "benches",
    "fuzz",
    "docs",
    "packaging",
    ".ci",
];
const SINGLE: &[&str] = &["README.md", "CHANGELOG.md"];
const SKIPPED: &[&str] = &["target", "corpus", "artifacts", "golden"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>, skip: &[&str]) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !skip.contains(&name.as_str()) {
                walk(&path, found, skip);
            }
        } else {
            found.push(path);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn files() -> Vec<Source> {
    let mut paths: Vec<PathBuf> = SINGLE.iter().map(|name| root().join(name)).collect();
    for part in PARTS {
        walk(&root().join(part), &mut paths, SKIPPED);
    }
    paths.sort();
    let read = |path: &PathBuf| Some(Source::new(&relative(path), &fs::read_to_string(path).ok()?));
    paths.iter().filter_map(read).collect()
}

fn manifests() -> Vec<Source> {
    ["Cargo.toml", "fuzz/Cargo.toml"]
        .iter()
        .filter_map(|path| Some(Source::new(path, &fs::read_to_string(root().join(path)).ok()?)))
        .collect()
}

fn golden_files() -> Vec<String> {
    let mut all = Vec::new();
    walk(&root().join("tests"), &mut all, &[]);
    walk(&root().join("src"), &mut all, &[]);
    all.iter()
        .map(|path| relative(path))
        .filter(|path| path.contains("/golden/"))
        .collect()
}

#[track_caller]
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn files_have_heads_and_stay_short() {
    none(&rules::heads_and_lengths(&files()));
    let long = Source::new("src/base/a.rs", &"//!\n".repeat(rules::LINES_MAX + 1));
    assert_eq!(rules::heads_and_lengths(&[long]).len(), 1);
    let headless = Source::new("tests/a.rs", "fn a() {}\n");
    assert_eq!(rules::heads_and_lengths(&[headless]).len(), 1);
}

#[test]
fn rooms_use_lower_storeys_only() {
    let files = files();
    assert!(
        files.iter().any(|f| f.path == "src/lib.rs"),
        "the sources were not found"
    );
    none(&rules::storeys(&files));
}

#[test]
fn a_room_that_climbs_is_seen() {
    let complaints = |path, text| rules::storeys(&[Source::new(path, text)]).len();
    assert_eq!(complaints("src/volume/a.rs", "use crate::store::Tiered;"), 0);
    assert_eq!(complaints("src/volume/a.rs", "use crate::volume::Volume;"), 0);
    assert_eq!(complaints("src/volume/a.rs", "use crate::node::Node;"), 1);
    assert_eq!(
        complaints(
            "src/store/mod.rs",
            "use crate::{base::ids, folder::Folder, volume};"
        ),
        2
    );
    assert_eq!(
        complaints("src/store/mod.rs", "fn f() { let x = crate::daemon::run(); }"),
        1
    );
    assert_eq!(complaints("src/keys/a.rs", "use crate::seal::EpochKey;"), 0);
    assert_eq!(complaints("src/seal/a.rs", "use crate::keys::DeviceKey;"), 1);
    assert_eq!(complaints("src/object/a.rs", "use crate::{keys::A, seal::B};"), 0);
    assert_eq!(complaints("src/base/mod.rs", "use super::store::Tiered;"), 1);
    assert_eq!(complaints("src/base/ids.rs", "use super::store::Tiered;"), 0);
    assert_eq!(
        complaints("src/base/ids.rs", "use super::super::store::Tiered;"),
        1
    );
    assert_eq!(
        complaints(
            "src/base/ids.rs",
            "mod tests { use super::super::store::Tiered; }"
        ),
        0
    );
    assert_eq!(
        complaints(
            "src/base/ids.rs",
            "mod tests { use super::super::super::store::T; }"
        ),
        1
    );
    assert_eq!(
        complaints(
            "src/base/a.rs",
            "// use crate::store\nconst A: &str = \"crate::store\";"
        ),
        0
    );
    assert_eq!(complaints("src/cellar/a.rs", ""), 1);
    assert_eq!(complaints("src/volume/a.rs", "use crate::cellar::Wine;"), 1);
}

#[test]
fn confined_crates_stay_where_they_belong() {
    none(&rules::confined_crates(&files()));
    let complaints = |path, text| rules::confined_crates(&[Source::new(path, text)]).len();
    assert_eq!(complaints("src/fuse/a.rs", "use fuser::Filesystem;"), 0);
    assert_eq!(complaints("src/volume/a.rs", "use fuser::Filesystem;"), 1);
    assert_eq!(
        complaints("src/volume/a.rs", "use {fuser::Filesystem, std::fs};"),
        1
    );
    assert_eq!(complaints("src/daemon/a.rs", "let s: libp2p::Swarm<B> = x;"), 1);
    assert_eq!(complaints("src/daemon/a.rs", "let s: ::libp2p::Swarm<B> = x;"), 1);
    assert_eq!(complaints("src/store/api.rs", "use rusqlite;"), 0);
    assert_eq!(complaints("src/daemon/a.rs", "extern crate rusqlite;"), 1);
    assert_eq!(complaints("src/node/a.rs", "fn a() -> anyhow::Result<()> {}"), 1);
    assert_eq!(complaints("mount-helpers/a.rs", "use clap::Parser;"), 0);
    assert_eq!(
        complaints("src/daemon/a.rs", "#[derive(clap::Parser)] struct A;"),
        1
    );
    assert_eq!(complaints("src/volume/a.rs", "let e = libc::ENOSPC;"), 1);
    assert_eq!(complaints("src/volume/a.rs", "let e = libc::O_RDONLY;"), 0);
    assert_eq!(
        complaints(
            "src/volume/a.rs",
            "// fuser::Session\nlet fuser = 1; self::fuser::x();"
        ),
        0
    );
}

#[test]
fn nothing_is_unfinished_or_vague() {
    none(&rules::unfinished_and_vague(&files()));
    let complaints = |path, text: &str| rules::unfinished_and_vague(&[Source::new(path, text)]).len();
    assert_eq!(complaints("src/base/a.rs", concat!("// FIX", "ME: later")), 1);
    assert_eq!(complaints("src/base/a.rs", "fn a() { todo!() }"), 1);
    assert_eq!(complaints("tests/a.rs", "fn a() { unimplemented!(\"b\") }"), 1);
    assert_eq!(complaints("src/base/a.rs", "let todo = 1;"), 0);
    assert_eq!(complaints("src/base/a.rs", "use super::*;"), 1);
    assert_eq!(complaints("src/base/a.rs", "mod tests { use super::*; }"), 0);
    assert_eq!(
        complaints("src/base/a.rs", "mod tests { } use super::{a, b::*};"),
        1
    );
    assert_eq!(
        complaints("src/base/a.rs", "fn f(x: *const u8) -> u8 { 2 * 3 }"),
        0
    );
    assert_eq!(complaints("src/base/helpers.rs", ""), 1);
}

#[test]
fn no_file_is_forgotten() {
    none(&rules::forgotten_files(&files(), &manifests()));
    let manifest = Source::new("Cargo.toml", "[[bin]]\npath = \"mount-helpers/mount.rs\"\n");
    let forgotten = |files: &[(&str, &str)]| {
        let files: Vec<Source> = files.iter().map(|(p, t)| Source::new(p, t)).collect();
        rules::forgotten_files(&files, std::slice::from_ref(&manifest))
    };
    let lib = ("src/lib.rs", "pub mod base;");
    let base = ("src/base/mod.rs", "mod ids;");
    none(&forgotten(&[
        lib,
        base,
        ("src/base/ids.rs", ""),
        ("mount-helpers/mount.rs", ""),
    ]));
    assert_eq!(forgotten(&[lib, base, ("src/base/lost.rs", "")]).len(), 1);
    assert_eq!(forgotten(&[("src/lib.rs", "// mod base;"), base]).len(), 1);
    assert_eq!(forgotten(&[("mount-helpers/lost.rs", "")]).len(), 1);
    none(&forgotten(&[
        ("tests/a.rs", "mod b;"),
        ("tests/b/mod.rs", "mod c;"),
        ("tests/b/c.rs", ""),
    ]));
    assert_eq!(forgotten(&[("tests/a.rs", ""), ("tests/b/lost.rs", "")]).len(), 1);
    none(&forgotten(&[
        ("tests/a.rs", "#[path = \"b/c.rs\"]\nmod c;"),
        ("tests/b/c.rs", ""),
    ]));
    none(&forgotten(&[("tests/d/main.rs", "mod e;"), ("tests/d/e.rs", "")]));
    let off = Source::new("Cargo.toml", "autotests = false");
    assert_eq!(rules::forgotten_files(&[], &[off]).len(), 1);
}

#[test]
fn no_test_is_forgotten() {
    let run = fs::read_to_string(root().join("tests/run")).unwrap();
    none(&rules::forgotten_tests(&files(), &run));
    let complaints = |path, text, run| rules::forgotten_tests(&[Source::new(path, text)], run).len();
    assert_eq!(complaints("tests/boot/check.sh", "", ""), 1);
    assert_eq!(
        complaints("tests/boot/check.sh", "", "bash tests/boot/check.sh"),
        0
    );
    assert_eq!(complaints("tests/a.rs", "#[test]\n#[ignore]\nfn a() {}", ""), 1);
    assert_eq!(
        complaints("tests/a.rs", "#[ignore = \"needs an hour\"]\nfn a() {}", ""),
        0
    );
}

#[test]
fn every_golden_file_is_read_by_a_test() {
    none(&rules::unused_golden_files(&golden_files(), &files()));
    let golden = ["tests/golden/slot-v1.bin".to_owned()];
    let user = Source::new(
        "src/object/slot.rs",
        "include_bytes!(\"../../tests/golden/slot-v1.bin\")",
    );
    none(&rules::unused_golden_files(&golden, &[user]));
    assert_eq!(rules::unused_golden_files(&golden, &[]).len(), 1);
}

#[test]
fn pages_link_to_what_exists() {
    none(&rules::broken_links(&files(), |path| root().join(path).exists()));
    let problems = |text| {
        let page = Source::new("docs/a.md", text);
        rules::broken_links(&[page], |path| ["docs/b.md", "README.md"].contains(&path))
    };
    none(&problems(
        "[b](b.md#part), [top](../README.md), [web](https://example.org), `docs/b.md`.",
    ));
    assert_eq!(problems("[c](c.md) and docs/c.md").len(), 2);
}

#[test]
fn every_line_about_semantics_is_held_by_a_test() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let is_rust = |file: &&Source| file.path.ends_with(".rs") && !file.path.starts_with("tests/tidy");
    let sources: String = files()
        .iter()
        .filter(is_rust)
        .map(|file| file.text.clone())
        .collect();
    none(&semantics::unheld(&page, semantics::HELD, &sources));
    let complaints = |page, held: &[(&str, &[&str])]| semantics::unheld(page, held, "fn holds() {}").len();
    assert_eq!(
        complaints(
            "# Head\n\n| a | b |\n|---|---|\n| `c` | d |\n",
            &[("| `c`", &["holds"])]
        ),
        0
    );
    assert_eq!(complaints("New.\nHeld.\n", &[("Held", &["holds"])]), 1);
    assert_eq!(
        complaints("Held.\n", &[("Held", &["holds"]), ("Gone", &["holds"])]),
        1
    );
    assert_eq!(complaints("Held.\n", &[("Held", &["lost"])]), 1);
    assert_eq!(complaints("Held.\n", &[("Held", &[])]), 1);
    assert_eq!(complaints("Helder.\n", &[("Held", &["holds"])]), 2);
}

#[test]
fn every_decision_is_in_the_index() {
    let all: Vec<String> = files().iter().map(|f| f.path.clone()).collect();
    let index = fs::read_to_string(root().join("docs/decisions/README.md")).unwrap();
    none(&rules::unlisted_decisions(&all, &index));
    let lost = ["docs/decisions/0001-x.md".to_owned()];
    none(&rules::unlisted_decisions(&lost, "[x](0001-x.md)"));
    assert_eq!(rules::unlisted_decisions(&lost, "").len(), 1);
}

#[test]
fn the_lexer_leaves_out_what_is_no_code() {
    let text = "a /* b /* c */ d */ \"e \\\" f\" r#\"g \" h\"# 'i' '\\'' j<'k> b\"l\" b'm' // n\no::p";
    let words: Vec<String> = lex::tokens(text).into_iter().map(|t| t.text).collect();
    assert_eq!(words, ["a", "j", "<", "k", ">", "o", "::", "p"]);
    assert_eq!(lex::tokens("\"a\nb\" c")[0].line, 2);
}
