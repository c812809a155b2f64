//! `dfs peers`: the other members, as a running daemon knows them.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::locate;
use super::report::{Outcome, from_client, print, print_json};
use crate::base::clock::{Clock, SystemClock};
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Peer, Request};

const TIMEOUT: Duration = Duration::from_secs(15);

/// List the other members of the group.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot list the members";
    let socket = locate::daemon(env, &args.path, what)?;
    let peers = match ask(&socket, &Request::Peers, TIMEOUT, |_| {}) {
        Ok(Answer::Peers { peers }) => peers,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    if args.json {
        return print_json(&peers);
    }
    if peers.is_empty() {
        print("No other member is known.");
    }
    for peer in &peers {
        print(line(peer, SystemClock.now()));
    }
    Ok(())
}

fn line(peer: &Peer, now: u64) -> String {
    let seen = match (peer.connected, peer.last_seen) {
        (true, _) => match peer.rtt_ms {
            Some(ms) => format!("connected, {ms} ms"),
            None => "connected".into(),
        },
        (false, Some(at)) => format!("last seen {} ago", ago(now.saturating_sub(at))),
        (false, None) => "never seen".into(),
    };
    format!(
        "{}  {:<6}  {seen}  {}",
        peer.device.short(),
        peer.role.as_deref().unwrap_or("?"),
        peer.addresses.join(" ")
    )
}

/// A time span, roughly.
pub fn ago(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        7200..172_800 => format!("{} h", secs / 3600),
        _ => format!("{} days", secs / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DeviceId;

    #[test]
    fn one_line_a_member() {
        let mut peer = Peer {
            device: DeviceId([0xab; 32]),
            role: Some("writer".into()),
            connected: false,
            addresses: vec!["192.0.2.1:8080".into()],
            last_seen: Some(1000),
            rtt_ms: Some(3),
        };
        assert_eq!(
            line(&peer, 8200),
            "abababab  writer  last seen 2 h ago  192.0.2.1:8080"
        );
        peer.connected = true;
        assert!(line(&peer, 8200).contains("connected, 3 ms"));
    }
}
