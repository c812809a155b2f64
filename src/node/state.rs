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
    /// Files announced in the DHT. Losing it costs announcing them again.
    Announced,
}

impl StateFile {
    /// A file name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peers => "peers",
            Self::Invitations => "invitations",
            Self::Announced => "announced",
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

impl NodeState for MemoryState {
    fn load(&self, what: StateFile) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().get(&what).cloned())
    }

    fn save(&self, what: StateFile, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().insert(what, bytes.to_vec());
        Ok(())
    }
}
