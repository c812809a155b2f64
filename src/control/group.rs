//! Who belongs to the group, as `dfs members`, `dfs remove` and `dfs role` are told.

use serde::{Deserialize, Serialize};

use crate::base::DeviceId;

/// The group as a device knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The key epoch under which new data is sealed.
    pub epoch: u32,
    /// Everybody who belongs or did, this device among them.
    pub members: Vec<Member>,
}

/// A device of the group, or one that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The device.
    pub device: DeviceId,
    /// What its computer is called, where that is known.
    pub name: Option<String>,
    /// Its role; none once it is removed.
    pub role: Option<String>,
    /// Its failure zone.
    pub zone: Option<String>,
    /// Seconds since the Unix epoch when it was admitted.
    pub since: Option<u64>,
    /// Seconds since the Unix epoch when it was last connected to this device.
    pub last_seen: Option<u64>,
    /// Whether there is a connection now.
    pub connected: bool,
    /// Seconds since the Unix epoch when it was removed.
    pub removed: Option<u64>,
    /// Whether it is this device.
    pub own: bool,
}

/// A member whose place in the group was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The device as it was before.
    pub member: Member,
    /// Its new role; none: it was removed.
    pub role: Option<String>,
    /// The key epoch under which new data is sealed from now on.
    pub epoch: u32,
}
