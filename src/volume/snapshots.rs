//! The blocks of snapshots: kept like those of files, and needed for as long as a snapshot is retained.
//!
//! Invariant: nothing is collected between the moment a snapshot's blocks are stored and the moment it is retained ([`Volume::committing`]).
//! Called by `sync`, and by `collect` for what retained snapshots reach.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::RwLockReadGuard;

use super::collect::Marked;
use super::error::{Result, VolumeError};
use super::moments::Moment;
use super::write_back::of_indexes;
use super::{Volume, Wait};
use crate::base::BlockId;
use crate::object::map::{self, MapError, Nodes};
use crate::object::record::{Body, Record};
use crate::object::snapshot::Snapshot;
use crate::store::{Put, PutKind, Want};

/// Between two tries to have the volume's blocks for a collection alone.
const AGAIN: Duration = Duration::from_millis(100);

/// Nodes that wait for their snapshot, in bytes, before they are stored without it.
const GATHERED_MAX: usize = 4 << 20;

/// Nodes on their way into the store: what belongs to one snapshot goes there in one commit.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    plain: HashMap<BlockId, Arc<Vec<u8>>>,
    sealed: Vec<Put>,
    bytes: usize,
}

/// The nodes of trees, as blocks of the volume. Those that are put are in the store when a snapshot is ([`Volume::put_snapshot`]).
#[derive(Debug, Clone, Copy)]
pub struct TreeNodes<'a>(pub(super) &'a Volume);

impl Nodes for TreeNodes<'_> {
    type Error = VolumeError;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>> {
        let gathered = self.0.gathered.lock().plain.get(id).cloned();
        gathered.map_or_else(|| self.0.tree_block(id, Wait::Bounded), Ok)
    }

    fn put(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>> {
        self.0.gather(nodes)
    }
}

impl Volume {
    /// Reads and stores the nodes of trees.
    pub fn tree_nodes(&self) -> TreeNodes<'_> {
        TreeNodes(self)
    }

    /// A snapshot, from here or from others.
    pub fn snapshot(&self, id: &BlockId) -> Result<Snapshot> {
        let bytes = self.tree_block(id, Wait::Bounded)?;
        Snapshot::decode(&bytes).map_err(|error| damaged(id, &error))
    }

    /// Stores a snapshot. Retain it before [`Volume::committing`]'s guard goes.
    pub fn put_snapshot(&self, snapshot: &Snapshot) -> Result<BlockId> {
        let ids = self.gather(&[snapshot.encode()])?;
        self.store_gathered(&mut self.gathered.lock())?;
        ids.first()
            .copied()
            .ok_or(VolumeError::Invalid("a snapshot is not empty"))
    }

    fn gather(&self, nodes: &[Vec<u8>]) -> Result<Vec<BlockId>> {
        let sealed = self.blocks.seal_nodes(nodes)?;
        let ids: Vec<BlockId> = sealed.iter().map(|put| put.id).collect();
        let mut gathered = self.gathered.lock();
        for (put, node) in sealed.into_iter().zip(nodes) {
            if gathered.plain.insert(put.id, Arc::new(node.clone())).is_none() {
                gathered.bytes += node.len() + put.bytes.len();
                gathered.sealed.push(put);
            }
        }
        if gathered.bytes >= GATHERED_MAX {
            self.store_gathered(&mut gathered)?;
        }
        Ok(ids)
    }

    /// Whoever needs one of them looks for it among the gathered before it looks into the store, and finds it in one of the two.
    fn store_gathered(&self, gathered: &mut Gathered) -> Result<()> {
        if gathered.sealed.is_empty() {
            return Ok(());
        }
        let sealed = std::mem::take(&mut gathered.sealed);
        let stored = self.blocks.store_sealed(sealed, of_indexes(&self.blocks));
        *gathered = Gathered::default();
        stored
    }

    /// While this is held nothing is collected.
    pub fn committing(&self) -> RwLockReadGuard<'_, ()> {
        self.collecting.read()
    }

    /// The blocks of the volume, for a collection alone. Whoever stores blocks that nothing names yet goes first.
    pub(super) fn lock_collection(&self) -> parking_lot::RwLockWriteGuard<'_, ()> {
        loop {
            match self.collecting.try_write() {
                Some(alone) => return alone,
                None => std::thread::sleep(AGAIN),
            }
        }
    }

    /// Whether a block is on this device.
    pub fn is_here(&self, id: &BlockId) -> Result<bool> {
        self.blocks
            .tiered()
            .store()
            .contains(id)
            .map_err(VolumeError::store)
    }

    /// The snapshots whose trees are needed, from now on. Of those that they came from, the snapshots themselves stay.
    pub fn retain_snapshots(&self, snapshots: Vec<Moment>) {
        let ids: HashSet<BlockId> = snapshots.iter().map(|one| one.id).collect();
        let before = {
            let mut retained = self.retained.lock();
            self.past.kept(|id| ids.contains(id));
            retained.replace(snapshots)
        };
        if before.is_some_and(|before| before.iter().any(|one| !ids.contains(&one.id))) {
            // What the last collection found still needed may not be any more.
            self.freed(self.collected.swap(0, Ordering::Relaxed));
        }
    }

    /// Has blocks of a tree stay on this device: without them nothing could be committed while nobody else is there.
    pub fn keep_here(&self, ids: &BTreeSet<BlockId>) -> Result<()> {
        self.store_gathered(&mut self.gathered.lock())?;
        let (tiered, store) = (self.blocks.tiered(), self.blocks.tiered().store());
        let mut puts = Vec::new();
        for id in ids {
            if store.contains(id).map_err(VolumeError::store)? {
                continue;
            }
            let want = Want {
                id: *id,
                root: None,
                ahead: false,
            };
            let bytes = tiered.get(want).map_err(|error| damaged(id, &error))?;
            puts.push(Put {
                id: *id,
                bytes,
                kind: PutKind::Dirty,
                plain: None,
            });
        }
        if !puts.is_empty() {
            store.put(puts).map_err(VolumeError::store)?;
        }
        let ids: Vec<BlockId> = ids.iter().copied().collect();
        store.set_dirty(&ids, true).map_err(VolumeError::store)?;
        if let Some(retention) = self.blocks.retention() {
            retention.stored(&ids);
        }
        Ok(())
    }

    /// What the folder is now survives a power cut.
    pub fn make_durable(&self) -> Result<()> {
        self.blocks.tiered().store().sync().map_err(VolumeError::store)?;
        self.sync_folder()
    }

    /// The newest epoch that this device has a key of.
    pub fn epoch(&self) -> u32 {
        self.blocks.keys().current().0
    }

    /// The store's part of what was committed survives a power cut from now on.
    pub fn sync_store(&self) -> Result<()> {
        self.blocks
            .tiered()
            .store()
            .sync()
            .map_err(VolumeError::store)
            .map(|_| ())
    }

    fn tree_block(&self, id: &BlockId, wait: Wait) -> Result<Arc<Vec<u8>>> {
        let read = self.blocks.plaintext(*id, None, wait);
        read.map(|(bytes, _)| bytes).map_err(|error| damaged(id, &error))
    }

    /// What retained snapshots reach: what they share is looked at once.
    /// What files name as well needs what their owner wishes for these.
    pub(super) fn mark_snapshots(&self, files: &mut Marked) -> Result<()> {
        let mut past = Marked::as_far_as_here(self.default_needs());
        self.mark_retained(&mut past)?;
        self.mark_elsewhere(&mut past)?;
        files.add_missing(past);
        Ok(())
    }

    fn mark_retained(&self, marked: &mut Marked) -> Result<()> {
        let retained = self.retained.lock().clone();
        let retained = retained.ok_or(VolumeError::Invalid("which snapshots are kept is not known"))?;
        let mut past = Vec::new();
        for Moment { id, .. } in retained {
            if !marked.add_index(id) {
                continue;
            }
            let snapshot = self.snapshot(&id)?;
            past.extend(snapshot.parents);
            let (shared, mut wrong) = (RefCell::new(&mut *marked), Ok(()));
            let wanted = |id: &BlockId| shared.borrow_mut().add_index(*id);
            let each = |key: &[u8], value: &[u8]| {
                wrong = self.mark_record(&id, (key, value), &mut shared.borrow_mut());
                match wrong {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            };
            map::walk(&self.tree_nodes(), &snapshot.root, wanted, each).map_err(of_map)?;
            wrong?;
        }
        self.mark_past(past, marked)
    }

    /// Snapshots without their trees, and those that they came from, as far as they are here: who came from whom is told by them alone.
    fn mark_past(&self, mut past: Vec<BlockId>, marked: &mut Marked) -> Result<()> {
        while let Some(id) = past.pop() {
            if self.is_here(&id)? && marked.add_index(id) {
                past.extend(self.snapshot(&id)?.parents);
            }
        }
        Ok(())
    }

    fn mark_record(
        &self,
        snapshot: &BlockId,
        (key, value): (&[u8], &[u8]),
        marked: &mut Marked,
    ) -> Result<()> {
        let decoded = Record::decode_entry(key, value).map_err(|error| damaged(snapshot, &error))?;
        match decoded.2 {
            Record::Node {
                body: Body::File { content, .. },
                ..
            }
            | Record::Shared {
                body: Body::File { content, .. },
                ..
            } => self.mark_content(&content, marked),
            _ => Ok(()),
        }
    }
}

/// An error of a map, as the volume tells it.
pub fn of_map(error: MapError<VolumeError>) -> VolumeError {
    match error {
        MapError::Nodes(error) => error,
        other => VolumeError::Damaged {
            path: "snapshot".into(),
            reason: other.to_string(),
        },
    }
}

fn damaged(id: &BlockId, error: &dyn std::fmt::Display) -> VolumeError {
    VolumeError::Damaged {
        path: format!("snapshot block {}", id.short()),
        reason: error.to_string(),
    }
}
