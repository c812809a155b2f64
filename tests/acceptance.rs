//! The promises of dfs, seen from outside: the real programs, real mounts, real namespaces.
//!
//! One target, so that everything links once. Needs root, `/dev/fuse` and namespaces; `tests/run` says so where they are missing.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::new_without_default
)]

mod bench;
mod cluster;
mod disks;
mod harness;
mod mount;
mod programs;
