//! Tells the kernel to forget what it has cached of a file that was changed from outside the mount, and gives it more of a file than it
//! asked for. Each has its own thread: the kernel may hold a lock that only an answer of the dispatch threads frees, so a notification
//! is never sent from a handler. Called by `daemon` (folder listener, sync) and by `calls`.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use fuser::{INodeNo, Notifier};

use crate::volume::{Beside, Volume};

/// Notifications that wait to be sent. Beyond it they are refused, and the time limit of cached entries does the work.
const QUEUE_MAX: usize = 4096;

/// Chunks that wait to be given to the kernel: as many as there may be requests at once.
const BESIDE_MAX: usize = 64;

enum Change {
    Entry { parent: u64, name: OsString },
    Removed { parent: u64, ino: u64, name: OsString },
    Inode { ino: u64 },
}

/// Sends invalidations; cheap to clone. Outlives the mount without harm.
#[derive(Debug, Clone)]
pub struct Invalidator {
    queue: Sender<Change>,
}

impl Invalidator {
    /// Starts the thread. It ends with the last clone, or with the session.
    pub(super) fn start(notifier: Notifier) -> std::io::Result<Self> {
        let (queue, changes) = crossbeam_channel::bounded(QUEUE_MAX);
        std::thread::Builder::new()
            .name("fuse-notify".into())
            .spawn(move || send(&notifier, &changes))?;
        Ok(Self { queue })
    }

    /// The name may mean something else by now. False when too many notifications wait already.
    pub fn invalidate_entry(&self, parent: u64, name: &OsStr) -> bool {
        self.push(Change::Entry {
            parent,
            name: name.to_owned(),
        })
    }

    /// The name is gone, and so is the inode, of which it was the last. Whoever watches that (inotify) is told.
    pub fn remove_entry(&self, parent: u64, ino: u64, name: &OsStr) -> bool {
        self.push(Change::Removed {
            parent,
            ino,
            name: name.to_owned(),
        })
    }

    /// Attributes and content of the inode may have changed. False when too many notifications wait already.
    pub fn invalidate_inode(&self, ino: u64) -> bool {
        self.push(Change::Inode { ino })
    }

    fn push(&self, change: Change) -> bool {
        match self.queue.try_send(change) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => false,
            // The mount is gone: nothing is cached any more.
            Err(TrySendError::Disconnected(_)) => true,
        }
    }
}

fn send(notifier: &Notifier, changes: &Receiver<Change>) {
    for change in changes {
        let sent = match &change {
            Change::Entry { parent, name } => notifier.inval_entry(INodeNo(*parent), name),
            Change::Removed { parent, ino, name } => notifier.delete(INodeNo(*parent), INodeNo(*ino), name),
            // From 0, length 0: everything.
            Change::Inode { ino } => notifier.inval_inode(INodeNo(*ino), 0, 0),
        };
        match sent {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => return,
            Err(error) => tracing::debug!("the kernel did not take an invalidation: {error}"),
        }
    }
}

/// Where chunks wait that the kernel is to keep whole.
pub(super) fn beside() -> (Sender<Beside>, Receiver<Beside>) {
    crossbeam_channel::bounded(BESIDE_MAX)
}

/// Starts the thread that gives them. It ends with the adapter, or with the session.
pub(super) fn give_beside(
    notifier: Notifier,
    volume: Arc<Volume>,
    waiting: Receiver<Beside>,
) -> std::io::Result<()> {
    let give = move || {
        for beside in waiting {
            volume.give_beside(&beside, |ino, offset, bytes| {
                if let Err(error) = notifier.store(INodeNo(ino), offset, bytes) {
                    tracing::debug!("the kernel did not take what was opened beside a read: {error}");
                }
            });
        }
    };
    std::thread::Builder::new()
        .name("fuse-beside".into())
        .spawn(give)?;
    Ok(())
}
