//! What goes in and out of the machine: events from its carrier, actions for it, and the messages between devices. Pure data.
//!
//! The carrier (`daemon`) moves messages over the network, moves and checks the bytes of blocks, and verifies signatures; the machine
//! sees neither bytes nor keys. Sizes are bounded by [`BLOCKS_MAX`](super::rules::BLOCKS_MAX) blocks a message.

use std::sync::Arc;

use crate::base::{BlockId, DeviceId};

use super::erasure::Group;
use super::placement::Zone;

/// A member of the group, as its certificate and its address record say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The device.
    pub device: DeviceId,
    /// Its failure zone; a device without one is a zone of its own.
    pub zone: Zone,
    /// Bytes that it holds for others; zero: none.
    pub quota: u64,
    /// It is a guest of an open group: what it may have kept here is limited.
    pub guest: bool,
}

/// A block to be retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retained {
    /// The block.
    pub block: BlockId,
    /// Its length, in bytes.
    pub len: u32,
    /// Replicas wanted on other devices.
    pub wanted: u8,
    /// Never to be freed here.
    pub pinned: bool,
}

/// Where an audit looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The block.
    pub block: BlockId,
    /// Where in it, in bytes: see [`slice`](super::slice).
    pub offset: u64,
}

/// What a device asks of another. `seq` numbers the requests of one asker, growing also over restarts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Keep these blocks for me. The carrier of the asker sends them along, the carrier of the asked has put them into its store,
    /// not synced, before the machine there sees the request.
    Put {
        /// Number.
        seq: u64,
        /// The blocks that came along.
        blocks: Vec<BlockId>,
    },
    /// Keep those of these blocks that you have for me.
    Lease {
        /// Number.
        seq: u64,
        /// The blocks.
        blocks: Vec<BlockId>,
        /// The asker is about to drop its own copies: prove that you have them ([`slice::possession`](super::slice::possession)).
        challenge: Option<[u8; 32]>,
    },
    /// You need not keep these any more, unless I asked for them again with a higher number.
    Release {
        /// Number.
        seq: u64,
        /// The blocks.
        blocks: Vec<BlockId>,
    },
    /// Show these slices. Answered by the carrier.
    Audit {
        /// Number.
        seq: u64,
        /// The slices.
        slices: Vec<Slice>,
    },
    /// Keep these shards of groups for me, and the records of their groups beside them.
    Shards {
        /// Number.
        seq: u64,
        /// The shards, with their groups.
        shards: Vec<(BlockId, Arc<Group>)>,
        /// They come along, as with PUT; else those that you have, as with LEASE.
        sent: bool,
    },
    /// I want to be rid of these blocks that I keep for you. Not answered.
    Move {
        /// The blocks.
        blocks: Vec<BlockId>,
    },
}

/// What a holder says to a block that it was asked to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has it on its disk and keeps it.
    Granted,
    /// It does not have it.
    Absent,
    /// It is dropping this very block.
    Dropping,
    /// It has no room.
    Full,
    /// The asker's carrier found the proof to be wrong. Never sent.
    Unproven,
}

/// What the asker's carrier found in the answer to an audit of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The slice belongs to the block.
    Right,
    /// It does not, or it is malformed.
    Wrong,
    /// The holder says that it does not have the block.
    Absent,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To PUT and LEASE, sent once what is granted is durable. The carrier adds receipts and proofs, and checks them.
    Leased {
        /// Number of the request.
        seq: u64,
        /// How long a lease is, in seconds of the holder's clock for the owner.
        term_secs: u64,
        /// For each block that the request named.
        outcomes: Vec<(BlockId, Outcome)>,
    },
    /// To RELEASE.
    Released {
        /// Number of the request.
        seq: u64,
    },
    /// To AUDIT, as the asker's carrier judged it.
    Audited {
        /// Number of the request.
        seq: u64,
        /// For each slice.
        verdicts: Vec<(BlockId, Verdict)>,
    },
    /// To any request: not now.
    Busy {
        /// Number of the request.
        seq: u64,
        /// When to ask again, in milliseconds.
        retry_ms: u64,
    },
}

impl Answer {
    /// Number of the request that this answers.
    pub fn seq(&self) -> u64 {
        match self {
            Self::Leased { seq, .. }
            | Self::Released { seq }
            | Self::Audited { seq, .. }
            | Self::Busy { seq, .. } => *seq,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time has passed: sent at the time that [`Action::Wake`] named.
    Tick,
    /// All members there are, this device among them. Who is missing was removed.
    Roster(Vec<Member>),
    /// A member can be asked.
    Connected(DeviceId),
    /// It cannot any more. What was asked of it will not be answered.
    Disconnected(DeviceId),
    /// A member asks.
    Request(DeviceId, Request),
    /// A member answers.
    Answer(DeviceId, Answer),
    /// A request could not be sent, or in part: these blocks could not be had.
    Unsent(DeviceId, u64),
    /// A request was not answered, or what was answered is of no use: the connection broke, or the holder refused. Says nothing of its blocks.
    Unanswered(DeviceId, u64),
    /// The user's files need these blocks, as much as this at least.
    Retain(Vec<Retained>),
    /// A marking found that the user's files need these blocks, and exactly so unless [`Event::Retain`] has said more since it began.
    Named(Vec<Retained>),
    /// A marking begins: who is not retained again before [`Event::EndMark`] is not retained any more.
    BeginMark,
    /// Everything that is retained has been named since [`Event::BeginMark`].
    EndMark,
    /// Check all that the holders here have, at once.
    Verify,
    /// The user wants the space of these blocks.
    Free(Vec<BlockId>),
    /// The group that [`Action::Encode`] asked for. Its parity shards were put into the store, where they may be evicted.
    Encoded(Group),
    /// It cannot be made now; the blocks are those that were named.
    Unencoded(Vec<BlockId>),
    /// Space left on the disk of the store, in bytes.
    Disk(u64),
}

/// Why a block is not freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unfreed {
    /// It is pinned.
    Pinned,
    /// It has fewer replicas than are wanted and possible.
    TooFew,
    /// Holders that would have to confirm are away or did not answer.
    HoldersAway,
    /// Another device is freeing it at the same time.
    Contended,
    /// It is kept for another device, which was asked to move it. Freed when that has happened.
    HeldForOthers,
    /// Nothing is known of its replicas: it is not retained.
    NotRetained,
    /// There is no copy of it here.
    NotHere,
}

/// How far a check of everything that holders have is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Replicas that were looked at, a slice of each.
    pub right: u64,
    /// Those that were wrong or missing.
    pub wrong: u64,
    /// Holders whose check is not over.
    pub holders: usize,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A holder has been away for too long: its blocks get other holders.
    Lost(DeviceId),
    /// A holder did not have, or not rightly, this block.
    Failed(DeviceId, BlockId),
    /// A holder failed so often that nothing it says is believed for a while.
    Condemned(DeviceId),
    /// A holder has no room.
    Full(DeviceId),
    /// A guest gets no more leases here: bytes that it has here, and bytes that it keeps for this device.
    GuestRefused(DeviceId, u64, u64),
    /// Leases of this device ended because it did not renew them.
    Expired(DeviceId, usize),
    /// Placement allows no groups: blocks are replicated one by one.
    TooFewForGroups {
        /// Zones that a group needs.
        shards: u8,
        /// Zones of other hosts.
        possible: u8,
    },
    /// The first of some groups that cannot be made whole any more: their blocks are replicated one by one.
    GroupEnds {
        /// Zones that a group needs.
        shards: u8,
        /// Shards that are left.
        have: u8,
    },
    /// Placement allows fewer replicas than are wanted.
    TooFewZones {
        /// Replicas wanted by default.
        wanted: u8,
        /// Zones of other hosts.
        possible: u8,
    },
}

/// What the carrier has to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a request. With PUT the blocks go along, from here or fetched from others.
    Ask(DeviceId, Request),
    /// Send an answer. With LEASED under a challenge the proofs go along.
    Answer(DeviceId, Answer, Option<[u8; 32]>),
    /// Make so many parity shards of these blocks, which are here: see [`Event::Encoded`].
    Encode(Vec<BlockId>, u8),
    /// Send [`Event::Tick`] at this time, in milliseconds of the machine's time; replaces the one before.
    Wake(u64),
    /// A block was removed from this device.
    Freed(BlockId),
    /// A block that the user wanted freed stays, for now.
    Unfreed(BlockId, Unfreed),
    /// Log this.
    Report(Report),
}
