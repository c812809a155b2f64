//! `mount.dfs FOLDER [MOUNTPOINT] [-sfnv] [-o OPTIONS] [-t TYPE] [-N NAMESPACE]`, as mount(8) calls it and as people do. Returns once the
//! mount answers, with mount(8)'s exit codes; a process of the same name goes on serving it.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::background::{self, NotStarted};
use super::environment::Environment;
use super::mount_options::{MountOptions, OptionError};
use super::passphrase;
use super::report::{self, Exit, failed, note};
use crate::control::client;
use crate::daemon::{self, LogRequest, LogTarget, RunRequest};
use crate::fuse::{self, MountError, MountRequest};

/// Exit codes of mount(8).
pub(super) mod code {
    /// Called wrongly, or not allowed.
    pub(crate) const USAGE: u8 = 1;
    /// The system refused something that has nothing to do with the mount.
    pub(crate) const SYSTEM: u8 = 2;
    /// The mount failed.
    pub(crate) const FAILED: u8 = 32;
}

/// Mounts a folder of dfs.
#[derive(Debug, Parser)]
#[command(name = "mount.dfs", version, about, max_term_width = 100, after_help = OPTIONS_HELP, after_long_help = OPTIONS_HELP)]
pub(super) struct Args {
    /// The folder.
    folder: PathBuf,
    /// Where its files are to be seen; over the folder itself when left out.
    mountpoint: Option<PathBuf>,
    /// Mount options, separated by commas.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    /// Do everything but mount.
    #[arg(short = 'f')]
    fake: bool,
    /// Pass over unknown mount options.
    #[arg(short = 's')]
    sloppy: bool,
    /// Log more; twice: still more.
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// Without effect: there is no table of mounts to be written.
    #[arg(short = 'n')]
    no_table: bool,
    /// Mount read-only.
    #[arg(short = 'r')]
    read_only: bool,
    /// Mount for reading and writing.
    #[arg(short = 'w', conflicts_with = "read_only")]
    read_write: bool,
    /// Type as mount(8) found it.
    #[arg(short = 't', value_name = "TYPE")]
    kind: Option<String>,
    /// Mount in the mount namespace of this process, or of this file.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<OsString>,
    /// Serve in this process until unmounted, log to standard error.
    #[arg(long)]
    foreground: bool,
}

const OPTIONS_HELP: &str = "\
Mount options:
  ro rw suid nosuid dev nodev exec noexec noatime relatime strictatime sync dirsync
                       as in mount(8); nosuid and nodev are the default
  allow_other          everybody may enter; files' permissions are checked in any case
  allow_root           root may enter as well
  uid=N gid=N          show all files as belonging to this user, this group
  remount              change the flags of the mount that is there
  state=DIR            the state directory, when the folder does not say where it is
  passphrase_file=FILE the passphrase is the file's first line
  timeout=SECONDS      how long a read waits for blocks that only others have (30)
  fsync=replicas       fsync waits for the wanted copies on other computers, too, at most timeout=
  cache_size=SIZE      blocks kept here beyond those that are nowhere else, such as 10GiB
  listen=ADDRESS:PORT  where to listen; may be repeated
  offline              no network
  attr_timeout=SECONDS how long names and attributes are believed (1)
  writeback            the kernel collects writes: faster for small ones
A comma or a backslash within a value takes a backslash before it.

Exit codes: 0 mounted, 1 called wrongly, 2 system error, 32 mount failed.";

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
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if background::is_child() {
                background::announce_failure(failure.code, &failure.text);
            } else if !failure.text.is_empty() {
                note(format_args!("mount.dfs: {}", failure.text));
            }
            ExitCode::from(failure.code)
        }
    }
}

fn usage(error: &OptionError) -> NotStarted {
    NotStarted {
        code: code::USAGE,
        text: error.to_string(),
    }
}

fn mount_failed(error: &MountError) -> NotStarted {
    NotStarted {
        code: code::FAILED,
        text: error.to_string(),
    }
}

fn exited(exit: Exit, code: u8) -> NotStarted {
    let text = match exit {
        Exit::Usage(text) => {
            return NotStarted {
                code: code::USAGE,
                text,
            };
        }
        Exit::Failed(failure) => report::three_parts(&failure),
    };
    NotStarted {
        code,
        text: text.strip_prefix("dfs: ").unwrap_or(&text).to_owned(),
    }
}

fn run(mut args: Args) -> Result<(), NotStarted> {
    let mut options = MountOptions::default();
    for list in &args.options {
        options.read(list, args.sloppy).map_err(|error| usage(&error))?;
    }
    options.flags.read_only = (options.flags.read_only || args.read_only) && !args.read_write;
    options.check().map_err(|error| usage(&error))?;
    if let Some(namespace) = args.namespace.clone().filter(|_| !background::is_child()) {
        // Entering it changes the current directory.
        args.folder = in_full(&args.folder)?;
        args.mountpoint = args.mountpoint.as_deref().map(in_full).transpose()?;
        enter(Path::new(&namespace))?;
    }
    let env = Environment::read().map_err(|exit| exited(exit, code::SYSTEM))?;
    let mountpoint = args.mountpoint.as_deref().unwrap_or(&args.folder);
    if options.remount {
        return remount(&env, &env.absolute(mountpoint), &options);
    }
    // First, because a mount over the folder hides it: a dead one is taken away, a living one is the reason for the refusal.
    let mountpoint = fuse::resolve_mountpoint(mountpoint).map_err(|error| mount_failed(&error))?;
    let folder = fuse::resolve_mountpoint(&args.folder).map_err(|error| mount_failed(&error))?;
    let located = daemon::locate(&env.places, &folder, options.state.as_deref());
    located.map_err(|error| exited(report::from_daemon("cannot mount", error), code::FAILED))?;
    if args.fake {
        return Ok(());
    }
    if args.foreground || background::is_child() {
        return serve(&env, &args, &options, &folder, &mountpoint);
    }
    background::start(
        &background::own_name("mount.dfs"),
        &child_arguments(&args, folder, mountpoint),
        code::FAILED,
    )
}

/// Folder and mount point in full, so that `ps` tells which daemon is which.
fn child_arguments(args: &Args, folder: PathBuf, mountpoint: PathBuf) -> Vec<OsString> {
    let mut arguments = vec![folder.into_os_string(), mountpoint.into_os_string()];
    for list in &args.options {
        arguments.extend(["-o".into(), list.clone()]);
    }
    let switches = [
        (args.sloppy, "-s"),
        (args.read_only, "-r"),
        (args.read_write, "-w"),
    ];
    arguments.extend(
        switches
            .iter()
            .filter(|(given, _)| *given)
            .map(|(_, switch)| (*switch).into()),
    );
    arguments.extend((0..args.verbose).map(|_| OsString::from("-v")));
    arguments
}

fn serve(
    env: &Environment,
    args: &Args,
    options: &MountOptions,
    folder: &Path,
    mountpoint: &Path,
) -> Result<(), NotStarted> {
    let mount: MountRequest = options.mount_request(folder, mountpoint, rustix::process::geteuid().is_root());
    let in_background = background::is_child();
    let filter = env
        .log_filter
        .clone()
        .unwrap_or_else(|| report::log_filter(args.verbose));
    let target = if in_background {
        LogTarget::File
    } else {
        LogTarget::Stderr
    };
    let request = RunRequest {
        folder: folder.to_owned(),
        state: options.state.clone(),
        places: env.places.clone(),
        passphrase: passphrase::source(options.passphrase_file.clone()),
        mount: Some(mount),
        options: options.daemon_options(),
        log: LogRequest { target, filter },
        ready: Box::new(move |_| {
            if in_background && let Err(error) = background::announce_ready() {
                tracing::warn!("the starting command cannot be told that the mount is up: {error}");
            }
        }),
    };
    let what = format!("cannot mount {}", folder.display());
    daemon::run(request).map_err(|error| exited(report::from_daemon(&what, error), code::FAILED))
}

fn remount(env: &Environment, mountpoint: &Path, options: &MountOptions) -> Result<(), NotStarted> {
    let daemon = client::find(&env.places.runtime_dir, mountpoint);
    let began_read_only = daemon.is_some_and(|daemon| daemon.status.read_only);
    if began_read_only && !options.flags.read_only {
        let text = format!(
            "{} was mounted read-only: unmount it, and mount it again",
            mountpoint.display()
        );
        return Err(NotStarted {
            code: code::FAILED,
            text,
        });
    }
    fuse::remount(mountpoint, &options.flags).map_err(|error| mount_failed(&error))
}

/// The path from the root, without looking at what is there.
pub(super) fn in_full(path: &Path) -> Result<PathBuf, NotStarted> {
    let failed = |error: std::io::Error| {
        exited(
            failed("cannot tell the current directory", error, ""),
            code::SYSTEM,
        )
    };
    std::path::absolute(path).map_err(failed)
}

/// Moves into another mount namespace, named by a process id or a file, while this process has one thread.
pub(super) fn enter(namespace: &Path) -> Result<(), NotStarted> {
    let is_pid = namespace.to_str().is_some_and(|text| text.parse::<u32>().is_ok());
    let path = if is_pid {
        Path::new("/proc").join(namespace).join("ns/mnt")
    } else {
        namespace.to_owned()
    };
    let entered = File::open(&path).and_then(|file| {
        Ok(move_into_link_name_space(
            file.as_fd(),
            Some(LinkNameSpaceType::Mount),
        )?)
    });
    entered.map_err(|error| {
        let exit = failed(
            "cannot enter the mount namespace",
            format!("{}: {error}", path.display()),
            "",
        );
        exited(exit, code::SYSTEM)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Args {
        Args::try_parse_from([&["mount.dfs"], arguments].concat()).unwrap()
    }

    #[test]
    fn options_stand_anywhere() {
        for arguments in [
            &["/f", "/m", "-sfv", "-o", "ro", "-o", "noexec"][..],
            &["-o", "ro", "/f", "-svf", "-onoexec", "/m"],
            &["-v", "-s", "-o", "ro", "-o", "noexec", "-f", "--", "/f", "/m"],
        ] {
            let args = parse(arguments);
            assert_eq!(
                (args.folder.to_str(), args.mountpoint.as_deref()),
                (Some("/f"), Some(Path::new("/m")))
            );
            assert!(args.fake && args.sloppy && args.verbose == 1);
            assert_eq!(args.options, ["ro", "noexec"]);
        }
    }

    #[test]
    fn as_mount_calls_it() {
        let args = parse(&["/f", "/m", "-n", "-o", "rw,_netdev", "-t", "fuse.dfs", "-N", "42"]);
        assert_eq!(args.kind.as_deref(), Some("fuse.dfs"));
        assert!(args.namespace.is_some() && args.no_table);
    }

    #[test]
    fn wrong_calls_are_wrong() {
        for arguments in [
            &[][..],
            &["/f", "/m", "/x"],
            &["/f", "-q"],
            &["/f", "-r", "-w"],
            &["/f", "-o"],
        ] {
            let parsed = Args::try_parse_from([&["mount.dfs"], arguments].concat());
            assert!(parsed.is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn the_daemon_shows_folder_and_mount_point_and_no_secret() {
        let args = parse(&["f", "-vv", "-s", "-o", "passphrase_file=/p"]);
        let arguments = child_arguments(&args, "/x/f".into(), "/x/f".into());
        assert_eq!(
            arguments,
            ["/x/f", "/x/f", "-o", "passphrase_file=/p", "-s", "-v", "-v"]
        );
    }
}
