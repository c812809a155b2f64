//! A place in the sequence of nodes of one level, found from the root.

use std::sync::Arc;

use super::node::{Expected, Node};
use super::{MapError, Nodes, Root};

/// A way down: from the root to a node of the level. Every node on it stays decoded while the cursor moves within it.
pub(super) struct Cursor<'a, N: Nodes + ?Sized> {
    nodes: &'a N,
    root: Root,
    level: u8,
    /// Nodes with the entry that leads on; in the last one it means nothing.
    way: Vec<(Arc<Node>, usize)>,
}

impl<'a, N: Nodes + ?Sized> Cursor<'a, N> {
    /// A cursor over the nodes of a level.
    pub(super) fn new(nodes: &'a N, root: &Root, level: u8) -> Self {
        Self {
            nodes,
            root: *root,
            level,
            way: Vec::new(),
        }
    }

    /// The first node that ends with this key or a greater one; the last node when there is none. `None` without a node on the level.
    pub(super) fn seek(&mut self, key: &[u8]) -> Result<Option<Arc<Node>>, MapError<N::Error>> {
        // Never beyond what the nodes on the way hold; and backwards from the beginning.
        while self.way.last().is_some_and(|(node, _)| key > node.last()) {
            self.way.pop();
        }
        let is_back = self.way.last().is_some_and(|(node, _)| key < node.key(0));
        if is_back {
            self.way.clear();
        }
        if self.way.is_empty() {
            if self.root.depth < self.level {
                return Ok(None);
            }
            let Some((id, expected)) = Expected::of(&self.root) else {
                return Ok(None);
            };
            let node = Node::load(self.nodes, &id, &expected)?;
            self.way.push((Arc::new(node), 0));
        }
        self.descend(|node| node.find(key).unwrap_or_else(|at| at).min(node.count() - 1))
    }

    /// The node after the one that `seek` or `advance` gave.
    pub(super) fn advance(&mut self) -> Result<Option<Arc<Node>>, MapError<N::Error>> {
        self.way.pop();
        while let Some((node, at)) = self.way.last_mut() {
            *at += 1;
            if *at < node.count() {
                let (id, expected) = node.child(*at);
                let node = Node::load(self.nodes, &id, &expected)?;
                self.way.push((Arc::new(node), 0));
                return self.descend(|_| 0);
            }
            self.way.pop();
        }
        Ok(None)
    }

    /// Whether no node of the level comes after the one that `seek` or `advance` gave.
    pub(super) fn is_last(&self) -> bool {
        let above = &self.way[..self.way.len().saturating_sub(1)];
        above.iter().all(|(node, at)| at + 1 == node.count())
    }

    fn descend(&mut self, choose: impl Fn(&Node) -> usize) -> Result<Option<Arc<Node>>, MapError<N::Error>> {
        while let Some((node, at)) = self.way.last_mut() {
            if node.level() <= self.level {
                return Ok(Some(Arc::clone(node)));
            }
            *at = choose(node);
            let (id, expected) = node.child(*at);
            let node = Node::load(self.nodes, &id, &expected)?;
            self.way.push((Arc::new(node), 0));
        }
        Ok(None)
    }
}
