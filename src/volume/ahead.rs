//! Brings content here before anybody reads it, as far as there is room: what was brought may be evicted like anything that was read.
//!
//! It is asked for after everything that somebody waits for, and never makes the store give up something else. Called by `sync`.

use super::collect::Marked;
use super::error::{Result, VolumeError};
use super::{Needs, Volume};
use crate::base::BlockId;
use crate::base::limits::BLOCK_MAX;
use crate::object::Content;
use crate::store::Want;

/// Blocks asked for side by side, at most.
const AT_ONCE: usize = 16;

/// Nodes of a tree asked for side by side; one has 16 KiB on average.
const NODES_AT_ONCE: usize = 32;

/// The part of the bound of the store that is filled: beyond it the store makes room by itself.
const FILLED: (u64, u64) = (7, 8);

/// How far the content of a file was brought here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ahead {
    /// Blocks that came.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that could not be had now.
    pub missing: u64,
    /// There was no room for more.
    pub full: bool,
}

impl Volume {
    /// Brings what is elsewhere of a file's content, until `go_on` says no.
    pub fn bring_ahead(&self, content: &Content, go_on: &dyn Fn() -> bool) -> Result<Ahead> {
        let needs = Needs {
            replicas: 0,
            pinned: false,
        };
        let mut marked = Marked::as_far_as_here(needs);
        let (tiered, mut ahead) = (self.blocks.tiered(), Ahead::default());
        self.mark_content(content, &mut marked)?;
        if marked.is_incomplete() && self.room_ahead()? == 0 {
            ahead.full = true;
            return Ok(ahead);
        }
        self.mark_elsewhere(&mut marked)?;
        let mut left: Vec<BlockId> = Vec::new();
        for id in marked.into_data().into_keys() {
            if !tiered.store().contains(&id).map_err(VolumeError::store)? {
                left.push(id);
            }
        }
        while !left.is_empty() && go_on() {
            let room = self.room_ahead()?;
            if room == 0 {
                ahead.full = true;
                break;
            }
            let some = left.split_off(left.len() - left.len().min(room));
            let wants: Vec<Want> = some
                .into_iter()
                .map(|id| Want {
                    id,
                    root: None,
                    ahead: true,
                })
                .collect();
            tiered.prefetch(&wants);
            for want in wants {
                match tiered.get(want) {
                    Ok(bytes) => {
                        ahead.blocks += 1;
                        ahead.bytes += bytes.len() as u64;
                    }
                    Err(error) => {
                        tracing::debug!(block = %want.id, %error, "a block cannot be brought here now");
                        ahead.missing += 1;
                    }
                }
            }
            // Whoever has none of these does not have the rest.
            if ahead.missing > 0 {
                break;
            }
        }
        Ok(ahead)
    }

    /// Asks for nodes of a tree, 32 at once, and waits for them: without it, whoever reads them one after the other waits for each. False when
    /// one cannot be had now.
    pub fn bring_nodes(&self, ids: &[BlockId]) -> bool {
        let tiered = self.blocks.tiered();
        let want = |id: &BlockId| Want {
            id: *id,
            root: None,
            ahead: true,
        };
        ids.chunks(NODES_AT_ONCE).all(|some| {
            let wants: Vec<Want> = some.iter().map(want).collect();
            tiered.prefetch(&wants);
            wants.into_iter().all(|want| tiered.get(want).is_ok())
        })
    }

    /// How many blocks, of whatever size, have room without anything else being evicted for them; [`AT_ONCE`] at most.
    fn room_ahead(&self) -> Result<usize> {
        let stats = self.blocks.tiered().store().stats().map_err(VolumeError::store)?;
        let filled = stats.cache_size / FILLED.1 * FILLED.0;
        let blocks = match stats.cache_size {
            0 => AT_ONCE as u64,
            _ => filled.saturating_sub(stats.bytes) / BLOCK_MAX as u64,
        };
        Ok(blocks.min(AT_ONCE as u64) as usize)
    }
}
