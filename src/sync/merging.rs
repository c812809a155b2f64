//! Trees of snapshots merged as trees of the volume, and the past of a snapshot. Called by `engine`.

use std::cell::RefCell;

use crate::base::BlockId;
use crate::merge::{History, View, ViewError, merge};
use crate::object::map::{self, Root};
use crate::volume::{TreeNodes, Volume, VolumeError, of_map};

use super::{Result, SyncError};

/// What two trees are together that came from `base`. Its nodes are stored.
pub(super) fn merged(volume: &Volume, base: Root, left: Root, right: Root) -> Result<Root> {
    let nodes = volume.tree_nodes();
    let mut view: View<'_, TreeNodes<'_>> = View::new(&nodes, &base);
    let (left, right) = (
        view.edits_to(&left).map_err(told)?,
        view.edits_to(&right).map_err(told)?,
    );
    let edits = merge(&view, &left, &right).map_err(told)?;
    let records = view.records(&edits).map_err(told)?;
    Ok(map::update(&nodes, &base, &records).map_err(of_map)?)
}

fn told(error: ViewError<VolumeError>) -> SyncError {
    SyncError::Volume(match error {
        ViewError::Map(error) => of_map(error),
        other => VolumeError::Damaged {
            path: "snapshot".into(),
            reason: other.to_string(),
        },
    })
}

/// What snapshots came from, as far as that can be read.
pub(super) struct Past<F> {
    parents: F,
    failed: RefCell<Option<SyncError>>,
}

impl<F: Fn(BlockId) -> Result<Vec<BlockId>>> Past<F> {
    pub(super) fn new(parents: F) -> Self {
        Self {
            parents,
            failed: RefCell::new(None),
        }
    }

    /// Whether everything that was asked for could be read.
    pub(super) fn into_result(self) -> Result<()> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }
}

impl<F: Fn(BlockId) -> Result<Vec<BlockId>>> History for Past<F> {
    type Id = BlockId;

    fn parents(&self, id: BlockId) -> Vec<BlockId> {
        (self.parents)(id).unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            Vec::new()
        })
    }
}
