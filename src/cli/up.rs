//! `dfs up` and `dfs serve`: start the daemon of a volume, in the background unless told otherwise.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::background;
use super::environment::Environment;
use super::mount_options::MountOptions;
use super::replicas::parse_bytes;
use super::report::{Exit, Outcome, failed, from_daemon, log_filter, note};
use super::{init, passphrase};
use crate::control::Failure;
use crate::daemon::{self, LogRequest, LogTarget, Options, Origin, RunRequest};
use crate::folder::marker::Marker;
use crate::fuse::{self, MountRequest};

/// Exit code of a child that failed.
const FAILED: u8 = 1;

/// Mount a folder; make it a volume first if it is none.
///
/// Returns once the mount answers; the daemon goes on in the background until `umount`.
#[derive(Debug, clap::Args)]
pub struct UpArgs {
    /// The folder; it is created if it does not exist.
    folder: PathBuf,
    /// Where its files are to be seen; over the folder itself when left out.
    mountpoint: Option<PathBuf>,
    /// Mount options, as for mount.dfs.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<OsString>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// Serve the group without a mount.
///
/// Returns once the node is up; the daemon goes on in the background until `dfs umount FOLDER`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The folder.
    folder: PathBuf,
    /// Bytes kept here for other members, such as 50GB; over `quota` in dfs.toml.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    quota: Option<u64>,
    /// Keep blocks for guests of an open group too, as far as the quota goes; over `public` in dfs.toml.
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

#[derive(Debug, clap::Args)]
struct DaemonArgs {
    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    foreground: bool,
    /// Log more; twice: still more.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// The state directory, when the folder does not say where it is.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The passphrase of the keys is on the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Address to listen on, such as 0.0.0.0:8080; may be repeated.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<SocketAddr>,
    /// No network: only what is here can be read.
    #[arg(long)]
    no_network: bool,
}

/// Runs `dfs up`.
pub fn up(env: &Environment, args: UpArgs) -> Outcome {
    let mut options = MountOptions::default();
    for list in &args.options {
        options
            .read(list, false)
            .map_err(|e| Exit::Usage(e.to_string()))?;
    }
    options.check().map_err(|e| Exit::Usage(e.to_string()))?;
    let folder = env.absolute(&args.folder);
    let what = format!("cannot mount {}", folder.display());
    let mountpoint = args.mountpoint.as_deref().unwrap_or(&args.folder);
    let make = |path: &Path| match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir_all(path)
            .map_err(|e| failed(what.clone(), format!("cannot create {}: {e}", path.display()), "")),
        // What is there, a dead mount too, is looked at next.
        _ => Ok(()),
    };
    make(&folder)?;
    make(&env.absolute(mountpoint))?;
    // First of all, because a dead mount over the folder would hide it.
    let mountpoint =
        fuse::resolve_mountpoint(&env.absolute(mountpoint)).map_err(|e| failed(what.clone(), e, ""))?;
    let folder = env.absolute(&folder);
    let state = args.daemon.state.clone().or_else(|| options.state.clone());
    let passphrase_file = args
        .daemon
        .passphrase_file
        .clone()
        .or_else(|| options.passphrase_file.clone());
    if !background::is_child() && Marker::load(&folder).is_ok_and(|marker| marker.is_none()) {
        let made = init::create(
            env,
            &folder,
            state.clone(),
            passphrase_file.clone(),
            Origin::New,
            false,
        )?;
        init::show(&folder, &made);
    }
    let root = rustix::process::geteuid().is_root();
    let mount = options.mount_request(&folder, &mountpoint, root);
    let settings = options.daemon_options();
    let daemon = DaemonArgs {
        state,
        passphrase_file,
        ..args.daemon
    };
    start(env, &what, folder, Some(mount), settings, daemon)?;
    if !background::is_child() {
        note(format_args!("Mounted at {}", mountpoint.display()));
    }
    Ok(())
}

/// Runs `dfs serve`.
pub fn serve(env: &Environment, args: ServeArgs) -> Outcome {
    let folder = env.absolute(&args.folder);
    let what = format!("cannot serve {}", folder.display());
    let options = Options {
        quota: args.quota,
        public: args.public,
        ..Options::default()
    };
    start(env, &what, folder, None, options, args.daemon)
}

fn start(
    env: &Environment,
    what: &str,
    folder: PathBuf,
    mount: Option<MountRequest>,
    mut settings: Options,
    args: DaemonArgs,
) -> Outcome {
    let child = background::is_child();
    if !args.foreground && !child {
        let arguments = background::own_arguments();
        return background::start("dfs", &arguments, FAILED).map_err(|e| told(what, &e.text));
    }
    settings.no_network |= args.no_network;
    if !args.listen.is_empty() {
        settings.listen = Some(args.listen);
    }
    let request = RunRequest {
        folder,
        state: args.state.map(|path| env.absolute(&path)),
        places: env.places.clone(),
        passphrase: passphrase::source(args.passphrase_file),
        mount,
        options: settings,
        log: LogRequest {
            target: if child { LogTarget::File } else { LogTarget::Stderr },
            filter: env.log_filter.clone().unwrap_or_else(|| log_filter(args.verbose)),
        },
        ready: Box::new(move |_| {
            if child && let Err(e) = background::announce_ready() {
                tracing::warn!("the starting command cannot be told: {e}");
            }
        }),
    };
    daemon::run(request).map_err(|e| from_daemon(what, e))
}

/// What a started process says to the command that started it when it fails.
pub fn tell_parent(failure: &Failure) {
    let text = serde_json::to_string(failure).unwrap_or_else(|_| failure.to_string());
    background::announce_failure(FAILED, &text);
}

/// The failure that the started process told of.
fn told(what: &str, text: &str) -> Exit {
    match serde_json::from_str::<Failure>(text) {
        Ok(failure) => failure.into(),
        Err(_) => failed(what, text, "the log in the state directory may say more"),
    }
}
