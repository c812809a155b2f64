//! What a device remembers of replication, beside its blocks and in the same commits: the leases it granted to others on blocks that
//! it holds, and, for the blocks that it retains itself, the replicas that others granted to it.
//!
//! Invariant: a block on which somebody has a lease, or had one until recently, is never removed or evicted, whoever asks. Nothing here
//! needs more memory than what one call returns. Every implementation passes `store::replica_conformance`; used by `replica`.
//!
//! Times are seconds of the clocks that `docs/replication.md` defines; they never come from the wall.

use super::StoreError;
use super::groups::{GroupChange, GroupStore};
use crate::base::{BlockId, DeviceId};

/// Somebody's right that this device keeps a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The block.
    pub block: BlockId,
    /// For whom it is kept.
    pub owner: DeviceId,
    /// Until when, on the clock that this device keeps for the owner, in seconds.
    pub until: u64,
    /// Number of the owner's newest request that granted or renewed it.
    pub seq: u64,
}

/// A copy of one of our blocks on another device, as far as we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// The block.
    pub block: BlockId,
    /// Who holds it.
    pub holder: DeviceId,
    /// Until when it may be relied on, on this device's clock, in seconds.
    pub until: u64,
    /// When to renew it, on the same clock.
    pub renew: u64,
    /// When the request was sent that was granted last, on the same clock.
    pub granted: u64,
    /// Number of that request.
    pub seq: u64,
    /// The holder asked to be rid of it.
    pub leaving: bool,
    /// The group whose record the holder has beside it; zero: none.
    pub record: u64,
}

/// A block that this device retains, and so answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The block.
    pub block: BlockId,
    /// Its length, in bytes.
    pub len: u32,
    /// Replicas wanted on other devices while it is by itself; zero in a group: kept only for the sake of the others.
    pub wanted: u8,
    /// Must not be freed here.
    pub pinned: bool,
    /// The last marking that reached it.
    pub mark: u64,
    /// Replicas that counted when it was last looked at.
    pub copies: u8,
    /// What is to be done for it, most urgent first; `None`: nothing.
    pub todo: Option<u8>,
    /// `None`: it never joins a group; `Some(0)`: it may; else the group that it is in.
    pub group: Option<u64>,
}

/// What is remembered of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberState {
    /// The member.
    pub device: DeviceId,
    /// The clock by which its leases run here, in seconds.
    pub clock: u64,
    /// Until when, on this device's clock, nothing that it says it holds is believed.
    pub condemned: u64,
}

/// One line of the health report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// Replicas that count.
    pub copies: u8,
    /// Replicas wanted.
    pub wanted: u8,
    /// Blocks of which this is true.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What one device holds for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Share {
    /// The other device.
    pub device: DeviceId,
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A block here, and when it was used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cold {
    /// The block.
    pub block: BlockId,
    /// Its length, in bytes.
    pub len: u64,
    /// The commit after which it was read or stored last.
    pub used: u64,
}

/// A change of what is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaChange {
    /// Grants or renews a lease, and makes its block one that is not evicted. Without effect when the block is not here.
    Lease(Lease),
    /// Ends a lease. The last one of a block leaves it idle until this time of our own clock. Without effect when there is none.
    EndLease {
        /// The block.
        block: BlockId,
        /// Whose lease.
        owner: DeviceId,
        /// Until when the block stays, should it be the last one.
        idle: u64,
    },
    /// Ends the idle time of a block. Without effect when it is not idle.
    EndIdle {
        /// The block.
        block: BlockId,
    },
    /// Removes a block, and the wish to free it. Without effect when it is not here, leased or idle.
    Remove {
        /// The block.
        block: BlockId,
    },
    /// Sets all that is known of a block that is retained.
    Keep(Kept),
    /// The block is not retained any more: what its replicas' holders granted is owed back to them.
    Unkeep {
        /// The block.
        block: BlockId,
    },
    /// Makes a block that is here one that is not evicted. Without effect when it is not here or already so.
    Protect {
        /// The block.
        block: BlockId,
    },
    /// Sets all that is known of a replica; nothing is owed back to its holder then.
    Replica(Replica),
    /// Forgets a replica.
    NoReplica {
        /// The block.
        block: BlockId,
        /// Its holder.
        holder: DeviceId,
    },
    /// A lease is to be given back: forgets the replica.
    Owe {
        /// To whom.
        holder: DeviceId,
        /// The block.
        block: BlockId,
    },
    /// It was given back.
    Paid {
        /// By whom.
        holder: DeviceId,
        /// The block.
        block: BlockId,
    },
    /// The user wants the space of a block.
    Free {
        /// The block.
        block: BlockId,
    },
    /// He does not, or it cannot be had.
    Unfree {
        /// The block.
        block: BlockId,
    },
    /// Sets what is remembered of a member.
    Member(MemberState),
    /// Sets a number.
    Number(Number, u64),
    /// Changes what is remembered of groups.
    Group(GroupChange),
}

/// Numbers that outlive the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Number {
    /// Starts of the machine.
    Starts = 0,
    /// This device's clock, in seconds.
    Clock = 1,
    /// The wall's clock when the other was last written down, Unix seconds.
    Wall = 2,
    /// The newest marking.
    Mark = 3,
    /// The marking whose sweep is not finished; zero: none.
    Sweep = 4,
    /// One: everything has to be named, since something was stored while nobody was told, or wishes changed.
    Unnamed = 5,
    /// One: the owner wished something for a file at least once.
    Wishes = 6,
    /// Replicas wanted by default when everything was named last, and one more.
    Wanted = 7,
    /// How far the scrub of the store has come: the first eight bytes of a block id.
    Scrub = 8,
    /// The newest group.
    Group = 9,
}

/// Keeps what a device remembers of replication. All calls may block on the disk.
pub trait ReplicaStore: GroupStore {
    /// Makes the changes in one commit, all or none, and says of each whether it had an effect. With `durable`, they and all that was
    /// committed before survive a power cut once the call returns.
    fn apply(&self, changes: &[ReplicaChange], durable: bool) -> Result<Vec<bool>, StoreError>;

    /// Length of a block that is here, in bytes.
    fn length(&self, block: &BlockId) -> Result<Option<u32>, StoreError>;

    /// Bytes of the blocks that are leased or idle.
    fn held_bytes(&self) -> Result<u64, StoreError>;

    /// Bytes leased here by a member, and bytes of retained blocks that it holds for this device under leases that end after `secs`.
    fn balance(&self, member: &DeviceId, secs: u64) -> Result<(u64, u64), StoreError>;

    /// The leases on a block, by owner.
    fn leases(&self, block: &BlockId) -> Result<Vec<Lease>, StoreError>;

    /// Leases of an owner that end before `until`, the first to end first.
    fn leases_ending(&self, owner: &DeviceId, until: u64, limit: usize) -> Result<Vec<Lease>, StoreError>;

    /// Blocks whose idle time ends before `until`, the first to end first.
    fn idle(&self, until: u64, limit: usize) -> Result<Vec<BlockId>, StoreError>;

    /// Blocks here that are evictable and neither leased nor idle nor retained, ascending after `after`.
    fn strays(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<BlockId>, StoreError>;

    /// What is known of a retained block.
    fn kept(&self, block: &BlockId) -> Result<Option<Kept>, StoreError>;

    /// Retained blocks, ascending after `after`.
    fn kept_after(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<Kept>, StoreError>;

    /// Retained blocks for which something is to be done, by urgency and then id, after `after`.
    fn kept_todo(&self, after: Option<(u8, BlockId)>, limit: usize) -> Result<Vec<Kept>, StoreError>;

    /// Blocks that are by themselves, or in groups that are ending, by how many replicas they have; reads all that is retained.
    fn health(&self) -> Result<Vec<Health>, StoreError>;

    /// The replicas of a block, by holder.
    fn replicas(&self, block: &BlockId) -> Result<Vec<Replica>, StoreError>;

    /// Replicas at a holder that are to be renewed before `renew`, the first first.
    fn replicas_due(&self, holder: &DeviceId, renew: u64, limit: usize) -> Result<Vec<Replica>, StoreError>;

    /// Replicas at a holder, ascending by block after `after`.
    fn replicas_at(
        &self,
        holder: &DeviceId,
        after: Option<BlockId>,
        limit: usize,
    ) -> Result<Vec<Replica>, StoreError>;

    /// Blocks whose lease is to be given back to a holder, ascending.
    fn owed(&self, holder: &DeviceId, limit: usize) -> Result<Vec<BlockId>, StoreError>;

    /// Holders to whom something is owed.
    fn owed_to(&self) -> Result<Vec<DeviceId>, StoreError>;

    /// Blocks whose space is wanted, ascending after `after`.
    fn to_free(&self, after: Option<BlockId>, limit: usize) -> Result<Vec<BlockId>, StoreError>;

    /// What is remembered of the members.
    fn members(&self) -> Result<Vec<MemberState>, StoreError>;

    /// A number; zero when it was never set.
    fn number(&self, number: Number) -> Result<u64, StoreError>;
}
