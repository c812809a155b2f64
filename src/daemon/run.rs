//! The life of a daemon: open, mount, answer, and at the end unmount, drain, close, in this order whatever the cause of the end is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::answers::Answers;
use super::assembly::{Assembly, Options};
use super::events::Hub;
use super::logging::{self, LogRequest};
use super::metrics::Metrics;
use super::plain_files::PlainFiles;
use super::scrub::{Damaged, Scrub};
use super::watchdog::Watchdog;
use super::{Located, PassphraseSource, Places, locate, open, process};
use crate::base::VolumeId;
use crate::control::{Failure, Server, client, socket_path};
use crate::folder::state::{Holder, StateError, StateLock};
use crate::fuse::{self, Invalidator, MountError, MountHandle, MountRequest};
use crate::keys::DeviceKey;
use crate::volume::{Forget, Forgetter};

/// How long a start waits for a previous daemon of the same state directory that is on its way out.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(60);
/// How long files that are still open hold up the end once the mount is out of sight.
const OPEN_FILES_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the drain may take after a panic, when a lock may never be given back.
const PANIC_DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What a daemon is to do.
pub struct RunRequest {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// The state directory, when it is neither where the marker says nor in the default place.
    pub state: Option<PathBuf>,
    /// Where things are for this user.
    pub places: Places,
    /// Where the passphrase comes from, should the keys need one.
    pub passphrase: PassphraseSource,
    /// The mount; none: the node alone serves.
    pub mount: Option<MountRequest>,
    /// What the command line says over `dfs.toml`.
    pub options: Options,
    /// The log.
    pub log: LogRequest,
    /// Called once, when the mount answers or the node serves.
    pub ready: Box<dyn FnOnce(&Ready) + Send>,
}

/// A daemon that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Its process.
    pub pid: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The mount.
    pub mountpoint: Option<PathBuf>,
    /// The control socket.
    pub socket: PathBuf,
}

/// What ends a daemon, or asks it to end.
#[derive(Debug)]
pub(super) enum Event {
    /// A signal of this name.
    Signal(&'static str),
    /// A command; the answer says that everything is on the disk.
    Stop {
        /// Also while files are open.
        lazy: bool,
        /// Where the outcome goes.
        reply: Sender<Result<(), Failure>>,
    },
    /// The mount is gone, by whomever.
    Unmounted,
    /// A thread panicked.
    Panic,
}

/// Runs a daemon until it is unmounted, told to end, or broken. Everything is written back when it returns.
pub fn run(request: RunRequest) -> anyhow::Result<()> {
    let located = locate(&request.places, &request.folder, request.state.as_deref())?;
    if let Some(mount) = &request.mount {
        let what = format!("cannot mount {}", request.folder.display());
        open::refuse_overlap(&what, &mount.mountpoint, located.state.path())?;
    }
    let mut lock = take_lock(&located)?;
    let keys = located.unlock(request.passphrase)?;
    logging::start(&request.log, &located.state.log_path())?;
    process::prepare();
    let (events, inbox) = channel();
    process::watch_panics(events.clone());
    process::watch_signals(events.clone())?;

    let mut options = request.options;
    options.read_only |= request.mount.as_ref().is_some_and(|mount| mount.flags.read_only);
    let key = DeviceKey::from_bytes(&keys.device.seed());
    let assembly = Assembly::open(&located, keys, &options, request.mount.is_some())?;
    let watchdog = Watchdog::start(assembly.volume(), assembly.timeout())
        .inspect_err(|error| tracing::warn!(%error, "nobody watches for operations that make no progress"));
    let mount = match &request.mount {
        Some(mount) => Some(Mounted::new(&assembly, mount, &events)?),
        None => None,
    };
    let mountpoint = mount.as_ref().map(|mount| mount.handle.mountpoint().to_owned());
    let plain_files = match assembly.volume() {
        Some(volume) if !assembly.read_only() => {
            let covered = mountpoint
                .as_deref()
                .is_some_and(|mount| located.folder.starts_with(mount));
            Some(PlainFiles::start(volume, (!covered).then_some(&*located.folder))?)
        }
        _ => None,
    };
    if let (Some(volume), Some(mount)) = (assembly.volume(), &mount) {
        volume.set_forgetter(Some(forgetter(mount.handle.invalidator())));
    }
    let hub = Arc::<Hub>::default();
    let trees = assembly.start_trees(&located, key, &hub).map(Arc::new);
    let prefetching = assembly.start_prefetch(&located, trees.as_ref());
    let socket = socket_path(&request.places.runtime_dir, located.state.path());
    let damaged = Damaged::default();
    let scrub = Scrub::start(assembly.store(), assembly.tiered(), &damaged)
        .inspect_err(|error| tracing::warn!(%error, "nobody reads the store now and then"));
    let answers = Arc::new(Answers::new(
        &assembly,
        &located,
        mountpoint.clone(),
        &damaged,
        trees.clone(),
        &hub,
        events,
    ));
    let metrics = assembly
        .metrics()
        .and_then(|listen| start_metrics(listen, Arc::clone(&answers)));
    let server = match Server::start(&socket, answers) {
        Ok(server) => Some(server),
        Err(e) => {
            tracing::warn!("{e}; commands will not reach this daemon");
            None
        }
    };
    let mut holder = Holder {
        pid: std::process::id(),
        socket: server.as_ref().map(|server| server.path().to_owned()),
        mountpoint: mountpoint.clone(),
        ending: false,
    };
    lock.describe(&holder)?;
    let ready = Ready {
        pid: holder.pid,
        volume: located.marker.volume,
        mountpoint,
        socket,
    };
    tracing::info!(volume = %ready.volume, mountpoint = ?ready.mountpoint, pid = ready.pid, "ready");
    process::tell_systemd(sd_notify::NotifyState::Ready);
    (request.ready)(&ready);

    let end = wait_for_end(&inbox, mount.as_ref());
    tracing::info!(cause = end.cause, "ending");
    process::tell_systemd(sd_notify::NotifyState::Stopping);
    holder.ending = true;
    let _ = lock.describe(&holder);
    if end.panicked {
        limit_drain();
    }
    drop(mount);
    drop(plain_files);
    drop(metrics);
    drop(scrub);
    drop(prefetching);
    if let Some(trees) = &trees {
        trees.stop();
    }
    let drained = assembly.close();
    drop(watchdog);
    let outcome = match (&drained, end.panicked) {
        (Ok(()), false) => Ok(()),
        (Ok(()), true) => Err(anyhow::anyhow!("a thread panicked: the log says where")),
        (Err(e), _) => Err(anyhow::anyhow!("{e:#}")),
    };
    if let Err(e) = &drained {
        tracing::error!("not everything could be written back: {e:#}");
    }
    if let Some(reply) = end.reply {
        let failure = |e: &anyhow::Error| {
            let hint = "what is in the log did not reach the disk; make room and mount again";
            Failure::new("not everything could be written back", format!("{e:#}"), hint)
        };
        let _ = reply.send(outcome.as_ref().map(|_| ()).map_err(failure));
    }
    hub.close();
    drop(server);
    tracing::info!("ended");
    drop(lock);
    outcome
}

/// Tells the kernel what changed without it.
fn forgetter(invalidator: Invalidator) -> Forgetter {
    Arc::new(move |forget| {
        // What finds no place in the queue ends with the time limit of what is cached.
        let _ = match forget {
            Forget::Entry(parent, name) => invalidator.invalidate_entry(parent, &name),
            Forget::Last(parent, ino, name) => invalidator.remove_entry(parent, ino, &name),
            Forget::Inode(ino) => invalidator.invalidate_inode(ino),
        };
    })
}

/// A page that cannot be had keeps nobody from his files.
fn start_metrics(listen: std::net::SocketAddr, answers: Arc<Answers>) -> Option<Metrics> {
    Metrics::start(listen, Arc::new(move || answers.look()))
        .inspect_err(|error| tracing::error!(%error, address = %listen, "no metrics; `listen` in [metrics] of dfs.toml names the address"))
        .ok()
}

/// Takes the lock of the state directory. A daemon that answers and stays is refused at once, one that is on its way out is waited for.
pub(super) fn take_lock(located: &Located) -> anyhow::Result<StateLock> {
    let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
    loop {
        match located.state.lock(Duration::from_millis(200)) {
            Ok(lock) => return Ok(lock),
            Err(StateError::Busy { path, holder }) => {
                let answers = || {
                    holder
                        .socket
                        .as_deref()
                        .is_some_and(|at| client::status(at).is_ok())
                };
                if Instant::now() >= deadline || (!holder.ending && answers()) {
                    return Err(in_use(located, &path, &holder));
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn in_use(located: &Located, state: &Path, holder: &Holder) -> anyhow::Error {
    let (why, hint) = match &holder.mountpoint {
        Some(at) => (
            format!("process {} has it mounted at {}", holder.pid, at.display()),
            format!("use that mount, or `umount {}` first", at.display()),
        ),
        None => (
            format!("process {} has its state {}", holder.pid, state.display()),
            format!(
                "stop it first: `kill {}` lets it write everything back",
                holder.pid
            ),
        ),
    };
    Failure::new(
        format!("volume {} is in use", located.marker.volume.short()),
        why,
        hint,
    )
    .into()
}

/// A mount that does not outlive its daemon's interest in it.
#[derive(Debug)]
struct Mounted {
    handle: Arc<MountHandle>,
}

impl Mounted {
    fn new(assembly: &Assembly, request: &MountRequest, events: &Sender<Event>) -> anyhow::Result<Self> {
        let volume = assembly
            .volume()
            .context("a host cannot read the volume, and so cannot mount it")?;
        let handle = Arc::new(fuse::mount(Arc::clone(volume), request)?);
        let mounted = Self { handle };
        std::thread::Builder::new().name("mount-end".into()).spawn({
            let (handle, events) = (Arc::clone(&mounted.handle), events.clone());
            move || {
                if let Some(Err(e)) = handle.wait(None) {
                    tracing::error!("{e}");
                }
                let _ = events.send(Event::Unmounted);
            }
        })?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.handle.has_ended() {
            return;
        }
        if let Err(e) = self.handle.unmount(true) {
            tracing::error!("cannot unmount: {e}");
        }
        if self.handle.wait(Some(OPEN_FILES_TIMEOUT)).is_none() {
            tracing::warn!(
                "files in the mount are still open; whoever has them open gets errors from now on"
            );
        }
    }
}

/// Why a daemon ends.
#[derive(Debug)]
struct End {
    cause: &'static str,
    panicked: bool,
    reply: Option<Sender<Result<(), Failure>>>,
}

fn wait_for_end(inbox: &Receiver<Event>, mount: Option<&Mounted>) -> End {
    let end = |cause| End {
        cause,
        panicked: false,
        reply: None,
    };
    // All senders live in threads that outlast this loop, so it cannot run dry.
    while let Ok(event) = inbox.recv() {
        match event {
            Event::Signal(name) => return end(name),
            Event::Unmounted => return end("unmounted"),
            Event::Panic => {
                return End {
                    panicked: true,
                    ..end("panic")
                };
            }
            Event::Stop { lazy, reply } => match mount.map_or(Ok(()), |mount| mount.handle.unmount(lazy)) {
                Ok(()) => {
                    return End {
                        reply: Some(reply),
                        ..end("asked to stop")
                    };
                }
                Err(e) => {
                    let _ = reply.send(Err(busy(e)));
                }
            },
        }
    }
    end("nobody is left to ask")
}

fn busy(error: MountError) -> Failure {
    let hint = match error {
        MountError::Busy { .. } => "close what is open there, or use --lazy",
        _ => "",
    };
    Failure::new("cannot unmount", error, hint)
}

/// Ends the process should the drain not come to its end: a panic may have left a lock that nobody gives back.
fn limit_drain() {
    let spawned = std::thread::Builder::new().name("drain-limit".into()).spawn(|| {
        std::thread::sleep(PANIC_DRAIN_TIMEOUT);
        tracing::error!("the drain after a panic did not end; giving up");
        std::process::exit(1);
    });
    if let Err(e) = spawned {
        tracing::error!("no thread to limit the drain: {e}");
    }
}
