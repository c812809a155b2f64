//! What happens, told to everybody who listens: a bounded queue for each, so that nobody waits for one that is slow.
//!
//! Invariant: whoever missed events is told how many, in their place. Told by `trees`, heard by `listening`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::base::BlockId;
use crate::base::clock::{Clock, SystemClock};
use crate::control::{Event, Step, What};
use crate::sync::Engine;

/// Events that wait for one listener.
const QUEUE: usize = 256;

/// Most who listen: the control socket has places left for commands.
const LISTENERS_MAX: usize = 8;

/// Pause before conflict copies that could not be counted are counted again.
const COUNT_AGAIN: Duration = Duration::from_secs(60);

/// Where events are told.
#[derive(Debug, Default)]
pub(super) struct Hub {
    queues: Mutex<Vec<Arc<Queue>>>,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Event>,
    /// Events for which there was no room, after those that wait.
    lost: u64,
}

/// What a listener hears next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// This.
    Event(Event),
    /// So many events had no room.
    Lost(u64),
    /// Nothing within the time.
    Nothing,
    /// Nothing more.
    Closed,
}

/// Hears what is told from now on.
#[derive(Debug)]
pub(super) struct Listener {
    hub: Arc<Hub>,
    queue: Arc<Queue>,
}

impl Hub {
    /// Tells everybody.
    pub(super) fn tell(&self, what: What) {
        let queues = self.queues.lock();
        if queues.is_empty() {
            return;
        }
        let event = Event {
            time: SystemClock.now(),
            what,
        };
        for queue in queues.iter() {
            let mut waiting = queue.waiting.lock();
            // In order: what comes after something that was lost waits for that to be told.
            match waiting.lost == 0 && waiting.events.len() < QUEUE {
                true => waiting.events.push_back(event.clone()),
                false => waiting.lost += 1,
            }
            queue.rung.notify_all();
        }
    }

    /// Listens; `None` when enough others do.
    pub(super) fn listen(self: &Arc<Self>) -> Option<Listener> {
        let mut queues = self.queues.lock();
        let queue = Arc::<Queue>::default();
        (queues.len() < LISTENERS_MAX).then(|| queues.push(Arc::clone(&queue)))?;
        Some(Listener {
            hub: Arc::clone(self),
            queue,
        })
    }

    /// Nothing is told any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for queue in self.queues.lock().iter() {
            // Whoever is about to wait has looked, or waits already.
            drop(queue.waiting.lock());
            queue.rung.notify_all();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Listener {
    /// The next event, waited for at most so long.
    pub(super) fn next(&self, at_most: Duration) -> Heard {
        let until = Instant::now() + at_most;
        let mut waiting = self.queue.waiting.lock();
        loop {
            if let Some(event) = waiting.events.pop_front() {
                return Heard::Event(event);
            }
            if waiting.lost > 0 {
                return Heard::Lost(std::mem::take(&mut waiting.lost));
            }
            if self.hub.is_closed() {
                return Heard::Closed;
            }
            if self.queue.rung.wait_until(&mut waiting, until).timed_out() {
                return Heard::Nothing;
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut queues = self.hub.queues.lock();
        queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
    }
}

/// Follows the folder from snapshot to snapshot, tells of it, and knows how many conflict copies there are.
#[derive(Debug)]
pub(super) struct Follower {
    hub: Arc<Hub>,
    count: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    /// At this snapshot there were so many.
    known: Option<(Option<BlockId>, u64)>,
    failed: Option<Instant>,
}

impl Follower {
    pub(super) fn new(hub: &Arc<Hub>) -> Self {
        Self {
            hub: Arc::clone(hub),
            count: Mutex::default(),
        }
    }

    /// Where events are told.
    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Conflict copies in the newest snapshot that was looked at.
    pub(super) fn conflicts(&self) -> Option<u64> {
        self.count.lock().known.map(|(_, count)| count)
    }

    /// Looks where the folder came to since the last time.
    pub(super) fn look(&self, engine: &Engine) {
        for arrival in engine.take_arrivals() {
            let news = engine.news(arrival.from.as_ref(), &arrival.to);
            let news = news
                .inspect_err(|error| tracing::debug!(%error, "what changed cannot be told"))
                .ok();
            let mut count = self.count.lock();
            count.known = match (count.known, &news) {
                (Some((at, known)), Some(news)) if at == arrival.from => {
                    Some((Some(arrival.to), (known + news.came).saturating_sub(news.went)))
                }
                (known, _) => known.filter(|(at, _)| *at == Some(arrival.to)),
            };
            drop(count);
            let step = Step {
                snapshot: arrival.to,
                changes: news.as_ref().map(|news| news.changes),
                paths: news.as_ref().map_or_else(Vec::new, |news| news.paths.clone()),
            };
            self.hub.tell(match arrival.made_here {
                true => What::Committed(step),
                false => What::Applied(step),
            });
            for path in news.into_iter().flat_map(|news| news.conflicts) {
                self.hub.tell(What::Conflict { path });
            }
        }
        self.count_once(engine);
    }

    /// Counts all conflict copies, unless their number is known.
    fn count_once(&self, engine: &Engine) {
        let mut count = self.count.lock();
        let is_late = count.failed.is_none_or(|failed| failed.elapsed() >= COUNT_AGAIN);
        if count.known.is_some() || !is_late {
            return;
        }
        let head = engine.journal().head;
        match head.map_or(Ok(0), |head| engine.count_conflicts(&head)) {
            Ok(found) => count.known = Some((head, found)),
            Err(error) => {
                tracing::debug!(%error, "conflict copies cannot be counted now");
                count.failed = Some(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::from_millis(1);

    fn warning(n: usize) -> What {
        What::Warning { text: n.to_string() }
    }

    fn next(listener: &Listener) -> Result<What, Heard> {
        match listener.next(AT_ONCE) {
            Heard::Event(event) => Ok(event.what),
            other => Err(other),
        }
    }

    #[test]
    fn a_slow_listener_is_told_how_much_it_missed() {
        let hub = Arc::<Hub>::default();
        hub.tell(warning(0));
        let (slow, quick) = (hub.listen().unwrap(), hub.listen().unwrap());
        for n in 1..=QUEUE + 10 {
            hub.tell(warning(n));
            assert_eq!(next(&quick), Ok(warning(n)));
        }
        assert_eq!(next(&slow), Ok(warning(1)));
        // There is room again, but first it is to be told what is missing.
        hub.tell(warning(1000));
        for n in 2..=QUEUE {
            assert_eq!(next(&slow), Ok(warning(n)));
        }
        assert_eq!(next(&slow), Err(Heard::Lost(11)));
        assert_eq!(next(&slow), Err(Heard::Nothing));
        hub.tell(warning(1001));
        hub.close();
        assert_eq!(next(&slow), Ok(warning(1001)));
        assert_eq!(next(&slow), Err(Heard::Closed));
    }

    #[test]
    fn as_many_as_there_are_places_listen() {
        let hub = Arc::<Hub>::default();
        let mut all: Vec<Listener> = (0..LISTENERS_MAX).map(|_| hub.listen().unwrap()).collect();
        assert!(hub.listen().is_none());
        all.pop();
        assert!(hub.listen().is_some());
        // Whoever waits is woken at the end.
        let waits = hub.listen().unwrap();
        let thread = std::thread::spawn(move || waits.next(Duration::from_secs(60)));
        hub.close();
        assert_eq!(thread.join().unwrap(), Heard::Closed);
    }
}
