//! Storey 3: the filesystem without a kernel. Every operation is synchronous, may be called from any thread, and waits no longer than
//! the fetch timeout. Called by `fuse` and by `daemon` (import, export).
//!
//! `tree` finds and changes names, `attributes` what inodes carry, `handles` what is open; `read`, `spill` and `write_back` move content between
//! `pieces`, `blocks` and the slots of the `.f`; `background` keeps memory and the time until things are durable within bounds. `past` shows
//! what was.

mod ahead;
mod apply;
mod arrive;
mod aside;
mod attributes;
mod background;
mod beside;
mod blocks;
mod budget;
mod changes;
mod collect;
mod copy_range;
mod durability;
mod error;
mod fold;
mod handles;
mod import;
mod listing;
mod look;
#[cfg(test)]
mod model_tests;
mod moments;
mod nameless;
mod nodes;
mod open_file;
mod past;
mod pieces;
mod read;
mod replace;
mod retention;
mod shown;
mod size_cache;
#[cfg(test)]
mod size_cache_tests;
mod sizes;
mod snapshots;
mod spill;
#[cfg(test)]
mod tests;
mod tree;
#[cfg(test)]
mod waiting_tests;
mod wishes;
mod write_back;

pub use ahead::Ahead;
pub use apply::{Applied, Forget, Forgetter, Prepared};
pub use aside::{CopyAt, GiveWay, Spot};
pub use attributes::CAPABILITY;
pub use beside::Beside;
pub use changes::{Frozen, Noted};
pub use collect::Marked;
pub use error::{BlockError, Result, VolumeError};
pub use import::Imported;
pub use look::{DirAt, Named, Seen, What};
pub use moments::Moment;
pub use open_file::{Chosen, choose};
pub use retention::Retention;
pub use shown::{StatusText, is_past, is_shown};
pub use snapshots::{TreeNodes, of_map};
pub use wishes::{Brought, Needs, PINNED, REPLICAS, Whereabouts};
pub use write_back::Synced;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::base::RootId;
use crate::base::limits::FETCH_TIMEOUT_SECS;
use crate::folder::Folder;
use crate::folder::state::StateDir;
use crate::keys::VolumeKeys;
use crate::store::Tiered;

use self::background::Background;
use self::blocks::Blocks;
use self::budget::Budget;
use self::changes::Changes;
use self::durability::Durability;
use self::fold::Fragmented;
use self::handles::Handles;
use self::nameless::Nameless;
use self::nodes::Nodes;
use self::past::Past;
use self::sizes::Sizes;

/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;

/// Whether an operation may wait for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Return [`VolumeError::WouldWait`] instead of waiting for a fetch.
    Never,
    /// Wait up to the fetch timeout.
    Bounded,
}

/// A file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Handle for the calls that follow.
    pub fh: u64,
    /// Whether what the kernel has cached of the content is still right.
    pub keep_cache: bool,
    /// Whether reads must go past the kernel's cache: the content is made when it is opened.
    pub direct: bool,
}

/// Where `lseek` is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; the end of the file is one.
    Hole,
}

/// What `fallocate` is to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Make sure that the range exists; the file grows unless `keep_size`.
    Reserve,
    /// Make the range a hole.
    PunchHole,
    /// Make the range zeros.
    ZeroRange,
}

/// Called with the root of every file whose blocks changed.
pub type Announce = Arc<dyn Fn(RootId) + Send + Sync>;

/// How a volume behaves.
#[derive(Clone)]
pub struct VolumeOptions {
    /// Longest wait for a block that only others have.
    pub timeout: Duration,
    /// Written data kept in memory over all files, in bytes.
    pub write_budget: u64,
    /// Time after which what was written is durable without anyone asking.
    pub sync_interval: Duration,
    /// Why nothing may be changed, if so.
    pub read_only: Option<&'static str>,
    /// The last run of this state did not end in order: everything is synced before the first write (crash rule).
    pub unclean: bool,
    /// Whether blocks may come from other devices.
    pub remote: bool,
    /// Whether fsync waits for the replicas that the file needs, too.
    pub fsync_replicas: bool,
    /// Told of new file roots.
    pub announce: Option<Announce>,
    /// Told of what the volume needs.
    pub retention: Option<Arc<dyn Retention>>,
    /// What `.dfs/status` in the mount says.
    pub status: Option<StatusText>,
    /// The snapshots that are kept, whose blocks are needed; `None`: that is not known, and nothing may be collected.
    pub retained: Option<Vec<Moment>>,
    /// Where the sizes of files are kept between two mounts, if anywhere.
    pub state: Option<StateDir>,
}

impl std::fmt::Debug for VolumeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VolumeOptions")
            .field("timeout", &self.timeout)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(FETCH_TIMEOUT_SECS),
            write_budget: 64 << 20,
            sync_interval: Duration::from_secs(5),
            read_only: None,
            unclean: false,
            remote: false,
            fsync_replicas: false,
            announce: None,
            retention: None,
            status: None,
            retained: Some(Vec::new()),
            state: None,
        }
    }
}

/// An open volume. `Arc<Volume>` is shared by all faces.
pub struct Volume {
    folder: Folder,
    blocks: Arc<Blocks>,
    nodes: Nodes,
    sizes: Mutex<Sizes>,
    state: Option<StateDir>,
    nameless: Nameless,
    handles: Handles,
    durability: Durability,
    budget: Budget,
    background: Background,
    changes: Changes,
    forgetter: RwLock<Option<Forgetter>>,
    /// Owners that other devices gave are kept.
    owners: bool,
    fragmented: Fragmented,
    /// Held shared while a path is used, exclusively while one changes.
    renames: RwLock<()>,
    /// A name moved since a collection last asked.
    moved: AtomicBool,
    /// Bytes freed or rewritten since the last collection.
    garbage: AtomicU64,
    /// What that was at the last collection.
    collected: AtomicU64,
    /// Held during an import.
    importing: Mutex<()>,
    /// Held by a collection alone; shared by whoever stores blocks that nothing names yet.
    collecting: RwLock<()>,
    /// Nodes of trees that no snapshot names yet.
    gathered: Mutex<snapshots::Gathered>,
    /// The snapshots that are kept, whose blocks are needed; `None`: that is not known.
    retained: Mutex<Option<Vec<Moment>>>,
    /// What the kernel knows of them.
    past: Past,
    /// Whether new inodes must be given to the caller: this process is root.
    gives_away: bool,
    root_host_ino: u64,
    timeout: Duration,
    read_only: Option<&'static str>,
    remote: bool,
    fsync_replicas: bool,
    announce: Option<Announce>,
    status: Option<StatusText>,
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("folder", &self.folder.path())
            .finish_non_exhaustive()
    }
}

impl Volume {
    /// Opens the volume in a folder and starts its threads. `folder` was opened before anything is mounted over it.
    pub fn start(
        folder: Folder,
        keys: Arc<VolumeKeys>,
        tiered: Arc<Tiered>,
        options: VolumeOptions,
    ) -> Result<Arc<Self>> {
        if options.unclean {
            // What is there becomes durable, so that the newer slot of every file is a safe one to keep.
            tiered.store().sync().map_err(VolumeError::store)?;
            folder
                .sync()
                .map_err(|error| VolumeError::host("sync the folder", error))?;
        }
        let root = rustix::fs::fstat(folder.root())
            .map_err(|error| VolumeError::host("look at the folder", error))?;
        let sizes = options.state.as_ref().map(|state| {
            let store = tiered.store().as_ref();
            size_cache::load(state, &folder, &keys, store, options.unclean)
        });
        let volume = Arc::new(Self {
            blocks: Arc::new(Blocks::new(keys, tiered, options.retention, options.timeout)?),
            folder,
            nodes: Nodes::new(),
            sizes: Mutex::new(sizes.unwrap_or_default()),
            state: options.state,
            nameless: Nameless::default(),
            handles: Handles::default(),
            durability: Durability::default(),
            budget: Budget::new(options.write_budget),
            background: Background::default(),
            changes: Changes::default(),
            forgetter: RwLock::new(None),
            owners: false,
            fragmented: Fragmented::default(),
            renames: RwLock::new(()),
            moved: AtomicBool::new(false),
            garbage: AtomicU64::new(0),
            collected: AtomicU64::new(0),
            importing: Mutex::new(()),
            collecting: RwLock::new(()),
            gathered: Mutex::default(),
            retained: Mutex::new(options.retained),
            past: Past::default(),
            gives_away: rustix::process::geteuid().is_root(),
            root_host_ino: root.st_ino,
            timeout: options.timeout,
            read_only: options.read_only,
            remote: options.remote,
            fsync_replicas: options.fsync_replicas,
            announce: options.announce,
            status: options.status,
        });
        background::start(&volume, options.sync_interval)?;
        Ok(volume)
    }

    /// Writes back everything, makes it durable and stops the background threads. Called before the daemon ends; a second call does nothing.
    pub fn shutdown(&self) -> Result<()> {
        self.background.stop();
        let written = self.write_back_all();
        let synced = self.sync_all();
        let outcome = written.and(synced);
        if outcome.is_ok() {
            self.save_sizes();
        }
        outcome
    }

    /// Writes back everything and makes it durable.
    pub fn write_everything(&self) -> Result<()> {
        self.write_back_all().and(self.sync_all())
    }

    /// The path in the mount of an inode, for messages; what is not known any more is `?`.
    pub fn shown_path(&self, ino: u64) -> String {
        match is_past(ino) {
            true => self.path_past(ino),
            false => self.nodes.shown_path(ino),
        }
    }

    /// The inode number in the mount of a host inode: the same, but for the root's, which is 1, and those that are kept for what dfs shows.
    fn shown_ino(&self, host: u64) -> u64 {
        match host {
            ino if ino == self.root_host_ino => ROOT_INO,
            ROOT_INO => self.root_host_ino,
            ino => shown::apart(ino),
        }
    }

    fn check_writable(&self) -> Result<()> {
        self.read_only
            .map_or(Ok(()), |reason| Err(VolumeError::ReadOnly(reason)))
    }
}
