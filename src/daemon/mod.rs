//! Storey 5: the composition root, the only place that wires rooms together. What `cli` calls to have something done without, or as, a daemon.
//!
//! Errors are `anyhow`; those with an advice are a [`control::Failure`](crate::control::Failure) inside.

mod admit;
mod answers;
mod assembly;
mod care;
mod copy;
mod events;
mod fsck;
mod init;
mod join;
mod keeper;
mod listening;
mod logging;
mod membership;
mod metrics;
mod network;
mod offline;
mod open;
mod past;
mod plain_files;
mod prefetch;
mod process;
mod replication;
mod run;
mod scrub;
mod show;
mod trees;
mod watchdog;

use std::path::PathBuf;

use zeroize::Zeroizing;

pub use assembly::Options;
pub use fsck::{Checked, fsck};
pub use init::{Initialised, Origin, init};
pub use join::{JoinedVolume, join};
pub use logging::{LogRequest, LogTarget};
pub use offline::{export, import, members, remove, set_role};
pub use open::{Located, locate};
pub use run::{Ready, RunRequest, run};
pub use show::{ShownManifest, ShownPart, ShownSlot, show};

/// Where things are for this user, as the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Parent of the state directories whose place was not named.
    pub state_home: PathBuf,
    /// Directory of the control sockets.
    pub runtime_dir: PathBuf,
}

/// Asks a person for a passphrase.
pub type AskPassphrase = Box<dyn FnOnce() -> std::io::Result<Zeroizing<String>> + Send>;

/// Where the passphrase of existing keys comes from, should they need one.
pub enum PassphraseSource {
    /// The first line of this file.
    File(PathBuf),
    /// A person, who is only asked when the keys are sealed.
    Ask(AskPassphrase),
    /// Nowhere: sealed keys are an error.
    None,
}
