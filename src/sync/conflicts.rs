//! The conflict copies in a tree: found by their names in the newest snapshot, so also those whose content is elsewhere. Called by `daemon`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::base::BlockId;
use crate::base::tree::Place;
use crate::merge::{ConflictName, parse_conflict_name};
use crate::object::map;
use crate::object::record::{Body, Record, parse_key};
use crate::volume::of_map;

use super::lookup::{Tree, names};
use super::plan::Node;
use super::{Engine, Result};

/// A conflict copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Where it is.
    pub path: PathBuf,
    /// The file that it is a copy of; `None`: that is not there any more, or the name is too long to say.
    pub of: Option<PathBuf>,
    /// The beginning of the id of the device that wrote the copy, in hexadecimal digits; `None` where nobody is known.
    pub device: Option<String>,
    /// When its content was changed last, in seconds since the Unix epoch.
    pub time: i64,
    /// Its size, in bytes: of a regular file.
    pub size: Option<u64>,
    /// The size of the file that it is a copy of, in bytes.
    pub of_size: Option<u64>,
}

/// Whether something is at a name that conflict copies have: by the key of its record and the record. A directory is none.
pub(super) fn conflict_at(key: &[u8], value: &[u8]) -> Option<ConflictName> {
    let (_, name) = parse_key(key).ok()?;
    let parsed = parse_conflict_name(name)?;
    let is_directory = matches!(Record::decode(value), Ok(Record::Directory { .. }));
    (!is_directory).then_some(parsed)
}

impl Engine {
    /// The conflict copies at a path and below it in the newest snapshot, by directory; at most so many, and how many there are.
    pub fn conflicts(&self, below: &Path, most: usize) -> Result<(Vec<Conflict>, u64)> {
        names(below)?;
        let Some(head) = self.journal().head else {
            return Ok((Vec::new(), 0));
        };
        let tree = Tree::new(&self.volume, self.snapshot(&head)?.root);
        let (mut found, mut count) = (Vec::new(), 0);
        let mut places = Vec::new();
        self.each_conflict(&head, |key, parsed| {
            if let Ok((parent, name)) = parse_key(key) {
                let name = name.into();
                places.push((Place { parent, name }, parsed));
            }
        })?;
        for (place, parsed) in places {
            let Some(path) = tree.path(&place)?.filter(|path| path.starts_with(below)) else {
                continue;
            };
            count += 1;
            if found.len() >= most {
                continue;
            }
            let Some((_, node)) = tree.find(&path)? else {
                continue;
            };
            let of = original(&tree, &place, &parsed)?;
            let of_path = match &of {
                Some((place, _)) => tree.path(place)?,
                None => None,
            };
            found.push(Conflict {
                path,
                of: of_path,
                device: parsed.device,
                time: node.meta.mtime.secs,
                size: size(&node),
                of_size: of.and_then(|(_, node)| size(&node)),
            });
        }
        Ok((found, count))
    }

    /// How many conflict copies a snapshot has.
    pub fn count_conflicts(&self, snapshot: &BlockId) -> Result<u64> {
        let mut count = 0;
        self.each_conflict(snapshot, |_, _| count += 1)?;
        Ok(count)
    }

    fn each_conflict(&self, snapshot: &BlockId, mut each: impl FnMut(&[u8], ConflictName)) -> Result<()> {
        let root = self.snapshot(snapshot)?.root;
        map::scan(&self.volume.tree_nodes(), &root, &[], |key, value| {
            if let Some(parsed) = conflict_at(key, value) {
                each(key, parsed);
            }
            ControlFlow::Continue(())
        })
        .map_err(of_map)?;
        Ok(())
    }
}

/// What a conflict copy is a copy of, if that is there.
fn original(tree: &Tree<'_>, copy: &Place, parsed: &ConflictName) -> Result<Option<(Place, Node)>> {
    let at = |name: &[u8]| -> Result<Option<(Place, Node)>> {
        let place = Place {
            parent: copy.parent,
            name: name.into(),
        };
        let Some(path) = tree.path(&place)? else {
            return Ok(None);
        };
        Ok(tree.find(&path)?.map(|(_, node)| (place, node)))
    };
    let found = at(&parsed.original)?;
    if found.is_some() || !parsed.may_be_cut {
        return Ok(found);
    }
    // A longer name that begins and ends alike, if there is only one.
    let dot = parsed.original.iter().rposition(|byte| *byte == b'.');
    let (stem, extension) = parsed.original.split_at(dot.unwrap_or(parsed.original.len()));
    let is_like = |name: &[u8]| {
        name.starts_with(stem) && name.ends_with(extension) && parse_conflict_name(name).is_none()
    };
    let all = tree.list(&copy.parent)?;
    let mut alike = all.iter().filter(|(name, _)| is_like(name));
    match (alike.next(), alike.next()) {
        (Some((name, _)), None) => at(name),
        _ => Ok(None),
    }
}

fn size(node: &Node) -> Option<u64> {
    match &node.body {
        Some(Body::File { size, .. }) => Some(*size),
        _ => None,
    }
}
