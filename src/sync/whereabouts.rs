//! Where directories are while a folder is brought from one tree to another, and how files that are open give way. Called by `apply`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::base::FileId;
use crate::base::tree::{Place, ROOT};
use crate::merge::{Content, Version, copy_id};
use crate::object::map;
use crate::object::record::{Body, Record, own_key, version_hash};
use crate::volume::{CopyAt, DirAt, GiveWay, Spot, VolumeError, of_map};

use super::Result;
use super::apply::{Apply, name};
use super::commit::damaged;
use super::plan::{Changes, DEPTH_MAX};

/// Directories held open at once.
const OPEN_DIRS: usize = 64;

/// Conflict copies of one version of one file that are looked for, beyond which there are none: each before was made something else of.
const COPIES_MAX: u32 = 8;

/// The copies that a merge made of files that change here: of each the new file that keeps what the file was.
pub(super) fn copies(changes: &Changes) -> BTreeMap<FileId, FileId> {
    let mut copies = BTreeMap::new();
    for (id, change) in changes {
        let (Some(Body::File { content, author, .. }), Some(_)) = (&change.before.body, &change.after.body)
        else {
            continue;
        };
        if change.before.body == change.after.body {
            continue;
        }
        let version = Content::File(Version {
            hash: version_hash(content),
            author: *author,
        });
        let ids = (0..COPIES_MAX).map(|number| copy_id(id, &version, number));
        let is_new = |copy: &FileId| {
            let made = changes.get(copy);
            made.is_some_and(|made| made.before.places.is_empty() && holds(&made.after.body, content))
        };
        if let Some(copy) = ids.into_iter().find(is_new) {
            copies.insert(*id, copy);
        }
    }
    copies
}

fn holds(body: &Option<Body>, what: &crate::object::Content) -> bool {
    matches!(body, Some(Body::File { content, .. }) if content == what)
}

impl Apply<'_> {
    /// How the file at a place gives way, if it is open for writing.
    pub(super) fn give_way(&mut self, id: &FileId, place: &Place) -> Result<Option<GiveWay>> {
        let Some(author) = self.author else {
            return Ok(None);
        };
        let Some(dir) = self.dir(&place.parent)? else {
            return Ok(None);
        };
        if !self.volume.is_held(&dir, name(place))? {
            return Ok(None);
        }
        let Some(path) = self.path(&place.parent)? else {
            return Ok(None);
        };
        let copy = match self.copies.get(id).copied() {
            Some(copy) => self.copy_at(&copy)?,
            None => None,
        };
        Ok(Some(GiveWay { author, path, copy }))
    }

    /// A copy, if it is in its place by now.
    fn copy_at(&mut self, copy: &FileId) -> Result<Option<CopyAt>> {
        let Some(change) = self.changes.get(copy) else {
            return Ok(None);
        };
        let (Some(place), Some(Body::File { content, .. })) =
            (change.after.places.first().cloned(), change.after.body.clone())
        else {
            return Ok(None);
        };
        if self.occupant(&place) != Some(*copy) {
            return Ok(None);
        }
        let (Some(dir), Some(path)) = (self.dir(&place.parent)?, self.path(&place.parent)?) else {
            return Ok(None);
        };
        let spot = Spot {
            dir,
            path,
            name: name(&place).to_owned(),
        };
        Ok(Some(CopyAt {
            spot,
            id: *copy,
            content,
        }))
    }

    /// Where a directory is by now.
    pub(super) fn place_of(&self, id: &FileId) -> Result<Option<Place>> {
        if let Some(place) = self.moved.get(id) {
            return Ok(Some(place.clone()));
        }
        if let Some(change) = self.changes.get(id) {
            return Ok(change.before.places.first().cloned());
        }
        let found = map::get(&self.nodes, &self.from, &own_key(id)).map_err(of_map)?;
        match found.as_deref().map(Record::decode).transpose() {
            Ok(Some(Record::Own { parent, name, .. })) => Ok(Some(Place { parent, name })),
            Ok(_) => Ok(None),
            Err(error) => Err(damaged(&error).into()),
        }
    }

    /// The path of a directory in the volume.
    pub(super) fn path(&self, id: &FileId) -> Result<Option<PathBuf>> {
        let (mut parts, mut at) = (Vec::new(), *id);
        while at != ROOT {
            let Some(place) = self.place_of(&at)? else {
                return Ok(None);
            };
            parts.push(OsString::from(OsStr::from_bytes(&place.name)));
            at = place.parent;
            if parts.len() > DEPTH_MAX {
                return Ok(None);
            }
        }
        Ok(Some(parts.iter().rev().collect()))
    }

    /// A directory, if it is where it should be.
    pub(super) fn dir(&mut self, id: &FileId) -> Result<Option<DirAt>> {
        if let Some(dir) = self.dirs.get(id) {
            return Ok(Some(dir.clone()));
        }
        let Some(path) = self.path(id)? else {
            return Ok(None);
        };
        let found = match self.volume.dir_by_path(&path) {
            Ok(found) => found,
            Err(VolumeError::NotFound | VolumeError::NotDirectory) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if found.id != Some(*id) {
            return Ok(None);
        }
        self.keep_open(*id, found.clone());
        Ok(Some(found))
    }

    pub(super) fn keep_open(&mut self, id: FileId, dir: DirAt) {
        if self.dirs.len() >= OPEN_DIRS {
            self.dirs.clear();
        }
        self.dirs.insert(id, dir);
    }
}
