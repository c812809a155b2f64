//! Whoever listens to events, seen from the daemon: told one after another, for as long as it takes them, and never waited for by anybody else.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::events::Event;
use super::line;
use super::message::Reply;

/// How often it is looked whether a listener that takes nothing is still there, and still wanted.
const LOOK: Duration = Duration::from_millis(500);

/// The other end of a stream of events.
#[derive(Debug)]
pub struct Caller<'a> {
    stream: &'a UnixStream,
}

impl<'a> Caller<'a> {
    pub(super) fn new(stream: &'a UnixStream) -> std::io::Result<Self> {
        stream.set_write_timeout(Some(LOOK))?;
        Ok(Self { stream })
    }

    /// Tells an event, and waits for as long as the listener needs to make room for it. Fails when it is gone, or when `is_over` says so.
    pub fn tell(&self, event: Event, is_over: impl Fn() -> bool) -> std::io::Result<()> {
        let bytes = line::encode(&Reply::Event(event))?;
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            match (&mut &*self.stream).write(left) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => left = &left[written..],
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if is_over() || self.is_gone() {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether nobody listens any more.
    pub fn is_gone(&self) -> bool {
        let mut ready = [PollFd::new(self.stream, PollFlags::empty())];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let gone = PollFlags::HUP | PollFlags::ERR;
        poll(&mut ready, Some(&at_once)).is_ok() && ready[0].revents().intersects(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::super::events::What;
    use super::*;
    use std::cell::Cell;
    use std::io::{BufReader, Read};

    fn event(text: &str) -> Event {
        let text = text.to_owned();
        Event {
            time: 1,
            what: What::Warning { text },
        }
    }

    #[test]
    fn a_listener_takes_its_time_and_gets_whole_lines() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            // Slower than a look.
            std::thread::sleep(LOOK + LOOK / 2);
            let mut from = BufReader::new(theirs);
            let mut all = Vec::new();
            while let Some(Reply::Event(event)) = line::read::<Reply>(&mut from).unwrap() {
                all.push(event);
            }
            all
        });
        let caller = Caller::new(&ours).unwrap();
        assert!(!caller.is_gone());
        let long = "x".repeat(300_000);
        for text in [&*long, "short", &long] {
            caller.tell(event(text), || false).unwrap();
        }
        drop(ours);
        let all = reader.join().unwrap();
        assert_eq!(all, [event(&long), event("short"), event(&long)]);
    }

    #[test]
    fn nobody_is_told_for_ever() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let caller = Caller::new(&ours).unwrap();
        let asked = Cell::new(0);
        let is_over = || {
            asked.set(asked.get() + 1);
            asked.get() > 1
        };
        let long = event(&"x".repeat(900_000));
        // It reads nothing, and then it is over.
        assert!(caller.tell(long.clone(), is_over).is_err());
        assert_eq!(asked.get(), 2);
        // Half closed it still listens.
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!caller.is_gone());
        drop(theirs);
        assert!(caller.is_gone());
        assert!(caller.tell(long, || false).is_err());
        let mut rest = Vec::new();
        assert!(matches!((&ours).read_to_end(&mut rest), Ok(0) | Err(_)));
    }
}
