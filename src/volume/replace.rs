//! Replacing a file by rename, with or without an fsync before: a power cut leaves the name with the old content or with the new one.
//!
//! The host's rename may become durable before what was written does, and a file without a durable version is an empty one. ext4 begins to
//! write back such a file by itself (`auto_da_alloc` in ext4(5)), but knows nothing of blocks in the store. Called by `tree`.

use std::ffi::OsStr;

use super::error::{Result, VolumeError};
use super::{Synced, Volume, Wait};
use crate::base::types::{FileKind, RenameMode};
use crate::folder::host::attr_of;

impl Volume {
    /// Makes durable what a rename puts in the place of another file.
    ///
    /// # Errors
    /// [`VolumeError::WouldWait`] when that takes a sync and the caller may not wait.
    pub(super) fn settle_replacement(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        mode: RenameMode,
        wait: Wait,
    ) -> Result<()> {
        if mode == RenameMode::NoReplace {
            return Ok(());
        }
        let found = {
            let _still = self.renames.read();
            self.regular(from).zip(self.regular(to))
        };
        let Some((source, target)) = found.filter(|(source, target)| source != target) else {
            return Ok(());
        };
        let exchanged = (mode == RenameMode::Exchange).then_some(target);
        for ino in [Some(source), exchanged].into_iter().flatten() {
            let changed = |ino| {
                let open = self.handles.open_file(ino);
                open.is_some_and(|file| file.state.lock().changed)
            };
            if self.durability.of(ino).is_none() && !changed(ino) {
                continue;
            }
            if wait == Wait::Never {
                return Err(VolumeError::WouldWait);
            }
            self.with_open(ino, false, |file| self.write_through(file, Synced::Content))?;
        }
        Ok(())
    }

    /// The inode of a regular file; `None` for anything else, which the rename itself judges.
    fn regular(&self, (parent, name): (u64, &OsStr)) -> Option<u64> {
        let dir = self.nodes.dir(&self.folder, parent).ok()?;
        let (_, stat) = self.find(&dir, parent, name).ok()?;
        (attr_of(&stat).kind == FileKind::Regular).then(|| self.shown_ino(stat.st_ino))
    }
}
