//! The commands' end of the control socket: finds the daemon that has a folder or mount, and asks it.

use std::io::{BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::events::Event;
use super::line;
use super::message::{Answer, Failure, Progress, Reply, Request, Status};

/// How long a daemon may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {0}")]
    NotRunning(PathBuf),
    /// It did not answer in time.
    #[error("the daemon on {path} did not answer within {} s", waited.as_secs())]
    Late {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        waited: Duration,
    },
    /// It ended in the middle, or speaks another version.
    #[error("the daemon on {path} gave no usable answer: {reason}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It answered that it could not do it.
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// Asks the daemon on `socket` and waits at most `timeout` for each line of its answer.
pub fn ask(
    socket: &Path,
    request: &Request,
    timeout: Duration,
    mut report: impl FnMut(Progress),
) -> Result<Answer, ClientError> {
    let broken = |e: std::io::Error| broken(socket, timeout, e);
    let mut from = BufReader::new(send(socket, request, timeout)?);
    loop {
        match line::read::<Reply>(&mut from).map_err(broken)? {
            Some(Reply::Progress(progress)) => report(progress),
            Some(Reply::Event(_)) => {}
            Some(Reply::Done { answer }) => return Ok(answer),
            Some(Reply::Failed(failure)) => return Err(failure.into()),
            None => return Err(broken(closed())),
        }
    }
}

/// Listens to what happens, and gives it to `each` until that wants no more. Returns when the daemon has ended.
pub fn listen(socket: &Path, mut each: impl FnMut(Event) -> bool) -> Result<(), ClientError> {
    let broken = |e: std::io::Error| broken(socket, STATUS_TIMEOUT, e);
    let stream = send(socket, &Request::Events, STATUS_TIMEOUT)?;
    // Nothing may happen for long.
    stream.set_read_timeout(None).map_err(broken)?;
    let mut from = BufReader::new(stream);
    loop {
        match line::read::<Reply>(&mut from).map_err(broken)? {
            Some(Reply::Event(event)) => {
                if !each(event) {
                    return Ok(());
                }
            }
            Some(Reply::Progress(_)) => {}
            Some(Reply::Done {
                answer: Answer::Ended,
            }) => return Ok(()),
            Some(Reply::Done { answer }) => return Err(unexpected(socket, &answer)),
            Some(Reply::Failed(failure)) => return Err(failure.into()),
            None => return Err(broken(closed())),
        }
    }
}

/// Sends a request.
fn send(socket: &Path, request: &Request, timeout: Duration) -> Result<UnixStream, ClientError> {
    let broken = |e: std::io::Error| broken(socket, timeout, e);
    let mut stream = UnixStream::connect(socket).map_err(|e| match e.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.to_owned()),
        _ => broken(e),
    })?;
    stream.set_read_timeout(Some(timeout)).map_err(broken)?;
    stream.set_write_timeout(Some(timeout)).map_err(broken)?;
    line::write(&mut stream, request).map_err(broken)?;
    Ok(stream)
}

fn broken(socket: &Path, waited: Duration, e: std::io::Error) -> ClientError {
    let path = socket.to_owned();
    match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Late { path, waited },
        _ => ClientError::Broken {
            path,
            reason: e.to_string(),
        },
    }
}

fn closed() -> std::io::Error {
    std::io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")
}

/// How the daemon on `socket` is.
pub fn status(socket: &Path) -> Result<Status, ClientError> {
    match ask(socket, &Request::Status, STATUS_TIMEOUT, |_| {})? {
        Answer::Status(status) => Ok(*status),
        other => Err(unexpected(socket, &other)),
    }
}

/// The error for an answer to another question.
pub fn unexpected(socket: &Path, answer: &Answer) -> ClientError {
    ClientError::Broken {
        path: socket.to_owned(),
        reason: format!("an answer to another question: {answer:?}"),
    }
}

/// A daemon that answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its socket.
    pub socket: PathBuf,
    /// How it is.
    pub status: Status,
}

/// The daemon whose mount or folder `path` (absolute) lies in: the one with the longest matching directory.
pub fn find(runtime_dir: &Path, path: &Path) -> Option<Found> {
    let depth = |daemon: &Found| {
        let status = &daemon.status;
        let holds = |dir: &Path| path.starts_with(dir).then(|| dir.components().count());
        status
            .mountpoint
            .as_deref()
            .and_then(holds)
            .max(holds(&status.folder))
    };
    running(runtime_dir)
        .into_iter()
        .filter(|daemon| depth(daemon).is_some())
        .max_by_key(depth)
}

/// Every daemon of this user that answers.
pub fn running(runtime_dir: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir(runtime_dir) else {
        return Vec::new();
    };
    let mut sockets: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "sock"))
        .collect();
    sockets.sort();
    sockets
        .into_iter()
        .filter_map(|socket| {
            let status = status(&socket).ok()?;
            Some(Found { socket, status })
        })
        .collect()
}

/// What became of a daemon that was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It has written everything back and ended.
    Ended,
    /// There was none.
    NotRunning,
}

/// Stops the daemon whose mount or folder `path` is, and returns when it has ended, waiting at most `timeout`.
pub fn stop(
    runtime_dir: &Path,
    path: &Path,
    lazy: bool,
    timeout: Duration,
    report: impl FnMut(Progress),
) -> Result<Stopped, ClientError> {
    let exactly = |daemon: &Found| {
        daemon.status.mountpoint.as_deref() == Some(path) || daemon.status.folder.as_path() == path
    };
    match running(runtime_dir).into_iter().find(exactly) {
        Some(daemon) => stop_daemon(&daemon.socket, lazy, timeout, report),
        None => Ok(Stopped::NotRunning),
    }
}

/// As [`stop`], for the daemon on `socket`.
pub fn stop_daemon(
    socket: &Path,
    lazy: bool,
    timeout: Duration,
    report: impl FnMut(Progress),
) -> Result<Stopped, ClientError> {
    let deadline = Instant::now() + timeout;
    let pid = match ask(socket, &Request::Stop { lazy }, timeout, report) {
        Ok(Answer::Stopped { pid }) => pid,
        Ok(other) => return Err(unexpected(socket, &other)),
        Err(ClientError::NotRunning(_)) => return Ok(Stopped::NotRunning),
        Err(e) => return Err(e),
    };
    if wait_for_end(pid, deadline.saturating_duration_since(Instant::now())) {
        Ok(Stopped::Ended)
    } else {
        Err(ClientError::Late {
            path: socket.to_owned(),
            waited: timeout,
        })
    }
}

/// Waits until the process has ended (pidfd_open(2)); false when it still runs after `timeout`.
fn wait_for_end(pid: u32, timeout: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return true;
    };
    let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true;
    };
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    loop {
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(e) if e == rustix::io::Errno::INTR => {}
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::work::Work;
    use crate::base::{DeviceId, VolumeId};
    use crate::control::{Caller, Handler, Server, ServerError, Totals, What};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    struct Fake {
        folder: PathBuf,
    }

    impl Handler for Fake {
        fn handle(
            &self,
            request: Request,
            report: &mut dyn FnMut(Progress) -> std::io::Result<()>,
        ) -> Result<Answer, Failure> {
            match request {
                Request::Status => Ok(Answer::Status(Box::new(Status {
                    pid: std::process::id(),
                    version: "0".into(),
                    started: 1,
                    volume: VolumeId([1; 16]),
                    group: None,
                    device: DeviceId([2; 32]),
                    role: "admin".into(),
                    folder: self.folder.clone(),
                    state: "/s".into(),
                    mountpoint: None,
                    read_only: false,
                    store: Totals::default(),
                    network: None,
                    replication: None,
                    tree: None,
                    work: Work::default(),
                    stalls: Vec::new(),
                    warnings: Vec::new(),
                }))),
                Request::Peers => {
                    for done_bytes in 0..3 {
                        let _ = report(Progress {
                            done_bytes,
                            ..Progress::default()
                        });
                    }
                    Ok(Answer::Peers { peers: Vec::new() })
                }
                _ => Err(Failure::new("that", "it is fake", "ask another")),
            }
        }

        fn listen(&self, caller: &Caller<'_>) -> Result<Answer, Failure> {
            for what in [What::Recovered, What::End] {
                let event = Event { time: 3, what };
                caller
                    .tell(event, || false)
                    .map_err(|e| Failure::new("tell", e, ""))?;
            }
            Ok(Answer::Ended)
        }
    }

    fn start(dir: &Path, name: &str, folder: &str) -> Server {
        let handler = Arc::new(Fake {
            folder: folder.into(),
        });
        Server::start(&dir.join(name), handler).unwrap()
    }

    #[test]
    fn questions_are_answered_with_progress_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(&dir.path().join("run"), "a.sock", "/f");
        let mode = std::fs::metadata(server.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let mut seen = Vec::new();
        let timeout = Duration::from_secs(30);
        let answer = ask(server.path(), &Request::Peers, timeout, |p| {
            seen.push(p.done_bytes)
        })
        .unwrap();
        assert_eq!(
            (answer, seen),
            (Answer::Peers { peers: Vec::new() }, vec![0, 1, 2])
        );
        let refused = ask(server.path(), &Request::Stop { lazy: false }, timeout, |_| {});
        assert!(matches!(refused, Err(ClientError::Refused(Failure { why, .. })) if why == "it is fake"));
    }

    #[test]
    fn events_are_heard_until_the_end_or_until_enough() {
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path(), "a.sock", "/f");
        for (most, expected) in [(9, vec![What::Recovered, What::End]), (1, vec![What::Recovered])] {
            let mut heard = Vec::new();
            listen(server.path(), |event| {
                assert_eq!(event.time, 3);
                heard.push(event.what);
                heard.len() < most
            })
            .unwrap();
            assert_eq!(heard, expected);
        }
        let nobody = listen(&dir.path().join("none.sock"), |_| true);
        assert!(matches!(nobody, Err(ClientError::NotRunning(_))));
    }

    #[test]
    fn the_daemon_with_the_nearest_folder_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let _outer = start(dir.path(), "a.sock", "/f");
        let inner = start(dir.path(), "b.sock", "/f/in");
        std::fs::write(dir.path().join("c.sock"), "no socket").unwrap();
        assert_eq!(running(dir.path()).len(), 2);
        let found = |path| find(dir.path(), Path::new(path)).map(|daemon| daemon.socket);
        assert_eq!(found("/f/in/side/x").unwrap(), inner.path());
        assert_eq!(found("/f/inside").unwrap(), dir.path().join("a.sock"));
        assert_eq!(found("/g"), None);
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(status(&path), Err(ClientError::NotRunning(_))));
        let server = start(dir.path(), "a.sock", "/f");
        assert!(status(&path).is_ok());
        let handler = Arc::new(Fake { folder: "/".into() });
        assert!(matches!(
            Server::start(&path, handler),
            Err(ServerError::InUse(_))
        ));
        drop(server);
        assert!(!path.exists());
        let nobody = stop(dir.path(), Path::new("/f"), false, Duration::from_secs(1), |_| {});
        assert_eq!(nobody.unwrap(), Stopped::NotRunning);
    }

    #[test]
    fn nonsense_gets_an_error_and_harms_nobody() {
        use std::io::{Read, Write};
        let dir = tempfile::tempdir().unwrap();
        let server = start(dir.path(), "a.sock", "/f");
        let mut stream = UnixStream::connect(server.path()).unwrap();
        stream.write_all(b"{\"request\":\"nonsense\"}\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("{\"reply\":\"failed\""), "{reply}");
        assert!(status(server.path()).is_ok());
    }
}
