//! What the node brings to this device's replication, and what it carries for it: [`Partner`]. The node looks into none of it.

use bytes::Bytes;

use crate::base::{BlockId, DeviceId};
use crate::keys::certificate::Membership;
use crate::store::CheckedBlock;

/// Takes the answer to a message; dropped, the other side is told that there is none.
pub type Answer = Box<dyn FnOnce(Vec<u8>) + Send>;

/// Called exactly once with the result of an errand (a PUT, a message), on a thread that must not be blocked.
pub type Done = Box<dyn FnOnce(Result<Bytes, String>) + Send>;

/// This device's replication, as the network sees it.
pub trait Partner: Send + Sync + 'static {
    /// Stores a block that a member wants kept, or says why not. May wait for the disk.
    fn keep(&self, from: &Membership, block: CheckedBlock) -> Result<(), String>;

    /// A member, whose certificate was checked, says something. Must not wait.
    fn hear(&self, from: &Membership, body: Bytes, answer: Answer);

    /// Members that have the block by what they said under a lease. May read from the disk, a little.
    fn holders(&self, block: &BlockId) -> Vec<DeviceId>;

    /// A member can be told something from now on, or not any more. Must not wait.
    fn reachable(&self, device: DeviceId, reachable: bool);
}
