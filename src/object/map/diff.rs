//! Where two maps differ, at the cost of the difference: what they share is passed over as a whole.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use super::node::{Expected, Node};
use super::{MapError, Nodes, Root};

/// Gives each key that has another value in `right` than in `left`, or is in one of them only, in order, until `each` breaks: the key, its value in
/// `left`, its value in `right`.
pub fn diff<N: Nodes + ?Sized>(
    nodes: &N,
    left: &Root,
    right: &Root,
    mut each: impl FnMut(&[u8], Option<&[u8]>, Option<&[u8]>) -> ControlFlow<()>,
) -> Result<(), MapError<N::Error>> {
    if left == right {
        return Ok(());
    }
    let (mut left, mut right) = (Side::new(nodes, left)?, Side::new(nodes, right)?);
    loop {
        // A whole node is compared with a whole node of its level only; the higher one is opened, or both.
        let order = match (left.here(), right.here()) {
            (None, None) => return Ok(()),
            (Some((node, _)), None) if node.level() > 0 => {
                left.open()?;
                continue;
            }
            (None, Some((node, _))) if node.level() > 0 => {
                right.open()?;
                continue;
            }
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, i)), Some((b, j))) if a.level() > 0 || b.level() > 0 => {
                let (one, other) = (a.level(), b.level());
                if one == other && a.value(i) == b.value(j) {
                    left.step();
                    right.step();
                    continue;
                }
                if one >= other {
                    left.open()?;
                }
                if other >= one {
                    right.open()?;
                }
                continue;
            }
            (Some((a, i)), Some((b, j))) => a.key(i).cmp(b.key(j)),
        };
        if emit(&left, &right, order, &mut each).is_break() {
            return Ok(());
        }
        if order.is_le() {
            left.step();
        }
        if order.is_ge() {
            right.step();
        }
    }
}

fn emit<N: Nodes + ?Sized>(
    left: &Side<'_, N>,
    right: &Side<'_, N>,
    order: Ordering,
    each: &mut impl FnMut(&[u8], Option<&[u8]>, Option<&[u8]>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    match (order, left.here(), right.here()) {
        (Ordering::Less, Some((node, at)), _) => each(node.key(at), Some(node.value(at)), None),
        (Ordering::Greater, _, Some((node, at))) => each(node.key(at), None, Some(node.value(at))),
        (Ordering::Equal, Some((a, i)), Some((b, j))) if a.value(i) != b.value(j) => {
            each(a.key(i), Some(a.value(i)), Some(b.value(j)))
        }
        _ => ControlFlow::Continue(()),
    }
}

/// A way through one of the maps, in order: an entry of a leaf, or of an inner node for all that is below it.
struct Side<'a, N: Nodes + ?Sized> {
    nodes: &'a N,
    way: Vec<(Node, usize)>,
}

impl<'a, N: Nodes + ?Sized> Side<'a, N> {
    fn new(nodes: &'a N, root: &Root) -> Result<Self, MapError<N::Error>> {
        let top = match Expected::of(root) {
            Some((id, expected)) => Some((Node::load(nodes, &id, &expected)?, 0)),
            None => None,
        };
        Ok(Self {
            nodes,
            way: top.into_iter().collect(),
        })
    }

    fn here(&self) -> Option<(&Node, usize)> {
        self.way.last().map(|(node, at)| (node, *at))
    }

    /// Passes over where it is.
    fn step(&mut self) {
        while let Some((node, at)) = self.way.last_mut() {
            *at += 1;
            if *at < node.count() {
                return;
            }
            self.way.pop();
        }
    }

    /// Goes into what is below the entry of an inner node.
    fn open(&mut self) -> Result<(), MapError<N::Error>> {
        if let Some((node, at)) = self.way.last() {
            let (id, expected) = node.child(*at);
            let node = Node::load(self.nodes, &id, &expected)?;
            self.way.push((node, 0));
        }
        Ok(())
    }
}
