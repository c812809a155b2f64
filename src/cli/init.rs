//! `dfs init`: a new volume in a new or existing folder, or an old one again from its 24 words.

use std::io::IsTerminal;
use std::path::PathBuf;

use super::environment::Environment;
use super::passphrase;
use super::report::{Outcome, failed, from_daemon, note, print};
use crate::base::clock::{Clock, SystemClock};
use crate::daemon::{self, Initialised, Origin};
use crate::keys::RootSecret;

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
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let origin = if args.recover {
        Origin::Recovered(read_words()?)
    } else {
        Origin::New
    };
    let folder = env.absolute(&args.folder);
    let made = create(env, &folder, args.state, args.passphrase_file, origin)?;
    show(&folder, &made);
    Ok(())
}

/// Makes the volume; `up` does this too.
pub fn create(
    env: &Environment,
    folder: &std::path::Path,
    state: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    origin: Origin,
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
        now,
    )
    .map_err(|e| from_daemon(&format!("cannot make a volume in {}", folder.display()), e))
}

/// Says what was made. The words go to standard output, everything else does too, so that a redirection keeps them together.
pub fn show(folder: &std::path::Path, made: &Initialised) {
    print(format_args!("Volume {} in {}", made.volume, folder.display()));
    print(format_args!("State  {}", made.state.display()));
    let Some(phrase) = &made.phrase else { return };
    print("");
    print("Write these 24 words down and keep them safe. They are shown only now. Whoever has");
    print("them can read everything in the volume; without them nothing can be read again");
    print("should all devices be lost.");
    print("");
    print("┌─────────────────────────────────────────────────────────────────┐");
    let words: Vec<&str> = phrase.split(' ').collect();
    for (row, four) in words.chunks(4).enumerate() {
        let mut line = zeroize::Zeroizing::new(String::with_capacity(80));
        for (column, word) in four.iter().enumerate() {
            line.push_str(&format!("{:>4}. {word:<10}", row * 4 + column + 1));
        }
        print(format_args!("│ {:<63} │", &**line));
    }
    print("└─────────────────────────────────────────────────────────────────┘");
    print("");
}

fn read_words() -> Outcome<RootSecret> {
    let what = "cannot recover the volume";
    if std::io::stdin().is_terminal() {
        note("Type the 24 words, then Ctrl-D:");
    }
    let text = passphrase::read_text(std::io::stdin().lock())
        .map_err(|e| failed(what, format!("standard input: {e}"), "give the 24 words there"))?;
    let plain: zeroize::Zeroizing<String> = zeroize::Zeroizing::new(
        text.split_whitespace()
            .filter(|word| word.chars().any(char::is_alphabetic))
            .collect::<Vec<_>>()
            .join(" "),
    );
    RootSecret::from_phrase(&plain).map_err(|e| failed(what, e, "check the words against your note"))
}
