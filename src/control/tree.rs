//! Where the volume's tree is, on this device and on the others, as `dfs status` tells it.

use serde::{Deserialize, Serialize};

use crate::base::{BlockId, DeviceId};

/// The tree on this device, and on those of which a head is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// The snapshot that the folder is at; none before the first.
    pub snapshot: Option<BlockId>,
    /// Since when, in seconds since the Unix epoch.
    pub since: Option<u64>,
    /// Snapshots kept.
    pub kept: usize,
    /// Something was changed here since.
    pub changed: bool,
    /// Why something that others did is not here yet.
    pub waiting: Option<String>,
    /// Conflict copies in the tree; none: they were not counted yet.
    #[serde(default)]
    pub conflicts: Option<u64>,
    /// The other devices, as far as they told where they are.
    pub devices: Vec<TreeOf>,
}

/// Where another device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeOf {
    /// The device.
    pub device: DeviceId,
    /// Compared with this one.
    pub standing: Standing,
}

/// One device's tree, seen from another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Both have the same.
    Same,
    /// It has not taken in what this one has.
    Behind,
    /// It has something that this one has not taken in.
    Ahead,
}
