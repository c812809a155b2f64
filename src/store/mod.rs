//! Storey 2: blocks on this device, in SQLite, and the one place where a miss turns into a fetch.

pub mod api;
#[cfg(test)]
pub(crate) mod conformance;
mod fault;
mod groups;
mod groups_memory;
mod memory;
mod replica;
#[cfg(test)]
pub(crate) mod replica_conformance;
mod replica_memory;
mod sqlite;
mod tiered;

pub use api::{
    BlockStore, CheckedBlock, CommitSeq, Fetch, FetchDone, FetchError, NoFetch, Put, PutKind, StoreError,
    StoreStats, Want,
};
pub use fault::{Fault, FaultStore, Op};
pub use groups::{GroupChange, GroupHealth, GroupStore, ShardGroup};
pub use memory::MemoryStore;
pub use replica::{
    Cold, Health, Kept, Lease, MemberState, Number, Replica, ReplicaChange, ReplicaStore, Share,
};
pub use sqlite::{SqliteStore, StoreOptions};
pub use tiered::{ReadError, Tiered, TieredOptions};
