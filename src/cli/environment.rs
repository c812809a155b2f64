//! The only place that asks the process's surroundings: user, home, XDG directories, log settings, terminals. The library is given the answers.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use crate::daemon::Places;

use super::report::{Exit, failed};

/// What the surroundings say.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Where state directories and control sockets are.
    pub places: Places,
    /// `RUST_LOG`.
    pub log_filter: Option<String>,
    /// Whether progress can be shown.
    pub progress: bool,
    /// The current directory, which relative paths start from.
    pub current_dir: PathBuf,
}

impl Environment {
    /// Asks.
    pub fn read() -> Result<Self, Exit> {
        let root = rustix::process::geteuid().is_root();
        let places = places(root, |name| {
            std::env::var_os(name).filter(|value| !value.is_empty())
        })
        .ok_or_else(|| {
            failed(
                "cannot tell where your state directories are",
                "neither HOME nor XDG_DATA_HOME is set to an absolute path",
                "set HOME",
            )
        })?;
        let current_dir = std::env::current_dir().map_err(|e| {
            failed(
                "cannot tell the current directory",
                e,
                "change to a directory that exists",
            )
        })?;
        Ok(Self {
            places,
            log_filter: std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()),
            progress: std::io::stderr().is_terminal(),
            current_dir,
        })
    }

    /// `path` as an absolute one. Symbolic links are resolved as far as the path exists; a dead mount on the way is left as it is.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        resolved(self.current_dir.join(path))
    }

    /// As [`Self::absolute`], but of a symbolic link its own path.
    pub fn absolute_name(&self, path: &Path) -> PathBuf {
        let joined = self.current_dir.join(path);
        match (joined.parent(), joined.file_name()) {
            (Some(parent), Some(name)) => resolved(parent.to_owned()).join(name),
            _ => resolved(joined),
        }
    }
}

/// A path without symbolic links, as far as it exists.
fn resolved(path: PathBuf) -> PathBuf {
    let (mut at, mut rest) = (path.as_path(), Vec::new());
    loop {
        if let Ok(real) = at.canonicalize() {
            return rest.iter().rev().fold(real, |path, name| path.join(name));
        }
        match (at.parent(), at.file_name()) {
            (Some(parent), Some(name)) => {
                rest.push(name.to_owned());
                at = parent;
            }
            _ => return path,
        }
    }
}

fn places(root: bool, var: impl Fn(&str) -> Option<OsString>) -> Option<Places> {
    if root {
        return Some(Places {
            state_home: "/var/lib/dfs".into(),
            runtime_dir: "/run/dfs".into(),
        });
    }
    let absolute = |name| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    let state_home = data.join("dfs");
    let runtime_dir = match absolute("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("dfs"),
        None => state_home.join("run"),
    };
    Some(Places {
        state_home,
        runtime_dir,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(root: bool, vars: &[(&str, &str)]) -> Option<(String, String)> {
        let found = places(root, |name| {
            let (_, value) = vars.iter().find(|(n, _)| *n == name)?;
            Some(value.into())
        })?;
        let text = |path: PathBuf| path.to_str().map(str::to_owned);
        Some((text(found.state_home)?, text(found.runtime_dir)?))
    }

    #[test]
    fn what_is_gone_has_a_path_still() {
        let temp = tempfile::tempdir().unwrap();
        let real = temp.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("dir")).unwrap();
        std::os::unix::fs::symlink("dir", real.join("link")).unwrap();
        assert_eq!(resolved(real.join("link/gone/file")), real.join("dir/gone/file"));
        assert_eq!(resolved(real.join("link")), real.join("dir"));
        let env = Environment {
            places: places(true, |_| None).unwrap(),
            log_filter: None,
            progress: false,
            current_dir: real.clone(),
        };
        assert_eq!(env.absolute_name(Path::new("link")), real.join("link"));
        assert_eq!(env.absolute_name(Path::new("link/x")), real.join("dir/x"));
        assert_eq!(env.absolute_name(Path::new(".")), real);
        assert_eq!(env.absolute(Path::new("link")), real.join("dir"));
    }

    #[test]
    fn places_by_user_and_environment() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        let xdg = [("XDG_DATA_HOME", "/d"), ("XDG_RUNTIME_DIR", "/r"), ("HOME", "/h")];
        assert_eq!(with(true, &xdg), pair("/var/lib/dfs", "/run/dfs"));
        assert_eq!(with(false, &xdg), pair("/d/dfs", "/r/dfs"));
        assert_eq!(
            with(false, &[("HOME", "/h"), ("XDG_DATA_HOME", "relative")]),
            pair("/h/.local/share/dfs", "/h/.local/share/dfs/run")
        );
        assert_eq!(with(false, &[]), None);
    }
}
