//! Moments on the command line: how `--at`, `--from` and `--to` name a snapshot, and how one is shown.

use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

use super::environment::Environment;
use super::locate::{self, Place};
use super::report::Outcome;
use crate::control::{Past, When};

/// Fewest digits that are taken for the beginning of an id.
const ID_MIN: usize = 4;

/// For the help of the options.
pub const EXPECTED: &str = "expected a time such as 2h, \"3 days ago\", 2026-05-01, \"2026-05-01 14:30\", 2026-05-01T14:30:00Z, \
     a name in .dfs/snapshots, or the beginning of a snapshot's id from `dfs log`, four digits or more";

/// What is meant, seen from `now` and where it is that o'clock.
pub fn parse(text: &str, now: &Zoned) -> Result<When, String> {
    let text = text.trim();
    let is_id = |text: &str| text.len() >= ID_MIN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // One of several of a second, as `.dfs/snapshots` names it.
    let id = match text.split_once("Z-") {
        Some((second, id)) if format!("{second}Z").parse::<Timestamp>().is_ok() => id,
        _ => text,
    };
    if is_id(id) {
        return Ok(When::Snapshot(id.to_ascii_lowercase()));
    }
    let at = match (
        text.parse::<Timestamp>(),
        text.parse::<DateTime>(),
        text.parse::<Span>(),
    ) {
        (Ok(at), _, _) => at,
        (_, Ok(at), _) => at
            .to_zoned(now.time_zone().clone())
            .map_err(|error| error.to_string())?
            .timestamp(),
        (_, _, Ok(span)) => now
            .checked_sub(span.abs())
            .map_err(|error| error.to_string())?
            .timestamp(),
        _ => return Err(EXPECTED.into()),
    };
    let secs = u64::try_from(at.as_second()).map_err(|_| "there was no snapshot before 1970".to_owned())?;
    Ok(When::Time(secs))
}

/// For the parser of the command line.
pub fn parse_now(text: &str) -> Result<When, String> {
    parse(text, &Zoned::now())
}

/// A snapshot's time, as the user's clock shows it, and its id.
pub fn show(past: &Past) -> String {
    format!("{}  {}", local(past.time), past.snapshot.short())
}

/// A time in seconds since the Unix epoch, as the user's clock shows it.
pub fn local(secs: u64) -> String {
    local_in(secs, TimeZone::system())
}

fn local_in(secs: u64, zone: TimeZone) -> String {
    let at = i64::try_from(secs).ok();
    let at = at.and_then(|secs| Timestamp::from_second(secs).ok());
    at.map_or_else(
        || "?".into(),
        |at| at.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// The daemon that has a path, and what the path is in its volume, as [`super::replicas::running`]; but a path that is a symbolic link, or was one,
/// means that and not what it leads to.
pub fn running(env: &Environment, path: &Path, what: &str) -> Outcome<(PathBuf, PathBuf)> {
    let itself = locate::find_absolute(env, &env.absolute_name(path));
    match itself.or_else(|_| locate::find(env, path))? {
        Place::Running { daemon, inside } => Ok((daemon.socket, inside)),
        Place::Folder { folder, .. } => Err(locate::silent(env, &folder, what)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_ids() {
        let now: Zoned = "2026-11-23T10:00:00+01:00[Europe/Berlin]".parse().unwrap();
        let at = |text: &str| match parse(text, &now) {
            Ok(When::Time(secs)) => Timestamp::from_second(secs as i64).unwrap().to_string(),
            Ok(When::Snapshot(id)) => format!("id {id}"),
            Err(error) => error,
        };
        for (text, expected) in [
            ("2h", "2026-11-23T07:00:00Z"),
            ("2 hours ago", "2026-11-23T07:00:00Z"),
            ("3 days", "2026-11-20T09:00:00Z"),
            ("3d", "2026-11-20T09:00:00Z"),
            ("1 month ago", "2026-10-23T08:00:00Z"),
            ("2026-11-01", "2026-10-31T23:00:00Z"),
            ("2026-11-01 14:30", "2026-11-01T13:30:00Z"),
            ("2026-11-01T14:30:05", "2026-11-01T13:30:05Z"),
            ("2026-11-01T14:30:00Z", "2026-11-01T14:30:00Z"),
            ("2026-11-01T14:30:00-05:00", "2026-11-01T19:30:00Z"),
            ("ABCD1234", "id abcd1234"),
            ("2026-11-01T14:30:00Z-abcd1234", "id abcd1234"),
            ("20261101", "id 20261101"),
            ("1969-01-01", "there was no snapshot before 1970"),
        ] {
            assert_eq!(at(text), expected, "{text}");
        }
        for text in [
            "",
            "yesterday or so",
            "abc",
            "14:30",
            "x2026Z-abcd1234",
            "2026-11-01T14:30:00Z-abc",
            "2026-13-01",
            "xyz12345",
        ] {
            assert_eq!(at(text), EXPECTED, "{text}");
        }
        assert_eq!(local_in(0, TimeZone::UTC), "1970-01-01 00:00:00");
    }
}
