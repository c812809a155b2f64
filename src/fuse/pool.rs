//! Threads for operations that may wait: for the network, for a full write budget, for a sync of the disk. Of the threads that read from
//! the kernel there are always some that do not wait, so that one file that cannot be had does not hold up the others.
//!
//! Handing an operation to another thread costs more than many an operation does. So [`LENT_MAX`] more threads read from the kernel than are
//! needed for that, and as many operations at once may wait on the thread that they came to ([`Pool::run`]); the rest have threads here.
//!
//! Grows by one thread whenever nobody is free, up to [`THREADS_MAX`] at work; a thread without work for [`IDLE`] ends. Threads that wait
//! for other computers (see [`activity::wait`]) are not counted as at work, up to [`WAITING_MAX`] of them; what would wait beyond that fails
//! at once. So a peer that hangs holds up nobody but those who want its blocks. At most [`QUEUE_MAX`] jobs wait for a thread; whoever would
//! add another waits until there is room, which needs no other computer. Called by `adapter`.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::base::activity::{self, Crew};

/// Most threads at work at once: each may wait for the disk.
const THREADS_MAX: usize = 64;
/// Most threads that wait for other computers at once. One costs some 30 KiB of memory.
pub(super) const WAITING_MAX: usize = 1024;
/// Most operations that wait on the threads that read from the kernel.
pub(super) const LENT_MAX: usize = 2;
/// Most jobs that wait for a thread.
const QUEUE_MAX: usize = 1024;
/// How long a thread stays without work.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// See the module.
#[derive(Clone)]
pub(super) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    /// For the threads that are started.
    me: Weak<Shared>,
    state: Mutex<State>,
    /// A job was added, or no more will be.
    work: Condvar,
    /// A job was taken.
    room: Condvar,
    /// A thread ended.
    ended: Condvar,
    threads_max: usize,
    waiting_max: usize,
    lent_max: usize,
    idle: Duration,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    free: usize,
    /// Threads that wait for other computers.
    waiting: usize,
    /// Jobs that run on the threads they came to.
    lent: usize,
    closed: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state.lock();
        write!(
            f,
            "Pool({} threads, {} free, {} waiting, {} jobs)",
            state.threads,
            state.free,
            state.waiting,
            state.jobs.len()
        )
    }
}

impl Pool {
    pub(super) fn new() -> Self {
        Self::with(THREADS_MAX, WAITING_MAX, LENT_MAX, IDLE)
    }

    fn with(threads_max: usize, waiting_max: usize, lent_max: usize, idle: Duration) -> Self {
        let (work, room, ended) = (Condvar::new(), Condvar::new(), Condvar::new());
        Self {
            shared: Arc::new_cyclic(|me| Shared {
                me: Weak::clone(me),
                state: Mutex::default(),
                work,
                room,
                ended,
                threads_max,
                waiting_max,
                lent_max,
                idle,
            }),
        }
    }

    /// Runs `job`: here, as long as few others run where they came to, else on a thread of the pool. Here too when the pool is closed, or
    /// when the system has no thread left to give.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        if state.lent < shared.lent_max {
            state.lent += 1;
            drop(state);
            guarded(job);
            shared.state.lock().lent -= 1;
            return;
        }
        while state.jobs.len() >= QUEUE_MAX && !state.closed && state.threads > 0 {
            shared.room.wait(&mut state);
        }
        if !state.closed && state.free <= state.jobs.len() {
            shared.grow(&mut state);
        }
        if state.closed || state.threads == 0 {
            drop(state);
            job();
            return;
        }
        let doing = activity::current();
        state.jobs.push_back(Box::new(move || {
            let _busy = doing.map(activity::resume);
            job();
        }));
        drop(state);
        shared.work.notify_one();
    }

    /// Lets the threads end once the jobs are done, and waits for that at most so long. False when some are still at work.
    pub(super) fn close(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let mut state = self.shared.state.lock();
        state.closed = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        while state.threads > 0 {
            if self.shared.ended.wait_until(&mut state, deadline).timed_out() {
                return state.threads == 0;
            }
        }
        true
    }
}

impl Crew for Shared {
    fn begins_to_wait(&self) -> bool {
        let mut state = self.state.lock();
        if state.waiting >= self.waiting_max {
            return false;
        }
        state.waiting += 1;
        if state.free < state.jobs.len() {
            self.grow(&mut state);
        }
        true
    }

    fn goes_on(&self) {
        self.state.lock().waiting -= 1;
    }
}

impl Shared {
    /// One thread more, if there may be.
    fn grow(&self, state: &mut State) {
        let Some(shared) = self.me.upgrade() else { return };
        if state.threads - state.waiting >= self.threads_max {
            return;
        }
        let thread = std::thread::Builder::new()
            .name("fuse-wait".into())
            .spawn(move || shared.serve());
        match thread {
            Ok(_detached) => state.threads += 1,
            Err(error) => tracing::warn!("no further thread for waiting operations: {error}"),
        }
    }

    fn serve(self: Arc<Self>) {
        activity::join(Arc::clone(&self) as Arc<dyn Crew>);
        let mut state = self.state.lock();
        loop {
            // Some that waited for other computers are back at work: enough are here without this one.
            if state.threads - state.waiting > self.threads_max {
                break;
            }
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                self.room.notify_one();
                guarded(job);
                state = self.state.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.free += 1;
            let timed_out = self.work.wait_for(&mut state, self.idle).timed_out();
            state.free -= 1;
            if timed_out && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
        self.ended.notify_all();
    }
}

/// A fault in a job costs that job only: the reply that it held answers EIO when it is dropped.
fn guarded(job: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
        tracing::error!("a fault in dfs: a filesystem operation failed without a reason; please report it");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn jobs_that_wait_do_not_hold_up_others() {
        let pool = Pool::with(8, 8, 0, LONG);
        let (release, waiting) = mpsc::channel::<()>();
        let waiting = Arc::new(Mutex::new(waiting));
        pool.run({
            let waiting = Arc::clone(&waiting);
            move || waiting.lock().recv_timeout(LONG).unwrap()
        });
        let (done, finished) = mpsc::channel();
        pool.run(move || done.send(()).unwrap());
        finished
            .recv_timeout(LONG)
            .expect("the second job runs while the first waits");
        release.send(()).unwrap();
        assert!(pool.close(LONG));
    }

    #[test]
    fn never_more_threads_than_allowed_and_every_job_runs() {
        let pool = Pool::with(3, 8, 0, LONG);
        let (running, most, done) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        for _ in 0..200 {
            let (running, most, done) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&done));
            pool.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert!(pool.close(LONG));
        assert_eq!(done.load(Ordering::SeqCst), 200);
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)));
    }

    #[test]
    fn threads_that_wait_for_other_computers_take_nobodys_place() {
        let pool = Pool::with(2, 5, 0, LONG);
        let (release, held) = crossbeam_channel::bounded::<()>(0);
        let (refused, said) = mpsc::channel();
        let waits = |pool: &Pool| {
            let (held, refused) = (held.clone(), refused.clone());
            pool.run(move || match activity::wait(activity::Waits::Network) {
                Ok(_waiting) => drop(held.recv_timeout(LONG)),
                Err(reason) => refused.send(reason).unwrap(),
            });
        };
        for _ in 0..5 {
            waits(&pool);
        }
        for _ in 0..20 {
            let (done, finished) = mpsc::channel();
            pool.run(move || done.send(()).unwrap());
            finished.recv_timeout(LONG).expect("work goes on while five wait");
        }
        waits(&pool);
        assert_eq!(said.recv_timeout(LONG), Ok(activity::Refused::Crowded));
        assert!(pool.shared.state.lock().threads <= 7, "{pool:?}");
        drop(release);
        assert!(pool.close(LONG));
        assert_eq!(pool.shared.state.lock().waiting, 0);
    }

    #[test]
    fn few_jobs_run_where_they_came_to_and_a_fault_gives_the_place_back() {
        let pool = Pool::with(2, 5, 2, LONG);
        let here = std::thread::current().id();
        let place = |pool: &Pool| {
            let (tell, told) = mpsc::channel();
            pool.run(move || tell.send(std::thread::current().id()).unwrap());
            told.recv_timeout(LONG).unwrap()
        };
        pool.run(|| panic!("a job failed (this message is expected)"));
        assert_eq!(place(&pool), here);
        let (within, inner) = (pool.clone(), pool.clone());
        pool.run(move || {
            assert_eq!(place(&within), here, "two at once");
            within.run(move || assert_ne!(place(&inner), here, "and no third"));
        });
        assert_eq!(place(&pool), here);
        assert!(pool.close(LONG));
        assert_eq!(pool.shared.state.lock().lent, 0);
    }

    #[test]
    fn idle_threads_end_and_new_ones_come() {
        let pool = Pool::with(4, 8, 0, Duration::from_millis(1));
        for _ in 0..3 {
            let (done, finished) = mpsc::channel();
            pool.run(move || done.send(()).unwrap());
            finished.recv_timeout(LONG).unwrap();
            let mut state = pool.shared.state.lock();
            while state.threads > 0 {
                assert!(
                    !pool.shared.ended.wait_for(&mut state, LONG).timed_out(),
                    "the thread ends by itself"
                );
            }
        }
    }

    #[test]
    fn a_closed_pool_runs_jobs_at_once() {
        let pool = Pool::with(4, 8, 0, LONG);
        assert!(pool.close(LONG));
        let (done, finished) = mpsc::channel();
        pool.run(move || done.send(()).unwrap());
        finished.try_recv().expect("done by the caller");
    }

    #[test]
    fn a_panic_costs_one_job_only() {
        let pool = Pool::with(1, 8, 0, LONG);
        pool.run(|| panic!("a job failed (this message is expected)"));
        let (done, finished) = mpsc::channel();
        pool.run(move || done.send(()).unwrap());
        finished.recv_timeout(LONG).expect("the thread lives on");
        assert!(pool.close(LONG));
    }
}
