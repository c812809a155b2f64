//! Listing a directory of the past: a range of the snapshot's map, gone over in order.
//!
//! Invariant: a position is the number of entries before it, and what was listed stays as it is, so that every entry is given once. Whoever goes on
//! where he was pays for what he is given; only who goes back to a place in the middle has what is before it counted again.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::known::{Known, Snap, directory, number};
use super::{Thing, decoded, kind_of};
use crate::base::FileId;
use crate::base::tree::ROOT;
use crate::base::types::{Attr, DirEntry, FileKind};
use crate::object::map;
use crate::object::record::{Record, own_key, parse_key};
use crate::volume::Volume;
use crate::volume::error::Result;
use crate::volume::listing::DirHandle;
use crate::volume::moments::{self, Moment};
use crate::volume::shown::{DIR, SNAPSHOTS};
use crate::volume::snapshots::of_map;

/// `.` and `..` come first.
const DOTS: u64 = 2;

/// Where the reader of a directory is.
#[derive(Debug, Default)]
pub struct Going {
    /// Its position: entries given so far, `.` and `..` included.
    at: u64,
    /// The key from which to go on.
    from: Vec<u8>,
    /// The snapshots, as they were when the list was begun.
    named: Vec<(String, Moment)>,
}

/// Given the entries; false: there is no room for this one.
type Each<'a> = dyn FnMut(DirEntry, Option<Attr>) -> bool + 'a;

impl Volume {
    /// The snapshots that are kept, after position `after`. `plus`: each that was taken counts as a lookup.
    pub(in crate::volume) fn list_snapshots(
        &self,
        handle: &DirHandle,
        after: u64,
        plus: bool,
        each: &mut Each<'_>,
    ) -> Result<()> {
        if !dots((SNAPSHOTS, DIR), after, each) {
            return Ok(());
        }
        let mut going = handle.going.lock();
        if after == 0 || going.named.is_empty() {
            let retained = self.retained.lock();
            let all = retained.as_deref().unwrap_or_default();
            going.named = moments::named(all).into_iter().collect();
        }
        let skip = after.saturating_sub(DOTS);
        let top = own_key(&ROOT);
        for (next, (name, moment)) in (DOTS + 1..).zip(&going.named).skip(skip as usize) {
            let (mut ino, mut attr) = (number(&moment.id, &top), None);
            if plus {
                let Some(snap) = self.looked_at(name, moment) else {
                    // Let go of since: it is no longer an entry.
                    continue;
                };
                ino = self.past.found(&snap, &top, &top);
                attr = Some(self.attr_of_thing(&snap, ino, &Thing::top()));
            }
            let taken = each(entry(ino, name.as_bytes(), FileKind::Directory, next), attr);
            if !taken {
                if plus {
                    self.past.forget(ino, 1);
                }
                return Ok(());
            }
        }
        Ok(())
    }

    /// What was in a directory, after position `after`. `plus`: with attributes, and each that was taken counts as a lookup.
    pub(in crate::volume) fn list_past(
        &self,
        handle: &DirHandle,
        after: u64,
        plus: bool,
        each: &mut Each<'_>,
    ) -> Result<()> {
        let known = self.past.get(handle.ino)?;
        let (snap, id) = (&known.snap, directory(&known.key)?);
        if !dots((handle.ino, above(&known)), after, each) {
            return Ok(());
        }
        let mut going = handle.going.lock();
        let after = after.max(DOTS);
        if going.at < DOTS || going.at > after {
            going.at = DOTS;
            going.from = own_key(&id);
        }
        let (mut given, mut wrong) = (false, None);
        let from = going.from.clone();
        let scanned = map::scan(&self.tree_nodes(), &self.root_of(snap)?, &from, |key, value| {
            let mut one = || {
                let Some((name, record)) = named_in(snap, &id, key, value)? else {
                    return Ok(ControlFlow::Break(()));
                };
                let at = going.at;
                if name.is_empty() {
                    return Ok(ControlFlow::Continue(()));
                }
                if at >= after {
                    let (ino, kind, attr) = self.listed(snap, key, record, plus)?;
                    if !each(entry(ino, name, kind, at + 1), attr) {
                        if plus {
                            self.past.forget(ino, 1);
                        }
                        return Ok(ControlFlow::Break(()));
                    }
                    given = true;
                }
                // What comes next is greater than this one.
                going.from = [key, &[0]].concat();
                going.at = at + 1;
                Ok(ControlFlow::Continue(()))
            };
            one().unwrap_or_else(|error| {
                wrong = Some(error);
                ControlFlow::Break(())
            })
        });
        let outcome = match wrong {
            Some(error) => Err(error),
            None => scanned.map_err(of_map),
        };
        match given {
            // They were counted. The next call begins with what could not be had.
            true => Ok(()),
            false => outcome,
        }
    }

    /// Number, kind and, with `plus`, attributes of what stands at a name.
    fn listed(
        &self,
        snap: &Arc<Snap>,
        key: &[u8],
        record: Record,
        plus: bool,
    ) -> Result<(u64, FileKind, Option<Attr>)> {
        if let (false, Record::Directory { id }) = (plus, &record) {
            return Ok((number(&snap.id, &own_key(id)), FileKind::Directory, None));
        }
        let (at, thing) = self.resolved(snap, key, record)?;
        let kind = kind_of(thing.body.as_ref());
        if !plus {
            return Ok((number(&snap.id, &at), kind, None));
        }
        let ino = self.past.found(snap, &at, key);
        Ok((ino, kind, Some(self.attr_of_thing(snap, ino, &thing))))
    }
}

/// The name and the record of an entry, if it is of this directory. Empty: its own.
fn named_in<'k>(
    snap: &Snap,
    directory: &FileId,
    key: &'k [u8],
    value: &[u8],
) -> Result<Option<(&'k [u8], Record)>> {
    if !key.starts_with(directory.as_bytes()) {
        return Ok(None);
    }
    Ok(Some((&key[FileId::LEN..], decoded(snap, key, value)?)))
}

/// The number of the directory that one is in.
fn above(known: &Known) -> u64 {
    match parse_key(known.name_key()) {
        Ok((parent, [_, ..])) => number(&known.snap.id, &own_key(&parent)),
        _ => SNAPSHOTS,
    }
}

/// Gives `.` and `..`, as far as they come after `after`. False: there was no room.
fn dots((own, above): (u64, u64), after: u64, each: &mut Each<'_>) -> bool {
    let dots = [(own, "."), (above, "..")];
    let left = (1..).zip(dots).skip(after.min(DOTS) as usize);
    left.into_iter()
        .all(|(next, (ino, name))| each(entry(ino, name.as_bytes(), FileKind::Directory, next), None))
}

fn entry(ino: u64, name: &[u8], kind: FileKind, next: u64) -> DirEntry {
    DirEntry {
        ino,
        name: OsStr::from_bytes(name).into(),
        kind,
        next,
    }
}
