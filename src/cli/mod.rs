//! Storey 6: the `dfs` command. Parses arguments, calls `daemon` or asks a running one through `control`, renders the result.
//!
//! One file per verb. Secrets never come from the command line: tickets and words are read from standard input or a file.

pub mod background;
mod care;
mod conflicts;
mod copy;
mod diff;
mod environment;
mod events;
pub mod fsck;
mod generate;
mod init;
mod invite;
mod join;
mod locate;
mod log;
mod members;
pub mod mount_helper;
mod mount_options;
mod passphrase;
mod peers;
mod progress;
mod remove;
mod replicas;
mod report;
mod restore;
mod role;
mod show;
mod status;
mod umount;
pub mod umount_helper;
mod up;
mod when;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use environment::Environment;
use report::{Exit, Outcome};

/// A decentralised, encrypted filesystem for the computers you already own.
#[derive(Debug, Parser)]
#[command(name = "dfs", version, about, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(init::Args),
    Up(up::UpArgs),
    Serve(up::ServeArgs),
    Status(status::Args),
    Invite(invite::Args),
    Join(join::Args),
    Peers(peers::Args),
    Members(members::Args),
    Remove(remove::Args),
    Role(role::Args),
    Import(copy::ImportArgs),
    Export(copy::ExportArgs),
    Free(replicas::FreeArgs),
    Pin(care::PinArgs),
    Unpin(care::UnpinArgs),
    Sync(replicas::SyncArgs),
    Verify(care::VerifyArgs),
    Gc(care::GcArgs),
    Log(log::Args),
    Diff(diff::Args),
    Restore(restore::Args),
    Conflicts(conflicts::Args),
    Events(events::Args),
    Show(show::Args),
    Umount(umount::Args),
    #[command(hide = true, subcommand)]
    Generate(generate::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => match run(cli) {
            // Whoever started it says it.
            Err(Exit::Failed(failure)) if background::is_child() => {
                up::tell_parent(&failure);
                ExitCode::from(1)
            }
            outcome => report::finish(outcome),
        },
        Err(e) => {
            let _ = e.print();
            ExitCode::from(if e.use_stderr() { 2 } else { 0 })
        }
    }
}

fn run(cli: Cli) -> Outcome {
    if let Verb::Generate(args) = &cli.verb {
        return generate::run(args);
    }
    let env = Environment::read()?;
    match cli.verb {
        Verb::Init(args) => init::run(&env, args),
        Verb::Up(args) => up::up(&env, args),
        Verb::Serve(args) => up::serve(&env, args),
        Verb::Status(args) => status::run(&env, args),
        Verb::Invite(args) => invite::run(&env, args),
        Verb::Join(args) => join::run(&env, args),
        Verb::Peers(args) => peers::run(&env, args),
        Verb::Members(args) => members::run(&env, args),
        Verb::Remove(args) => remove::run(&env, args),
        Verb::Role(args) => role::run(&env, args),
        Verb::Import(args) => copy::import(&env, args),
        Verb::Export(args) => copy::export(&env, args),
        Verb::Free(args) => replicas::free(&env, args),
        Verb::Pin(args) => care::pin(&env, args),
        Verb::Unpin(args) => care::unpin(&env, args),
        Verb::Verify(args) => care::verify(&env, args),
        Verb::Gc(args) => care::gc(&env, args),
        Verb::Sync(args) => replicas::sync(&env, args),
        Verb::Log(args) => log::run(&env, args),
        Verb::Diff(args) => diff::run(&env, args),
        Verb::Restore(args) => restore::run(&env, args),
        Verb::Conflicts(args) => conflicts::run(&env, args),
        Verb::Events(args) => events::run(&env, args),
        Verb::Show(args) => show::run(&env, args),
        Verb::Umount(args) => umount::run(&env, args),
        Verb::Generate(args) => generate::run(&args),
    }
}
