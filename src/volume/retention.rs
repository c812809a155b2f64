//! What the volume needs of its blocks, told to whoever keeps copies of them elsewhere.
//!
//! Invariant: a block that a file names was told as stored, or is named in the next naming of everything; one that is named by no file and
//! was not stored since a naming began is not needed any more when that ends.

use std::collections::HashSet;

use super::Volume;
use super::collect::Marked;
use super::error::Result;
use crate::base::BlockId;

/// Who is told. None of the calls may wait.
pub trait Retention: Send + Sync {
    /// Blocks were stored, or found to be stored already, and are about to be named by a file.
    fn stored(&self, blocks: &[BlockId]);

    /// Everything is about to be named.
    fn begin(&self);

    /// Everything that is needed, but for what was stored since [`Retention::begin`]. Not called when the naming failed.
    fn end(&self, named: &Marked);
}

impl Volume {
    /// Names everything that the files of the volume need.
    pub fn name_all(&self) -> Result<()> {
        let Some(retention) = self.blocks.retention() else {
            return Ok(());
        };
        let _no_import = self.importing.lock();
        self.sync_all()?;
        retention.begin();
        let named = self.mark()?;
        retention.end(&named);
        Ok(())
    }

    /// The blocks with the content of a file or of a directory's files, by its path in the volume; without those that name others.
    pub fn blocks_below(&self, path: &std::path::Path) -> Result<HashSet<BlockId>> {
        self.sync_all()?;
        let mut marked = Marked::default();
        self.mark_path(path, &mut marked)?;
        Ok(marked.into_data())
    }
}
