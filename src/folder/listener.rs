//! Tells when something in the folder may have changed from outside: the cue to look for plain files to import.
//!
//! Only a cue: which files they are, and whether they are complete, is found by looking. Called by `daemon` when no mount covers the folder.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// Why the folder cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot watch {folder} for new files: {reason}; they are still found every few minutes and at every start"
)]
pub struct ListenError {
    folder: String,
    reason: String,
}

/// Watches a folder and everything below it. Dropping it ends the watch.
#[derive(Debug)]
pub struct Listener {
    _watcher: RecommendedWatcher,
    cues: Receiver<()>,
    _sender: SyncSender<()>,
}

impl Listener {
    /// Begins to watch. Uses one inotify watch for each directory.
    pub fn start(folder: &Path) -> Result<Self, ListenError> {
        let fail = |error: notify::Error| ListenError {
            folder: folder.display().to_string(),
            reason: error.to_string(),
        };
        // One cue is as good as many.
        let (sender, cues) = sync_channel(1);
        let cue = sender.clone();
        let on_event = move |event: notify::Result<Event>| {
            if event.map_or(true, |event| is_cue(&event)) {
                // Full: a cue is waiting already.
                let _ = cue.try_send(());
            }
        };
        let mut watcher = RecommendedWatcher::new(on_event, Config::default()).map_err(fail)?;
        watcher.watch(folder, RecursiveMode::Recursive).map_err(fail)?;
        Ok(Self {
            _watcher: watcher,
            cues,
            _sender: sender,
        })
    }

    /// Waits for a cue, at most `timeout`. Says whether there was one.
    pub fn wait(&self, timeout: Duration) -> bool {
        match self.cues.recv_timeout(timeout) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }
}

/// Whether an event may mean a new plain file. The volume's own writes to `.f` files and their temporary names do not.
fn is_cue(event: &Event) -> bool {
    let kind = matches!(
        event.kind,
        EventKind::Create(_)
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Access(AccessKind::Close(AccessMode::Write))
    );
    let foreign = |path: &std::path::PathBuf| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        !name.ends_with(".f") && !name.starts_with(crate::base::names::TEMP_PREFIX)
    };
    kind && (event.paths.is_empty() || event.paths.iter().any(foreign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_plain_files_are_a_cue_also_in_new_directories_and_manifests_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let listener = Listener::start(temp.path()).unwrap();
        std::fs::write(temp.path().join("a.f"), b"x").unwrap();
        assert!(!listener.wait(Duration::from_millis(200)));
        std::fs::create_dir(temp.path().join("d")).unwrap();
        assert!(listener.wait(Duration::from_secs(10)));
        // The watch on the new directory is set up by another thread.
        while listener.wait(Duration::from_millis(200)) {}
        std::fs::write(temp.path().join("d/plain"), b"x").unwrap();
        assert!(listener.wait(Duration::from_secs(10)));
    }
}
