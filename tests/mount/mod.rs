//! One computer: what a mount gives back, and how it begins and ends.

mod crash;
mod damage;
mod fstab;
mod lifecycle;
mod recovery;
mod scale;
mod soak;
mod trees;
mod user;
mod verbs;
