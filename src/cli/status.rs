//! `dfs status`: health in one screen.

use std::path::PathBuf;

use super::environment::Environment;
use super::locate::{self, Place};
use super::report::{Outcome, from_daemon, print, print_json, size};
use crate::control::{Peer, Replication, Standing, Status, Tree, client};
use crate::daemon::{self, Located};

/// Show how a volume is, or all volumes that are running.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount; without one, every running daemon of yours.
    path: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A volume that no daemon has.
#[derive(Debug, serde::Serialize)]
struct Offline {
    running: bool,
    volume: String,
    folder: PathBuf,
    state: PathBuf,
}

#[derive(serde::Serialize)]
struct Online<'a> {
    running: bool,
    #[serde(flatten)]
    status: &'a Status,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let Some(path) = args.path else {
        return all(env, args.json);
    };
    match locate::find(env, &path)? {
        Place::Running { daemon, .. } => show(&daemon.status, args.json),
        Place::Folder { folder, .. } => {
            let located = daemon::locate(&env.places, &folder, None)
                .map_err(|e| from_daemon("cannot open the volume", e))?;
            show_offline(&located, args.json)
        }
    }
}

fn all(env: &Environment, json: bool) -> Outcome {
    let running = client::running(&env.places.runtime_dir);
    if json {
        let all: Vec<Online<'_>> = running.iter().map(|found| online(&found.status)).collect();
        return print_json(&all);
    }
    if running.is_empty() {
        print("No volume of yours is running.");
    }
    for found in &running {
        show(&found.status, false)?;
    }
    Ok(())
}

fn online(status: &Status) -> Online<'_> {
    Online {
        running: true,
        status,
    }
}

fn show(status: &Status, json: bool) -> Outcome {
    if json {
        return print_json(&online(status));
    }
    print(format_args!("volume   {}", status.volume));
    print(format_args!("folder   {}", status.folder.display()));
    match &status.mountpoint {
        Some(at) if status.read_only => print(format_args!("mounted  {} (read-only)", at.display())),
        Some(at) => print(format_args!("mounted  {}", at.display())),
        None => print("mounted  nowhere"),
    }
    print(format_args!("state    {}", status.state.display()));
    print(format_args!("process  {}, dfs {}", status.pid, status.version));
    print(format_args!(
        "device   {} ({})",
        status.device.short(),
        status.role
    ));
    let store = &status.store;
    let bound = match store.cache_size {
        0 => String::from("no bound"),
        bytes => format!("at most {}", size(bytes)),
    };
    print(format_args!(
        "store    {} blocks, {} ({bound}); {} nowhere else",
        store.blocks,
        size(store.bytes),
        size(nowhere_else(status))
    ));
    if let Some(replication) = &status.replication {
        super::replicas::show(replication);
    }
    if let Some(tree) = &status.tree {
        print(format_args!("tree     {}", standing(tree)));
    }
    let work = &status.work;
    print(format_args!(
        "work     {} statements in {} commits; {} chunks sealed ({}), {} opened ({})",
        work.statements,
        work.commits,
        work.sealed,
        size(work.sealed_bytes),
        work.opened,
        size(work.opened_bytes)
    ));
    match &status.network {
        Some(network) => print(format_args!(
            "network  {} of {} members connected; listening on {}",
            network.connected,
            network.known,
            network.listening.join(", ")
        )),
        None => print("network  off"),
    }
    let network = status.network.iter().flat_map(|network| &network.members);
    for peer in network {
        print(format_args!(
            "member   {}",
            member(peer, status.replication.as_ref())
        ));
    }
    for warning in &status.warnings {
        print(format_args!("warning  {warning}"));
    }
    for stall in &status.stalls {
        let file = match (stall.path.as_str(), stall.inode) {
            ("", 0) => String::new(),
            ("", inode) => format!(" of inode {inode}"),
            (path, _) => format!(" of {path}"),
        };
        print(format_args!(
            "stands   {}{file} for {} s: waits for {}",
            stall.operation, stall.secs, stall.waits_for
        ));
    }
    Ok(())
}

/// Where the tree is, in a line.
fn standing(tree: &Tree) -> String {
    let count = |standing| tree.devices.iter().filter(|of| of.standing == standing).count();
    let (same, behind, ahead) = (
        count(Standing::Same),
        count(Standing::Behind),
        count(Standing::Ahead),
    );
    let mut line = match (&tree.snapshot, tree.changed) {
        (None, false) => "nothing committed yet".to_owned(),
        (Some(id), false) => format!("snapshot {}", id.short()),
        (None, true) => "changes wait for their first commit".into(),
        (Some(id), true) => format!("changes wait for their commit after snapshot {}", id.short()),
    };
    if !tree.devices.is_empty() {
        line += &format!(
            "; {same} other devices have the same, {behind} less, {ahead} something that is not here yet"
        );
    }
    if let Some(conflicts @ 1..) = tree.conflicts {
        line += &format!("; {conflicts} conflict copies: `dfs conflicts`");
    }
    if let Some(waiting) = &tree.waiting {
        line += &format!("; waits: {waiting}");
    }
    line
}

/// Bytes that are only here, as far as this device knows.
fn nowhere_else(status: &Status) -> u64 {
    match &status.replication {
        Some(replication) if replication.possible > 0 => {
            let alone = replication.health.iter().filter(|line| line.replicas == 0);
            alone.map(|line| line.bytes).sum()
        }
        _ => status.store.dirty_bytes,
    }
}

/// A member in a line: whether it is there, how far away, and what it and this device hold for each other.
fn member(peer: &Peer, replication: Option<&Replication>) -> String {
    let mut line = peer.device.short();
    if let Some(role) = &peer.role {
        line += &format!(" ({role})");
    }
    line += match (peer.connected, peer.rtt_ms) {
        (true, Some(ms)) => format!(", connected, {ms} ms"),
        (true, None) => ", connected".into(),
        (false, _) => ", away".into(),
    }
    .as_str();
    let exchange = replication.and_then(|all| all.members.iter().find(|member| member.device == peer.device));
    if let Some(exchange) = exchange {
        line += &format!(
            "; holds {} for this device, which holds {} for it",
            size(exchange.stored_bytes),
            size(exchange.held_bytes)
        );
    }
    line
}

fn show_offline(located: &Located, json: bool) -> Outcome {
    let offline = Offline {
        running: false,
        volume: located.marker.volume.to_string(),
        folder: located.folder.clone(),
        state: located.state.path().to_owned(),
    };
    if json {
        return print_json(&offline);
    }
    print(format_args!("volume   {}", offline.volume));
    print(format_args!("folder   {}", offline.folder.display()));
    print("mounted  nowhere: no daemon is running; `dfs up` starts one");
    print(format_args!("state    {}", offline.state.display()));
    Ok(())
}
