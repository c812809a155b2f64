//! `dfs generate completions` and `dfs generate man`: what packages install, made from the parser, so that it cannot lie.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use super::report::{Outcome, failed};
use super::{Cli, fsck, mount_helper, umount_helper};

/// What packages install.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages of dfs and its mount helpers.
    Man {
        /// Directory for them.
        dir: PathBuf,
    },
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    match args {
        Args::Completions { shell } => completions(*shell),
        Args::Man { dir } => {
            man(dir).map_err(|e| failed(format!("cannot write man pages to {}", dir.display()), e, ""))
        }
    }
}

fn completions(shell: Shell) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dfs", &mut text);
    std::io::stdout()
        .lock()
        .write_all(&text)
        .map_err(|e| failed("cannot print the completions", e, ""))
}

fn man(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)?;
    for helper in [mount_helper::command(), umount_helper::command(), fsck::command()] {
        let name = format!("{}.8", helper.get_name());
        let mut page = File::create(dir.join(name))?;
        Man::new(helper).section("8").render(&mut page)?;
    }
    Ok(())
}
