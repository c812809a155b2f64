//! Brings a whole tree into a folder that is at none: what `dfs join` does first.
//!
//! Unlike `apply` it holds no list of what there is to do: it goes from the top down, directory by directory, and forgets what is done. So the top is there at
//! once, and memory does not grow with the number of files. Nothing that is in the way is touched; what is there already as the tree has it counts as done, so
//! that it goes on where it was stopped. Called by `engine`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use parking_lot::{Condvar, Mutex};

use super::Result;
use super::apply::{Outcome, is_possible, what_of};
use super::commit::damaged;
use super::plan::{DEPTH_MAX, Reading};
use crate::base::tree::{Meta, Place, ROOT};
use crate::base::{BlockId, FileId};
use crate::object::map::{self, Root};
use crate::object::record::{Body, Record, own_key, twin};
use crate::volume::{Applied, DirAt, Prepared, Volume, VolumeError, of_map};

/// Files prepared before one sync makes them all durable.
const BATCH: usize = 2048;

/// Directories that the files of a batch are in: each is open meanwhile.
const BATCH_DIRS: usize = 64;

/// Directories gone through side by side: one makes files while another one waits for the disk or for somebody else's blocks.
const SIDE_BY_SIDE: usize = 3;

/// A directory to go through.
struct Todo {
    id: FileId,
    path: PathBuf,
    depth: usize,
}

/// What those who go through directories share.
#[derive(Default)]
struct Shared {
    todo: VecDeque<Todo>,
    /// How many are at work, and may find more to do.
    working: usize,
    /// Everything met so far: nothing is put at two places.
    met: HashSet<FileId>,
    /// The first place of each file of several names, with the path of its directory.
    first: HashMap<FileId, (PathBuf, Place)>,
    /// The other places, to be linked to these in the end.
    links: Vec<(FileId, PathBuf, Place)>,
    /// Directories whose owner may not write into them, in the end.
    closed: Vec<(PathBuf, OsString, Meta)>,
    read: BTreeSet<BlockId>,
    done: usize,
    left: usize,
    /// Somebody failed: the others stop.
    failed: bool,
}

struct Fill<'a> {
    volume: &'a Volume,
    to: Root,
    shared: Mutex<Shared>,
    more: Condvar,
}

/// Brings a tree to a folder that is at none.
pub(super) fn fill(volume: &Volume, to: Root) -> Result<Outcome> {
    let mut shared = Shared::default();
    shared.met.insert(ROOT);
    shared.todo.push_back(Todo {
        id: ROOT,
        path: PathBuf::new(),
        depth: 0,
    });
    let fill = Fill {
        volume,
        to,
        shared: Mutex::new(shared),
        more: Condvar::new(),
    };
    let outcome = fill.run();
    if !matches!(&outcome, Ok(outcome) if outcome.left == 0) {
        // What is there by now belongs to the next commit.
        volume.note_everything();
    }
    outcome
}

impl Fill<'_> {
    fn run(&self) -> Result<Outcome> {
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..SIDE_BY_SIDE)
                .map(|_| scope.spawn(|| self.go_through()))
                .collect();
            scope.spawn(|| self.bring_nodes());
            let own = self.go_through();
            let others = others.into_iter().map(|other| other.join());
            // A panic goes on where it can be told.
            let others = others.map(|other| other.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            others.fold(own, |first, other| first.and(other))
        })?;
        self.link()?;
        self.close()?;
        let mut shared = self.shared.lock();
        Ok(Outcome {
            read: std::mem::take(&mut shared.read),
            done: shared.done,
            left: shared.left,
        })
    }

    /// One of those who go through directories.
    fn go_through(&self) -> Result<()> {
        let mut worker = Worker {
            fill: self,
            nodes: Reading {
                nodes: self.volume.tree_nodes(),
                read: RefCell::default(),
            },
            batch: Vec::new(),
            dirs: 0,
        };
        let _told = Panic(self);
        let outcome = worker.run();
        let mut shared = self.shared.lock();
        shared.read.append(&mut worker.nodes.read.take());
        shared.failed |= outcome.is_err();
        self.more.notify_all();
        outcome
    }

    /// Has the nodes of the tree brought here before those who go through it ask for them, one after the other.
    fn bring_nodes(&self) {
        let brought = map::leaves(&self.volume.tree_nodes(), &self.to, |ids| {
            let is_over = {
                let shared = self.shared.lock();
                shared.failed || (shared.working == 0 && shared.todo.is_empty())
            };
            match !is_over && self.volume.bring_nodes(ids) {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        if let Err(error) = brought {
            // Whoever needs it says so.
            tracing::debug!(%error, "nodes cannot be brought ahead");
        }
    }

    /// The other names of files, all of which are in place by now.
    fn link(&self) -> Result<()> {
        let (links, first) = {
            let mut shared = self.shared.lock();
            (
                std::mem::take(&mut shared.links),
                std::mem::take(&mut shared.first),
            )
        };
        for (id, path, place) in links {
            let applied = match first.get(&id) {
                Some((first, at)) => match (self.dir(first, &at.parent)?, self.dir(&path, &place.parent)?) {
                    (Some(from), Some(to)) => {
                        let (from, to) = ((&from, name_of(at)), (&to, name_of(&place)));
                        self.volume.add_name(from, to)?
                    }
                    _ => Applied::Busy,
                },
                None => Applied::Busy,
            };
            self.count(applied);
        }
        Ok(())
    }

    fn close(&self) -> Result<()> {
        let closed = std::mem::take(&mut self.shared.lock().closed);
        // From below: a closed one cannot be gone into.
        for (path, name, meta) in closed.into_iter().rev() {
            let mut open = meta.clone();
            open.mode |= 0o700;
            let above = self.volume.dir_by_path(&path)?;
            self.volume.set_meta(&above, &name, &open, &meta)?;
        }
        Ok(())
    }

    fn count(&self, applied: Applied) {
        let mut shared = self.shared.lock();
        match applied {
            Applied::Done => shared.done += 1,
            Applied::Busy => shared.left += 1,
        }
    }

    /// A directory, if it is where it was made.
    fn dir(&self, path: &Path, id: &FileId) -> Result<Option<DirAt>> {
        match self.volume.dir_by_path(path) {
            Ok(dir) => Ok(Some(dir).filter(|dir| dir.id == Some(*id))),
            Err(VolumeError::NotFound | VolumeError::NotDirectory) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whoever waits for one that panics would wait for ever.
struct Panic<'a>(&'a Fill<'a>);

impl Drop for Panic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.shared.lock().failed = true;
            self.0.more.notify_all();
        }
    }
}

/// One of those who go through directories.
struct Worker<'a> {
    fill: &'a Fill<'a>,
    nodes: Reading<'a>,
    batch: Vec<(Prepared, OsString)>,
    /// Directories that the batch is in, at most.
    dirs: usize,
}

impl Worker<'_> {
    fn run(&mut self) -> Result<()> {
        while let Some(todo) = self.next()? {
            let listed = match self.fill.dir(&todo.path, &todo.id)? {
                Some(dir) => self.list(&todo, &dir),
                None => {
                    self.fill.count(Applied::Busy);
                    Ok(())
                }
            };
            // The top is there before anything else.
            let installed = match listed {
                Ok(()) if todo.depth == 0 || self.dirs >= BATCH_DIRS => self.install(),
                listed => listed,
            };
            self.fill.shared.lock().working -= 1;
            self.fill.more.notify_all();
            installed?;
        }
        self.install()
    }

    /// What to go through next; `None`: nothing is left, or somebody failed.
    fn next(&mut self) -> Result<Option<Todo>> {
        let mut shared = self.fill.shared.lock();
        loop {
            if shared.failed {
                return Ok(None);
            }
            if let Some(todo) = shared.todo.pop_front() {
                shared.working += 1;
                return Ok(Some(todo));
            }
            if shared.working == 0 {
                return Ok(None);
            }
            if !self.batch.is_empty() {
                // Nobody waits for what is done.
                drop(shared);
                self.install()?;
                shared = self.fill.shared.lock();
                continue;
            }
            self.fill.more.wait(&mut shared);
        }
    }

    /// Makes all that is in a directory, as far as it has no directories.
    fn list(&mut self, todo: &Todo, dir: &DirAt) -> Result<()> {
        self.dirs += 1;
        let (to, mut failed) = (self.fill.to, Ok(()));
        let nodes = Reading {
            nodes: self.nodes.nodes,
            read: RefCell::default(),
        };
        map::scan(&nodes, &to, todo.id.as_bytes(), |key, value| {
            let outcome = match Record::decode_entry(key, value) {
                Ok((at, _, _)) if at != todo.id => return ControlFlow::Break(()),
                Ok((_, [], _)) => Ok(()),
                Ok((_, name, record)) => self.make(todo, dir, (key, name), record),
                Err(error) => Err(damaged(&error).into()),
            };
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Err(error);
                    ControlFlow::Break(())
                }
            }
        })
        .map_err(of_map)?;
        self.nodes.read.borrow_mut().append(&mut nodes.read.take());
        failed
    }

    /// Makes what is at a name.
    fn make(&mut self, todo: &Todo, dir: &DirAt, at: (&[u8], &[u8]), record: Record) -> Result<()> {
        let (key, name) = at;
        let place = Place {
            parent: todo.id,
            name: name.into(),
        };
        let is_new = |id: FileId| self.fill.shared.lock().met.insert(id);
        match record {
            Record::Node { id, meta, body } => {
                // As `merge::View` takes it.
                let id = if is_new(id) { id } else { twin(&id, key) };
                self.put(dir, id, &place, meta, body)
            }
            Record::Link { id } => match self.own(&id)? {
                Some(Record::Shared { places, meta, body }) if places.contains(&place) => {
                    // Always the same one, or what is there when it is gone on with would be two files.
                    if places.first() == Some(&place) && is_new(id) {
                        let at = (todo.path.clone(), place.clone());
                        self.fill.shared.lock().first.insert(id, at);
                        return self.put(dir, id, &place, meta, body);
                    }
                    let link = (id, todo.path.clone(), place);
                    self.fill.shared.lock().links.push(link);
                    Ok(())
                }
                _ => Ok(()),
            },
            Record::Directory { id } => match self.own(&id)? {
                Some(Record::Own { parent, name, meta })
                    if Place {
                        parent,
                        name: name.clone(),
                    } == place =>
                {
                    if todo.depth >= DEPTH_MAX || !is_new(id) {
                        return Ok(());
                    }
                    self.make_dir(todo, dir, id, &name, meta)
                }
                _ => Ok(()),
            },
            // Found by its id.
            Record::Own { .. } | Record::Shared { .. } => Ok(()),
        }
    }

    fn own(&self, id: &FileId) -> Result<Option<Record>> {
        let found = map::get(&self.nodes, &self.fill.to, &own_key(id)).map_err(of_map)?;
        let decoded = found.as_deref().map(Record::decode).transpose();
        decoded.map_err(|error| damaged(&error).into())
    }

    fn make_dir(&self, todo: &Todo, dir: &DirAt, id: FileId, name: &[u8], meta: Meta) -> Result<()> {
        let name = OsStr::from_bytes(name);
        let mut open = meta.clone();
        // Something has to be put into it first.
        open.mode |= 0o700;
        let (applied, made) = self.fill.volume.install_dir(dir, name, id, &open)?;
        let mut shared = self.fill.shared.lock();
        if made.is_some() {
            if open.mode != meta.mode {
                shared.closed.push((todo.path.clone(), name.to_owned(), meta));
            }
            shared.todo.push_back(Todo {
                id,
                path: todo.path.join(name),
                depth: todo.depth + 1,
            });
            self.fill.more.notify_one();
        }
        drop(shared);
        self.fill.count(applied);
        Ok(())
    }

    fn put(&mut self, dir: &DirAt, id: FileId, place: &Place, meta: Meta, body: Body) -> Result<()> {
        if !is_possible(self.fill.volume, &body)? {
            return Ok(());
        }
        let prepared = self.fill.volume.prepare(dir, id, &what_of(body), &meta)?;
        self.batch.push((prepared, name_of(place).to_owned()));
        match self.batch.len() {
            BATCH.. => self.install(),
            _ => Ok(()),
        }
    }

    fn install(&mut self) -> Result<()> {
        self.dirs = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        self.fill.volume.sync_folder()?;
        let (done, left) = self.fill.volume.install_all(std::mem::take(&mut self.batch))?;
        let mut shared = self.fill.shared.lock();
        (shared.done, shared.left) = (shared.done + done, shared.left + left);
        Ok(())
    }
}

fn name_of(place: &Place) -> &OsStr {
    OsStr::from_bytes(&place.name)
}
