//! The snapshots that are kept, by time: how `.dfs/snapshots` names them. Pure. Called by `shown`, `snapshots`.
//!
//! A name is the second in which the folder came to the snapshot, in UTC, so names sort by time. Of several in one second the first has the second
//! alone, and the others have the beginning of their id behind it. Invariant: a snapshot's name is its own for as long as it is kept, and nobody
//! else's afterwards, whatever comes and goes.

use std::collections::BTreeMap;

use crate::base::BlockId;

/// Stands between the second and the beginning of an id; the second ends with its first letter.
const ID_AFTER: &str = "Z-";

/// A snapshot that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// It.
    pub id: BlockId,
    /// When the folder came to it, in seconds since the Unix epoch, by this device's clock.
    pub time: u64,
    /// It was not the first to come in its second.
    pub twin: bool,
}

/// All of them with their names, in the order of these.
pub(super) fn named(moments: &[Moment]) -> BTreeMap<String, Moment> {
    let name = |one: &Moment| Some((name(one, one.twin)?, *one));
    moments.iter().filter_map(name).collect()
}

/// The one of this name. The beginning of the id may be there where it need not be.
pub(super) fn find(moments: &[Moment], text: &str) -> Option<Moment> {
    let (second, id) = match text.split_once(ID_AFTER) {
        Some((second, id)) => (format!("{second}Z"), Some(id)),
        None => (text.to_owned(), None),
    };
    let at: jiff::Timestamp = second.parse().ok()?;
    let time = u64::try_from(at.as_second()).ok()?;
    let is_meant = |one: &&Moment| match id {
        Some(id) => one.id.short() == id,
        None => !one.twin,
    };
    let found = moments.iter().filter(|one| one.time == time).find(is_meant)?;
    // One way to write it, not all that the parser takes.
    (name(found, id.is_some())? == text).then_some(*found)
}

/// The name of one. `None` of a time that no calendar has.
fn name(moment: &Moment, with_id: bool) -> Option<String> {
    let at = jiff::Timestamp::from_second(i64::try_from(moment.time).ok()?).ok()?;
    Some(match with_id {
        false => at.to_string(),
        true => format!("{at}-{}", moment.id.short()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(n: u8, time: u64) -> Moment {
        Moment {
            id: BlockId([n; 32]),
            time,
            twin: false,
        }
    }

    fn twin(n: u8, time: u64) -> Moment {
        Moment {
            twin: true,
            ..moment(n, time)
        }
    }

    #[test]
    fn names_sort_by_time_and_stay() {
        // A clock that was put back, and three in one second.
        let second = 1_795_433_405;
        let all = [
            moment(7, second),
            moment(9, 5),
            twin(3, second),
            moment(2, 60),
            twin(1, second),
        ];
        let names = named(&all);
        assert_eq!(
            names.keys().collect::<Vec<_>>(),
            [
                "1970-01-01T00:00:05Z",
                "1970-01-01T00:01:00Z",
                "2026-11-23T11:30:05Z",
                "2026-11-23T11:30:05Z-01010101",
                "2026-11-23T11:30:05Z-03030303"
            ]
        );
        assert_eq!(names["2026-11-23T11:30:05Z"], all[0]);
        for (name, one) in &names {
            assert_eq!(find(&all, name), Some(*one), "{name}");
            // More came before it, or what did is gone.
            let later = [all.as_slice(), &[twin(8, one.time)]].concat();
            assert_eq!(find(&later, name), Some(*one), "{name}");
        }
        let left = &all[1..];
        assert_eq!(find(left, "2026-11-23T11:30:05Z-03030303"), Some(all[2]));
        assert_eq!(find(left, "2026-11-23T11:30:05Z-07070707"), None);
        assert_eq!(find(left, "2026-11-23T11:30:05Z"), None, "nobody gets its name");
        assert!(names.keys().skip(3).eq(named(left).keys().skip(2)));
    }

    #[test]
    fn nothing_else_is_a_name() {
        let all = [moment(1, 5), moment(2, u64::MAX)];
        for text in [
            "",
            "1970-01-01",
            "1970-01-01T00:00:06Z",
            "1970-01-01T00:00:05.0Z",
            "1970-01-01t00:00:05z",
            "1970-01-01T01:00:05+01:00",
            "1970-01-01T00:00:05Z-",
            "1970-01-01T00:00:05Z-02020202",
            "1970-01-01T00:00:05Z-0101",
            "1969-12-31T23:59:59Z",
        ] {
            assert_eq!(find(&all, text), None, "{text}");
        }
        assert_eq!(named(&all).len(), 1, "a time that no calendar has");
    }
}
