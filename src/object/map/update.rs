//! Changing a map: level by level from the leaves up, each from the edits that the one below makes of it.

use std::collections::BTreeMap;
use std::iter::Peekable;

use crate::base::codec::Writer;
use crate::base::limits::{CHUNK_MAX, MAP_KEY_MAX, MAP_VALUE_MAX};

use super::cursor::Cursor;
use super::node::{self, Expected, Node};
use super::{MapError, Nodes, Root, cut};

/// What to change: the new value of a key, or that it is gone.
pub type Edits = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Nodes are handed over together once they are so long, in bytes.
const BATCH: usize = 2 * CHUNK_MAX;

/// The map with these changes. Reads and writes the nodes around them and those above, and holds at most one batch of new nodes; a failure
/// leaves the old map as it is, and perhaps new nodes that nothing names.
pub fn update<N: Nodes + ?Sized>(nodes: &N, root: &Root, edits: &Edits) -> Result<Root, MapError<N::Error>> {
    for (key, value) in edits {
        if key.len() > MAP_KEY_MAX {
            return Err(MapError::KeyTooLong(key.len()));
        }
        let len = value.as_ref().map_or(0, Vec::len);
        if len > MAP_VALUE_MAX {
            return Err(MapError::ValueTooLong(len));
        }
    }
    let mut level = 0;
    let mut above = update_level(nodes, root, 0, edits)?;
    loop {
        if level >= root.depth {
            // Of the old map nothing is left that was not looked at: what is there now are the new nodes.
            if above.is_empty() && root.id.is_some() {
                return Ok(*root);
            }
            above.retain(|_, node| node.is_some());
            if above.len() <= 1 {
                let only = above.into_values().flatten().next();
                return match only {
                    None => Ok(Root::EMPTY),
                    Some(reference) => lowest(nodes, level, &reference),
                };
            }
        } else if above.is_empty() {
            return Ok(*root);
        }
        level += 1;
        above = update_level(nodes, root, level, &above)?;
    }
}

/// The root of a level that has a single node: the lowest such level.
fn lowest<N: Nodes + ?Sized>(nodes: &N, depth: u8, reference: &[u8]) -> Result<Root, MapError<N::Error>> {
    let (len, id) = node::parse_reference(reference);
    let mut root = Root {
        id: Some(id),
        depth,
        len,
    };
    while let Some((id, expected)) = Expected::of(&root).filter(|_| root.depth > 0) {
        let node = Node::load(nodes, &id, &expected)?;
        if node.count() > 1 {
            break;
        }
        root.id = Some(node.reference(0).1);
        root.depth -= 1;
    }
    Ok(root)
}

type Next<'e> = Peekable<std::collections::btree_map::Iter<'e, Vec<u8>, Option<Vec<u8>>>>;

/// Changes one level, and says what that changes on the next one.
fn update_level<N: Nodes + ?Sized>(
    nodes: &N,
    root: &Root,
    level: u8,
    edits: &Edits,
) -> Result<Edits, MapError<N::Error>> {
    let mut cursor = Cursor::new(nodes, root, level);
    let mut made = Made::new(nodes, level);
    let mut edits: Next<'_> = edits.iter().peekable();
    while let Some((key, _)) = edits.peek() {
        let mut next = cursor.seek(key)?;
        while let Some(node) = next {
            let is_last = cursor.is_last();
            if made.is_between() && changes_nothing(&node, &mut edits.clone(), is_last) {
                pass(&node, &mut edits, is_last);
                break;
            }
            made.replace(&node, &mut edits, is_last)?;
            if made.is_between() {
                break;
            }
            next = cursor.advance()?;
        }
        if root.depth < level || root.id.is_none() {
            for (key, value) in edits.by_ref() {
                if let Some(value) = value {
                    made.push(key, value)?;
                }
            }
        }
    }
    made.finish()
}

/// The next edit of a node's range: all that are left belong to the last node.
fn next_in<'e>(
    node: &Node,
    edits: &mut Next<'e>,
    is_last: bool,
) -> Option<(&'e Vec<u8>, &'e Option<Vec<u8>>)> {
    edits.next_if(|(key, _)| is_last || key.as_slice() <= node.last())
}

fn pass(node: &Node, edits: &mut Next<'_>, is_last: bool) {
    while next_in(node, edits, is_last).is_some() {}
}

/// Whether the node already is as its edits want it.
fn changes_nothing(node: &Node, edits: &mut Next<'_>, is_last: bool) -> bool {
    while let Some((key, value)) = next_in(node, edits, is_last) {
        let is_so = match (node.find(key), value) {
            (Ok(at), Some(value)) => node.value(at) == value,
            (Err(_), None) => true,
            _ => false,
        };
        if !is_so {
            return false;
        }
    }
    true
}

/// The nodes that a level gets.
struct Made<'a, N: Nodes + ?Sized> {
    nodes: &'a N,
    level: u8,
    /// The node that is being made: its entries, their number, how many of the map's are in it, its last key.
    entries: Writer,
    count: u32,
    len: u64,
    last: Vec<u8>,
    /// Nodes that are done, with their last keys and numbers of the map's entries.
    batch: Vec<(Vec<u8>, u64, Vec<u8>)>,
    batch_bytes: usize,
    /// What changes on the level above.
    above: Edits,
    /// Last keys of the nodes that are replaced.
    before: Vec<Vec<u8>>,
}

impl<'a, N: Nodes + ?Sized> Made<'a, N> {
    fn new(nodes: &'a N, level: u8) -> Self {
        Self {
            nodes,
            level,
            entries: Writer::default(),
            count: 0,
            len: 0,
            last: Vec::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            above: Edits::new(),
            before: Vec::new(),
        }
    }

    /// Whether a node has just ended: what follows is cut as if nothing came before.
    fn is_between(&self) -> bool {
        self.count == 0
    }

    /// Takes the entries of an old node, changed by the edits of its range.
    fn replace(
        &mut self,
        node: &Node,
        edits: &mut Next<'_>,
        is_last: bool,
    ) -> Result<(), MapError<N::Error>> {
        self.before.push(node.last().to_vec());
        let mut at = 0;
        while let Some((key, value)) = next_in(node, edits, is_last) {
            while at < node.count() && node.key(at) < key.as_slice() {
                self.push(node.key(at), node.value(at))?;
                at += 1;
            }
            if at < node.count() && node.key(at) == key {
                at += 1;
            }
            if let Some(value) = value {
                self.push(key, value)?;
            }
        }
        for at in at..node.count() {
            self.push(node.key(at), node.value(at))?;
        }
        Ok(())
    }

    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), MapError<N::Error>> {
        node::write_entry(self.level, key, value, &mut self.entries);
        self.count += 1;
        self.len += match self.level {
            0 => 1,
            _ => node::parse_reference(value).0,
        };
        self.last.clear();
        self.last.extend_from_slice(key);
        let len = node::entry_len(self.level, key, value);
        match cut::ends(self.level, key, len, self.entries.len()) {
            true => self.end(),
            false => Ok(()),
        }
    }

    /// Ends the node that is being made.
    fn end(&mut self) -> Result<(), MapError<N::Error>> {
        let entries = std::mem::take(&mut self.entries).into_vec();
        let bytes = [&node::header(self.level, self.count)[..], &entries].concat();
        self.batch_bytes += bytes.len();
        self.batch.push((std::mem::take(&mut self.last), self.len, bytes));
        (self.count, self.len) = (0, 0);
        match self.batch_bytes >= BATCH {
            true => self.hand_over(),
            false => Ok(()),
        }
    }

    fn hand_over(&mut self) -> Result<(), MapError<N::Error>> {
        let (mut names, mut nodes) = (Vec::new(), Vec::new());
        for (last, len, bytes) in std::mem::take(&mut self.batch) {
            names.push((last, len));
            nodes.push(bytes);
        }
        self.batch_bytes = 0;
        if nodes.is_empty() {
            return Ok(());
        }
        let ids = self.nodes.put(&nodes).map_err(MapError::Nodes)?;
        for ((last, len), id) in names.into_iter().zip(ids) {
            self.above.insert(last, Some(node::reference(len, &id)));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Edits, MapError<N::Error>> {
        if !self.is_between() {
            self.end()?;
        }
        self.hand_over()?;
        for key in self.before {
            self.above.entry(key).or_insert(None);
        }
        Ok(self.above)
    }
}
