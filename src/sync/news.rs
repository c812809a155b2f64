//! What the folder came to, snapshot after snapshot, for whoever wants to be told. Called by `daemon`.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::base::BlockId;
use crate::base::tree::Place;
use crate::object::map::{self, Root};
use crate::object::record::{Record, parse_key};
use crate::volume::of_map;

use super::conflicts::conflict_at;
use super::lookup::Tree;
use super::{Engine, Result};

/// Arrivals that nobody asked for yet; beyond that the newest become one.
const UNTOLD_MAX: usize = 64;

/// Paths told of one arrival.
const PATHS_MAX: usize = 16;

/// Conflict copies told of one arrival.
const CONFLICTS_MAX: usize = 64;

/// Longest path that is told, in bytes.
const PATH_MAX: usize = 4096;

/// The folder came from one snapshot to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Where it was; `None` before the first.
    pub from: Option<BlockId>,
    /// Where it is.
    pub to: BlockId,
    /// By a commit of what changed here, not by what others did.
    pub made_here: bool,
}

/// Arrivals that nobody asked for yet, oldest first; each begins where the one before it ended.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<VecDeque<Arrival>>);

impl Arrivals {
    pub(super) fn push(&self, arrival: Arrival) {
        let mut untold = self.0.lock();
        let is_full = untold.len() >= UNTOLD_MAX;
        match untold.back_mut().filter(|_| is_full) {
            Some(last) => {
                last.to = arrival.to;
                last.made_here &= arrival.made_here;
            }
            None => untold.push_back(arrival),
        }
    }

    fn take(&self) -> Vec<Arrival> {
        self.0.lock().drain(..).collect()
    }
}

/// What differs between two snapshots, in few words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct News {
    /// Names at which something else is, or something with other attributes.
    pub changes: u64,
    /// The first of them, by directory.
    pub paths: Vec<PathBuf>,
    /// Conflict copies that are new, the first of them.
    pub conflicts: Vec<PathBuf>,
    /// How many conflict copies came.
    pub came: u64,
    /// How many went.
    pub went: u64,
}

impl Engine {
    /// Where the folder came to since the last time that this was asked.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        self.arrivals.take()
    }

    /// What differs between two snapshots. Costs what differs.
    pub fn news(&self, from: Option<&BlockId>, to: &BlockId) -> Result<News> {
        let from = match from {
            Some(from) => self.snapshot(from)?.root,
            None => Root::EMPTY,
        };
        let to = self.snapshot(to)?.root;
        let (mut news, mut places, mut copies) = (News::default(), Vec::new(), Vec::new());
        map::diff(&self.volume.tree_nodes(), &from, &to, |key, before, after| {
            let place = match changed_place(key, before, after) {
                Some(place) => place,
                None => return ControlFlow::Continue(()),
            };
            let was_copy = before.is_some_and(|value| conflict_at(key, value).is_some());
            let is_copy = after.is_some_and(|value| conflict_at(key, value).is_some());
            news.changes += 1;
            news.came += u64::from(is_copy && !was_copy);
            news.went += u64::from(was_copy && !is_copy);
            if is_copy && !was_copy && copies.len() < CONFLICTS_MAX {
                copies.push(place.clone());
            }
            if places.len() < PATHS_MAX {
                places.push((place, after.is_some()));
            }
            ControlFlow::Continue(())
        })
        .map_err(of_map)?;
        let (before, after) = (Tree::new(&self.volume, from), Tree::new(&self.volume, to));
        let is_short = |path: &PathBuf| path.as_os_str().len() <= PATH_MAX;
        for (place, is_there) in places {
            let tree = if is_there { &after } else { &before };
            news.paths.extend(tree.path(&place)?.filter(is_short));
        }
        for place in copies {
            news.conflicts.extend(after.path(&place)?.filter(is_short));
        }
        Ok(news)
    }
}

/// The name at which something changed, by an entry of the map that is another one. `None`: another entry tells of it.
fn changed_place(key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) -> Option<Place> {
    let (parent, name) = parse_key(key).ok()?;
    if !name.is_empty() {
        let name = name.into();
        return Some(Place { parent, name });
    }
    // What is found by its id: where its names changed, they tell.
    let (before, after) = (Record::decode(before?).ok()?, Record::decode(after?).ok()?);
    match (before, after) {
        (
            Record::Own { parent, name, .. },
            Record::Own {
                parent: now,
                name: named,
                ..
            },
        ) => (parent == now && name == named).then_some(Place { parent, name }),
        (Record::Shared { places, .. }, Record::Shared { places: now, .. }) => {
            places.intersection(&now).next().cloned()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::history_tests::One;
    use super::*;

    fn paths(news: &News) -> Vec<&str> {
        let mut paths: Vec<&str> = news.paths.iter().filter_map(|path| path.to_str()).collect();
        paths.sort_unstable();
        paths
    }

    #[test]
    fn what_changed_is_told_by_name() {
        let one = One::new();
        one.mkdir("dir");
        one.write("dir/a", b"a");
        one.write("b", b"b");
        let first = one.commit();
        let news = one.engine.news(None, &first).unwrap();
        assert_eq!((news.changes, paths(&news)), (3, vec!["b", "dir", "dir/a"]));

        one.write("dir/a", b"changed");
        one.write("b.conflict-12345678-12345678", b"copy");
        one.rename("dir", "moved");
        let second = one.commit();
        let news = one.engine.news(Some(&first), &second).unwrap();
        assert_eq!(
            (news.changes, paths(&news)),
            (4, vec!["b.conflict-12345678-12345678", "dir", "moved", "moved/a"])
        );
        assert_eq!(news.conflicts, [PathBuf::from("b.conflict-12345678-12345678")]);
        assert_eq!((news.came, news.went), (1, 0));

        one.link("b", "other name");
        one.remove("b.conflict-12345678-12345678");
        let third = one.commit();
        one.write("b", b"both names have it");
        let fourth = one.commit();
        let news = one.engine.news(Some(&second), &third).unwrap();
        assert_eq!((news.changes, news.came, news.went), (3, 0, 1));
        let news = one.engine.news(Some(&third), &fourth).unwrap();
        assert_eq!(news.changes, 1, "{news:?}");

        let arrivals = one.engine.take_arrivals();
        let told: Vec<_> = arrivals
            .iter()
            .map(|one| (one.from, one.to, one.made_here))
            .collect();
        let all = [
            (None, first, true),
            (Some(first), second, true),
            (Some(second), third, true),
            (Some(third), fourth, true),
        ];
        assert_eq!(told, all);
        assert!(one.engine.take_arrivals().is_empty());
    }

    #[test]
    fn many_arrivals_become_one() {
        let id = |n: u64| BlockId(*blake3::hash(&n.to_le_bytes()).as_bytes());
        let arrivals = Arrivals::default();
        for n in 0..1000 {
            arrivals.push(Arrival {
                from: Some(id(n)),
                to: id(n + 1),
                made_here: n % 2 == 0,
            });
        }
        let all = arrivals.take();
        assert_eq!(all.len(), UNTOLD_MAX);
        assert!(all.windows(2).all(|two| Some(two[0].to) == two[1].from));
        let last = all[UNTOLD_MAX - 1];
        assert_eq!((last.to, last.made_here), (id(1000), false));
    }
}
