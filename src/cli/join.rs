//! `dfs join FOLDER`: become a member of a group by a ticket, which is read from standard input or a file.

use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;

use super::environment::Environment;
use super::passphrase;
use super::report::{Outcome, failed, from_daemon, note, print, print_json};
use super::words;
use crate::base::clock::{Clock, SystemClock};
use crate::daemon;
use crate::keys::Ticket;

/// Join a group with a ticket from `dfs invite`.
///
/// The ticket is read from standard input: never give it on the command line, where others can see it. An admin of the group must be
/// reachable.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder for the volume; it is created if it does not exist.
    folder: PathBuf,
    /// Keep keys, store and logs in this directory.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Read the ticket from this file.
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,
    /// Seal the keys under the passphrase on the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// With a guest's ticket: bring a volume of your own again, whose 24 words are read from standard input.
    #[arg(long, requires = "ticket_file")]
    recover: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let folder = env.absolute(&args.folder);
    let what = format!("cannot join with {}", folder.display());
    let ticket = read_ticket(&what, args.ticket_file)?;
    let words = args.recover.then(words::read).transpose()?;
    let passphrase = passphrase::for_new_keys(args.passphrase_file.as_deref())?;
    let state = args.state.map(|path| env.absolute(&path));
    let now = SystemClock.now();
    let joined = daemon::join(
        &env.places,
        &folder,
        state.as_deref(),
        &ticket,
        passphrase.as_ref(),
        words,
        now,
    )
    .map_err(|e| from_daemon(&what, e))?;
    if args.json {
        return print_json(&joined);
    }
    print(format_args!("Joined volume {} as {}", joined.volume, joined.role));
    print(format_args!("Device {}", joined.device));
    print(format_args!("State  {}", joined.state.display()));
    if let Some(phrase) = &joined.phrase {
        words::show(phrase);
    }
    let verb = match joined.role.as_str() {
        "host" => "Serve the group with `dfs serve",
        _ => "Mount it with `dfs up",
    };
    print(format_args!("{verb} {}`", folder.display()));
    Ok(())
}

fn read_ticket(what: &str, file: Option<PathBuf>) -> Outcome<Ticket> {
    let (text, place) = match &file {
        Some(path) => (
            File::open(path).and_then(passphrase::read_text),
            path.display().to_string(),
        ),
        None => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                note("Paste the ticket, then Ctrl-D:");
            }
            (passphrase::read_text(stdin.lock()), "standard input".to_owned())
        }
    };
    let text = text.map_err(|e| failed(what, format!("{place}: {e}"), "give the ticket there"))?;
    Ticket::from_text(&text).map_err(|e| failed(what, e, "copy the whole ticket, from dfs1- to its end"))
}
