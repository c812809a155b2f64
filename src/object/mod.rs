//! Storey 1, pure: what a file is made of. The manifest in a `.f`'s slot, and the index blocks that long lists of chunks move to.
//!
//! Byte layouts are in `docs/format.md`. Called by `folder`, `volume`, `node`.

mod content;
pub mod index;
mod packed;
pub mod slot;

pub use content::{Content, Extent, Inconsistent, IndexRef, Manifest};
