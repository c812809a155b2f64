//! What each thread is doing, for which inode and since when, and what it waits for: so that a daemon that stops answering can say why,
//! and so that whoever must not wait for the network does not.
//!
//! Invariant: a thread changes only its own entry, and an entry is locked only for the moment of the change: reading them all never waits
//! for what they are waiting for. Called by whoever works on a request; read by the watchdog.

use std::cell::RefCell;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

/// A piece of work for somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doing {
    /// What, e.g. `read`.
    pub operation: &'static str,
    /// For which inode of the mount; zero: none in particular.
    pub ino: u64,
    /// When it was asked for.
    pub began: Instant,
}

/// What a thread may have to wait for that depends on other computers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// A block that only others have.
    Network,
    /// Another operation on the same file, which may be waiting for the network.
    File,
    /// Room in the budget for written data.
    Budget,
}

/// Why a thread may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It works for everybody: see [`impatient`].
    #[error("this thread may not wait for the network")]
    Impatient,
    /// Too many wait already.
    #[error("too many operations wait for other computers already")]
    Crowded,
}

/// Told when one of its threads begins to wait, so that others can do its work meanwhile.
pub trait Crew: Send + Sync {
    /// A thread is about to wait. False: too many do.
    fn begins_to_wait(&self) -> bool;
    /// It goes on.
    fn goes_on(&self);
}

/// What a thread is found doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Number of the thread in the system.
    pub thread: i32,
    /// Its work.
    pub doing: Doing,
    /// What it waits for, and since when.
    pub waits: Option<(Waits, Instant)>,
    /// When it last began something or went on after waiting.
    pub moved: Instant,
}

#[derive(Debug)]
struct State {
    doing: Option<Doing>,
    waits: Option<(Waits, Instant)>,
    moved: Instant,
}

#[derive(Debug)]
struct Entry {
    thread: i32,
    state: Mutex<State>,
}

struct Own {
    entry: Arc<Entry>,
    crew: Option<Arc<dyn Crew>>,
    impatient: bool,
}

static ENTRIES: Mutex<Vec<Weak<Entry>>> = Mutex::new(Vec::new());

thread_local! {
    static OWN: RefCell<Own> = RefCell::new(Own::new());
}

impl Own {
    fn new() -> Self {
        let state = State {
            doing: None,
            waits: None,
            moved: Instant::now(),
        };
        let entry = Arc::new(Entry {
            thread: rustix::thread::gettid().as_raw_nonzero().get(),
            state: Mutex::new(state),
        });
        let mut entries = ENTRIES.lock();
        // Threads that have ended.
        entries.retain(|entry| entry.strong_count() > 0);
        entries.push(Arc::downgrade(&entry));
        drop(entries);
        Self {
            entry,
            crew: None,
            impatient: false,
        }
    }
}

impl Waits {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Network => "a block that only other computers have",
            Self::File => "another operation on the same file",
            Self::Budget => "room for written data in memory",
        }
    }
}

/// This thread begins to work on something that was asked for now; until the guard is dropped.
pub fn begin(operation: &'static str, ino: u64) -> Busy {
    resume(Doing {
        operation,
        ino,
        began: Instant::now(),
    })
}

/// This thread goes on with what another began.
pub fn resume(doing: Doing) -> Busy {
    Busy {
        before: set(Some(doing)),
    }
}

/// What this thread is doing.
pub fn current() -> Option<Doing> {
    OWN.with_borrow(|own| own.entry.state.lock().doing)
}

/// From now on this thread tells `crew` when it waits.
pub fn join(crew: Arc<dyn Crew>) {
    OWN.with_borrow_mut(|own| own.crew = Some(crew));
}

/// From now on this thread does not wait for other computers, nor for who might be waiting for them: it works for every file.
pub fn impatient() {
    OWN.with_borrow_mut(|own| own.impatient = true);
}

/// This thread waits, until the guard is dropped.
///
/// # Errors
/// It may not.
pub fn wait(what: Waits) -> Result<Waiting, Refused> {
    let crew = OWN.with_borrow(|own| match own.impatient {
        true => Err(Refused::Impatient),
        false => Ok(own.crew.clone()),
    })?;
    if crew.as_ref().is_some_and(|crew| !crew.begins_to_wait()) {
        return Err(Refused::Crowded);
    }
    let now = Instant::now();
    OWN.with_borrow(|own| own.entry.state.lock().waits = Some((what, now)));
    Ok(Waiting { crew })
}

/// What every thread is doing that is doing anything.
pub fn all() -> Vec<Seen> {
    let entries: Vec<Arc<Entry>> = ENTRIES.lock().iter().filter_map(Weak::upgrade).collect();
    let seen = |entry: &Arc<Entry>| {
        let state = entry.state.lock();
        state.doing.map(|doing| Seen {
            thread: entry.thread,
            doing,
            waits: state.waits,
            moved: state.moved,
        })
    };
    entries.iter().filter_map(seen).collect()
}

fn set(doing: Option<Doing>) -> Option<Doing> {
    OWN.with_borrow(|own| {
        let mut state = own.entry.state.lock();
        state.moved = doing.map_or(state.moved, |_| Instant::now());
        std::mem::replace(&mut state.doing, doing)
    })
}

/// While it lives the thread is busy.
#[derive(Debug)]
#[must_use]
pub struct Busy {
    before: Option<Doing>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        set(self.before);
    }
}

/// While it lives the thread waits.
#[must_use]
pub struct Waiting {
    crew: Option<Arc<dyn Crew>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        OWN.with_borrow(|own| {
            let mut state = own.entry.state.lock();
            (state.waits, state.moved) = (None, Instant::now());
        });
        if let Some(crew) = &self.crew {
            crew.goes_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn own() -> Option<Seen> {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        all().into_iter().find(|seen| seen.thread == thread)
    }

    #[test]
    fn what_a_thread_does_and_waits_for_is_seen_and_ends() {
        assert_eq!(own(), None);
        let outer = begin("fsync", 7);
        {
            let _inner = begin("read", 8);
            assert_eq!(own().unwrap().doing.operation, "read");
            let waiting = wait(Waits::Network).unwrap();
            assert_eq!(own().unwrap().waits.unwrap().0, Waits::Network);
            drop(waiting);
            assert_eq!(own().unwrap().waits, None);
        }
        let seen = own().unwrap();
        assert_eq!((seen.doing.operation, seen.doing.ino), ("fsync", 7));
        drop(outer);
        assert_eq!(own(), None);
    }

    #[test]
    fn another_thread_goes_on_with_the_same_work() {
        let _busy = begin("write", 9);
        let doing = current().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _busy = resume(doing);
                assert_eq!(own().unwrap().doing, doing);
            });
        });
        let threads = all().len();
        assert!(threads >= 1);
    }

    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Crew for Counted {
        fn begins_to_wait(&self) -> bool {
            self.0.fetch_add(1, Ordering::SeqCst) == 0
        }
        fn goes_on(&self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_may_not_wait_is_told() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let crew = Arc::new(Counted::default());
                join(Arc::clone(&crew) as Arc<dyn Crew>);
                let waiting = wait(Waits::File).unwrap();
                assert_eq!(wait(Waits::File).err(), Some(Refused::Crowded));
                drop(waiting);
                crew.0.store(0, Ordering::SeqCst);
                drop(wait(Waits::Budget).unwrap());
                impatient();
                assert_eq!(wait(Waits::Network).err(), Some(Refused::Impatient));
            });
        });
    }
}
