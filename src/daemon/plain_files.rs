//! Takes plain files that lie in the folder into the volume, at the start and while the daemon runs, on a thread of its own.
//!
//! Where the mount covers the folder nobody can drop a file into it, so one look, repeated until every file has come to rest, is enough.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::folder::listener::Listener;
use crate::volume::Volume;

/// Pause before files that were just being written are looked at again.
const AGAIN: Duration = Duration::from_secs(2);
/// Pause between two looks when nothing was heard: events can be lost.
const REGULARLY: Duration = Duration::from_secs(300);
/// How soon the end of the daemon is noticed.
const STEP: Duration = Duration::from_millis(200);

/// The running import. Ends with its present pass when dropped.
#[derive(Debug)]
pub(super) struct PlainFiles {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PlainFiles {
    /// Begins with a first look. `watched` is the folder, unless the mount covers it.
    pub(super) fn start(volume: &Arc<Volume>, watched: Option<&Path>) -> std::io::Result<Self> {
        let listener = watched.and_then(|folder| match Listener::start(folder) {
            Ok(listener) => Some(listener),
            Err(e) => {
                tracing::warn!("{e}");
                None
            }
        });
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("plain-files".into()).spawn({
            let (stop, volume, covered) = (Arc::clone(&stop), Arc::clone(volume), watched.is_none());
            move || run(&volume, listener.as_ref(), covered, &stop)
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for PlainFiles {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the import of plain files panicked");
        }
    }
}

fn run(volume: &Volume, listener: Option<&Listener>, covered: bool, stop: &AtomicBool) {
    // Where to look: everywhere at first.
    let mut places = vec![PathBuf::new()];
    while !stop.load(Ordering::SeqCst) {
        places.retain(|place| pass(volume, place));
        if covered && places.is_empty() {
            return;
        }
        let until = Instant::now() + if places.is_empty() { REGULARLY } else { AGAIN };
        let mut heard = Vec::new();
        while !stop.load(Ordering::SeqCst) && heard.is_empty() && Instant::now() < until {
            match listener {
                Some(listener) => {
                    heard = listener.wait(STEP);
                    if !heard.is_empty() {
                        // Whoever makes one makes more: one look for all of them.
                        std::thread::sleep(STEP);
                        heard.extend(listener.wait(Duration::ZERO));
                    }
                }
                None => std::thread::sleep(STEP),
            }
        }
        if heard.is_empty() && places.is_empty() {
            heard.push(PathBuf::new());
        }
        heard.retain(|place| !places.contains(place));
        places.append(&mut heard);
    }
}

/// Imports what there is in and below a directory; true when files are left for later.
fn pass(volume: &Volume, place: &Path) -> bool {
    match volume.import_below(place, &mut |_| {}) {
        Ok(done) => {
            for failure in &done.failures {
                tracing::warn!("plain file not imported: {failure}");
            }
            if done.files > 0 {
                tracing::info!(files = done.files, bytes = done.bytes, "plain files imported");
            }
            done.waiting > 0
        }
        Err(e) => {
            tracing::warn!("plain files not imported: {e}");
            false
        }
    }
}
