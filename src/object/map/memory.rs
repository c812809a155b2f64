//! Nodes in memory, for tests and for trees that are only thought of.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use crate::base::BlockId;

use super::Nodes;

/// Nodes in memory, under the BLAKE3 hashes of their plaintext. Asking for one that was never put is a programming error and gives no bytes,
/// which no map takes for a node.
#[derive(Debug, Default)]
pub struct MemoryNodes(Mutex<BTreeMap<BlockId, Arc<Vec<u8>>>>);

impl MemoryNodes {
    /// Every node.
    pub fn all(&self) -> BTreeMap<BlockId, Arc<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Nodes for MemoryNodes {
    type Error = Infallible;

    fn get(&self, id: &BlockId) -> Result<Arc<Vec<u8>>, Infallible> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(nodes.get(id).cloned().unwrap_or_default())
    }

    fn put(&self, new: &[Vec<u8>]) -> Result<Vec<BlockId>, Infallible> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keep = |node: &Vec<u8>| {
            let id = BlockId::of(node);
            nodes.insert(id, Arc::new(node.clone()));
            id
        };
        Ok(new.iter().map(&mut keep).collect())
    }
}
