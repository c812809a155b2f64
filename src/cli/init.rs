//! `dfs init`: a new volume in a new or existing folder, or an old one again from its 24 words.

use std::path::PathBuf;

use super::environment::Environment;
use super::passphrase;
use super::report::{Outcome, from_daemon, note, print};
use super::words;
use crate::base::clock::{Clock, SystemClock};
use crate::daemon::{self, Initialised, Origin};

/// Make a new volume in a folder.
///
/// Prints 24 words, once: whoever has them can read everything in the volume, and without them nothing can be read again should all
/// devices be lost. Plain files in the folder are imported at the first mount.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder; it is created if it does not exist.
    folder: PathBuf,
    /// Keep keys, store and logs in this directory.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Seal the keys under the passphrase on the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Make an old volume again: its 24 words are read from standard input.
    #[arg(long)]
    recover: bool,
    /// Open the group to guests: they keep blocks for it and have their own kept, within limits (`public` in dfs.toml).
    #[arg(long)]
    public: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let origin = if args.recover {
        Origin::Recovered(words::read()?)
    } else {
        Origin::New
    };
    let folder = env.absolute(&args.folder);
    let made = create(
        env,
        &folder,
        args.state,
        args.passphrase_file,
        origin,
        args.public,
    )?;
    show(&folder, &made);
    if args.public && env.progress {
        note(format_args!(
            "Once it runs, `dfs invite {} --role guest` prints a ticket that anybody may have.",
            folder.display()
        ));
    }
    Ok(())
}

/// Makes the volume; `up` does this too.
pub fn create(
    env: &Environment,
    folder: &std::path::Path,
    state: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    origin: Origin,
    public: bool,
) -> Outcome<Initialised> {
    let passphrase = passphrase::for_new_keys(passphrase_file.as_deref())?;
    let state = state.map(|path| env.absolute(&path));
    let now = SystemClock.now();
    daemon::init(
        &env.places,
        folder,
        state.as_deref(),
        origin,
        passphrase.as_ref(),
        public,
        now,
    )
    .map_err(|e| from_daemon(&format!("cannot make a volume in {}", folder.display()), e))
}

/// Says what was made. The words go to standard output, everything else does too, so that a redirection keeps them together.
pub fn show(folder: &std::path::Path, made: &Initialised) {
    print(format_args!("Volume {} in {}", made.volume, folder.display()));
    print(format_args!("State  {}", made.state.display()));
    let Some(phrase) = &made.phrase else { return };
    words::show(phrase);
}
