//! Storey 1, pure: what a file and a volume's tree are made of. The manifest in a `.f`'s slot, the index blocks that long lists of chunks move
//! to; a snapshot, the map that holds its tree, and the records in it.
//!
//! Byte layouts are in `docs/format.md`. Called by `folder`, `volume`, `node`, `merge`.

mod content;
pub mod index;
pub mod map;
mod packed;
pub mod record;
pub mod slot;
pub mod snapshot;

pub use content::{Content, Extent, Inconsistent, IndexRef, Manifest};
