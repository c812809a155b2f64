//! dfs: a decentralised, encrypted filesystem for the computers that you already own.
//!
//! The two ways through the house:
//!
//! - read: `fuse::adapter → volume::read → store::tiered → (store::sqlite | Fetch = node) → seal::open`
//! - write: `fuse::adapter → volume::open_file → volume::write_back → seal::seal → store::sqlite → folder::manifest`
//!
//! A room imports from lower storeys only; `tests/tidy.rs` holds that.
//!
//! | storey | rooms |
//! |---|---|
//! | 6 | `main.rs`, `cli`, `mount-helpers/` |
//! | 5 | `daemon` |
//! | 4 | `fuse`, `control`, `sync`, `replica` |
//! | 3 | `volume`, `node` |
//! | 2 | `store`, `folder` |
//! | 1 | `seal` ← `keys` ← `object` ← `merge` |
//! | 0 | `base` |

pub mod base;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod folder;
pub mod fuse;
pub mod keys;
pub mod merge;
pub mod node;
pub mod object;
pub mod replica;
pub mod seal;
pub mod store;
pub mod sync;
pub mod volume;
