//! The rules of `docs/` and the storeys as functions from sources to complaints. No I/O: `tests/tidy.rs` feeds them, real files and small wrong ones.

use std::path::Path;

use crate::lex::{Token, tokens};

/// Longest `.rs` file, in lines, its tests included.
pub const LINES_MAX: usize = 600;

/// The rooms of `src/` from the ground up. Within storey 1 a room may also use those that stand before it here.
const ROOMS: &[(&str, u8)] = &[
    ("base", 0),
    ("seal", 1),
    ("keys", 1),
    ("object", 1),
    ("merge", 1),
    ("store", 2),
    ("folder", 2),
    ("volume", 3),
    ("node", 3),
    ("fuse", 4),
    ("control", 4),
    ("sync", 4),
    ("replica", 4),
    ("daemon", 5),
    ("cli", 6),
];

/// The storey whose rooms may use their left neighbours.
const LEFTWARD_STOREY: u8 = 1;

/// External crates that one face of the house hides from the rest, and the places that may name them.
const CONFINED: &[(&str, &[&str])] = &[
    ("fuser", &["src/fuse/"]),
    ("libp2p", &["src/node/"]),
    ("libp2p_stream", &["src/node/"]),
    ("rusqlite", &["src/store/"]),
    ("clap", &["src/cli/", "src/main.rs", "mount-helpers/"]),
    ("clap_complete", &["src/cli/"]),
    ("clap_mangen", &["src/cli/"]),
    (
        "anyhow",
        &["src/daemon/", "src/cli/", "src/main.rs", "mount-helpers/"],
    ),
];

/// Names under which anything could hide.
const VAGUE: &[&str] = &["util", "utils", "misc", "common", "helper", "helpers"];

/// A file of the repository.
#[derive(Debug, Clone)]
pub struct Source {
    /// Path from the repository's root.
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// A room's tests in a file of their own.
    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }

    fn is_shipped(&self) -> bool {
        self.is_rust() && (self.path.starts_with("src/") || self.path.starts_with("mount-helpers/"))
    }
}

/// Every `.rs` file opens with `//!` and stays short.
pub fn heads_and_lengths(files: &[Source]) -> Vec<String> {
    let mut bad = Vec::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        if !file.text.starts_with("//!") {
            bad.push(format!("{}:1: does not begin with `//!`", file.path));
        }
        let lines = file.text.lines().count();
        if lines > LINES_MAX {
            bad.push(format!("{}: {lines} lines, at most {LINES_MAX}", file.path));
        }
    }
    bad
}

/// A room uses lower storeys only.
pub fn storeys(files: &[Source]) -> Vec<String> {
    let mut bad = Vec::new();
    for file in files.iter().filter(|f| f.path.starts_with("src/") && f.is_rust()) {
        let Some(room) = room_of(&file.path) else { continue };
        let Some(from) = position(room) else {
            bad.push(format!(
                "{}: {room} has no storey in tests/tidy/rules.rs",
                file.path
            ));
            continue;
        };
        for (used, line) in rooms_used(&file.text, depth_of(&file.path)) {
            match position(&used) {
                None => bad.push(format!("{}:{line}: crate::{used} is no room", file.path)),
                Some(to) if !may_use(from, to) => {
                    bad.push(format!("{}:{line}: {room} must not use {used}", file.path));
                }
                Some(_) => {}
            }
        }
    }
    bad
}

/// Some crates are seen by one room only, and `libc`'s error numbers by `fuse::errno` only.
pub fn confined_crates(files: &[Source]) -> Vec<String> {
    let mut bad = Vec::new();
    for file in files.iter().filter(|f| f.is_shipped()) {
        let words = tokens(&file.text);
        for (at, word) in words.iter().enumerate() {
            let Some((name, homes)) = CONFINED.iter().find(|(name, _)| *name == word.text) else {
                continue;
            };
            if names_a_crate(&words, at) && !homes.iter().any(|home| file.path.starts_with(home)) {
                bad.push(format!(
                    "{}:{}: {name} belongs to {}",
                    file.path,
                    word.line,
                    homes.join(", ")
                ));
            }
        }
        for three in words.windows(3) {
            let errno = three[2].text.len() > 2 && three[2].text.starts_with('E');
            let shouts = three[2]
                .text
                .chars()
                .all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
            if three[0].text == "libc"
                && three[1].text == "::"
                && errno
                && shouts
                && file.path != "src/fuse/errno.rs"
                && !file.is_test()
            {
                bad.push(format!(
                    "{}:{}: libc::{} belongs to src/fuse/errno.rs",
                    file.path, three[0].line, three[2].text
                ));
            }
        }
    }
    bad
}

/// Nothing unfinished, no glob imports outside tests, no vague names.
pub fn unfinished_and_vague(files: &[Source]) -> Vec<String> {
    let marks = [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("XX", "X:")];
    let mut bad = Vec::new();
    for file in files {
        for (number, line) in file.text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(**mark)) {
                bad.push(format!("{}:{}: {mark}", file.path, number + 1));
            }
        }
        if !file.is_rust() {
            continue;
        }
        let words = tokens(&file.text);
        for two in words.windows(2) {
            if ["todo", "unimplemented"].contains(&two[0].text.as_str()) && two[1].text == "!" {
                bad.push(format!("{}:{}: {}!", file.path, two[0].line, two[0].text));
            }
        }
        if file.is_shipped() {
            bad.extend(
                globs(&words)
                    .iter()
                    .filter(|_| !file.is_test())
                    .map(|line| format!("{}:{line}: a glob import hides where names come from", file.path)),
            );
            let parts = file.path.trim_end_matches(".rs").split('/');
            bad.extend(
                parts
                    .filter(|p| VAGUE.contains(p))
                    .map(|p| format!("{}: {p} says nothing", file.path)),
            );
        }
    }
    bad
}

/// Every `.rs` file is compiled: it is the root of a target, or a module of one.
pub fn forgotten_files(files: &[Source], manifests: &[Source]) -> Vec<String> {
    let mut bad = Vec::new();
    for file in files.iter().filter(|f| f.is_rust()) {
        let named_in_manifest = manifests.iter().any(|manifest| {
            let folder = manifest.path.trim_end_matches("Cargo.toml");
            let path = file.path.strip_prefix(folder);
            path.is_some_and(|path| manifest.text.contains(&format!("path = \"{path}\"")))
        });
        if !named_in_manifest && !is_found_by_cargo(&file.path) && !is_module(file, files) {
            bad.push(format!("{}: no target and no module includes it", file.path));
        }
    }
    for manifest in manifests {
        for off in ["autotests = false", "autobenches = false"] {
            if manifest.text.contains(off) {
                bad.push(format!("{}: {off} forgets test files", manifest.path));
            }
        }
    }
    bad
}

/// Every folder of `tests/` has a part in a target or in `tests/run`, and every test that is left out says why.
pub fn forgotten_tests(files: &[Source], run: &str) -> Vec<String> {
    let mut bad = Vec::new();
    for file in files {
        let Some(rest) = file.path.strip_prefix("tests/") else {
            continue;
        };
        let in_run = run.contains(&file.path);
        if !file.is_rust() && !rest.contains("golden/") && file.path != "tests/run" && !in_run {
            let name = rest.rsplit('/').next().unwrap_or(rest);
            if !files.iter().any(|f| f.is_rust() && f.text.contains(name)) {
                bad.push(format!("{}: neither tests/run nor a test uses it", file.path));
            }
        }
    }
    for file in files.iter().filter(|f| f.is_rust()) {
        let words = tokens(&file.text);
        for four in words.windows(4) {
            let attribute = four[0].text == "#" && four[1].text == "[" && four[2].text == "ignore";
            if attribute && four[3].text == "]" {
                bad.push(format!(
                    "{}:{}: ignored without a reason",
                    file.path, four[0].line
                ));
            }
        }
    }
    bad
}

/// Every golden file is named by a test.
pub fn unused_golden_files(golden: &[String], files: &[Source]) -> Vec<String> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    golden
        .iter()
        .filter(|path| !files.iter().any(|f| f.is_rust() && f.text.contains(&name(path))))
        .map(|path| format!("{path}: no test names this golden file"))
        .collect()
}

/// What a page links to, or names as `docs/….md`, exists.
pub fn broken_links(pages: &[Source], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut bad = Vec::new();
    for page in pages.iter().filter(|p| p.path.ends_with(".md")) {
        let folder = Path::new(&page.path).parent().unwrap_or(Path::new(""));
        for link in page
            .text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !exists(&normal(&folder.join(target))) {
                bad.push(format!("{}: links to {target}, which does not exist", page.path));
            }
        }
        let ends = |c: char| c.is_whitespace() || "`()[]<>,;:'\"".contains(c);
        for word in page.text.split(ends).filter(|w| w.starts_with("docs/")) {
            let word = word.trim_end_matches('.');
            if !word.contains(['*', '{', '…']) && !exists(word) {
                bad.push(format!("{}: names {word}, which does not exist", page.path));
            }
        }
    }
    bad
}

/// Every recorded decision is in the index.
pub fn unlisted_decisions(paths: &[String], index: &str) -> Vec<String> {
    paths
        .iter()
        .filter_map(|path| path.strip_prefix("docs/decisions/"))
        .filter(|name| *name != "README.md" && !index.contains(&format!("({name})")))
        .map(|name| format!("docs/decisions/README.md: does not list {name}"))
        .collect()
}

fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().unwrap_or_default().split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn position(room: &str) -> Option<(u8, usize)> {
    let at = ROOMS.iter().position(|(name, _)| *name == room)?;
    Some((ROOMS[at].1, at))
}

fn may_use(from: (u8, usize), to: (u8, usize)) -> bool {
    let left = from.0 == LEFTWARD_STOREY && to.0 == LEFTWARD_STOREY && to.1 < from.1;
    from.1 == to.1 || to.0 < from.0 || left
}

/// The room that a file of `src/` belongs to; `None` for `lib.rs` and `main.rs`, which may see all.
fn room_of(path: &str) -> Option<&str> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (!["lib", "main"].contains(&room)).then_some(room)
}

/// How many modules deep the code of a file is, below the crate's root.
fn depth_of(path: &str) -> usize {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
    inner.split('/').filter(|part| *part != "mod").count()
}

/// The first segments after `crate::`, and after a chain of `super::` that is long enough to reach the crate's root.
fn rooms_used(source: &str, file_depth: usize) -> Vec<(String, usize)> {
    let words = tokens(source);
    let mut used = Vec::new();
    let mut braces = 0;
    let mut modules: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < words.len() {
        match words[at].text.as_str() {
            "{" => {
                braces += 1;
                if at >= 2 && words[at - 2].text == "mod" {
                    modules.push(braces);
                }
            }
            "}" => {
                if modules.last() == Some(&braces) {
                    modules.pop();
                }
                braces = braces.saturating_sub(1);
            }
            "crate" if text(&words, at + 1) == "::" => used.extend(heads(&words, at + 2)),
            "super" if at < 2 || text(&words, at - 2) != "super" => {
                let mut end = at;
                let mut ups = 0;
                while text(&words, end) == "super" && text(&words, end + 1) == "::" {
                    ups += 1;
                    end += 2;
                }
                if ups >= file_depth + modules.len() {
                    used.extend(heads(&words, end));
                }
            }
            _ => {}
        }
        at += 1;
    }
    used
}

/// The names that a use tree begins with: `a::b` gives a, `{a::b, c}` gives a and c.
fn heads(words: &[Token], at: usize) -> Vec<(String, usize)> {
    if text(words, at) != "{" {
        return words
            .get(at)
            .map(|w| (w.text.clone(), w.line))
            .into_iter()
            .collect();
    }
    let (mut out, mut depth, mut fresh) = (Vec::new(), 0, true);
    for word in &words[at..] {
        match word.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => fresh = true,
            _ if depth == 1 && fresh => {
                out.push((word.text.clone(), word.line));
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    out
}

fn text(words: &[Token], at: usize) -> &str {
    words.get(at).map_or("", |w| w.text.as_str())
}

fn names_a_crate(words: &[Token], at: usize) -> bool {
    let before = if at == 0 { "" } else { text(words, at - 1) };
    let rooted = before == "::" && (at < 2 || !is_word(text(words, at - 2)));
    let free = before != "::" && before != "." && before != "mod";
    (free && (text(words, at + 1) == "::" || ["use", "crate"].contains(&before))) || rooted
}

fn is_word(text: &str) -> bool {
    text.chars()
        .next()
        .is_some_and(|c| c.is_alphanumeric() || c == '_')
        && text != "use"
}

/// Lines of `use …::*` outside `mod tests`.
fn globs(words: &[Token]) -> Vec<usize> {
    let (mut lines, mut braces, mut tests, mut in_use) = (Vec::new(), 0_usize, None, false);
    for (at, word) in words.iter().enumerate() {
        match word.text.as_str() {
            "use" => in_use = true,
            ";" => in_use = false,
            "{" => {
                braces += 1;
                if at >= 2 && words[at - 2].text == "mod" && words[at - 1].text.contains("test") {
                    tests.get_or_insert(braces);
                }
            }
            "}" => {
                if tests == Some(braces) {
                    tests = None;
                }
                braces = braces.saturating_sub(1);
            }
            "*" if in_use && tests.is_none() => lines.push(word.line),
            _ => {}
        }
    }
    lines
}

/// What cargo takes for the root of a target by its place alone.
fn is_found_by_cargo(path: &str) -> bool {
    if ["src/lib.rs", "src/main.rs", "build.rs"].contains(&path) {
        return true;
    }
    let parts: Vec<&str> = path.split('/').collect();
    let in_tests = matches!(
        parts.as_slice(),
        ["tests" | "benches" | "examples", _] | ["tests" | "benches" | "examples", _, "main.rs"]
    );
    in_tests || matches!(parts.as_slice(), ["src", "bin", _])
}

/// Whether another file of the same part of the repository says `mod NAME`, from where such a word would find this file.
fn is_module(file: &Source, files: &[Source]) -> bool {
    let (folder, name) = file.path.rsplit_once('/').unwrap_or(("", &file.path));
    let (folder, stem) = match name {
        "mod.rs" => folder.rsplit_once('/').unwrap_or(("", folder)),
        _ => (folder, name.trim_end_matches(".rs")),
    };
    files
        .iter()
        .filter(|f| f.is_rust() && f.path != file.path)
        .any(|other| {
            let (place, other_name) = other.path.rsplit_once('/').unwrap_or(("", &other.path));
            let own_folder = format!("{place}/{}", other_name.trim_end_matches(".rs"));
            let is_root = other_name == "mod.rs" || is_found_by_cargo(&other.path) || other_name == "main.rs";
            let beside = if is_root {
                place == folder
            } else {
                own_folder == folder
            };
            let by_path = other.text.lines().any(|line| {
                let quoted = line
                    .trim()
                    .strip_prefix("#[path = \"")
                    .and_then(|l| l.strip_suffix("\"]"));
                quoted.is_some_and(|path| normal(&Path::new(place).join(path)) == file.path)
            });
            by_path
                || beside
                    && tokens(&other.text)
                        .windows(3)
                        .any(|w| w[0].text == "mod" && w[1].text == stem && w[2].text == ";")
        })
}
