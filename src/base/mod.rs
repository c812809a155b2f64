//! Storey 0: the types that every room shares. Nothing here does I/O.

pub mod activity;
pub mod clock;
pub mod codec;
pub mod ids;
pub mod limits;
pub mod names;
pub mod tree;
pub mod types;
pub mod work;

pub use ids::{BlockId, DeviceId, FileId, GroupId, PlainHash, RootId, StoreId, VolumeId};
