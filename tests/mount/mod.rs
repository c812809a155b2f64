//! One computer: what a mount gives back, and how it begins and ends.

mod crash;
mod damage;
mod fstab;
mod lifecycle;
mod recovery;
mod trees;
mod user;
