//! `dfs remove`: takes a device out of the group, for good.

use std::path::PathBuf;

use super::environment::Environment;
use super::members::{Common, carry_out};
use super::report::{Outcome, print, print_json};
use crate::control::{Answer, Changed, Request};
use crate::daemon::{self, Located, PassphraseSource};

/// Remove a device from the group, for good.
///
/// The other members refuse it from then on: those connected at once, the others as soon as they hear of it. New data is sealed under new
/// keys, which it does not get. It keeps what it has read already. Should its owner come back, the computer joins as a new device.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device: its id, or as much of the beginning as is unambiguous.
    device: String,
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot remove the device";
    let json = args.common.json;
    let request = Request::Remove {
        device: args.device.clone(),
    };
    let offline = |located: &Located, keys: PassphraseSource| {
        daemon::remove(located, keys, &args.device).map(Answer::Changed)
    };
    match carry_out(env, what, &args.path, args.common, &request, offline)? {
        Answer::Changed(changed) if json => print_json(&changed),
        Answer::Changed(changed) => {
            show(&changed);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn show(changed: &Changed) {
    let member = &changed.member;
    let name = member
        .name
        .as_deref()
        .map(|name| format!(" ({name})"))
        .unwrap_or_default();
    let role = member.role.as_deref().unwrap_or("member");
    print(format_args!(
        "Removed {}{name}, a {role}, from the group for good.",
        member.device.short()
    ));
    print(format_args!(
        "New data is sealed under key epoch {}, which it does not get. It keeps what it has read.",
        changed.epoch
    ));
    print("Members that are away refuse it as soon as they hear of this from one who knows.");
    if member.role.as_deref() == Some("admin") {
        print(
            "It was an admin and has held what the 24 words spell: if it is in wrong hands, move the data to a new volume.",
        );
    }
}
