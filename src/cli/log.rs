//! `dfs log`: the versions of a path.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::report::{Outcome, from_client, note, print, print_json, size};
use super::when;
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Became, PathVersion, Request, Tally};

/// Longest silence of a daemon that reads old trees: blocks that only others have are waited for.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Show the versions of a file or directory, or of the whole volume, newest first.
///
/// A line for every snapshot in which it is not what it was in the one before: when, the snapshot's id, which device made it, and what became of the
/// path. Where a file was moved to the path, its versions under the older name follow. What was deleted can be named like what exists.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount, of something that is there or was.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Show at most so many, up to 1000.
    #[arg(short = 'n', long, value_name = "N", default_value = "20", value_parser = clap::value_parser!(u16).range(1..=1000))]
    number: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot show the versions";
    let (socket, path) = when::running(env, &args.path, what)?;
    let most = usize::from(args.number);
    let log = match ask(&socket, &Request::Log { path, most }, TIMEOUT, |_| ()) {
        Ok(Answer::Log(log)) => log,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    if args.json {
        return print_json(&log);
    }
    for version in &log.versions {
        print(line(version));
    }
    if log.more {
        note(format_args!("the newest {}; more with -n", log.versions.len()));
    }
    Ok(())
}

fn line(version: &PathVersion) -> String {
    let device = version
        .device
        .map_or_else(|| "merge   ".into(), |device| device.short());
    let other = version.other.as_ref().map(|path| path.display());
    let path = match version.path.as_os_str().is_empty() {
        true => "the volume".into(),
        false => version.path.display().to_string(),
    };
    let became = match (version.change, other) {
        (Became::There, _) => "was there".to_owned(),
        (Became::Created, _) => "created".into(),
        (Became::Changed, _) => "changed".into(),
        (Became::Attributes, _) => "attributes".into(),
        (Became::Moved, Some(from)) => format!("moved from {from}"),
        (Became::Moved, None) => "moved".into(),
        (Became::Deleted, Some(to)) => format!("moved to {to}"),
        (Became::Deleted, None) => "deleted".into(),
    };
    let more = match (version.size, &version.counts) {
        (Some(bytes), _) => format!(", {}", size(bytes)),
        (None, Some(counts)) => format!(": {}", tally(counts)),
        (None, None) => String::new(),
    };
    format!("{}  {device}  {path}  {became}{more}", when::show(&version.at))
}

/// How many of each, without those that are none.
fn tally(counts: &Tally) -> String {
    let all = [
        (counts.created, "created"),
        (counts.changed, "changed"),
        (counts.moved, "moved"),
        (counts.deleted, "deleted"),
    ];
    let some: Vec<String> = all
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    some.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockId, DeviceId};
    use crate::control::{Past, PathKind};

    #[test]
    fn a_line_for_every_version() {
        let mut version = PathVersion {
            at: Past {
                snapshot: BlockId([0xab; 32]),
                time: 0,
            },
            device: Some(DeviceId([1; 32])),
            path: "a".into(),
            change: Became::Moved,
            other: Some("b".into()),
            kind: Some(PathKind::File),
            size: Some(3),
            counts: None,
        };
        assert!(line(&version).ends_with("  abababab  01010101  a  moved from b, 3 B"));
        version.counts = Some(Tally {
            created: 1,
            deleted: 2,
            ..Tally::default()
        });
        (version.change, version.other, version.size, version.path) =
            (Became::Changed, None, None, PathBuf::new());
        version.device = None;
        assert!(line(&version).ends_with("  abababab  merge     the volume  changed: 1 created, 2 deleted"));
    }
}
