//! Checks a volume that no daemon has: both slots of every `.f`, and every block in the store against its id. Changes nothing, asks no network.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::run::take_lock;
use super::{Located, PassphraseSource};
use crate::base::BlockId;
use crate::base::limits::INDEX_DEPTH_MAX;
use crate::base::names::{HostName, MARKER, TEMP_PREFIX, from_host};
use crate::folder::Folder;
use crate::folder::slots::SlotBytes;
use crate::keys::VolumeKeys;
use crate::object::{Content, Manifest, index};
use crate::seal::{Opener, epoch_of};
use crate::store::{BlockStore, SqliteStore, StoreError, StoreOptions};
use crate::volume::choose;

/// Blocks that are listed in one step.
const PAGE: usize = 4096;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Checked {
    /// Files of the folder.
    pub files: u64,
    /// Blocks in the store.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files and blocks that are damaged, and blocks that should be here and are not.
    pub errors: u64,
    /// Blocks that files need and that only other devices may have.
    pub elsewhere: u64,
    /// Plain files that wait for their import.
    pub plain: u64,
}

/// Checks the volume. `say` gets a line for everything found, and is told now and then how far it is.
pub fn fsck(
    located: &Located,
    passphrase: PassphraseSource,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Checked> {
    let lock = take_lock(located)?;
    let keys = located
        .unlock(passphrase)?
        .volume
        .context("this device is a host of the group: it has the blocks of others and cannot read them")?;
    let folder = Folder::open(&located.folder)
        .with_context(|| format!("cannot open the folder {}", located.folder.display()))?;
    let store = Arc::new(SqliteStore::open(
        &located.state.store_path(),
        StoreOptions::default(),
    )?);
    if store.opened_unclean() {
        // Closing it marks it clean, so what is here must be as durable as after the first start of a daemon (crash rule).
        store.sync()?;
        folder.sync().context("cannot sync the folder")?;
    }
    let mut check = Check {
        keys: &keys,
        store: &store,
        opener: Opener::new(),
        damaged: HashSet::new(),
        found: Checked::default(),
        say,
    };
    let done = check
        .whole_store()
        .and_then(|()| check.directory(&located.folder, Path::new("")));
    let found = check.found;
    let closed = store.close();
    drop(lock);
    done?;
    closed?;
    Ok(found)
}

struct Check<'a> {
    keys: &'a VolumeKeys,
    store: &'a SqliteStore,
    opener: Opener,
    damaged: HashSet<BlockId>,
    found: Checked,
    say: &'a mut dyn FnMut(&str),
}

impl Check<'_> {
    fn error(&mut self, text: &str) {
        self.found.errors += 1;
        (self.say)(text);
    }

    /// Reads every block; the store checks each against its id.
    fn whole_store(&mut self) -> anyhow::Result<()> {
        for line in self.store.check()? {
            self.error(&format!("{}: {line}", self.store.path().display()));
        }
        let mut after = None;
        loop {
            let page = self.store.list(after, PAGE)?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            after = Some(*last);
            for (id, _) in page {
                self.found.blocks += 1;
                match self.store.get(&id) {
                    Ok(Some(block)) => self.found.bytes += block.len() as u64,
                    Ok(None) => {}
                    Err(StoreError::Damaged(_)) => {
                        self.damaged.insert(id);
                        self.error(&format!("block {id}: its bytes in the store are damaged"));
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }

    fn directory(&mut self, host: &Path, shown: &Path) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(host).with_context(|| host.display().to_string())?;
        for entry in entries {
            let entry = entry.with_context(|| host.display().to_string())?;
            let name = entry.file_name();
            let kind = entry
                .file_type()
                .with_context(|| entry.path().display().to_string())?;
            if name.as_encoded_bytes().starts_with(TEMP_PREFIX.as_bytes())
                || (shown.as_os_str().is_empty() && name == MARKER)
            {
                continue;
            }
            match from_host(&name) {
                Some(HostName::Dir(name)) if kind.is_dir() => {
                    self.directory(&entry.path(), &shown.join(name))?;
                }
                Some(HostName::File(name)) if kind.is_file() => self.file(&entry.path(), &shown.join(name)),
                Some(HostName::File(_)) if !kind.is_dir() => self.found.files += 1,
                Some(HostName::Dir(_)) => {
                    self.found.plain += 1;
                    (self.say)(&format!(
                        "{}: a plain file that is not imported yet",
                        entry.path().display()
                    ));
                }
                _ => self.error(&format!("{}: no name that dfs gives", entry.path().display())),
            }
        }
        Ok(())
    }

    fn file(&mut self, host: &Path, shown: &Path) {
        self.found.files += 1;
        let shown = shown.display();
        let bytes = match File::open(host).and_then(|file| SlotBytes::read(&file)) {
            Ok(bytes) => bytes,
            Err(e) => return self.error(&format!("{shown}: cannot read its .f: {e}")),
        };
        match choose(&bytes, self.keys, self.store) {
            Err(damage) => self.error(&format!("{shown}: {damage}")),
            Ok(chosen) => {
                if let Some(damage) = chosen.warning {
                    self.error(&format!("{shown}: {damage}; the other slot is whole and counts"));
                }
                if let Some(manifest) = chosen.manifest {
                    self.content(&shown, &manifest);
                }
            }
        }
    }

    /// Follows a manifest down to every block it needs.
    fn content(&mut self, shown: &std::path::Display<'_>, manifest: &Manifest) {
        let mut wanted = Wanted {
            ours: manifest.store == self.store.id(),
            ..Wanted::default()
        };
        match &manifest.content {
            Content::Inline(_) => {}
            Content::Extents(extents) => {
                for id in extents.iter().filter_map(|extent| extent.block) {
                    self.need(id, &mut wanted);
                }
            }
            Content::Index { depth, refs } => {
                for entry in refs {
                    self.index_block(entry.id, *depth, &mut wanted);
                }
            }
        }
        for reason in wanted.broken {
            self.error(&format!("{shown}: {reason}"));
        }
        if wanted.absent == 0 {
            return;
        }
        if wanted.ours {
            self.error(&format!(
                "{shown}: {} of its blocks are missing in the store",
                wanted.absent
            ));
        } else {
            self.found.elsewhere += wanted.absent;
            (self.say)(&format!(
                "{shown}: {} of its blocks are not on this device; another must have them",
                wanted.absent
            ));
        }
    }

    /// Whether the block is here and whole.
    fn need(&mut self, id: BlockId, wanted: &mut Wanted) -> bool {
        if self.damaged.contains(&id) {
            wanted.broken.push(format!("it needs the damaged block {id}"));
            return false;
        }
        match self.store.contains(&id) {
            Ok(true) => true,
            Ok(false) => {
                wanted.absent += 1;
                false
            }
            Err(e) => {
                wanted.broken.push(e.to_string());
                false
            }
        }
    }

    fn index_block(&mut self, id: BlockId, depth: u8, wanted: &mut Wanted) {
        if depth == 0 || depth > INDEX_DEPTH_MAX {
            wanted.broken.push(format!("its index is {depth} deep"));
            return;
        }
        if !self.need(id, wanted) {
            return;
        }
        let opened = self.open(id);
        let below = opened.and_then(|plain| {
            if depth == 1 {
                let extents = index::decode_extents(&plain)?;
                Ok(extents.into_iter().filter_map(|extent| extent.block).collect())
            } else {
                let refs = index::decode_refs(&plain)?;
                Ok::<Vec<BlockId>, anyhow::Error>(refs.into_iter().map(|entry| entry.id).collect())
            }
        });
        match below {
            Err(e) => wanted.broken.push(format!("index block {id}: {e:#}")),
            Ok(ids) if depth == 1 => {
                for id in ids {
                    self.need(id, wanted);
                }
            }
            Ok(ids) => {
                for id in ids {
                    self.index_block(id, depth - 1, wanted);
                }
            }
        }
    }

    fn open(&mut self, id: BlockId) -> anyhow::Result<Vec<u8>> {
        let block = self.store.get(&id)?.context("it is gone")?;
        let epoch = epoch_of(&block)?;
        let key = self
            .keys
            .epoch(epoch)
            .with_context(|| format!("it is of epoch {epoch}, of which this device has no key"))?;
        let mut plain = Vec::new();
        self.opener.open(key, &block, &mut plain)?;
        Ok(plain)
    }
}

/// What is wrong with the blocks of one file.
#[derive(Default)]
struct Wanted {
    /// The file was last written with this very store, which does not give up what was written.
    ours: bool,
    absent: u64,
    broken: Vec<String>,
}
