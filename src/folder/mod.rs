//! Storey 2: the folder of `.f` files and the state directory, as they lie on the host filesystem.

pub mod config;
pub mod host;
pub mod keep;
pub mod listener;
pub mod marker;
pub mod prefetch;
pub mod slots;
pub mod state;
pub mod writers;

pub use host::Folder;
