//! `fsck.dfs [-afnprvyVC] FOLDER`, as fsck(8) calls it: checks a folder and its store, changes nothing, exits as fsck(8) says.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use super::environment::Environment;
use super::passphrase;
use super::report::{Exit, from_daemon, note, print, size, three_parts};
use crate::daemon::{self, Checked};

/// Exit codes of fsck(8).
mod code {
    /// Errors are left.
    pub const ERRORS: u8 = 4;
    /// The check could not be made.
    pub const OPERATIONAL: u8 = 8;
    /// Called wrongly.
    pub const USAGE: u8 = 16;
}

/// Checks every .f in a folder and every block in its store.
///
/// Nothing is changed, and the network is not asked: a damaged block is replaced at its next reading when another device has it,
/// and a file whose newest slot is damaged shows the version before it. The volume must not be mounted.
#[derive(Debug, Parser)]
#[command(
    name = "fsck.dfs",
    version,
    about,
    max_term_width = 100,
    after_help = "Exit codes: 0 no errors, 4 errors left, 8 cannot check, 16 called wrongly."
)]
struct Args {
    /// The folder.
    folder: PathBuf,
    /// The state directory, when the folder does not say where it is.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The passphrase of the keys is on the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Without effect: nothing is repaired, so nothing is asked.
    #[arg(short = 'a', visible_short_aliases = ['p', 'y', 'n', 'r', 'f'], action = clap::ArgAction::Count)]
    automatic: u8,
    /// Say what was checked even if nothing was found.
    #[arg(short = 'v', action = clap::ArgAction::Count)]
    verbose: u8,
    /// Without effect: where fsck(8) wants its progress bar.
    #[arg(short = 'C', value_name = "FD", num_args = 0..=1, require_equals = false, hide = true)]
    progress: Option<Option<u32>>,
}

/// The command line, for the manual page.
pub fn command() -> clap::Command {
    Args::command()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Nobody may be listening.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { code::USAGE } else { 0 });
        }
    };
    let verbose = args.verbose > 0;
    match run(args) {
        Ok(found) if found.errors > 0 => {
            print(summary(&found));
            ExitCode::from(code::ERRORS)
        }
        Ok(found) => {
            if verbose || found.elsewhere > 0 {
                print(summary(&found));
            }
            ExitCode::SUCCESS
        }
        Err(Exit::Usage(text)) => {
            note(format_args!("fsck.dfs: {text}"));
            ExitCode::from(code::USAGE)
        }
        Err(Exit::Failed(failure)) => {
            note(three_parts(&failure));
            ExitCode::from(code::OPERATIONAL)
        }
    }
}

fn run(args: Args) -> Result<Checked, Exit> {
    let env = Environment::read()?;
    let folder = env.absolute(&args.folder);
    let what = format!("cannot check {}", folder.display());
    let state = args.state.map(|path| env.absolute(&path));
    let located =
        daemon::locate(&env.places, &folder, state.as_deref()).map_err(|e| from_daemon(&what, e))?;
    let keys = passphrase::source(args.passphrase_file);
    daemon::fsck(&located, keys, &mut |line| print(line)).map_err(|e| from_daemon(&what, e))
}

fn summary(found: &Checked) -> String {
    let mut text = format!(
        "{} files, {} blocks ({}) checked: {} errors",
        found.files,
        found.blocks,
        size(found.bytes),
        found.errors
    );
    if found.elsewhere > 0 {
        text.push_str(&format!("; {} blocks are not on this device", found.elsewhere));
    }
    text
}
