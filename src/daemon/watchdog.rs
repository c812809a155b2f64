//! Notices when work stands still: logs what each thread that makes no progress is doing, for which file, and what it waits for. It mends
//! nothing: a host call that does not return cannot be taken back.
//!
//! A thread stands still when it has neither ended nor begun to wait for something else for [`PATIENCE`], beyond what it may wait for other
//! computers. Each is named once, and again after twice the time, and so on. Called by `run` and `answers`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::base::activity::{self, Seen};
use crate::control::Stall;
use crate::volume::Volume;

/// How long an operation may make no progress before it is worth a line.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Most lines of the kernel's stack that are told.
const STACK_LINES: usize = 6;

/// The thread that looks; ends when dropped.
#[derive(Debug)]
pub(super) struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to look. `timeout`: how long an operation may wait for other computers.
    pub(super) fn start(volume: Option<&Arc<Volume>>, timeout: Duration) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let volume = volume.map(Arc::downgrade);
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || {
                let mut told = Told::default();
                while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    let volume = volume.as_ref().and_then(std::sync::Weak::upgrade);
                    let lines = told.look(&activity::all(), timeout, Instant::now());
                    for line in lines {
                        line.log(volume.as_deref());
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What stands still now.
pub(super) fn stalls(volume: Option<&Volume>, timeout: Duration) -> Vec<Stall> {
    let now = Instant::now();
    let stands = |seen: &Seen| standing(seen, timeout, now).map(|_| stall(seen, volume, now));
    activity::all().iter().filter_map(stands).collect()
}

/// How long a thread has made no progress, beyond what it may wait for others; `None` while that is not long.
fn standing(seen: &Seen, timeout: Duration, now: Instant) -> Option<Duration> {
    let (since, allowed) = match seen.waits {
        Some((_, since)) => (since, timeout),
        None => (seen.moved, Duration::ZERO),
    };
    let still = now.saturating_duration_since(since);
    (still >= allowed + PATIENCE).then_some(still)
}

fn stall(seen: &Seen, volume: Option<&Volume>, now: Instant) -> Stall {
    let task = format!("/proc/self/task/{}", seen.thread);
    let waits_for = match seen.waits {
        Some((what, _)) => what.as_str().to_owned(),
        None => in_kernel(Path::new(&task)),
    };
    let path = volume
        .filter(|_| seen.doing.ino != 0)
        .map(|volume| volume.shown_path(seen.doing.ino));
    Stall {
        thread: seen.thread,
        name: first_line(&Path::new(&task).join("comm")),
        operation: seen.doing.operation.to_owned(),
        inode: seen.doing.ino,
        path: path.unwrap_or_default(),
        secs: now.saturating_duration_since(seen.doing.began).as_secs(),
        waits_for,
    }
}

/// Where a thread of this process is in the kernel, as far as the kernel tells (proc(5)).
fn in_kernel(task: &Path) -> String {
    let place = first_line(&task.join("wchan"));
    let stack = std::fs::read_to_string(task.join("stack")).unwrap_or_default();
    let functions: Vec<&str> = stack
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.split('+').next())
        .take(STACK_LINES)
        .collect();
    let call = first_line(&task.join("syscall"));
    let number = call.split(' ').next().unwrap_or_default();
    match place.as_str() {
        "" | "0" if number == "running" => "nothing: it is running".into(),
        "" | "0" => format!("a system call of the host (number {number})"),
        place if place.starts_with("futex") => "another thread of dfs".into(),
        place => {
            let stack = if functions.is_empty() {
                String::from(place)
            } else {
                functions.join(" < ")
            };
            format!("a system call of the host (number {number}): {stack}")
        }
    }
}

fn first_line(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// What was logged: by thread and beginning of its work, and when it is to be said again.
#[derive(Debug, Default)]
struct Told(HashMap<(i32, Instant), Duration>);

/// Something to log.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Stands(Seen),
    GoesOn { thread: i32, secs: u64 },
}

impl Told {
    fn look(&mut self, all: &[Seen], timeout: Duration, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut still = HashMap::new();
        for seen in all {
            let key = (seen.thread, seen.doing.began);
            let Some(long) = standing(seen, timeout, now) else {
                continue;
            };
            let mut again = self.0.remove(&key).unwrap_or_default();
            if long >= again {
                again = long * 2;
                lines.push(Line::Stands(*seen));
            }
            still.insert(key, again);
        }
        for ((thread, began), _) in self.0.drain() {
            let secs = now.saturating_duration_since(began).as_secs();
            lines.push(Line::GoesOn { thread, secs });
        }
        self.0 = still;
        lines
    }
}

impl Line {
    fn log(&self, volume: Option<&Volume>) {
        match self {
            Self::Stands(seen) => {
                let stall = stall(seen, volume, Instant::now());
                tracing::warn!(
                    thread = stall.thread,
                    name = stall.name,
                    operation = stall.operation,
                    inode = stall.inode,
                    file = stall.path,
                    secs = stall.secs,
                    waits_for = stall.waits_for,
                    "an operation makes no progress"
                );
            }
            Self::GoesOn { thread, secs } => {
                tracing::info!(thread, after_secs = secs, "what made no progress went on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::activity::{Doing, Waits};

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn seen(thread: i32, began: Instant, waits: Option<Waits>) -> Seen {
        Seen {
            thread,
            doing: Doing {
                operation: "fsync",
                ino: 7,
                began,
            },
            waits: waits.map(|waits| (waits, began)),
            moved: began,
        }
    }

    #[test]
    fn a_stall_is_told_once_again_after_twice_the_time_and_when_it_ends() {
        let (mut told, start) = (Told::default(), Instant::now());
        let all = [seen(1, start, None)];
        let after = |secs| start + Duration::from_secs(secs);
        assert_eq!(told.look(&all, TIMEOUT, after(9)), []);
        assert_eq!(told.look(&all, TIMEOUT, after(10)), [Line::Stands(all[0])]);
        assert_eq!(told.look(&all, TIMEOUT, after(19)), []);
        assert_eq!(told.look(&all, TIMEOUT, after(20)), [Line::Stands(all[0])]);
        assert_eq!(told.look(&all, TIMEOUT, after(39)), []);
        assert_eq!(
            told.look(&[], TIMEOUT, after(44)),
            [Line::GoesOn { thread: 1, secs: 44 }]
        );
        assert_eq!(told.look(&[], TIMEOUT, after(50)), []);
    }

    #[test]
    fn who_waits_for_other_computers_may_do_so_for_the_timeout() {
        let start = Instant::now();
        let waiting = seen(1, start, Some(Waits::Network));
        assert_eq!(standing(&waiting, TIMEOUT, start + Duration::from_secs(39)), None);
        assert!(standing(&waiting, TIMEOUT, start + Duration::from_secs(40)).is_some());
    }

    #[test]
    fn the_kernel_says_what_a_thread_waits_for() {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get())
                .unwrap();
            let _ = ended.recv();
        });
        let task = format!("/proc/self/task/{}", told.recv().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while in_kernel(Path::new(&task)) != "another thread of dfs" {
            assert!(Instant::now() < deadline, "{}", in_kernel(Path::new(&task)));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(end);
        thread.join().unwrap();
    }
}
