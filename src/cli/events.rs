//! `dfs events`: what happens in a volume, as it happens.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::report::{Outcome, failed, from_client, size};
use super::{replicas, when};
use crate::control::client::listen;
use crate::control::{Accord, Event, Now, Step, What};

/// Show what happens in a volume, as it happens, until its daemon ends.
///
/// First how it is now; then what is committed here and brought here from others, conflict copies, devices that come and go, whether the tree is the
/// same everywhere and copies are missing, and what goes wrong. For scripts and desktops --json gives one JSON object a line: its `event` says what
/// happened, its `time` when, in seconds since the Unix epoch.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot listen to events";
    let (socket, _) = replicas::running(env, &args.path, what)?;
    let mut broken = None;
    let mut ended = false;
    let each = |event: Event| {
        ended |= event.what == What::End;
        let text = match args.json {
            true => match serde_json::to_string(&event) {
                Ok(text) => text,
                Err(e) => {
                    broken = Some(failed("cannot print an event", e, ""));
                    return false;
                }
            },
            false => format!("{}  {}", when::local(event.time), said(&event.what)),
        };
        // Whoever read it has gone: that is the end.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
    };
    let heard = listen(&socket, each);
    match (broken, heard) {
        (Some(exit), _) => Err(exit),
        (None, Ok(())) => Ok(()),
        // The last line was there, only the goodbye was not.
        (None, Err(_)) if ended => Ok(()),
        (None, Err(e)) => Err(from_client(what, e)),
    }
}

/// An event, for people.
fn said(what: &What) -> String {
    match what {
        What::State(now) => state(now),
        What::Tree { state, .. } => format!("tree: {}", accord(*state)),
        What::Committed(step) => format!("committed {}", changes(step)),
        What::Applied(step) => format!("took in what others did: {}", changes(step)),
        What::Conflict { path } => format!("conflict copy: {}", path.display()),
        What::Connected { device } => format!("connected to {}", device.short()),
        What::Disconnected { device } => format!("disconnected from {}", device.short()),
        What::CopiesMissing { lacking_bytes } => format!("copies missing of {}", size(*lacking_bytes)),
        What::CopiesComplete => "all copies are there".into(),
        What::Failed { why } => format!("trees cannot be made the same now: {why}"),
        What::Recovered => "trees can be compared again".into(),
        What::Warning { text } => format!("warning: {text}"),
        What::Lost { count } => format!("{count} events were lost: this listener is too slow"),
        What::End => "the daemon ends".into(),
    }
}

fn state(now: &Now) -> String {
    let mut parts = Vec::new();
    if let Some(tree) = now.tree {
        parts.push(format!("tree: {}", accord(tree)));
    }
    parts.push(format!("{} devices connected", now.connected.len()));
    match now.lacking_bytes {
        Some(0) => parts.push("all copies are there".into()),
        Some(bytes) => parts.push(format!("copies missing of {}", size(bytes))),
        None => {}
    }
    if let Some(conflicts @ 1..) = now.conflicts {
        parts.push(format!("{conflicts} conflict copies"));
    }
    if let Some(waiting) = &now.waiting {
        parts.push(format!("waits: {waiting}"));
    }
    parts.extend(now.warnings.iter().map(|text| format!("warning: {text}")));
    parts.join("; ")
}

fn accord(state: Accord) -> &'static str {
    match state {
        Accord::InSync => "in sync",
        Accord::Ahead => "something here is not elsewhere yet",
        Accord::Behind => "something elsewhere is not here yet",
        Accord::Apart => "something here and something elsewhere is to be exchanged",
    }
}

fn changes(step: &Step) -> String {
    let shown: Vec<String> = step.paths.iter().map(|path| shown(path)).collect();
    let snapshot = step.snapshot.short();
    match step.changes {
        None => format!("snapshot {snapshot}"),
        Some(count) => {
            let more = count.saturating_sub(shown.len() as u64);
            let more = match more {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("snapshot {snapshot}, {count} changes: {}{more}", shown.join(", "))
        }
    }
}

/// A path on one line.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{BlockId, DeviceId};

    #[test]
    fn a_line_for_every_event() {
        let step = Step {
            snapshot: BlockId([0xab; 32]),
            changes: Some(3),
            paths: vec!["a".into(), "b\nc".into()],
        };
        assert_eq!(
            said(&What::Committed(step.clone())),
            "committed snapshot abababab, 3 changes: a, b?c and 1 more"
        );
        let step = Step {
            changes: None,
            paths: Vec::new(),
            ..step
        };
        assert_eq!(
            said(&What::Applied(step)),
            "took in what others did: snapshot abababab"
        );
        let device = DeviceId([1; 32]);
        assert_eq!(said(&What::Connected { device }), "connected to 01010101");
    }
}
