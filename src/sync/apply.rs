//! Brings the folder from one tree to another, one change after another, each whole or not at all.
//!
//! A change that something here stands in the way of is left: then the folder is between the two trees, every place of it as one of them has it or
//! as somebody here changed it, and the names that were changed are noted for the next commit. Nothing here is changed that the tree does
//! not know. Called by `engine`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::base::tree::Place;
use crate::base::{BlockId, DeviceId, FileId};
use crate::object::map::Root;
use crate::object::record::Body;
use crate::volume::{Applied, DirAt, Prepared, TreeNodes, Volume, VolumeError, What};

use super::Result;
use super::plan::{Change, Changes, DEPTH_MAX, Node, Reading, Step, changes, plan};
use super::whereabouts::copies;

/// Files prepared before one sync makes them all durable.
const BATCH: usize = 512;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// The nodes in which the two trees differ.
    pub(super) read: BTreeSet<BlockId>,
    /// Changes made.
    pub(super) done: usize,
    /// Changes left, since something here is in the way.
    pub(super) left: usize,
}

pub(super) struct Apply<'a> {
    pub(super) volume: &'a Volume,
    /// This device, if files that are open for writing give way; they are left otherwise.
    pub(super) author: Option<DeviceId>,
    pub(super) nodes: TreeNodes<'a>,
    pub(super) from: Root,
    pub(super) changes: Changes,
    /// The copies that a merge made of what is here, by what they are of.
    pub(super) copies: BTreeMap<FileId, FileId>,
    /// Where directories are by now that are not where they were before.
    pub(super) moved: HashMap<FileId, Place>,
    /// Who has a name by now, as far as it changes.
    here: BTreeMap<Place, FileId>,
    pub(super) dirs: HashMap<FileId, DirAt>,
    /// What directories became.
    adopted: HashMap<FileId, FileId>,
    /// Files whose new version is not in its place yet.
    unput: BTreeSet<FileId>,
    touched: BTreeSet<Place>,
    outcome: Outcome,
}

/// Brings the folder from one tree to another. Files that are open for writing give way to what `author`, this device, takes in; without it they are
/// left.
pub(super) fn apply(volume: &Volume, from: Root, to: Root, author: Option<DeviceId>) -> Result<Outcome> {
    let nodes = volume.tree_nodes();
    let reading = Reading {
        nodes,
        read: RefCell::default(),
    };
    let mut changes = changes(&reading, &from, &to)?;
    without_what_cannot_be_here(volume, &mut changes)?;
    let mut here = BTreeMap::new();
    for (id, change) in &changes {
        here.extend(change.before.places.iter().map(|place| (place.clone(), *id)));
    }
    let mut apply = Apply {
        volume,
        author,
        nodes,
        from,
        copies: copies(&changes),
        changes,
        moved: HashMap::new(),
        here,
        dirs: HashMap::new(),
        adopted: HashMap::new(),
        unput: BTreeSet::new(),
        touched: BTreeSet::new(),
        outcome: Outcome {
            read: reading.read.into_inner(),
            ..Outcome::default()
        },
    };
    apply.run()?;
    Ok(apply.outcome)
}

/// What cannot be made on this device is in the tree and not in the folder: for its sake nothing is done.
fn without_what_cannot_be_here(volume: &Volume, changes: &mut Changes) -> Result<()> {
    let mut failed = Ok(());
    changes.retain(|_, change| {
        for side in [&mut change.before, &mut change.after] {
            match &side.body {
                Some(body)
                    if !is_possible(volume, body).unwrap_or_else(|error| {
                        failed = Err(error);
                        true
                    }) =>
                {
                    *side = Node::default()
                }
                _ => {}
            }
        }
        !(change.before.places.is_empty() && change.after.places.is_empty())
    });
    Ok(failed?)
}

/// Whether something can be on this device.
pub(super) fn is_possible(volume: &Volume, body: &Body) -> std::result::Result<bool, VolumeError> {
    match body {
        Body::Special(kind, _) => volume.can_make(*kind),
        Body::File { .. } | Body::Symlink(_) => Ok(true),
    }
}

/// As the volume makes it.
pub(super) fn what_of(body: Body) -> What {
    match body {
        Body::File { content, size, .. } => What::File(content, size),
        Body::Symlink(target) => What::Symlink(target),
        Body::Special(kind, rdev) => What::Special(kind, rdev),
    }
}

impl Apply<'_> {
    fn run(&mut self) -> Result<()> {
        let mut steps = plan(&self.changes);
        let put = steps.iter().filter(|step| matches!(step, Step::Put(..)));
        self.unput = put.map(|step| *step.id()).collect();
        while !steps.is_empty() {
            let before = steps.len();
            steps = self.pass(steps)?;
            if steps.len() < before {
                continue;
            }
            if !self.make_way(&mut steps)? {
                tracing::debug!(?steps, "what has to wait");
                self.outcome.left += steps.len();
                break;
            }
        }
        self.finish_dirs()?;
        if self.outcome.left > 0 {
            for place in std::mem::take(&mut self.touched) {
                match self.path(&place.parent)? {
                    Some(path) => self.volume.note_applied(&path, place.parent, name(&place)),
                    None => self.volume.note_everything(),
                }
            }
        }
        Ok(())
    }

    /// Tries each step. Returns those that have to wait for others.
    fn pass(&mut self, steps: Vec<Step>) -> Result<Vec<Step>> {
        let mut waiting = Vec::new();
        let mut batch: Vec<(FileId, Place, bool, Prepared)> = Vec::new();
        let mut in_batch = BTreeSet::new();
        for step in steps {
            if let Step::Put(id, place) = &step {
                let is_new = self.before(id).places.is_empty();
                if self
                    .copy_to_come(id)
                    .is_some_and(|copy| !in_batch.contains(&copy))
                {
                    waiting.push(step);
                    continue;
                }
                let replace = match self.occupant(place) {
                    None if is_new => false,
                    Some(other) if other == *id => true,
                    Some(other) if is_new && self.is_file_to_go(&other, place) => true,
                    _ => {
                        waiting.push(step);
                        continue;
                    }
                };
                let Some(dir) = self.dir(&place.parent)? else {
                    waiting.push(step);
                    continue;
                };
                if let Some(prepared) = self.prepare(id, &dir)? {
                    in_batch.insert(*id);
                    batch.push((*id, place.clone(), replace, prepared));
                } else {
                    self.outcome.left += 1;
                }
                if batch.len() >= BATCH {
                    self.install(&mut batch)?;
                    in_batch.clear();
                }
                continue;
            }
            if !batch.is_empty() && (in_batch.contains(step.id()) || !matches!(step, Step::Link(..))) {
                self.install(&mut batch)?;
                in_batch.clear();
            }
            match self.step(&step)? {
                Some(Applied::Done) => self.outcome.done += 1,
                Some(Applied::Busy) => self.outcome.left += 1,
                None => waiting.push(step),
            }
        }
        self.install(&mut batch)?;
        Ok(waiting)
    }

    fn prepare(&self, id: &FileId, dir: &DirAt) -> Result<Option<Prepared>> {
        let Some(Change { after, .. }) = self.changes.get(id) else {
            return Ok(None);
        };
        let Some(body) = after.body.clone() else {
            return Ok(None);
        };
        let prepared = self.volume.prepare(dir, *id, &what_of(body), &after.meta)?;
        Ok(Some(prepared))
    }

    fn install(&mut self, batch: &mut Vec<(FileId, Place, bool, Prepared)>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.volume.sync_folder()?;
        for (id, place, replace, prepared) in batch.drain(..) {
            if self.copy_to_come(&id).is_some() {
                self.outcome.left += 1;
                continue;
            }
            let give_way = match replace {
                true => self.give_way(&id, &place)?,
                false => None,
            };
            match self.volume.install(prepared, name(&place), replace, give_way)? {
                Applied::Done => {
                    self.arrived(id, place.clone());
                    self.unput.remove(&id);
                    self.outcome.done += 1;
                    self.relink(id, &place)?;
                }
                Applied::Busy => self.outcome.left += 1,
            }
        }
        Ok(())
    }

    /// The other names of a file with a new version lead to it, too.
    fn relink(&mut self, id: FileId, first: &Place) -> Result<()> {
        let Some(Change { before, after }) = self.changes.get(&id) else {
            return Ok(());
        };
        let others: Vec<Place> = before.places.intersection(&after.places).cloned().collect();
        for place in others {
            if place == *first || self.occupant(&place) != Some(id) {
                continue;
            }
            let (Some(a), Some(b)) = (self.dir(&first.parent)?, self.dir(&place.parent)?) else {
                self.outcome.left += 1;
                continue;
            };
            let give_way = self.give_way(&id, &place)?;
            let mut applied = self.volume.remove_name(&b, name(&place), false, give_way)?;
            if applied == Applied::Done {
                self.touched.insert(place.clone());
                applied = self.volume.add_name((&a, name(first)), (&b, name(&place)))?;
            }
            self.outcome.left += usize::from(applied == Applied::Busy);
        }
        Ok(())
    }

    /// Makes one change; `None`: it has to wait for another one.
    fn step(&mut self, step: &Step) -> Result<Option<Applied>> {
        match step {
            // Prepared and installed with others.
            Step::Put(..) => Ok(None),
            Step::MakeDir(id, place) => {
                let other = self.occupant(place);
                if other.is_some_and(|other| !self.is_dir_to_go(&other)) {
                    return Ok(None);
                }
                let Some(dir) = self.dir(&place.parent)? else {
                    return Ok(None);
                };
                if let Some(other) = other {
                    return self.adopt(&dir, place, other, *id).map(Some);
                }
                let mut meta = self.after(id).meta.clone();
                // Something has to be put into it first.
                meta.mode |= 0o700;
                let (applied, made) = self.volume.install_dir(&dir, name(place), *id, &meta)?;
                if let Some(made) = made {
                    self.moved.insert(*id, place.clone());
                    self.keep_open(*id, made);
                    self.arrived(*id, place.clone());
                }
                Ok(Some(applied))
            }
            Step::Move(id, from, to) => {
                let from = &self.by_now(from);
                if from == to && self.occupant(to) == Some(*id) {
                    return Ok(Some(Applied::Done));
                }
                match self.occupant(to) {
                    Some(other) if self.is_file_to_go(&other, to) => {
                        let gone = self.step(&Step::Remove(other, to.clone()))?;
                        if gone != Some(Applied::Done) {
                            return Ok(gone);
                        }
                    }
                    Some(_) => return Ok(None),
                    None => {}
                }
                self.move_name(id, from, to, false)
            }
            Step::Link(id, from, to) => {
                if self.occupant(to) == Some(*id) && !self.unput.contains(id) {
                    return Ok(Some(Applied::Done));
                }
                if self.occupant(from) != Some(*id) || self.unput.contains(id) {
                    return Ok(None);
                }
                match self.occupant(to) {
                    Some(other) if other != *id && self.is_file_to_go(&other, to) => {
                        let gone = self.step(&Step::Remove(other, to.clone()))?;
                        if gone != Some(Applied::Done) {
                            return Ok(gone);
                        }
                    }
                    Some(_) => return Ok(None),
                    None => {}
                }
                let (Some(a), Some(b)) = (self.dir(&from.parent)?, self.dir(&to.parent)?) else {
                    return Ok(None);
                };
                let applied = self.volume.add_name((&a, name(from)), (&b, name(to)))?;
                if applied == Applied::Done {
                    self.arrived(*id, to.clone());
                }
                Ok(Some(applied))
            }
            Step::Remove(id, place) => {
                let place = &self.by_now(place);
                if self.occupant(place) != Some(*id) || self.after(id).places.contains(place) {
                    // Something else is there by now, or it is to be there after all, since the directory became the one that it is to be in.
                    return Ok(Some(Applied::Done));
                }
                let Some(dir) = self.dir(&place.parent)? else {
                    return Ok(Some(Applied::Busy));
                };
                let is_dir = self.before(id).body.is_none();
                let give_way = match is_dir {
                    true => None,
                    false => self.give_way(id, place)?,
                };
                let applied = self.volume.remove_name(&dir, name(place), is_dir, give_way)?;
                if applied == Applied::Busy && is_dir {
                    return Ok(None);
                }
                if applied == Applied::Done {
                    self.here.remove(place);
                    self.touched.insert(place.clone());
                    self.dirs.remove(id);
                }
                Ok(Some(applied))
            }
            Step::Dress(id, place) => {
                if self.occupant(place) != Some(*id) {
                    return Ok(None);
                }
                let Some(dir) = self.dir(&place.parent)? else {
                    return Ok(None);
                };
                let (before, after) = (self.before(id).meta.clone(), self.after(id).meta.clone());
                let applied = self.volume.set_meta(&dir, name(place), &before, &after)?;
                self.touched.insert(place.clone());
                Ok(Some(applied))
            }
        }
    }

    /// A directory gives its place to a new one, as when two devices made one of the same name: it becomes the new one, with what is in it.
    fn adopt(&mut self, dir: &DirAt, place: &Place, was: FileId, id: FileId) -> Result<Applied> {
        let (before, meta) = (self.before(&was).meta.clone(), self.after(&id).meta.clone());
        let (applied, there) = self
            .volume
            .adopt_dir(dir, name(place), (was, &before), (id, &meta))?;
        let Some(there) = there else {
            return Ok(applied);
        };
        self.dirs.remove(&was);
        self.keep_open(id, there);
        self.moved.insert(id, place.clone());
        self.arrived(id, place.clone());
        self.adopted.insert(was, id);
        // What is in it is in the new one without having moved.
        let below = |place: &Place| place.parent == was;
        let inside: Vec<Place> = self.here.keys().filter(|place| below(place)).cloned().collect();
        for place in inside {
            if let Some(who) = self.here.remove(&place) {
                self.here.insert(self.by_now(&place), who);
            }
        }
        for change in self.changes.values_mut() {
            change.before.moved_along(was, id);
        }
        Ok(applied)
    }

    /// A place as it is called since its directory became another one.
    fn by_now(&self, place: &Place) -> Place {
        let parent = self.adopted.get(&place.parent).copied().unwrap_or(place.parent);
        Place {
            parent,
            name: place.name.clone(),
        }
    }

    fn move_name(
        &mut self,
        id: &FileId,
        from: &Place,
        to: &Place,
        exchange: bool,
    ) -> Result<Option<Applied>> {
        let (Some(a), Some(b)) = (self.dir(&from.parent)?, self.dir(&to.parent)?) else {
            return Ok(None);
        };
        if self.is_below(&to.parent, id)? {
            return Ok(None);
        }
        let applied = self
            .volume
            .move_name((&a, name(from)), (&b, name(to)), exchange)?;
        if applied == Applied::Done {
            let other = self.here.remove(to);
            self.here.remove(from);
            self.relocated(*id, to.clone());
            if let Some(other) = other {
                self.relocated(other, from.clone());
            }
            self.touched.extend([from.clone(), to.clone()]);
        }
        Ok(Some(applied))
    }

    fn relocated(&mut self, id: FileId, to: Place) {
        if self.before(&id).body.is_none() {
            self.moved.insert(id, to.clone());
        }
        self.here.insert(to, id);
    }

    /// Whether a directory is in another one, or is it.
    fn is_below(&self, dir: &FileId, above: &FileId) -> Result<bool> {
        let mut at = *dir;
        for _ in 0..DEPTH_MAX {
            if at == *above {
                return Ok(true);
            }
            match self.place_of(&at)? {
                Some(place) => at = place.parent,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Steps wait for each other: what has the name that another one is to have is taken out of the way.
    fn make_way(&mut self, steps: &mut Vec<Step>) -> Result<bool> {
        for at in 0..steps.len() {
            let (step, to) = (steps[at].clone(), steps[at].place().clone());
            let Some(other) = self.occupant(&to).filter(|other| other != step.id()) else {
                continue;
            };
            let leaves = |step: &Step| matches!(step, Step::Move(id, from, _) if *id == other && self.by_now(from) == to);
            let Some(theirs) = steps.iter().position(leaves) else {
                continue;
            };
            let exchanged = match &step {
                Step::Move(id, from, _) => self.exchange(id, &self.by_now(from), &to, &other)?,
                _ => None,
            };
            let place = match exchanged {
                Some(place) => {
                    steps[theirs].set_from(place);
                    steps.remove(at);
                    self.outcome.done += 1;
                    return Ok(true);
                }
                None => Place {
                    parent: to.parent,
                    name: [
                        &to.name[..to.name.len().min(200)],
                        b".moving-",
                        other.short().as_bytes(),
                    ]
                    .concat()
                    .into(),
                },
            };
            if self.move_name(&other, &to, &place, false)? == Some(Applied::Done) {
                steps[theirs].set_from(place);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Lets two change places, if both are alike and neither is in the other. Returns where the other one is then.
    fn exchange(&mut self, id: &FileId, from: &Place, to: &Place, other: &FileId) -> Result<Option<Place>> {
        let alike = self.before(id).body.is_none() == self.before(other).body.is_none();
        if !alike || self.is_below(&from.parent, other)? || self.is_below(&to.parent, id)? {
            return Ok(None);
        }
        let done = self.move_name(id, from, to, true)?;
        Ok((done == Some(Applied::Done)).then(|| from.clone()))
    }

    /// New directories get the modes that they are to have.
    fn finish_dirs(&mut self) -> Result<()> {
        let made: Vec<(FileId, Place)> = self
            .moved
            .iter()
            .map(|(id, place)| (*id, place.clone()))
            .collect();
        for (id, place) in made {
            let Change { before, after } = match self.changes.get(&id) {
                Some(change) => change,
                None => continue,
            };
            if !before.places.is_empty() || after.meta.mode & 0o700 == 0o700 {
                continue;
            }
            let (meta, mut had) = (after.meta.clone(), after.meta.clone());
            had.mode |= 0o700;
            if let Some(dir) = self.dir(&place.parent)? {
                self.volume.set_meta(&dir, name(&place), &had, &meta)?;
            }
        }
        Ok(())
    }

    /// The copy of what a file was, if it has not come to its place.
    fn copy_to_come(&self, id: &FileId) -> Option<FileId> {
        let copy = self.copies.get(id).copied();
        copy.filter(|copy| self.unput.contains(copy))
    }

    fn arrived(&mut self, id: FileId, place: Place) {
        self.here.insert(place.clone(), id);
        self.touched.insert(place);
    }

    pub(super) fn occupant(&self, place: &Place) -> Option<FileId> {
        self.here.get(place).copied()
    }

    /// Whether a file is to leave a place for good.
    fn is_file_to_go(&self, id: &FileId, place: &Place) -> bool {
        let change = self.changes.get(id);
        change.is_some_and(|change| {
            change.before.body.is_some()
                && change.after.places.is_empty()
                && change.before.places.contains(place)
        })
    }

    fn is_dir_to_go(&self, id: &FileId) -> bool {
        let change = self.changes.get(id);
        change.is_some_and(|change| change.before.body.is_none() && change.after.places.is_empty())
    }

    fn before(&self, id: &FileId) -> &Node {
        static NONE: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::default);
        self.changes.get(id).map_or(&NONE, |change| &change.before)
    }

    fn after(&self, id: &FileId) -> &Node {
        static NONE: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::default);
        self.changes.get(id).map_or(&NONE, |change| &change.after)
    }
}

pub(super) fn name(place: &Place) -> &OsStr {
    OsStr::from_bytes(&place.name)
}
