//! One computer: what a mount gives back, and how it begins and ends.

mod conflicts;
mod crash;
mod damage;
mod events;
#[cfg(target_arch = "x86_64")]
mod faults;
mod fstab;
mod history;
mod kills;
mod lifecycle;
mod past;
mod recovery;
mod scale;
mod soak;
mod trees;
mod user;
mod verbs;
