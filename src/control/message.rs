//! What goes over the control socket: one JSON line asks, one or more answer. Types only; `server` and `client` carry them.
//!
//! A ticket is the only secret that ever passes here, in [`Answer::Ticket`], whose `Debug` does not show it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::conflicts::Conflicts;
use super::events::Event;
use super::group::{Changed, Group};
use super::history::{PathDiff, PathLog, PathRestored, When};
use super::path_text;
use super::tree::Tree;
use crate::base::work::Work;
use crate::base::{DeviceId, GroupId, VolumeId};
use crate::store::StoreStats;

/// Longest line in either direction, in bytes.
pub const LINE_MAX: usize = 1 << 20;

/// What a command asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How it is.
    Status,
    /// Which members it knows.
    Peers,
    /// Who belongs to the group, and who was removed.
    Members,
    /// Remove a device from the group, for good.
    Remove {
        /// Its id, or the unambiguous beginning of it.
        device: String,
    },
    /// Give a device another role.
    Role {
        /// Its id, or the unambiguous beginning of it.
        device: String,
        /// `host`, `reader`, `writer` or `admin`.
        role: String,
    },
    /// A ticket for a new member.
    Invite {
        /// `host`, `reader`, `writer` or `admin`.
        role: String,
        /// Until when the ticket is good, in seconds from now.
        expires_secs: u64,
        /// How many devices may join with it.
        uses: u32,
    },
    /// Copy plain files and directories from outside into the volume.
    Import {
        /// Absolute paths.
        #[serde(with = "path_text::list")]
        from: Vec<PathBuf>,
        /// Directory in the volume, relative to its root.
        #[serde(with = "path_text")]
        into: PathBuf,
    },
    /// Copy a file or directory of the volume out as plain files.
    Export {
        /// Path in the volume, relative to its root.
        #[serde(with = "path_text")]
        from: PathBuf,
        /// Absolute path outside, which must not exist.
        #[serde(with = "path_text")]
        to: PathBuf,
    },
    /// Remove from this device the blocks of files that enough other devices hold.
    Free {
        /// Paths in the volume, relative to its root.
        #[serde(with = "path_text::list")]
        paths: Vec<PathBuf>,
        /// Stop once so many bytes were freed, the least recently used first; none: free all.
        #[serde(default)]
        target_bytes: Option<u64>,
    },
    /// Keep files on this device, and bring what is elsewhere; or do not insist on it any more.
    Pin {
        /// Paths in the volume, relative to its root.
        #[serde(with = "path_text::list")]
        paths: Vec<PathBuf>,
        /// Whether they are to stay.
        pinned: bool,
    },
    /// Check all blocks here, and what the members that are here hold.
    Verify {
        /// Replace what is damaged, and wait until everything has its replicas again.
        repair: bool,
    },
    /// Look for blocks that no file needs.
    Collect {
        /// Remove them.
        now: bool,
    },
    /// Wait until everything has the replicas that can be had, at most so long.
    Sync {
        /// In seconds; zero: do not wait.
        wait_secs: u64,
    },
    /// The versions of a path.
    Log {
        /// Path in the volume, relative to its root.
        #[serde(with = "path_text")]
        path: PathBuf,
        /// At most so many, the newest.
        most: usize,
    },
    /// What differs between two snapshots.
    Diff {
        /// Path in the volume, relative to its root.
        #[serde(with = "path_text")]
        path: PathBuf,
        /// The older one; none: the one before the newer one.
        #[serde(default)]
        from: Option<When>,
        /// The newer one; none: the newest.
        #[serde(default)]
        to: Option<When>,
    },
    /// Bring a path back to what it was.
    Restore {
        /// Path in the volume, relative to its root.
        #[serde(with = "path_text")]
        path: PathBuf,
        /// In this snapshot; none: in the newest in which it was.
        #[serde(default)]
        at: Option<When>,
    },
    /// The conflict copies at a path and below it.
    Conflicts {
        /// Path in the volume, relative to its root.
        #[serde(with = "path_text")]
        path: PathBuf,
    },
    /// What happens from now on, until the caller leaves or the daemon ends.
    Events,
    /// Unmount, write everything back, end.
    Stop {
        /// Unmount even while files are open: whoever has them open keeps them until the daemon has drained.
        lazy: bool,
    },
}

/// One line of an answer; all but the last are [`Reply::Progress`] or [`Reply::Event`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// How far it is.
    Progress(Progress),
    /// What happened: of [`Request::Events`].
    Event(Event),
    /// It is done.
    Done {
        /// With this result.
        answer: Answer,
    },
    /// It failed.
    Failed(Failure),
}

/// How far a request is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done: a path, or a phase.
    pub what: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes to do, when known.
    pub total_bytes: Option<u64>,
}

/// The result of a request.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Peers`].
    Peers {
        /// Members known, this device not among them.
        peers: Vec<Peer>,
    },
    /// To [`Request::Members`].
    Members(Group),
    /// To [`Request::Remove`] and [`Request::Role`].
    Changed(Changed),
    /// To [`Request::Invite`].
    Ticket {
        /// The text for `dfs join`: whoever has it can join.
        ticket: String,
    },
    /// To [`Request::Import`] and [`Request::Export`].
    Copied(Copied),
    /// To [`Request::Free`].
    Freed(Freed),
    /// To [`Request::Pin`].
    Pinned(Pinned),
    /// To [`Request::Verify`].
    Verified(Box<Verified>),
    /// To [`Request::Collect`].
    Garbage(Garbage),
    /// To [`Request::Sync`].
    Replication(Replication),
    /// To [`Request::Log`].
    Log(PathLog),
    /// To [`Request::Diff`].
    Diff(PathDiff),
    /// To [`Request::Restore`].
    Restored(PathRestored),
    /// To [`Request::Conflicts`].
    Conflicts(Conflicts),
    /// To [`Request::Events`]: there are no more.
    Ended,
    /// To [`Request::Stop`]: everything is on the disk, and the process is about to end.
    Stopped {
        /// The process.
        pid: u32,
    },
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => f.debug_tuple("Status").field(status).finish(),
            Self::Peers { peers } => f.debug_tuple("Peers").field(peers).finish(),
            Self::Members(group) => f.debug_tuple("Members").field(group).finish(),
            Self::Changed(changed) => f.debug_tuple("Changed").field(changed).finish(),
            Self::Ticket { .. } => f.write_str("Ticket(..)"),
            Self::Copied(copied) => f.debug_tuple("Copied").field(copied).finish(),
            Self::Freed(freed) => f.debug_tuple("Freed").field(freed).finish(),
            Self::Pinned(pinned) => f.debug_tuple("Pinned").field(pinned).finish(),
            Self::Verified(verified) => f.debug_tuple("Verified").field(verified).finish(),
            Self::Garbage(garbage) => f.debug_tuple("Garbage").field(garbage).finish(),
            Self::Replication(health) => f.debug_tuple("Replication").field(health).finish(),
            Self::Log(log) => f.debug_tuple("Log").field(log).finish(),
            Self::Diff(diff) => f.debug_tuple("Diff").field(diff).finish(),
            Self::Restored(restored) => f.debug_tuple("Restored").field(restored).finish(),
            Self::Conflicts(all) => f.debug_tuple("Conflicts").field(all).finish(),
            Self::Ended => f.write_str("Ended"),
            Self::Stopped { pid } => f.debug_tuple("Stopped").field(pid).finish(),
        }
    }
}

/// How a daemon is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Seconds since the Unix epoch at its start.
    pub started: u64,
    /// The volume.
    pub volume: VolumeId,
    /// The group.
    pub group: Option<GroupId>,
    /// This device.
    pub device: DeviceId,
    /// This device's role.
    pub role: String,
    /// The folder.
    #[serde(with = "path_text")]
    pub folder: PathBuf,
    /// The state directory.
    #[serde(with = "path_text")]
    pub state: PathBuf,
    /// The mount; none with `dfs serve`.
    #[serde(with = "path_text::option")]
    pub mountpoint: Option<PathBuf>,
    /// Whether the mount is read-only.
    pub read_only: bool,
    /// Totals of the store.
    pub store: Totals,
    /// The network; none with `--no-network`.
    pub network: Option<Network>,
    /// How well what it keeps is replicated; none without a network.
    #[serde(default)]
    pub replication: Option<Replication>,
    /// Where the volume's tree is; none on a host.
    #[serde(default)]
    pub tree: Option<Tree>,
    /// What it has done since its start.
    #[serde(default)]
    pub work: Work,
    /// Operations that make no progress.
    #[serde(default)]
    pub stalls: Vec<Stall>,
    /// What is wrong with the group or this device's part in it, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// An operation that makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Number of its thread in the system.
    pub thread: i32,
    /// Name of its thread.
    pub name: String,
    /// What it does.
    pub operation: String,
    /// For which inode of the mount; zero: none in particular.
    pub inode: u64,
    /// The file, relative to the mount; empty when none is known.
    pub path: String,
    /// Seconds since it was asked for.
    pub secs: u64,
    /// What it waits for.
    pub waits_for: String,
}

/// Totals of a store, see [`StoreStats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Blocks held.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that are nowhere else, as far as is known.
    pub dirty_bytes: u64,
    /// Bytes held before eviction; zero: no bound.
    pub cache_size: u64,
}

impl From<StoreStats> for Totals {
    fn from(stats: StoreStats) -> Self {
        Self {
            blocks: stats.blocks,
            bytes: stats.bytes,
            dirty_bytes: stats.dirty_bytes,
            cache_size: stats.cache_size,
        }
    }
}

/// The network as this device sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Addresses it listens on.
    pub listening: Vec<String>,
    /// Members it is connected to.
    pub connected: usize,
    /// Members it knows.
    pub known: usize,
    /// Those members.
    #[serde(default)]
    pub members: Vec<Peer>,
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its device.
    pub device: DeviceId,
    /// Its role, once it has shown its certificate.
    pub role: Option<String>,
    /// Whether there is a connection now.
    pub connected: bool,
    /// Addresses it was seen at.
    pub addresses: Vec<String>,
    /// Seconds since the Unix epoch when it last answered.
    pub last_seen: Option<u64>,
    /// Round trip, in milliseconds.
    pub rtt_ms: Option<u64>,
}

/// How well a device's blocks are replicated.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Replication {
    /// Blocks of the volume by how many replicas they have, fewest first.
    pub health: Vec<Health>,
    /// Groups of erasure coding by how many of their shards other devices have, fewest first.
    #[serde(default)]
    pub groups: Vec<Groups>,
    /// Bytes of blocks that lack replicas, or whose groups lack shards.
    pub lacking_bytes: u64,
    /// Bytes kept here for other members.
    pub held_bytes: u64,
    /// Blocks for which something is to be done, and their bytes.
    #[serde(default)]
    pub queued_blocks: u64,
    /// Their bytes.
    #[serde(default)]
    pub queued_bytes: u64,
    /// Bytes a second that go to other members.
    #[serde(default)]
    pub bytes_per_sec: u64,
    /// Distinct places that keep blocks for this device.
    #[serde(default)]
    pub possible: u8,
    /// What each member holds for this device, and this device for it.
    #[serde(default)]
    pub members: Vec<Exchange>,
}

/// What a member and this device hold for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The member.
    pub device: DeviceId,
    /// Blocks that it holds for this device.
    pub stored_blocks: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Blocks that this device holds for it.
    pub held_blocks: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

/// Groups with so many shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// Shards on other devices, each in a failure zone of its own.
    pub have: u8,
    /// Blocks in each group.
    pub data: u8,
    /// Parity shards in each group.
    pub parity: u8,
    /// Groups.
    pub groups: u64,
    /// Bytes of their blocks.
    pub bytes: u64,
}

/// Blocks with so many replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Replicas on other devices that count.
    pub replicas: u8,
    /// Replicas wanted.
    pub wanted: u8,
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What came of freeing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Freed {
    /// Blocks removed from this device.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that stay, by reason.
    pub kept: Vec<(String, u64)>,
}

/// What came of pinning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pinned {
    /// Blocks of the files.
    pub blocks: u64,
    /// Those of them that were brought here.
    pub brought: u64,
    /// Their bytes.
    pub brought_bytes: u64,
    /// Blocks that could not be had.
    pub missing: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Verified {
    /// Blocks here.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that are damaged, and were not replaced.
    pub damaged: Vec<String>,
    /// Those that were damaged, and were replaced.
    pub mended: u64,
    /// Copies on other devices that were found to be right.
    pub replicas_right: u64,
    /// Copies on other devices that were wrong or missing. They do not count any more, and others take their place.
    pub replicas_wrong: u64,
    /// Holders that could not be asked.
    pub away: Vec<DeviceId>,
    /// Holders that did not answer to the end.
    pub silent: usize,
    /// How things are afterwards; none without a network.
    pub replication: Option<Replication>,
}

/// Blocks that no file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Garbage {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that no file here needs and that stay because they are kept for other members.
    pub held: u64,
    /// Whether they were removed.
    pub removed: bool,
}

/// What an import or export did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Links, pipes, sockets and device nodes.
    pub others: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Why a request failed, in the three parts that every error of dfs has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{what}: {why}")]
pub struct Failure {
    /// What was to be done.
    pub what: String,
    /// Why it could not be done.
    pub why: String,
    /// What to do about it; empty when there is nothing to say.
    pub hint: String,
}

impl Failure {
    /// The three parts.
    pub fn new(what: impl Into<String>, why: impl ToString, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
            hint: hint.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_on_the_wire() {
        let stop = serde_json::to_string(&Request::Stop { lazy: true }).unwrap();
        assert_eq!(stop, r#"{"request":"stop","lazy":true}"#);
        assert!(serde_json::from_str::<Request>(r#"{"request":"stop","lazy":true,"x":1}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"request":"format"}"#).is_err());
    }

    #[test]
    fn a_ticket_is_not_shown_by_debug() {
        let reply = Reply::Done {
            answer: Answer::Ticket {
                ticket: "dfs1-secret".into(),
            },
        };
        assert!(!format!("{reply:?}").contains("secret"));
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
    }
}
