//! What a node keeps across restarts, behind a trait: the daemon keeps it as files in the state directory, tests in memory.

use std::collections::HashMap;
use std::io;

use parking_lot::Mutex;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateFile {
    /// Members and their addresses. Losing it costs finding them again.
    Peers,
    /// The ledger of used invitations. Losing it would make used tickets count as new.
    Invitations,
    /// What admins stated of the group. Losing it would let removed devices in until another member is met.
    Roster,
    /// The number of the last start. Losing it makes this device look like a copy of itself.
    Sequence,
    /// What other members showed of their starts. Losing it costs recognising a copy that shows itself just then.
    Presences,
    /// Files announced in the DHT. Losing it costs announcing them again.
    Announced,
    /// This device's own newest head. Losing it makes this device look as if it had been put back to an earlier time.
    Head,
    /// The newest heads of all who write. Losing it costs hearing of them again, if somebody who knows is ever met.
    Heads,
}

impl StateFile {
    /// A file name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Invitations => "invitations",
            Self::Roster => "roster",
            Self::Sequence => "sequence",
            Self::Presences => "presences",
            Self::Announced => "announced",
            Self::Head => "head",
            Self::Heads => "heads",
        }
    }
}

/// Keeps small files for a node. Calls may block on the disk.
pub trait NodeState: Send + Sync + 'static {
    /// What was saved last; `None` when nothing was.
    fn load(&self, what: StateFile) -> io::Result<Option<Vec<u8>>>;

    /// Replaces it, whole or not at all, and returns once it would survive a power cut.
    fn save(&self, what: StateFile, bytes: &[u8]) -> io::Result<()>;
}

/// Keeps nothing beyond its own life.
#[derive(Debug, Default)]
pub struct MemoryState(Mutex<HashMap<StateFile, Vec<u8>>>);

#[cfg(test)]
impl MemoryState {
    /// What it keeps, as a copy of a state directory would.
    pub(super) fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    /// Drops one file.
    pub(super) fn forget(&self, what: StateFile) {
        self.0.lock().remove(&what);
    }
}

impl NodeState for MemoryState {
    fn load(&self, what: StateFile) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().get(&what).cloned())
    }

    fn save(&self, what: StateFile, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().insert(what, bytes.to_vec());
        Ok(())
    }
}
