//! Storey 4: other devices' blocks here, and ours on other devices: placement, leases, repair, audits, freed space, collection.
//!
//! All of it decides and none of it acts: [`Machine::handle`] takes an event and says what to do; `daemon` carries that out over the
//! network and the store. So the same code runs in the daemon and, a thousand times over, in the simulation. The rules and why nothing is
//! lost by them: `docs/replication.md`.

mod answers;
mod auditing;
mod collecting;
pub mod erasure;
mod freeing;
mod group_freeing;
mod group_judge;
#[cfg(test)]
mod group_simulation_tests;
mod grouping;
mod groups;
mod guests;
#[cfg(test)]
mod guests_tests;
mod holding;
mod judge;
#[cfg(test)]
mod judge_tests;
mod keeping;
mod machine;
#[cfg(test)]
mod machine_tests;
pub mod message;
mod peers;
pub mod placement;
pub mod rules;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod simulation_tests;
pub mod slice;
pub mod wire;
#[cfg(test)]
mod wire_shard_tests;

pub use machine::{Machine, Setup};
