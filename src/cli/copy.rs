//! `dfs import` and `dfs export`: plain files into a volume and out of it, through its daemon if one runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::environment::Environment;
use super::locate::{self, Place};
use super::passphrase;
use super::progress::Bar;
use super::report::{Outcome, from_client, from_daemon, print, print_json, size};
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Copied, Progress, Request};
use crate::daemon;

/// Longest silence of a daemon that copies: one block may take the whole fetch timeout, and a reader may retry.
const TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// Copy plain files and directories into a volume.
///
/// Modes, times, links and extended attributes are kept. Nothing that exists in the volume is overwritten; directories are merged.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// What to copy.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Where to: the folder, the mount, or a directory in them.
    into: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Copy a file or directory out of a volume as plain files.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// What to copy: a path in the folder or in the mount.
    from: PathBuf,
    /// Where to: a path outside that does not exist.
    to: PathBuf,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The passphrase of the keys is on the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `dfs import`.
pub fn import(env: &Environment, args: ImportArgs) -> Outcome {
    let from: Vec<PathBuf> = args.paths.iter().map(|path| source(env, path)).collect();
    let job = |inside: PathBuf| Request::Import {
        from: from.clone(),
        into: inside,
    };
    carry_out(env, "cannot import", &args.into, args.common, job)
}

/// Runs `dfs export`.
pub fn export(env: &Environment, args: ExportArgs) -> Outcome {
    let to = source(env, &args.to);
    let job = |inside: PathBuf| Request::Export {
        from: inside,
        to: to.clone(),
    };
    carry_out(env, "cannot export", &args.from, args.common, job)
}

/// An absolute path whose last part, should it be a symbolic link, is not followed.
fn source(env: &Environment, path: &Path) -> PathBuf {
    let joined = env.current_dir.join(path);
    match (joined.parent(), joined.file_name()) {
        (Some(parent), Some(name)) => env.absolute(parent).join(name),
        _ => env.absolute(&joined),
    }
}

fn carry_out(
    env: &Environment,
    what: &str,
    path: &Path,
    common: Common,
    job: impl FnOnce(PathBuf) -> Request,
) -> Outcome {
    let bar = Bar::new(env.progress);
    let copied = match locate::find(env, path)? {
        Place::Running { daemon, inside } => {
            match ask(&daemon.socket, &job(inside), TIMEOUT, |progress| {
                bar.show(&progress)
            }) {
                Ok(Answer::Copied(copied)) => copied,
                Ok(other) => return Err(from_client(what, unexpected(&daemon.socket, &other))),
                Err(e) => return Err(from_client(what, e)),
            }
        }
        Place::Folder { folder, inside } => {
            let located = daemon::locate(&env.places, &folder, None).map_err(|e| from_daemon(what, e))?;
            let keys = passphrase::source(common.passphrase_file);
            let mut report = |progress: Progress| {
                bar.show(&progress);
                Ok(())
            };
            let done = match job(inside) {
                Request::Import { from, into } => daemon::import(&located, keys, &from, &into, &mut report),
                Request::Export { from, to } => daemon::export(&located, keys, &from, &to, &mut report),
                _ => return Ok(()),
            };
            done.map_err(|e| from_daemon(what, e))?
        }
    };
    drop(bar);
    if common.json {
        return print_json(&copied);
    }
    print(summary(&copied));
    Ok(())
}

fn summary(copied: &Copied) -> String {
    format!(
        "{} files, {} directories, {} others, {}",
        copied.files,
        copied.directories,
        copied.others,
        size(copied.bytes)
    )
}
