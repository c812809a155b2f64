//! Tells when something in the folder may have changed from outside: the cue to look for plain files to import.
//!
//! Only a cue, and where: which files they are, and whether they are complete, is found by looking. Called by `daemon` when no mount covers the folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, CreateKind, ModifyKind};
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;

/// Places remembered one by one; beyond this the whole folder is to be looked at.
const PLACES_MAX: usize = 4096;

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
    places: Arc<Mutex<BTreeSet<PathBuf>>>,
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
        let places = Arc::<Mutex<BTreeSet<PathBuf>>>::default();
        let (seen, top) = (Arc::clone(&places), folder.to_owned());
        let on_event = move |event: notify::Result<Event>| {
            let heard = event.map_or_else(|_| vec![PathBuf::new()], |event| places_of(&event, &top));
            if !heard.is_empty() {
                let mut places = seen.lock();
                places.extend(heard);
                if places.len() > PLACES_MAX {
                    *places = BTreeSet::from([PathBuf::new()]);
                }
                drop(places);
                // Full: a cue is waiting already.
                let _ = cue.try_send(());
            }
        };
        let mut watcher = RecommendedWatcher::new(on_event, Config::default()).map_err(fail)?;
        watcher.watch(folder, RecursiveMode::Recursive).map_err(fail)?;
        Ok(Self {
            _watcher: watcher,
            places,
            cues,
            _sender: sender,
        })
    }

    /// Waits for a cue, at most `timeout`. Returns the directories to look in and below, relative to the folder; none when there was no cue.
    pub fn wait(&self, timeout: Duration) -> Vec<PathBuf> {
        match self.cues.recv_timeout(timeout) {
            Ok(()) => topmost(std::mem::take(&mut *self.places.lock())),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Vec::new(),
        }
    }
}

/// The directories that do not lie below another of them.
fn topmost(places: BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let mut kept: Vec<PathBuf> = Vec::new();
    for place in places {
        // In this order a directory comes right before what lies below it.
        if !kept.last().is_some_and(|above| place.starts_with(above)) {
            kept.push(place);
        }
    }
    kept
}

/// Where an event may mean new plain files. The volume's own writes to `.f` files and their temporary names mean none; a directory that
/// it makes itself is looked into, which costs little while it is new.
fn places_of(event: &Event, top: &Path) -> Vec<PathBuf> {
    let kind = matches!(
        event.kind,
        EventKind::Create(_)
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Access(AccessKind::Close(AccessMode::Write))
    );
    if event.need_rescan() {
        return vec![PathBuf::new()];
    }
    let foreign = |path: &&PathBuf| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        !name.ends_with(".f") && !name.starts_with(crate::base::names::TEMP_PREFIX)
    };
    let is_directory = |path: &Path| match event.kind {
        EventKind::Create(CreateKind::Folder) => true,
        EventKind::Modify(_) => path.is_dir(),
        _ => false,
    };
    let place = |path: &PathBuf| {
        let directory = if is_directory(path) { path } else { path.parent()? };
        directory.strip_prefix(top).ok().map(Path::to_owned)
    };
    let heard = event.paths.iter().filter(|_| kind);
    heard.filter(foreign).filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_another_place_is_looked_at_with_it() {
        let places = ["a", "a/b", "a/b/c", "a-b", "d/e", "d/e/f"].map(PathBuf::from);
        let kept = topmost(BTreeSet::from(places));
        assert_eq!(kept, ["a", "a-b", "d/e"].map(PathBuf::from));
        assert_eq!(
            topmost(BTreeSet::from(["", "a"].map(PathBuf::from))),
            [PathBuf::new()]
        );
    }

    #[test]
    fn new_plain_files_are_a_cue_also_in_new_directories_and_manifests_are_not() {
        let temp = tempfile::tempdir().unwrap();
        let listener = Listener::start(temp.path()).unwrap();
        std::fs::write(temp.path().join("a.f"), b"x").unwrap();
        assert!(listener.wait(Duration::from_millis(200)).is_empty());
        std::fs::create_dir(temp.path().join("d")).unwrap();
        assert_eq!(listener.wait(Duration::from_secs(10)), [Path::new("d")]);
        // The watch on the new directory is set up by another thread.
        while !listener.wait(Duration::from_millis(200)).is_empty() {}
        std::fs::write(temp.path().join("d/plain"), b"x").unwrap();
        assert_eq!(listener.wait(Duration::from_secs(10)), [Path::new("d")]);
        while !listener.wait(Duration::from_millis(200)).is_empty() {}
        let other = tempfile::tempdir_in(temp.path().parent().unwrap()).unwrap();
        std::fs::create_dir(other.path().join("moved")).unwrap();
        std::fs::rename(other.path().join("moved"), temp.path().join("moved")).unwrap();
        assert_eq!(listener.wait(Duration::from_secs(10)), [Path::new("moved")]);
    }
}
