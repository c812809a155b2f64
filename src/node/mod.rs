//! Storey 3: the network, behind our own types. Nothing of libp2p leaves this room.
//!
//! A [`Node`] connects the members of a group. Every connection begins with an exchange of certificates (`handshake`); nothing else is
//! answered before (`gate`, `gated`). Blocks move over `/dfs/GROUP/block/1`: `frame` is its binary form, `client` and `server` are its two
//! sides as state machines, `link` and `serve` the tasks that carry them out, `fetch` decides whom to ask and `exchange` carries that
//! out. `swarm` (with `dht`) is the one task that owns the libp2p swarm. New members come in through `join` and `admit`; who belongs, and
//! who no more, is in `members`, whose tree is where in `heads`, and `news` carries both from one member to the next.
//!
//! The daemon starts a node and plugs it into the store as its `Fetch`. See `docs/protocol.md`.

pub mod address_record;
mod admission;
mod admit;
pub mod announce;
mod arrivals;
mod bans;
mod behaviour;
mod client;
mod config;
mod dht;
mod error_code;
mod exchange;
mod fetch;
mod fetch_events;
pub mod find;
pub mod frame;
mod gate;
mod gated;
mod handshake;
mod head_book;
pub mod head_news;
mod head_records;
pub mod heads;
pub mod join;
pub mod join_message;
mod ledger;
mod link;
mod local;
mod mail;
mod members;
mod news;
mod outbox;
mod owed;
pub mod partner;
mod peers;
mod presences;
mod publish;
pub mod raw;
mod records;
mod relays;
mod said;
mod serve;
mod server;
mod slots;
mod start;
mod state;
mod swarm;
mod tempo;
mod throttle;
mod warnings;
mod wire;
mod work;

#[cfg(test)]
#[path = "abuse_tests.rs"]
mod abuse;
#[cfg(test)]
#[path = "attack_tests.rs"]
mod attacks;
#[cfg(test)]
#[path = "dht_tests.rs"]
mod dht_between_nodes;
#[cfg(test)]
#[path = "flood_tests.rs"]
mod floods;
#[cfg(test)]
#[path = "head_tests.rs"]
mod heads_between_nodes;
#[cfg(test)]
#[path = "reading_tests.rs"]
mod reading;
#[cfg(test)]
#[path = "roster_tests.rs"]
mod rosters;
#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;

pub use admit::Admit;
pub use config::{DEFAULT_PORT, NodeConfig, NodeError};
pub use heads::{HeadListener, PublishError};
pub use join::{JoinError, Joined, join};
pub use local::Identity;
pub use members::{Keys, Member, Members};
pub use peers::PeerInfo;
pub use start::{Node, NodeParts, remembered_peers};
pub use state::{MemoryState, NodeState, StateFile};
pub use work::WorkDone;
