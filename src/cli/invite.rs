//! `dfs invite`: a ticket for a new member, alone on standard output so that it can be piped.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::locate;
use super::report::{Exit, Outcome, from_client, note, print};
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Request};
use crate::keys::certificate::Role;
use crate::keys::invitation::USES_MAX;

const TIMEOUT: Duration = Duration::from_secs(30);
/// What the ticket of a guest says where nothing else is asked for: anybody may have it.
const GUEST_EXPIRES: u64 = 365 * 86_400;
/// Longest that a ticket may be good, in seconds.
const EXPIRES_MAX: u64 = 366 * 86_400;

/// Print a ticket with which another device can join.
///
/// Whoever has the ticket can join: send it over a channel that you trust. Only a guest's may be published. It goes to standard output
/// alone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path in the folder or in the mount.
    folder: PathBuf,
    /// host (stores, cannot read), guest (so, and has a volume of its own kept), reader, writer or admin (may invite).
    #[arg(long, value_name = "ROLE", value_parser = role)]
    role: Role,
    /// How long the ticket is good: a number with s, m, h or d; 24h, and 365d for guests.
    #[arg(long, value_name = "TIME", value_parser = expires)]
    expires: Option<u64>,
    /// How many devices may join with it, up to 1024: one, and 1024 for guests.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=u32::from(USES_MAX).into()))]
    uses: Option<u32>,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot invite";
    let socket = locate::daemon(env, &args.folder, what)?;
    let usual = match args.role {
        Role::Guest => (GUEST_EXPIRES, u32::from(USES_MAX)),
        _ => (86_400, 1),
    };
    let request = Request::Invite {
        role: args.role.to_string(),
        expires_secs: args.expires.unwrap_or(usual.0),
        uses: args.uses.unwrap_or(usual.1),
    };
    match ask(&socket, &request, TIMEOUT, |_| {}) {
        Ok(Answer::Ticket { ticket }) => {
            print(ticket);
            if env.progress {
                note("Give it to the new device: `dfs join FOLDER` reads it from standard input.");
            }
            Ok(())
        }
        Ok(other) => Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => Err::<(), Exit>(from_client(what, e)),
    }
}

fn role(text: &str) -> Result<Role, String> {
    text.parse()
}

fn expires(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no time such as 90s, 30m, 24h or 7d, of at most a year");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = match &text[digits..] {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    number
        .checked_mul(unit)
        .filter(|secs| (1..=EXPIRES_MAX).contains(secs))
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(expires("24h"), Ok(86_400));
        assert_eq!(expires("90s"), Ok(90));
        for bad in ["", "0s", "-1h", "400d", "1w", "h"] {
            assert!(expires(bad).is_err(), "{bad}");
        }
    }
}
