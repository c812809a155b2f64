//! `umount.dfs MOUNTPOINT [-flnrv] [-t TYPE] [-N NAMESPACE]`, as umount(8) calls it: asks the daemon to write back what is not written yet
//! and to unmount, and returns when it has ended. A mount whose daemon is dead is just unmounted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::environment::Environment;
use super::mount_helper::{self, code};
use super::report::note;
use crate::control::client::{self, ClientError, Stopped};
use crate::fuse::{self, MountError};

/// How long writing back may take. Beyond it the daemon goes on by itself; only nobody waits for it any more.
const DRAIN_WITHIN: Duration = Duration::from_secs(600);

/// Unmounts a folder of dfs, after everything is written back.
#[derive(Debug, Parser)]
#[command(name = "umount.dfs", version, about, max_term_width = 100)]
pub(super) struct Args {
    /// The mount point, or the folder.
    mountpoint: PathBuf,
    /// Also when the daemon does not answer: what it has not written yet may be lost.
    #[arg(short = 'f')]
    force: bool,
    /// Take the mount out of sight at once; the daemon ends when nobody uses it any more.
    #[arg(short = 'l')]
    lazy: bool,
    /// Without effect: there is no table of mounts to be written.
    #[arg(short = 'n')]
    no_table: bool,
    /// Mount read-only should unmounting fail.
    #[arg(short = 'r')]
    read_only: bool,
    /// Say what is done.
    #[arg(short = 'v')]
    verbose: bool,
    /// Type as umount(8) found it.
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Unmount in another mount namespace.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
}

/// The command line, for the manual page.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Nobody may be listening.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { code::USAGE } else { 0 });
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            note(format_args!("umount.dfs: {text}"));
            ExitCode::from(code::FAILED)
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let given = mount_helper::in_full(&args.mountpoint).map_err(|failure| failure.text)?;
    if let Some(namespace) = &args.namespace {
        mount_helper::enter(Path::new(namespace)).map_err(|failure| failure.text)?;
    }
    let env = Environment::read()
        .map_err(|_| "neither HOME nor XDG_DATA_HOME says where the daemon can be found".to_owned())?;
    let path = env.absolute(&given);
    let mountpoint = mountpoint_of(&path)?;
    let asked = client::stop(
        &env.places.runtime_dir,
        &mountpoint,
        args.lazy,
        DRAIN_WITHIN,
        |_| {},
    );
    let outcome = match asked {
        Ok(Stopped::Ended) => {
            say(args, "everything is written back, and the daemon has ended");
            Ok(())
        }
        // Another user's daemon, or a dead one. A living one notices that it is unmounted, and writes back what is left.
        Ok(Stopped::NotRunning) | Err(ClientError::NotRunning(_)) => directly(args, &mountpoint),
        Err(error) if args.force => {
            say(args, &format!("going on without the daemon: {error}"));
            directly(args, &mountpoint)
        }
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Err(reason) if args.read_only => read_only_instead(&mountpoint, &reason),
        outcome => outcome,
    }
}

fn say(args: &Args, text: &str) {
    if args.verbose {
        note(format_args!("umount.dfs: {text}"));
    }
}

/// The path itself when a dfs mount is there, else the one place where this folder is mounted.
fn mountpoint_of(path: &Path) -> Result<PathBuf, String> {
    let said = |error: std::io::Error| format!("{}: {error}", path.display());
    if fuse::mount_at(path)
        .map_err(said)?
        .is_some_and(|entry| entry.is_dfs())
    {
        return Ok(path.to_owned());
    }
    let mut mounts: Vec<_> = fuse::mounts().map_err(said)?;
    mounts.retain(|entry| entry.is_dfs() && entry.source == path);
    match mounts.as_slice() {
        [] => Err(format!("{}: no dfs mount is here", path.display())),
        [only] => Ok(only.mountpoint.clone()),
        _ => Err(format!(
            "{}: mounted at several places; name one of them",
            path.display()
        )),
    }
}

fn directly(args: &Args, mountpoint: &Path) -> Result<(), String> {
    say(
        args,
        "no daemon of yours answers for it; unmounting it without asking",
    );
    match fuse::unmount_path(mountpoint, args.lazy || args.force) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{}: no dfs mount is here any more", mountpoint.display())),
        Err(error) => Err(error.to_string()),
    }
}

fn read_only_instead(mountpoint: &Path, reason: &str) -> Result<(), String> {
    let flags = fuse::MountFlags {
        read_only: true,
        ..fuse::MountFlags::default()
    };
    match fuse::remount(mountpoint, &flags) {
        Ok(()) => {
            note(format_args!("umount.dfs: {reason}; it is read-only now"));
            Ok(())
        }
        Err(MountError::Refused { source, .. }) => {
            Err(format!("{reason}; nor can it be made read-only: {source}"))
        }
        Err(error) => Err(format!("{reason}; {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_umount_calls_it() {
        let args = Args::try_parse_from(["umount.dfs", "/m", "-fln", "-v", "-t", "fuse.dfs"]).unwrap();
        assert!(args.force && args.lazy && args.verbose && !args.read_only);
        assert!(Args::try_parse_from(["umount.dfs"]).is_err());
        assert!(Args::try_parse_from(["umount.dfs", "/a", "/b"]).is_err());
    }

    #[test]
    fn only_dfs_mounts_are_found() {
        assert!(
            mountpoint_of(Path::new("/proc"))
                .unwrap_err()
                .contains("no dfs mount")
        );
        assert!(mountpoint_of(Path::new("/no/such/place")).is_err());
    }
}
