//! What the fetch engine hears ([`Event`]) and says ([`Action`]). Passed on between `exchange` and `fetch`.

use std::time::Instant;

use crate::base::{BlockId, DeviceId, RootId};
use crate::store::{CheckedBlock, FetchError, Want};

use super::client::{Ask, Reply};

/// Names one block stream to a peer.
pub(super) type LinkId = u64;

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// Someone wants a block.
    Want {
        /// Names who wants it.
        waiter: u64,
        /// The block.
        want: Want,
        /// Who has the block by what it said under a lease.
        holders: Vec<DeviceId>,
        /// When the waiter has to hear.
        deadline: Instant,
    },
    /// Somebody waits for a block that was wanted ahead.
    Hurry(BlockId),
    /// A stream to a member is ready.
    LinkUp {
        /// The stream.
        link: LinkId,
        /// The member.
        device: DeviceId,
        /// Requests that may be open on it.
        capacity: usize,
    },
    /// A stream ended.
    LinkDown(LinkId),
    /// A peer answered.
    Reply(LinkId, Reply),
    /// The DHT was asked for providers of a file; those found are counted in the prospects.
    LookedUp(RootId),
    /// How many members are known or being dialled, but not connected.
    Prospects(usize),
    /// How many members are not connected.
    Absent(usize),
    /// This member has blocks that were searched for.
    Found(DeviceId, Vec<BlockId>),
    /// Time passed.
    #[cfg(test)]
    Tick,
}

/// What to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Pass on to the stream.
    Send(LinkId, Ask),
    /// Tell the waiter.
    Done(u64, Result<CheckedBlock, FetchError>),
    /// Ask the DHT for providers of the file, then report `LookedUp`.
    Lookup(RootId),
    /// Search for these blocks from member to member.
    Find(Vec<BlockId>),
    /// For the log: this peer sent wrong bytes.
    Banned(DeviceId, BlockId),
}
