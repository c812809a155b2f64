//! `dfs umount`: write everything back, unmount, end the daemon; returns when that is done.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::progress::Bar;
use super::report::{Outcome, failed, from_client};
use crate::control::client::{self, Stopped};
use crate::fuse;

/// Unmount a volume, or stop its `dfs serve`.
///
/// Returns once everything is written to the local store and the daemon has ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The mount point or the folder.
    mountpoint: PathBuf,
    /// Unmount even while files are open there.
    #[arg(long, short)]
    lazy: bool,
    /// How long to wait for the end, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = format!("cannot unmount {}", args.mountpoint.display());
    let path = env.absolute(&args.mountpoint);
    let bar = Bar::new(env.progress);
    let timeout = Duration::from_secs(args.timeout);
    let report = |progress| bar.show(&progress);
    match client::stop(&env.places.runtime_dir, &path, args.lazy, timeout, report) {
        Ok(Stopped::Ended) => return Ok(()),
        Ok(Stopped::NotRunning) => {}
        Err(e) => return Err(from_client(&what, e)),
    }
    // Nobody answers: what a dead daemon left behind is taken away, anything else is not ours.
    match fuse::unmount_path(&path, args.lazy) {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed(
            what,
            "no dfs volume is mounted there",
            "`dfs status` lists the mounts",
        )),
        Err(e) => Err(failed(what, e, "")),
    }
}
