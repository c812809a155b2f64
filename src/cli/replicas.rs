//! `dfs free` and `dfs sync`: space given back to this device, and copies on others waited for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::environment::Environment;
use super::locate::{self, Place};
use super::progress::Bar;
use super::report::{Exit, Outcome, from_client, print, print_json, size};
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Failure, Groups, Health, Replication, Request};
use crate::folder::config::parse_size;

/// Longest silence of a daemon that frees: holders that do not answer are waited for five minutes.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Remove from this device the blocks of files that enough other devices hold.
///
/// The files stay as they are and read as before: their blocks come from the others. A block goes only after the others have confirmed, while this
/// device kept it, that they have it on their disks; what cannot be freed safely stays, and the reason is shown.
#[derive(Debug, clap::Args)]
pub struct FreeArgs {
    /// Files and directories, in the folder or in the mount.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Stop once so much is freed, such as 10GiB; what was not used for longest goes first.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    target: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Write everything back, and with --wait have it on other devices too.
#[derive(Debug, clap::Args)]
pub struct SyncArgs {
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Wait until every block has the replicas that are wanted, at most so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "86400")]
    wait: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `dfs free`.
pub fn free(env: &Environment, args: FreeArgs) -> Outcome {
    let what = "cannot free space";
    let Some((socket, paths)) = one_volume(env, &args.paths, what)? else {
        return Ok(());
    };
    let request = Request::Free {
        paths,
        target_bytes: args.target,
    };
    let bar = Bar::new(env.progress);
    let freed = match ask(&socket, &request, TIMEOUT, |progress| bar.show(&progress)) {
        Ok(Answer::Freed(freed)) => freed,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    drop(bar);
    if args.json {
        return print_json(&freed);
    }
    print(format_args!(
        "freed    {} blocks, {}",
        freed.blocks,
        size(freed.bytes)
    ));
    for (why, blocks) in &freed.kept {
        print(format_args!("kept     {blocks} blocks: {why}"));
    }
    Ok(())
}

/// Runs `dfs sync`.
pub fn sync(env: &Environment, args: SyncArgs) -> Outcome {
    let what = "cannot sync";
    let (socket, _) = running(env, &args.path, what)?;
    let bar = Bar::new(env.progress);
    let request = Request::Sync {
        wait_secs: args.wait.unwrap_or(0),
    };
    let health = match ask(&socket, &request, TIMEOUT, |progress| bar.show(&progress)) {
        Ok(Answer::Replication(health)) => health,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    drop(bar);
    if args.json {
        print_json(&health)?;
    } else if health == Replication::default() {
        print(format_args!("committed; no other computer keeps anything of it"));
    } else {
        show(&health);
    }
    if args.wait.is_some() && health.lacking_bytes > 0 {
        let why = format!(
            "{} have fewer replicas than are wanted",
            size(health.lacking_bytes)
        );
        let hint =
            "`dfs members` shows who is connected; other computers have to offer space (`quota` in dfs.toml)";
        return Err(Failure::new("not everything is on other devices", why, hint).into());
    }
    Ok(())
}

/// The lines about replication in `dfs status` and `dfs sync`.
pub(super) fn show(replication: &Replication) {
    for line in &replication.groups {
        let Groups {
            have,
            data,
            parity,
            groups,
            bytes,
        } = *line;
        let survives = match have.checked_sub(data) {
            Some(spare) => format!("survive the loss of {spare} more devices"),
            None => "cannot be made from what other devices have".into(),
        };
        print(format_args!(
            "redundancy {data}+{parity}: {groups} groups, {}, have {have} of {} shards: {survives}",
            size(bytes),
            data + parity
        ));
    }
    for line in &replication.health {
        let Health {
            replicas,
            wanted,
            blocks,
            bytes,
        } = line;
        print(format_args!(
            "replicas {replicas} of {wanted}: {blocks} blocks, {}",
            size(*bytes)
        ));
    }
    if replication.queued_blocks > 0 {
        let left = match replication.bytes_per_sec {
            0 => String::new(),
            rate => format!(
                ", {}/s, about {} s left",
                size(rate),
                replication.queued_bytes.div_ceil(rate)
            ),
        };
        print(format_args!(
            "queue    {} blocks, {}{left}",
            replication.queued_blocks,
            size(replication.queued_bytes)
        ));
    }
    if replication.held_bytes > 0 {
        print(format_args!(
            "keeps    {} for others",
            size(replication.held_bytes)
        ));
    }
}

/// A number of bytes on the command line.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "expected a size such as 500MB or 10GiB".into())
}

/// The daemon that has all these paths, and what they are in its volume.
pub(super) fn one_volume(
    env: &Environment,
    paths: &[PathBuf],
    what: &str,
) -> Outcome<Option<(PathBuf, Vec<PathBuf>)>> {
    let mut at: Option<PathBuf> = None;
    let mut all = Vec::new();
    for path in paths {
        let (socket, inside) = running(env, path, what)?;
        if at.as_ref().is_some_and(|at| *at != socket) {
            let why = format!("{} is in another volume than the paths before it", path.display());
            return Err(Failure::new(what, why, "take the volumes one by one").into());
        }
        at = Some(socket);
        all.push(inside);
    }
    Ok(at.map(|socket| (socket, all)))
}

/// The daemon that has a path, and what the path is in its volume.
pub(super) fn running(env: &Environment, path: &Path, what: &str) -> Result<(PathBuf, PathBuf), Exit> {
    match locate::find(env, path)? {
        Place::Running { daemon, inside } => Ok((daemon.socket, inside)),
        Place::Folder { folder, .. } => Err(locate::silent(env, &folder, what)),
    }
}
