//! Tells when something in the folder may have changed from outside: the cue to look for plain files to import.
//!
//! Only a cue, and where: which files they are, and whether they are complete, is found by looking. Called by `daemon` when no mount covers the folder.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::base::names::{MARKER, TEMP_PREFIX};

/// Places remembered one by one; beyond this the whole folder is to be looked at.
const PLACES_MAX: usize = 4096;

/// How long events collect in the kernel, which keeps 16,384 (`fs.inotify.max_queued_events`), before they are read: the volume's own work
/// on its `.f` files makes thousands of them a second, and each read wakes a thread.
const COLLECT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 150_000_000,
};

/// Bytes of events read at once.
const READ_BYTES: usize = 64 << 10;

/// What can mean new plain files, or new paths of watched directories (inotify(7)). That a watch has ended (`IN_IGNORED`) is told unasked.
/// Without `IN_EXCL_UNLINK`: a file made with `O_TMPFILE` and given its name by linkat is closed under no name, and must be heard.
const MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR);

/// Why the folder, or a directory in it, cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot watch {folder} for new files: {reason}; they are still found every few minutes and at every start"
)]
pub struct ListenError {
    folder: String,
    reason: String,
}

impl ListenError {
    fn new(folder: &Path, error: &std::io::Error) -> Self {
        Self {
            folder: folder.display().to_string(),
            reason: if is_limit(error) {
                "the limit of watches is reached, raise fs.inotify.max_user_watches with sysctl".to_owned()
            } else {
                error.to_string()
            },
        }
    }
}

/// Watches a folder and everything below it. Dropping it ends the watch.
#[derive(Debug)]
pub struct Listener {
    heard: Arc<Heard>,
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Where to look, and the bell that says so.
#[derive(Debug, Default)]
struct Heard {
    places: Mutex<BTreeSet<PathBuf>>,
    bell: Condvar,
}

impl Listener {
    /// Begins to watch. Uses one inotify watch for each directory.
    pub fn start(folder: &Path) -> Result<Self, ListenError> {
        let fail = |error: std::io::Error| ListenError::new(folder, &error);
        let watched = Watched::start(folder)?;
        let (stopped, stop) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
        let heard = Arc::<Heard>::default();
        let thread = std::thread::Builder::new()
            .name("listener".into())
            .spawn({
                let heard = Arc::clone(&heard);
                move || {
                    if let Err(e) = listen(watched, &stopped, &heard) {
                        tracing::warn!("{e}");
                    }
                }
            })
            .map_err(fail)?;
        Ok(Self {
            heard,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Waits for a cue, at most `timeout`. Returns the directories to look in and below, relative to the folder; none when there was no cue.
    pub fn wait(&self, timeout: Duration) -> Vec<PathBuf> {
        let mut places = self.heard.places.lock();
        self.heard
            .bell
            .wait_while_for(&mut places, |places| places.is_empty(), timeout);
        topmost(std::mem::take(&mut *places))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the listener for new files panicked");
        }
    }
}

/// Passes on what is heard until the other end of `stop` is closed.
fn listen(mut watched: Watched, stop: &OwnedFd, heard: &Heard) -> Result<(), ListenError> {
    let top = watched.top.clone();
    let fail = |error: std::io::Error| ListenError::new(&top, &error);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(watched.inotify.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(fail(e.into())),
            Ok(_) if !ready[0].revents().is_empty() => return Ok(()),
            Ok(_) => {}
        }
        match poll(&mut ready[..1], Some(&COLLECT)) {
            Err(Errno::INTR) | Ok(0) => {}
            Err(e) => return Err(fail(e.into())),
            Ok(_) => return Ok(()),
        }
        while let Some(new) = watched.read(&mut buffer).map_err(fail)? {
            let mut places = heard.places.lock();
            places.extend(new);
            if places.len() > PLACES_MAX {
                *places = BTreeSet::from([PathBuf::new()]);
            }
            if !places.is_empty() {
                heard.bell.notify_one();
            }
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

/// The directories that are watched, and what their events mean.
///
/// Every event is taken for a cue to look at what is there now: what it was about may have been moved on or removed since, and then more
/// events follow.
#[derive(Debug)]
struct Watched {
    inotify: Inotify,
    top: PathBuf,
    /// Paths relative to the top. An inode keeps its watch wherever it is moved to.
    paths: HashMap<WatchDescriptor, PathBuf>,
    /// The limit of watches was reached, and the user told.
    is_limited: bool,
}

impl Watched {
    fn start(top: &Path) -> Result<Self, ListenError> {
        let fail = |error: std::io::Error| ListenError::new(top, &error);
        let mut watched = Self {
            inotify: Inotify::init().map_err(fail)?,
            top: top.to_owned(),
            paths: HashMap::new(),
            is_limited: false,
        };
        watched.add_below(Path::new("")).map_err(fail)?;
        Ok(watched)
    }

    /// Watches a directory and everything below it, under their present paths. Below the top, what is not there any more or may not be
    /// read is passed over: the import cannot read it either.
    fn add_below(&mut self, place: &Path) -> std::io::Result<()> {
        let mut todo = vec![place.to_owned()];
        while let Some(place) = todo.pop() {
            // The watch comes first: what is created after it makes an event, what was there before is listed.
            match self.add(&place) {
                Ok(watch) => self.paths.insert(watch, place.clone()),
                Err(e) if is_limit(&e) || place.as_os_str().is_empty() => return Err(e),
                Err(_) => continue,
            };
            let Ok(entries) = self.top.join(&place).read_dir() else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    todo.push(place.join(entry.file_name()));
                }
            }
        }
        Ok(())
    }

    fn add(&self, place: &Path) -> std::io::Result<WatchDescriptor> {
        let mask = if place.as_os_str().is_empty() {
            MASK
        } else {
            MASK | WatchMask::DONT_FOLLOW
        };
        self.inotify.watches().add(self.top.join(place), mask)
    }

    fn add_new(&mut self, place: &Path) {
        if let Err(e) = self.add_below(place)
            && !self.is_limited
        {
            self.is_limited = is_limit(&e);
            tracing::warn!("{}", ListenError::new(&self.top.join(place), &e));
        }
    }

    /// Reads the next events, as many as fit into `buffer`, and returns where to look; nothing when there are no more.
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<Option<BTreeSet<PathBuf>>> {
        let events = match self.inotify.read_events(buffer) {
            Ok(events) => events,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Ok(Some(BTreeSet::new())),
            Err(e) => return Err(e),
        };
        let mut places = BTreeSet::new();
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                self.start_over();
                places.insert(PathBuf::new());
            } else if event.mask.contains(EventMask::IGNORED) {
                self.paths.remove(&event.wd);
            } else if event.mask.contains(EventMask::MOVE_SELF) {
                self.check(&event.wd);
            } else if let Some(name) = event.name
                && let Some(place) = self.place_of(&event.wd, event.mask, name)
            {
                places.insert(place);
            }
        }
        Ok(Some(places))
    }

    /// Where an event may mean new plain files. The volume's own writes to `.f` files and their temporary names mean none; a directory
    /// that it makes itself is looked into, which costs little while it is new.
    fn place_of(&mut self, watch: &WatchDescriptor, mask: EventMask, name: &OsStr) -> Option<PathBuf> {
        let is_temp = name.as_bytes().starts_with(TEMP_PREFIX.as_bytes());
        let is_directory = mask.contains(EventMask::ISDIR);
        if !is_directory && (is_temp || name.as_bytes().ends_with(b".f") || name == MARKER) {
            return None;
        }
        // Unknown: it has left the folder, or a later event says where it is now.
        let parent = self.paths.get(watch)?;
        if is_directory {
            let place = parent.join(name);
            self.add_new(&place);
            return (!is_temp).then_some(place);
        }
        // A file that was just created will be closed. Links and special files are complete as they are.
        let is_to_come = mask.contains(EventMask::CREATE)
            && std::fs::symlink_metadata(self.top.join(parent).join(name))
                .map_or(true, |meta| meta.is_file() && meta.nlink() == 1);
        (!is_to_come).then(|| parent.clone())
    }

    /// Forgets a directory that was moved, and all below it, unless it is where it is thought to be: an event of its new parent, if that
    /// is in the folder, has said so or will.
    fn check(&mut self, watch: &WatchDescriptor) {
        let Some(place) = self.paths.get(watch).cloned() else {
            return;
        };
        // The importer holds the top open, and finds what lies in it wherever it is.
        if place.as_os_str().is_empty() || self.add(&place).is_ok_and(|there| there == *watch) {
            return;
        }
        let left = self.paths.extract_if(|_, path| path.starts_with(&place));
        for (watch, _) in left {
            // Fails when the directory is gone, and its watch with it.
            let _ = self.inotify.watches().remove(watch);
        }
    }

    /// Watches what is there now, after events were lost.
    fn start_over(&mut self) {
        let before = std::mem::take(&mut self.paths);
        self.add_new(Path::new(""));
        for (watch, _) in before {
            if !self.paths.contains_key(&watch) {
                let _ = self.inotify.watches().remove(watch);
            }
        }
    }
}

/// Whether no more watches are to be had.
fn is_limit(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
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

    /// The places of all events so far: the kernel has queued them when the call that makes them returns.
    fn heard(watched: &mut Watched) -> Vec<PathBuf> {
        let mut buffer = vec![0; READ_BYTES];
        let mut places = BTreeSet::new();
        while let Some(new) = watched.read(&mut buffer).unwrap() {
            places.extend(new);
        }
        topmost(places)
    }

    /// The paths that are watched, in order.
    fn paths(watched: &Watched) -> Vec<&str> {
        let paths: BTreeSet<_> = watched
            .paths
            .values()
            .map(|path| path.to_str().unwrap())
            .collect();
        assert_eq!(paths.len(), watched.paths.len(), "no path has two watches");
        paths.into_iter().collect()
    }

    fn write(path: impl AsRef<Path>) {
        std::fs::write(path, b"x").unwrap();
    }

    #[test]
    fn a_waiting_caller_hears_of_plain_files_and_not_of_manifests() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let listener = Listener::start(temp.path()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| listener.wait(Duration::from_secs(60)));
            for _ in 0..100 {
                write(at("a.f"));
                std::fs::rename(at("a.f"), at("b.f")).unwrap();
                std::fs::remove_file(at("b.f")).unwrap();
                write(at(".dfs-tmp-1"));
            }
            // Longer than events collect: the first cue would be of the top if any of these were one.
            std::thread::sleep(Duration::from_millis(300));
            std::fs::create_dir(at("d")).unwrap();
            assert_eq!(waiting.join().unwrap(), [Path::new("d")]);
        });
        write(at("d/plain"));
        assert_eq!(listener.wait(Duration::from_secs(60)), [Path::new("d")]);
        assert!(listener.wait(Duration::ZERO).is_empty());
    }

    #[test]
    fn a_file_is_a_cue_when_it_is_complete() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir(at("d")).unwrap();
        let mut watched = Watched::start(temp.path()).unwrap();
        let file = std::fs::File::create(at("d/plain")).unwrap();
        assert_eq!(heard(&mut watched), [] as [&Path; 0], "somebody is writing it");
        drop(file);
        assert_eq!(heard(&mut watched), [Path::new("d")]);
        std::fs::hard_link(at("d/plain"), at("linked")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("")]);
        std::os::unix::fs::symlink("plain", at("d/symlink")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("d")]);
        std::fs::rename(at("d/plain"), at("moved")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("")]);
        let nameless = rustix::fs::open(
            at("d"),
            rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::WRONLY,
            rustix::fs::Mode::RUSR,
        )
        .unwrap();
        let proc = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&nameless));
        let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(rustix::fs::CWD, proc, rustix::fs::CWD, at("d/named"), follow).unwrap();
        drop(nameless);
        assert_eq!(heard(&mut watched), [Path::new("d")]);
    }

    #[test]
    fn a_tree_that_was_made_before_its_watch_is_watched_whole() {
        let temp = tempfile::tempdir().unwrap();
        let mut watched = Watched::start(temp.path()).unwrap();
        std::fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        write(temp.path().join("a/b/c/plain"));
        assert_eq!(heard(&mut watched), [Path::new("a")]);
        assert_eq!(paths(&watched), ["", "a", "a/b", "a/b/c"]);
        write(temp.path().join("a/b/c/more"));
        assert_eq!(heard(&mut watched), [Path::new("a/b/c")]);
        std::fs::remove_dir_all(temp.path().join("a/b")).unwrap();
        assert_eq!(heard(&mut watched), [] as [&Path; 0]);
        assert_eq!(paths(&watched), ["", "a"]);
    }

    #[test]
    fn a_directory_that_is_moved_is_heard_under_its_new_path() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(at("a/sub")).unwrap();
        std::fs::create_dir(at("other")).unwrap();
        let mut watched = Watched::start(temp.path()).unwrap();
        std::fs::rename(at("a"), at("other/b")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("other/b")]);
        assert_eq!(paths(&watched), ["", "other", "other/b", "other/b/sub"]);
        write(at("other/b/sub/plain"));
        assert_eq!(heard(&mut watched), [Path::new("other/b/sub")]);
        // Twice before anything is read, with a new file in between.
        std::fs::rename(at("other/b"), at("c")).unwrap();
        write(at("c/sub/more"));
        std::fs::rename(at("c"), at("d")).unwrap();
        assert!(heard(&mut watched).contains(&PathBuf::from("d")));
        assert_eq!(paths(&watched), ["", "d", "d/sub", "other"]);
        write(at("d/sub/last"));
        assert_eq!(heard(&mut watched), [Path::new("d/sub")]);
    }

    #[test]
    fn a_directory_that_leaves_is_forgotten_until_it_comes_back() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(at("folder/a/sub")).unwrap();
        let mut watched = Watched::start(&at("folder")).unwrap();
        std::fs::rename(at("folder/a"), at("away")).unwrap();
        // Another in its place is not taken for it.
        std::fs::create_dir(at("folder/a")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("a")]);
        write(at("away/sub/plain"));
        assert_eq!(heard(&mut watched), [] as [&Path; 0]);
        assert_eq!(paths(&watched), ["", "a"]);
        std::fs::remove_dir(at("folder/a")).unwrap();
        std::fs::rename(at("away"), at("folder/a")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("a")]);
        assert_eq!(paths(&watched), ["", "a", "a/sub"]);
        // Away and back before anything is read.
        std::fs::rename(at("folder/a"), at("away")).unwrap();
        std::fs::rename(at("away"), at("folder/a")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("a")]);
        write(at("folder/a/sub/more"));
        assert_eq!(heard(&mut watched), [Path::new("a/sub")]);
    }

    #[test]
    fn after_lost_events_everything_is_looked_at_and_watched_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        std::fs::create_dir_all(at("folder/old/sub")).unwrap();
        let mut watched = Watched::start(&at("folder")).unwrap();
        let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        write(at("folder/1.f"));
        for _ in 0..limit.div_ceil(2) {
            std::fs::rename(at("folder/1.f"), at("folder/2.f")).unwrap();
            std::fs::rename(at("folder/2.f"), at("folder/1.f")).unwrap();
        }
        // Of these the kernel does not tell.
        std::fs::rename(at("folder/old"), at("away")).unwrap();
        std::fs::create_dir_all(at("folder/new/sub")).unwrap();
        assert_eq!(heard(&mut watched), [Path::new("")]);
        assert_eq!(paths(&watched), ["", "new", "new/sub"]);
        write(at("folder/new/sub/plain"));
        write(at("away/sub/plain"));
        assert_eq!(heard(&mut watched), [Path::new("new/sub")]);
    }
}
