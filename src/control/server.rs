//! The daemon's end of the control socket: accepts, checks who calls, reads one request, writes the answer.
//!
//! Bounded in callers, line length and time, so that no caller can hold the daemon up. Ends, and removes its socket, when dropped.

use std::io::{BufReader, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::caller::Caller;
use super::line;
use super::message::{Answer, Failure, Progress, Reply, Request};

/// Most requests answered at a time.
const CALLERS_MAX: usize = 16;
/// How long a caller may take to send its request, or to take one line of the answer.
const CALLER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end waits for answers that are being written.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers requests; called on one thread per request.
pub trait Handler: Send + Sync + 'static {
    /// Carries out a request, reporting on the way; a report fails once the caller is gone, and the request should then end.
    fn handle(
        &self,
        request: Request,
        report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
    ) -> Result<Answer, Failure>;

    /// Tells what happens, until the caller is gone or there is nothing more to tell.
    fn listen(&self, caller: &Caller<'_>) -> Result<Answer, Failure>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another daemon answers on it.
    #[error("another daemon already answers on {0}")]
    InUse(PathBuf),
    /// The host refused.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
}

/// A listening control socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    callers: Arc<AtomicUsize>,
    stop: Option<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`, making the directory above it (0700) when missing. A socket that a dead daemon left behind is replaced.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> Result<Self, ServerError> {
        let error = |source| ServerError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(error)?;
        }
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(ServerError::InUse(path.to_owned()));
                }
                std::fs::remove_file(path).map_err(error)?;
                UnixListener::bind(path)
            }
            other => other,
        }
        .map_err(error)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        let (watch, stop) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| error(e.into()))?;
        let callers = Arc::new(AtomicUsize::new(0));
        let accepting = std::thread::Builder::new()
            .name("control".into())
            .spawn({
                let callers = Arc::clone(&callers);
                move || accept(&listener, &watch, &handler, &callers)
            })
            .map_err(error)?;
        Ok(Self {
            path: path.to_owned(),
            callers,
            stop: Some(stop),
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        self.stop = None;
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        // The last answer, that everything is on the disk, is still on its way.
        let deadline = Instant::now() + LAST_ANSWER_TIMEOUT;
        while self.callers.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Accepts until the other end of `stop` is closed.
fn accept(listener: &UnixListener, stop: &OwnedFd, handler: &Arc<dyn Handler>, callers: &Arc<AtomicUsize>) {
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) if !ready[0].revents().is_empty() => return,
            Ok(_) => {}
            Err(e) if e == rustix::io::Errno::INTR => continue,
            Err(_) => return,
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            Err(e) => {
                tracing::warn!("control socket: cannot accept: {e}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let slot = Slot::take(callers);
        let handler = Arc::clone(handler);
        let spawned = std::thread::Builder::new()
            .name("control-caller".into())
            .spawn(move || {
                let slot = slot;
                if let Err(e) = serve(stream, slot.is_none(), handler.as_ref()) {
                    tracing::debug!("control socket: a caller left: {e}");
                }
            });
        if let Err(e) = spawned {
            tracing::warn!("control socket: no thread for a caller: {e}");
        }
    }
}

/// One of the [`CALLERS_MAX`] places.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(callers: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(callers));
        (callers.fetch_add(1, Ordering::SeqCst) < CALLERS_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(mut stream: UnixStream, too_many: bool, handler: &dyn Handler) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CALLER_TIMEOUT))?;
    stream.set_write_timeout(Some(CALLER_TIMEOUT))?;
    let what = "the request was not read";
    let refusal = if too_many {
        Some(Failure::new(what, "too many requests at a time", "try again"))
    } else if !may_call(&stream)? {
        Some(Failure::new(
            what,
            "you are neither the owner of this daemon nor root",
            "run the command as its owner",
        ))
    } else {
        None
    };
    if let Some(refusal) = refusal {
        return line::write(&mut stream, &Reply::Failed(refusal));
    }
    let request = match line::read::<Request>(&mut BufReader::new(&stream)) {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(e),
        Err(e) => {
            let hint = "use the dfs command of the daemon's version";
            return line::write(&mut stream, &Reply::Failed(Failure::new(what, e, hint)));
        }
    };
    let mut report = |progress| line::write(&mut &stream, &Reply::Progress(progress));
    let answer = match request {
        Request::Events => handler.listen(&Caller::new(&stream)?),
        request => handler.handle(request, &mut report),
    };
    let reply = match answer {
        Ok(answer) => Reply::Done { answer },
        Err(failure) => Reply::Failed(failure),
    };
    line::write(&mut stream, &reply)
}

/// Whether the other end runs as our user or as root (`SO_PEERCRED`, unix(7)).
fn may_call(stream: &UnixStream) -> std::io::Result<bool> {
    let caller = rustix::net::sockopt::socket_peercred(stream)?.uid;
    Ok(caller.is_root() || caller == rustix::process::geteuid())
}
