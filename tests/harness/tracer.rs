//! Faults at the host's calls of a running daemon, by ptrace(2): kills it at a call, lets the call fail or write less than it was given,
//! and keeps a list of all calls on the files of folder and state. The program is the real one, without a seam for tests.
//!
//! strace does the same with `-e inject`, but counts the calls of each thread by itself, so that "the twelfth call" is none in particular.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What happens at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The daemon dies before the call has an effect.
    KillBefore,
    /// The daemon dies once the call had its effect.
    KillAfter,
    /// The call has no effect and returns this error.
    Error(i32),
    /// A write takes less than it was given; other calls are left alone.
    Short,
}

/// A call on the folder or the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    pub path: PathBuf,
}

#[derive(Default)]
struct Plan {
    places: Vec<PathBuf>,
    calls: Vec<Call>,
    /// Which of the calls that may be hit is hit (from zero), and how.
    fault: Option<(u64, Fault)>,
    may_be_hit: Option<fn(&Call) -> bool>,
    seen: u64,
    hit: Option<Call>,
}

/// A daemon under observation. Dropping it changes nothing: the daemon stays observed until it ends.
pub struct Tracer {
    plan: Arc<Mutex<Plan>>,
}

/// Numbers of x86-64 of the calls that are looked at, and where each has its file: a descriptor, a path, or a descriptor and a path in it.
const CALLS: &[(u64, &str, Place)] = &[
    (1, "write", Place::Fd),
    (17, "pread64", Place::Fd),
    (18, "pwrite64", Place::Fd),
    (20, "writev", Place::Fd),
    (74, "fsync", Place::Fd),
    (75, "fdatasync", Place::Fd),
    (76, "truncate", Place::Path),
    (77, "ftruncate", Place::Fd),
    (82, "rename", Place::Path),
    (83, "mkdir", Place::Path),
    (86, "link", Place::Path),
    (87, "unlink", Place::Path),
    (91, "fchmod", Place::Fd),
    (93, "fchown", Place::Fd),
    (217, "getdents64", Place::Fd),
    (257, "openat", Place::At),
    (258, "mkdirat", Place::At),
    (262, "newfstatat", Place::At),
    (263, "unlinkat", Place::At),
    (264, "renameat", Place::At),
    (265, "linkat", Place::At),
    (277, "sync_file_range", Place::Fd),
    (280, "utimensat", Place::At),
    (285, "fallocate", Place::Fd),
    (296, "pwritev", Place::Fd),
    (306, "syncfs", Place::Fd),
    (316, "renameat2", Place::At),
    (328, "pwritev2", Place::Fd),
    (437, "openat2", Place::At),
];

#[derive(Debug, Clone, Copy)]
enum Place {
    Fd,
    Path,
    At,
}

impl Tracer {
    /// Observes the process `pid`, what it starts from now on, and their calls on files below `places`.
    pub fn attach(pid: i32, places: &[&Path]) -> Self {
        let plan = Arc::new(Mutex::new(Plan {
            places: places.iter().map(|place| place.to_path_buf()).collect(),
            ..Plan::default()
        }));
        let (also, (ready, is_ready)) = (Arc::clone(&plan), std::sync::mpsc::channel());
        // All of ptrace belongs to the thread that attached.
        std::thread::spawn(move || {
            seize_all(pid);
            ready.send(()).unwrap();
            observe(&also);
        });
        is_ready.recv().unwrap();
        Self { plan }
    }

    /// From now on counts the calls for which `may_be_hit` is true, and lets the fault hit the one with this number.
    pub fn arm(&self, fault: Option<(u64, Fault)>, may_be_hit: fn(&Call) -> bool) {
        let mut plan = self.plan.lock().unwrap();
        plan.calls.clear();
        (plan.seen, plan.hit) = (0, None);
        (plan.fault, plan.may_be_hit) = (fault, Some(may_be_hit));
    }

    /// The calls since it was armed.
    pub fn calls(&self) -> Vec<Call> {
        self.plan.lock().unwrap().calls.clone()
    }

    /// How many of them the fault could have hit.
    pub fn seen(&self) -> u64 {
        self.plan.lock().unwrap().seen
    }

    /// From now on no fault comes. Returns the call that was hit.
    pub fn disarm(&self) -> Option<Call> {
        let mut plan = self.plan.lock().unwrap();
        plan.fault = None;
        plan.hit.clone()
    }

    /// The call that was hit.
    pub fn hit(&self) -> Option<Call> {
        self.plan.lock().unwrap().hit.clone()
    }
}

fn seize_all(pid: i32) {
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC;
    let mut known = Vec::new();
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let new: Vec<i32> = tasks
            .map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .filter(|task| !known.contains(task))
            .collect();
        if new.is_empty() {
            return;
        }
        for task in new {
            known.push(task);
            // One that ended, or that a thread observed already began.
            if ptrace::seize(Pid::from_raw(task), options).is_ok() {
                ptrace::interrupt(Pid::from_raw(task)).ok();
            }
        }
    }
}

/// Lets all threads run from call to call until all have ended.
fn observe(plan: &Mutex<Plan>) {
    let mut pending: HashMap<Pid, Fault> = HashMap::new();
    loop {
        // Threads of this process that are not children of this thread are nobody else's business.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let (thread, signal) = match waitpid(None, Some(flags)) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                let op = ptrace::syscall_info(thread).map(|info| info.op);
                match op {
                    Ok(nix::libc::PTRACE_SYSCALL_INFO_ENTRY) => {
                        if let Some(fault) = at_entry(thread, plan) {
                            pending.insert(thread, fault);
                        }
                    }
                    _ => {
                        if let Some(fault) = pending.remove(&thread) {
                            at_exit(thread, fault);
                        }
                    }
                }
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
            Ok(_) => continue,
        };
        // It may have been killed meanwhile.
        ptrace::syscall(thread, signal).ok();
    }
}

fn at_entry(thread: Pid, plan: &Mutex<Plan>) -> Option<Fault> {
    let mut registers = ptrace::getregs(thread).ok()?;
    let (_, name, place) = CALLS.iter().find(|(number, ..)| *number == registers.orig_rax)?;
    let path = path_of(thread.as_raw(), &registers, *place)?;
    let mut plan = plan.lock().unwrap();
    let may_be_hit = plan.may_be_hit?;
    if !plan.places.iter().any(|place| path.starts_with(place)) || path.ends_with("dfs.log") {
        return None;
    }
    let call = Call { name, path };
    plan.calls.push(call.clone());
    if !may_be_hit(&call) {
        return None;
    }
    let number = plan.seen;
    plan.seen += 1;
    let (target, fault) = plan.fault?;
    if target != number {
        return None;
    }
    match fault {
        Fault::KillBefore => kill(thread, Signal::SIGKILL).ok()?,
        Fault::KillAfter => {}
        // A number that is no call: the kernel does nothing, and what it returns is replaced when it returns.
        Fault::Error(_) => {
            registers.orig_rax = u64::MAX;
            ptrace::setregs(thread, registers).ok()?;
        }
        Fault::Short => {
            if !matches!(
                call.name,
                "write" | "pwrite64" | "writev" | "pwritev" | "pwritev2"
            ) || registers.rdx < 2
            {
                return None;
            }
            registers.rdx /= 2;
            ptrace::setregs(thread, registers).ok()?;
        }
    }
    plan.hit = Some(call);
    Some(fault)
}

fn at_exit(thread: Pid, fault: Fault) {
    match fault {
        Fault::KillAfter => drop(kill(thread, Signal::SIGKILL)),
        Fault::Error(errno) => {
            if let Ok(mut registers) = ptrace::getregs(thread) {
                registers.rax = i64::from(-errno).cast_unsigned();
                ptrace::setregs(thread, registers).ok();
            }
        }
        Fault::KillBefore | Fault::Short => {}
    }
}

fn path_of(pid: i32, registers: &user_regs_struct, place: Place) -> Option<PathBuf> {
    let behind = |fd: u64| match fd as i32 {
        nix::libc::AT_FDCWD => Some(PathBuf::new()),
        fd => fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok(),
    };
    match place {
        Place::Fd => behind(registers.rdi),
        Place::Path => text_at(pid, registers.rdi),
        Place::At => {
            let name = match registers.rsi {
                0 => PathBuf::new(),
                at => text_at(pid, at)?,
            };
            Some(behind(registers.rdi)?.join(name))
        }
    }
}

/// A path in the daemon's memory.
fn text_at(pid: i32, at: u64) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = vec![0; 4096];
    // Not beyond the end of the page, where nothing may be.
    let len = 4096 - (at % 4096) as usize;
    let mut filled = memory.read_at(&mut bytes[..len], at).ok()?;
    if !bytes[..filled].contains(&0) {
        filled += memory
            .read_at(&mut bytes[filled..], at + filled as u64)
            .unwrap_or(0);
    }
    let end = bytes[..filled].iter().position(|byte| *byte == 0)?;
    bytes.truncate(end);
    Some(std::ffi::OsString::from_vec(bytes).into())
}
