//! `dfs role`: gives a device another role.

use std::path::PathBuf;

use super::environment::Environment;
use super::members::{Common, carry_out};
use super::report::{Outcome, print, print_json};
use crate::control::{Answer, Request};
use crate::daemon::{self, Located, PassphraseSource};
use crate::keys::certificate::Role;

/// Give a device another role in the group.
///
/// It may do more at once as far as others are concerned; what its own mount allows changes when it is mounted again. A device that is to
/// be a host from now on, and could read before, gets no keys of new data, but keeps those that it has.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device: its id, or as much of the beginning as is unambiguous.
    device: String,
    /// host (stores, cannot read), reader, writer or admin (may invite and remove).
    #[arg(value_parser = role)]
    role: Role,
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    #[command(flatten)]
    common: Common,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = "cannot change the role";
    let json = args.common.json;
    let role = args.role.to_string();
    let request = Request::Role {
        device: args.device.clone(),
        role: role.clone(),
    };
    let offline = |located: &Located, keys: PassphraseSource| {
        daemon::set_role(located, keys, &args.device, &role).map(Answer::Changed)
    };
    match carry_out(env, what, &args.path, args.common, &request, offline)? {
        Answer::Changed(changed) if json => print_json(&changed),
        Answer::Changed(changed) => {
            let before = changed.member.role.as_deref().unwrap_or("member");
            print(format_args!(
                "{} is a {role} now, no {before} any more.",
                changed.member.device.short()
            ));
            print("Mount the volume again there for its own mount to follow.");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn role(text: &str) -> Result<Role, String> {
    text.parse()
}
