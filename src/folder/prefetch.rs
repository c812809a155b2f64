//! Which files' content is brought here before anybody reads it: `prefetch` under `[sync]` in `dfs.toml`. Pure. Called by `config`; `daemon` goes by it.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;

/// Most patterns of one setting.
const PATTERNS_MAX: usize = 64;

/// Longest pattern, in bytes.
const PATTERN_MAX: usize = 1024;

/// Which content is brought here: the patterns as they were given; without one none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prefetch(Vec<String>);

/// One value or several, as `dfs.toml` has them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// `"all"`, `"none"` or a pattern.
    One(String),
    /// Patterns.
    Several(Vec<String>),
}

/// What tells which paths are meant.
#[derive(Debug, Clone)]
pub struct Matcher {
    set: GlobSet,
    /// Of each glob of the set: whether what it matches is brought.
    brings: Vec<bool>,
}

/// Reads `all`, `none`, a pattern or several. A pattern is one of gitignore: without a slash (but at its end) it means that name in every directory,
/// with one a path from the root of the volume; `*` and `?` stop at a slash, `**` does not; a slash at the end means directories only; what matches a
/// directory means everything below it. The last one that matches counts, and with `!` before it, it means what is not brought.
pub fn parse(setting: Setting) -> Result<Prefetch, String> {
    let patterns = match setting {
        Setting::One(text) if text == "none" => Vec::new(),
        Setting::One(text) if text == "all" => vec!["*".to_owned()],
        Setting::One(text) => vec![text],
        Setting::Several(texts) => texts,
    };
    if patterns.len() > PATTERNS_MAX || patterns.iter().any(|text| text.len() > PATTERN_MAX) {
        return Err(format!(
            "expected at most {PATTERNS_MAX} patterns of {PATTERN_MAX} bytes"
        ));
    }
    let prefetch = Prefetch(patterns);
    prefetch.matcher()?;
    Ok(prefetch)
}

impl Prefetch {
    /// Whether nothing is brought.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The patterns.
    pub fn patterns(&self) -> &[String] {
        &self.0
    }

    /// What tells which paths are meant; fails with the reason where a pattern is none.
    pub fn matcher(&self) -> Result<Matcher, String> {
        let mut set = GlobSetBuilder::new();
        let mut brings = Vec::new();
        for pattern in &self.0 {
            let (is_brought, glob) = match pattern.strip_prefix('!') {
                Some(rest) => (false, rest),
                None => (true, pattern.as_str()),
            };
            let name = glob.trim_end_matches('/');
            if name.is_empty() {
                return Err(format!(
                    "expected \"all\", \"none\", or patterns such as \"Photos/2026\" or \"*.pdf\", not \"{pattern}\""
                ));
            }
            let from_root = match name.strip_prefix('/') {
                Some(rest) => rest.to_owned(),
                None if name.contains('/') => name.to_owned(),
                None => format!("**/{name}"),
            };
            let itself = (glob == name).then(|| from_root.clone());
            for glob in itself.into_iter().chain([format!("{from_root}/**")]) {
                let glob = GlobBuilder::new(&glob)
                    .literal_separator(true)
                    .backslash_escape(true)
                    .build()
                    .map_err(|error| error.to_string())?;
                set.add(glob);
                brings.push(is_brought);
            }
        }
        let set = set.build().map_err(|error| error.to_string())?;
        Ok(Matcher { set, brings })
    }
}

impl Matcher {
    /// Whether the content of the file at a path of the volume is brought.
    pub fn matches(&self, path: &Path) -> bool {
        let last = self.set.matches(path).into_iter().max();
        last.is_some_and(|at| self.brings[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brought<'p>(patterns: &[&str], paths: &[&'p str]) -> Vec<&'p str> {
        let patterns = patterns.iter().map(|text| (*text).to_owned()).collect();
        let matcher = parse(Setting::Several(patterns)).unwrap().matcher().unwrap();
        let matched = paths.iter().copied();
        matched.filter(|path| matcher.matches(Path::new(path))).collect()
    }

    #[test]
    fn patterns_are_those_of_gitignore() {
        let paths = [
            "a.pdf",
            "Photos/a.jpg",
            "Photos/2026/b.jpg",
            "old/Photos/c.jpg",
            "old/d.pdf",
            "x/y/z",
        ];
        for (patterns, expected) in [
            (&["*.pdf"][..], &["a.pdf", "old/d.pdf"][..]),
            (&["/*.pdf"], &["a.pdf"]),
            (
                &["Photos"],
                &["Photos/a.jpg", "Photos/2026/b.jpg", "old/Photos/c.jpg"],
            ),
            (&["/Photos/"], &["Photos/a.jpg", "Photos/2026/b.jpg"]),
            (&["Photos/*.jpg"], &["Photos/a.jpg"]),
            (&["Photos/*"], &["Photos/a.jpg", "Photos/2026/b.jpg"]),
            (&["**/*.jpg", "!/old"], &["Photos/a.jpg", "Photos/2026/b.jpg"]),
            (
                &["!/old", "*.jpg"],
                &["Photos/a.jpg", "Photos/2026/b.jpg", "old/Photos/c.jpg"],
            ),
            (&["a.pdf/"], &[]),
            (&["x/**/z"], &["x/y/z"]),
            (&["x?y?z", "PHOTOS"], &[]),
            (&["*"], &paths),
            (&[], &[]),
        ] {
            assert_eq!(brought(patterns, &paths), expected, "{patterns:?}");
        }
    }

    #[test]
    fn one_word_or_several_patterns() {
        let one = |text: &str| parse(Setting::One(text.into()));
        assert!(one("none").unwrap().is_none());
        assert_eq!(one("all").unwrap().patterns(), ["*"]);
        assert_eq!(one("*.pdf").unwrap().patterns(), ["*.pdf"]);
        for wrong in ["", "/", "!", "[a", "{a"] {
            assert!(one(wrong).is_err(), "{wrong}");
        }
        assert!(parse(Setting::Several(vec!["a".into(); 65])).is_err());
        assert!(one(&"a".repeat(1025)).is_err());
    }
}
