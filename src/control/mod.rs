//! Storey 4: the control socket, on which a running daemon answers the commands of its owner. Never in the network.
//!
//! A Unix socket in the runtime directory, mode 0600; a caller must have the daemon's user id or be root. One request a connection; what happens is told to whoever asks for events, for as long as he listens.
//! `daemon` gives [`Server`] a [`Handler`], `cli` asks through [`client`].

mod caller;
pub mod client;
pub mod conflicts;
pub mod events;
pub mod group;
pub mod history;
mod line;
pub mod message;
mod path_text;
mod server;
pub mod tree;

pub use caller::Caller;
pub use conflicts::{ConflictCopy, Conflicts};
pub use events::{Accord, Event, Now, Step, What};
pub use group::{Changed, Group, Member};
pub use history::{
    Became, Past, PathDiff, PathDifference, PathKind, PathLog, PathRestored, PathVersion, Tally, When,
};
pub use message::{
    Answer, Copied, Exchange, Failure, Freed, Garbage, Groups, Health, Network, Peer, Pinned, Progress,
    Replication, Reply, Request, Stall, Status, Totals, Verified,
};
pub use server::{Handler, Server, ServerError};
pub use tree::{Standing, Tree, TreeOf};

use std::path::{Path, PathBuf};

/// The socket of the daemon that has the state directory `state` (absolute), in `runtime_dir`.
pub fn socket_path(runtime_dir: &Path, state: &Path) -> PathBuf {
    let hash = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
    runtime_dir.join(format!("{}.sock", &hash[..16]))
}
