//! `dfs restore`: a path as it was.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::report::{Outcome, from_client, print, print_json};
use super::when;
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Request, When};

/// Longest silence of a daemon that restores.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Bring a file, a directory with everything below it, or the whole volume back to what it was.
///
/// What was deleted comes back in its newest version without --at. A directory becomes what it was then: what came into it since goes. Nothing is lost
/// by that: what is there now stays in the past, and `dfs restore` brings it back just so. What is elsewhere in the volume stays as it is. Content
/// that is only on other devices comes when it is read.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount, of something that is there or was; the folder or the mount itself is the whole volume.
    path: PathBuf,
    /// When: an age such as 2h or "3 days", a date with or without a time of day, a name in `.dfs/snapshots` of the mount, or the beginning of a
    /// snapshot's id from `dfs log`. What was current then comes back.
    #[arg(long, value_name = "TIME", value_parser = when::parse_now)]
    at: Option<When>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot restore";
    let (socket, path) = when::running(env, &args.path, what)?;
    let request = Request::Restore { path, at: args.at };
    let restored = match ask(&socket, &request, TIMEOUT, |_| ()) {
        Ok(Answer::Restored(restored)) => restored,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    if args.json {
        return print_json(&restored);
    }
    let path = args.path.display();
    match restored.changes {
        0 => print(format_args!(
            "{path} is as it was: {}",
            when::show(&restored.from)
        )),
        changes => print(format_args!(
            "restored {path} to {}: {changes} changes",
            when::show(&restored.from)
        )),
    }
    Ok(())
}
