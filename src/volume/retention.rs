//! What the volume needs of its blocks, told to whoever keeps copies of them elsewhere.
//!
//! Invariant: a block that a file names was told as stored, or is named in the next naming of everything; one that is named by no file and
//! was not stored since a naming began is not needed any more when that ends.

use std::collections::HashMap;
use std::time::Instant;

use super::Volume;
use super::collect::Marked;
use super::error::Result;
use super::wishes::Needs;
use crate::base::BlockId;

/// Who is told. None of the calls may wait, but for the one that says so.
pub trait Retention: Send + Sync {
    /// Blocks were stored, or found to be stored already, and are about to be named by a file.
    fn stored(&self, blocks: &[BlockId]);

    /// These blocks need more than others: the owner wishes it for a file that names them.
    fn wished(&self, blocks: &[(BlockId, Needs)]);

    /// Replicas of a block for which nothing else is wished.
    fn default_replicas(&self) -> u8;

    /// A wish was found in the volume.
    fn wishes_found(&self);

    /// Whether there was ever one.
    fn has_wishes(&self) -> bool;

    /// Wishes changed, or content came by another way: everything is to be named again.
    fn look_again(&self);

    /// Whether all these blocks have the replicas they need, as far as there are devices for them.
    fn has_replicas(&self, blocks: &[BlockId]) -> bool;

    /// Waits until they have, at most until then. False when they have not. May wait, unlike the others.
    fn wait_for_replicas(&self, blocks: &[BlockId], until: Instant) -> bool;

    /// Everything is about to be named.
    fn begin(&self);

    /// Everything that is needed, but for what was stored since [`Retention::begin`]; `None` when not all could be found.
    fn end(&self, named: Option<&Marked>);
}

impl Volume {
    /// Names everything that the files of the volume need.
    pub fn name_all(&self) -> Result<()> {
        let Some(retention) = self.blocks.retention() else {
            return Ok(());
        };
        let _alone = self.lock_collection();
        self.sync_all()?;
        retention.begin();
        let named = self.mark();
        retention.end(named.as_ref().ok());
        named.map(|_| ())
    }

    /// The blocks with the content of a file or of a directory's files, by its path in the volume; without those that name others, which
    /// are fetched when they are elsewhere.
    pub fn blocks_below(&self, path: &std::path::Path) -> Result<HashMap<BlockId, Needs>> {
        self.sync_all()?;
        let mut marked = Marked::as_far_as_here(self.default_needs());
        self.mark_path(path, &mut marked)?;
        self.mark_elsewhere(&mut marked)?;
        Ok(marked.into_data())
    }
}
