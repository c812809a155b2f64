//! Content of what others changed, brought here before anybody reads it: what differs from one snapshot to a later one is gone through, in the order of
//! the map, and can be gone on with from where it stopped. Called by `daemon`, from a thread of its own.

use std::ops::ControlFlow;
use std::path::Path;

use crate::base::BlockId;
use crate::base::tree::Place;
use crate::object::Content;
use crate::object::map::{self, Root};
use crate::object::record::{Body, Record};
use crate::volume::{Ahead, of_map};

use super::lookup::Tree;
use super::{Engine, Result};

/// Files in a row of which something cannot be had before it is given up for now.
const IN_VAIN_MAX: u32 = 4;

/// How the content of a file is to be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bring {
    /// Not at all.
    No,
    /// As far as there is room; it may be evicted.
    Ahead,
    /// To stay.
    Pinned,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Brought {
    /// What came, and what did not.
    pub ahead: Ahead,
    /// Where it stopped before the end, to be gone on with behind that.
    pub stopped_at: Option<Vec<u8>>,
}

impl Engine {
    /// Brings the content of files that another device wrote and that are others in the second snapshot than in the first, as `how` says by the path;
    /// only behind a place where it stopped before. Stops where `go_on` says no, where there is no room, and where nothing can be had.
    pub fn bring_ahead(
        &self,
        (from, to): (Option<&BlockId>, &BlockId),
        after: Option<&[u8]>,
        how: &dyn Fn(&Path) -> Bring,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Brought> {
        let from = match from {
            Some(from) => self.snapshot(from)?.root,
            None => Root::EMPTY,
        };
        let to = self.snapshot(to)?.root;
        let tree = Tree::new(&self.volume, to);
        let (mut brought, mut in_vain, mut failed) = (Brought::default(), 0, Ok(()));
        map::diff(&self.volume.tree_nodes(), &from, &to, |key, before, now| {
            if after.is_some_and(|after| key <= after) {
                return ControlFlow::Continue(());
            }
            let Some((places, content)) = now.and_then(|now| self.written_elsewhere(key, before, now)) else {
                return ControlFlow::Continue(());
            };
            let one = match self.bring_one(&tree, &places, &content, how, go_on) {
                Ok(one) => one,
                Err(error) => {
                    failed = Err(error);
                    return ControlFlow::Break(());
                }
            };
            brought.ahead.blocks += one.blocks;
            brought.ahead.bytes += one.bytes;
            brought.ahead.missing += one.missing;
            brought.ahead.full |= one.full;
            if !go_on() {
                // Of this one there may be more, and it is looked at again.
                brought.stopped_at = Some(after.unwrap_or_default().to_vec());
                return ControlFlow::Break(());
            }
            in_vain = match (one.missing, one.blocks) {
                (0, 0) => in_vain,
                (0, _) => 0,
                _ => in_vain + 1,
            };
            if one.full || in_vain >= IN_VAIN_MAX {
                brought.stopped_at = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })
        .map_err(of_map)?;
        failed.map(|()| brought)
    }

    fn bring_one(
        &self,
        tree: &Tree<'_>,
        places: &[Place],
        content: &Content,
        how: &dyn Fn(&Path) -> Bring,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Ahead> {
        for place in places {
            let Some(path) = tree.path(place)? else { continue };
            let brought = match how(&path) {
                Bring::No => continue,
                Bring::Ahead => self.volume.bring_ahead(content, go_on),
                Bring::Pinned => self
                    .volume
                    .bring(&path, &mut |_, _| go_on())
                    .map(|brought| Ahead {
                        blocks: brought.blocks,
                        bytes: brought.bytes,
                        missing: brought.missing,
                        full: false,
                    }),
            };
            // Something of it that says where the rest is cannot be had, or the file has gone since.
            return Ok(brought.unwrap_or_else(|error| {
                tracing::debug!(%error, path = %path.display(), "content cannot be brought here now");
                Ahead {
                    missing: 1,
                    ..Ahead::default()
                }
            }));
        }
        Ok(Ahead::default())
    }

    /// The places and the content of a file, if it has one in blocks, somebody else wrote it, and it is not what it was.
    fn written_elsewhere(
        &self,
        key: &[u8],
        before: Option<&[u8]>,
        now: &[u8],
    ) -> Option<(Vec<Place>, Content)> {
        let (parent, name, record) = Record::decode_entry(key, now).ok()?;
        let (places, body) = match record {
            Record::Node { body, .. } => {
                let name = name.into();
                (vec![Place { parent, name }], body)
            }
            Record::Shared { places, body, .. } => (places.into_iter().collect(), body),
            _ => return None,
        };
        let Body::File { content, author, .. } = body else {
            return None;
        };
        let was = before.and_then(|before| Record::decode(before).ok());
        let was = match &was {
            Some(
                Record::Node {
                    body: Body::File { content, .. },
                    ..
                }
                | Record::Shared {
                    body: Body::File { content, .. },
                    ..
                },
            ) => Some(content),
            _ => None,
        };
        let is_wanted = author != self.device() && !matches!(content, Content::Inline(_));
        (is_wanted && was != Some(&content)).then_some((places, content))
    }
}
