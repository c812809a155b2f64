//! Disks that are full or lose power.

mod cuts;
mod frozen;
mod full;
mod power;
