//! Which volume a path on the command line means, and whether a daemon has it: the path may be in the folder or in the mount.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::report::{Exit, Outcome, failed};
use rustix::io::Errno;

use crate::base::names::{HostName, from_host};
use crate::control::client::{self, Found};
use crate::folder::marker::{LoadError, Marker};

/// What a path means.
#[derive(Debug)]
pub enum Place {
    /// A running daemon has it.
    Running {
        /// The daemon.
        daemon: Box<Found>,
        /// The path in the volume, relative to its root, as the mount shows it.
        inside: PathBuf,
    },
    /// No daemon has it.
    Folder {
        /// The folder that is a volume.
        folder: PathBuf,
        /// The path in the volume, relative to its root, as the mount shows it.
        inside: PathBuf,
    },
}

/// Finds the volume of `path`, given as on the command line.
pub fn find(env: &Environment, path: &Path) -> Outcome<Place> {
    find_absolute(env, &env.absolute(path))
}

/// Finds the volume of an absolute path.
pub fn find_absolute(env: &Environment, path: &Path) -> Outcome<Place> {
    if let Some(daemon) = client::find(&env.places.runtime_dir, path) {
        let status = &daemon.status;
        let inside = match &status.mountpoint {
            Some(mount) if path.starts_with(mount) => relative(path, mount),
            _ => shown(&relative(path, &status.folder)),
        };
        return Ok(Place::Running {
            daemon: Box::new(daemon),
            inside,
        });
    }
    for folder in path.ancestors() {
        match Marker::load(folder) {
            Ok(Some(_)) => {
                let inside = shown(&relative(path, folder));
                return Ok(match elsewhere(env, folder) {
                    Some(daemon) => Place::Running {
                        daemon: Box::new(daemon),
                        inside,
                    },
                    None => Place::Folder {
                        folder: folder.to_owned(),
                        inside,
                    },
                });
            }
            Ok(None) => {}
            // The second while the kernel is still giving up the connection.
            Err(LoadError::Io { source, .. })
                if [Errno::NOTCONN, Errno::CONNABORTED]
                    .iter()
                    .any(|dead| source.raw_os_error() == Some(dead.raw_os_error())) =>
            {
                return Err(failed(
                    format!("cannot reach {}", folder.display()),
                    "it is the mount of a daemon that has died",
                    "mount it again with `dfs up`: the dead mount is replaced and nothing needs repair",
                ));
            }
            // Somebody else's directory on the way up says nothing about ours.
            Err(LoadError::Io { .. } | LoadError::Mount(_)) => {}
            Err(e) => {
                return Err(failed(
                    format!("cannot open the volume in {}", folder.display()),
                    e,
                    "restore the .dfs file",
                ));
            }
        }
    }
    Err(failed(
        format!("{} is in no volume", path.display()),
        "neither it nor a directory above it has a .dfs, and no running daemon of yours has it",
        "make a volume with `dfs init FOLDER` or `dfs up FOLDER`, or join one with `dfs join FOLDER`",
    ))
}

/// The daemon of a folder whose socket is in another runtime directory than ours: its lock says where.
fn elsewhere(env: &Environment, folder: &Path) -> Option<Found> {
    let located = crate::daemon::locate(&env.places, folder, None).ok()?;
    let socket = located.state.holder().ok()??.socket?;
    let status = client::status(&socket).ok()?;
    Some(Found { socket, status })
}

/// The control socket of the daemon that has `path`; `what` is what it is wanted for.
pub fn daemon(env: &Environment, path: &Path, what: &str) -> Outcome<PathBuf> {
    match find(env, path)? {
        Place::Running { daemon, .. } => Ok(daemon.socket),
        Place::Folder { folder, .. } => Err(silent(env, &folder, what)),
    }
}

/// The error for a folder whose daemon gave no answer: there is none, or it stands still.
pub fn silent(env: &Environment, folder: &Path, what: &str) -> Exit {
    let located = crate::daemon::locate(&env.places, folder, None);
    let holder = located.ok().and_then(|located| located.state.holder().ok()?);
    let (why, hint) = match holder {
        Some(holder) => (
            format!(
                "the daemon of {} (process {}) does not answer",
                folder.display(),
                holder.pid
            ),
            format!(
                "its log may say what it waits for; should that not pass, `kill -9 {}` and mount again: what was closed is safe",
                holder.pid
            ),
        ),
        None => (
            format!("no daemon is running for {}", folder.display()),
            format!("start one with `dfs up {0}` or `dfs serve {0}`", folder.display()),
        ),
    };
    failed(what, why, hint)
}

fn relative(path: &Path, base: &Path) -> PathBuf {
    path.strip_prefix(base).unwrap_or(path).to_owned()
}

/// A path of host names in the folder as the mount shows it.
fn shown(host: &Path) -> PathBuf {
    host.components()
        .map(|component| match from_host(component.as_os_str()) {
            Some(HostName::File(name) | HostName::Dir(name)) => name,
            None => component.as_os_str().to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_shown_names() {
        assert_eq!(shown(Path::new("a/b.f~/c.f")), Path::new("a/b.f/c"));
        assert_eq!(shown(Path::new("")), Path::new(""));
    }
}
