//! `dfs members`: who belongs to the group and who was removed, from a running daemon or, without one, as this device last knew it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::environment::Environment;
use super::locate::{self, Place};
use super::passphrase;
use super::peers::ago;
use super::report::{Outcome, from_client, from_daemon, print, print_json};
use crate::base::clock::{Clock, SystemClock};
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Group, Member, Request};
use crate::daemon::{self, Located, PassphraseSource};

const TIMEOUT: Duration = Duration::from_secs(30);

/// List the members of the group, and the devices that were removed from it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// What the commands on the group have in common.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// The passphrase of the keys is on the first line of this file; needed only while no daemon runs.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot list the members";
    let json = args.common.json;
    let offline =
        |located: &Located, keys: PassphraseSource| daemon::members(located, keys).map(Answer::Members);
    match carry_out(env, what, &args.path, args.common, &Request::Members, offline)? {
        Answer::Members(group) if json => print_json(&group),
        Answer::Members(group) => {
            show(&group, SystemClock.now());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Has the daemon of `path` answer, or does without one.
pub fn carry_out(
    env: &Environment,
    what: &str,
    path: &Path,
    common: Common,
    request: &Request,
    offline: impl FnOnce(&Located, PassphraseSource) -> anyhow::Result<Answer>,
) -> Outcome<Answer> {
    match locate::find(env, path)? {
        Place::Running { daemon, .. } => match ask(&daemon.socket, request, TIMEOUT, |_| {}) {
            Ok(answer @ (Answer::Members(_) | Answer::Changed(_))) => Ok(answer),
            Ok(other) => Err(from_client(what, unexpected(&daemon.socket, &other))),
            Err(e) => Err(from_client(what, e)),
        },
        Place::Folder { folder, .. } => {
            let located = daemon::locate(&env.places, &folder, None).map_err(|e| from_daemon(what, e))?;
            offline(&located, passphrase::source(common.passphrase_file)).map_err(|e| from_daemon(what, e))
        }
    }
}

fn show(group: &Group, now: u64) {
    let mut rows = vec![["DEVICE", "NAME", "ROLE", "ZONE", "SINCE", "STATE"].map(str::to_owned)];
    rows.extend(group.members.iter().map(|member| row(member, now)));
    for line in table(&rows) {
        print(line);
    }
    print(format_args!(
        "New data is sealed under key epoch {}.",
        group.epoch
    ));
}

fn row(member: &Member, now: u64) -> [String; 6] {
    let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
    let state = match (member.removed, member.own, member.connected, member.last_seen) {
        (Some(at), ..) => format!("removed on {}", date(at)),
        (None, true, ..) => "this device".into(),
        (None, _, true, _) => "connected".into(),
        (None, _, false, Some(at)) => format!("last seen {} ago", ago(now.saturating_sub(at))),
        (None, _, false, None) => "never seen from here".into(),
    };
    [
        member.device.short(),
        or_none(member.name.as_deref()),
        or_none(member.role.as_deref()),
        or_none(member.zone.as_deref()),
        member.since.map_or_else(|| "-".into(), date),
        state,
    ]
}

/// Columns two spaces apart.
fn table(rows: &[[String; 6]]) -> Vec<String> {
    let widths: Vec<usize> = (0..6)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths);
            let line: String = cells.map(|(cell, width)| format!("{cell:<width$}  ")).collect();
            line.trim_end().to_owned()
        })
        .collect()
}

/// A day, as people write it, in UTC.
pub fn date(at: u64) -> String {
    let at = i64::try_from(at).ok();
    let at = at.and_then(|at| jiff::Timestamp::from_second(at).ok());
    at.map_or_else(|| "?".into(), |at| at.strftime("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DeviceId;

    #[test]
    fn a_line_for_every_device() {
        let mut member = Member {
            device: DeviceId([0xab; 32]),
            name: Some("attic".into()),
            role: Some("writer".into()),
            zone: None,
            since: Some(86_400),
            last_seen: Some(1000),
            connected: false,
            removed: None,
            own: false,
        };
        let cells = row(&member, 8200);
        assert_eq!(
            cells.join("|"),
            "abababab|attic|writer|-|1970-01-02|last seen 2 h ago"
        );
        (member.removed, member.role) = (Some(2 * 86_400), None);
        assert_eq!(row(&member, 8200)[5], "removed on 1970-01-03");
        let lines = table(&[cells, row(&member, 8200)]);
        assert_eq!(
            lines[0].find("1970"),
            lines[1].find("1970"),
            "columns stand below each other"
        );
    }
}
