//! `dfs pin`, `unpin`, `verify` and `gc`: what stays here, whether everything is as it should be, and what nobody needs.

use std::path::PathBuf;
use std::time::Duration;

use super::environment::Environment;
use super::progress::Bar;
use super::replicas::{one_volume, running};
use super::report::{Outcome, failed, from_client, print, print_json, size};
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, Request};

/// Longest silence of a daemon at work: blocks that do not come are waited for, and holders that do not answer.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Keep files on this device: what is elsewhere is brought here, and nothing of it is freed or evicted.
///
/// For a directory that is true of everything below it, also of what will come. The wish is the extended attribute `user.dfs.pinned` of the
/// file or directory.
#[derive(Debug, clap::Args)]
pub struct PinArgs {
    /// Files and directories, in the folder or in the mount.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Do not insist any more that files stay on this device. Nothing is removed by this.
#[derive(Debug, clap::Args)]
pub struct UnpinArgs {
    /// Files and directories, in the folder or in the mount.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
}

/// Check every block here, and a part of every block that other devices keep for this one.
///
/// Copies that turn out wrong do not count any more and are replaced in the background; with --repair the command waits for that, and
/// replaces blocks that are damaged here. Ends with exit code 1 when something is wrong afterwards.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Replace what is damaged and wait until everything has its copies again.
    #[arg(long)]
    repair: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Show how many blocks no file needs any more.
///
/// They are removed in the background when there are enough of them; --now does it at once.
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    /// A path in the folder or in the mount.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Remove them.
    #[arg(long)]
    now: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs `dfs pin`.
pub fn pin(env: &Environment, args: PinArgs) -> Outcome {
    let what = "cannot pin";
    let Some((socket, paths)) = one_volume(env, &args.paths, what)? else {
        return Ok(());
    };
    let bar = Bar::new(env.progress);
    let request = Request::Pin { paths, pinned: true };
    let pinned = match ask(&socket, &request, TIMEOUT, |progress| bar.show(&progress)) {
        Ok(Answer::Pinned(pinned)) => pinned,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    drop(bar);
    if args.json {
        print_json(&pinned)?;
    } else {
        print(format_args!(
            "pinned   {} blocks; {} of them, {}, brought here",
            pinned.blocks,
            pinned.brought,
            size(pinned.brought_bytes)
        ));
    }
    if pinned.missing > 0 {
        let why = format!("{} blocks could not be had from other devices", pinned.missing);
        let hint = "run it again when the devices that have them are connected: `dfs members`";
        return Err(failed("not everything is here", why, hint));
    }
    Ok(())
}

/// Runs `dfs unpin`.
pub fn unpin(env: &Environment, args: UnpinArgs) -> Outcome {
    let what = "cannot unpin";
    let Some((socket, paths)) = one_volume(env, &args.paths, what)? else {
        return Ok(());
    };
    let request = Request::Pin { paths, pinned: false };
    match ask(&socket, &request, TIMEOUT, |_| ()) {
        Ok(Answer::Pinned(_)) => Ok(()),
        Ok(other) => Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => Err(from_client(what, e)),
    }
}

/// Runs `dfs verify`.
pub fn verify(env: &Environment, args: VerifyArgs) -> Outcome {
    let what = "cannot verify";
    let (socket, _) = running(env, &args.path, what)?;
    let bar = Bar::new(env.progress);
    let request = Request::Verify { repair: args.repair };
    let found = match ask(&socket, &request, TIMEOUT, |progress| bar.show(&progress)) {
        Ok(Answer::Verified(found)) => found,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    drop(bar);
    if args.json {
        print_json(&found)?;
    } else {
        print(format_args!(
            "here     {} blocks, {}: {} damaged, {} replaced",
            found.blocks,
            size(found.bytes),
            found.damaged.len(),
            found.mended
        ));
        for block in &found.damaged {
            print(format_args!("damaged  {block}"));
        }
        print(format_args!(
            "others   {} copies right, {} wrong or missing",
            found.replicas_right, found.replicas_wrong
        ));
        for device in &found.away {
            print(format_args!("away     {}: not checked", device.short()));
        }
        if let Some(replication) = &found.replication {
            super::replicas::show(replication);
        }
    }
    let lacking = found
        .replication
        .as_ref()
        .map_or(0, |health| health.lacking_bytes);
    if !found.damaged.is_empty() {
        let why = format!("{} blocks here are damaged", found.damaged.len());
        let hint = match args.repair {
            true => {
                "no device that has them could be reached: `dfs members`; try again when more are connected"
            }
            false => "`dfs verify --repair` replaces them by what other devices have",
        };
        return Err(failed("not everything is right", why, hint));
    }
    if args.repair && lacking > 0 {
        let why = format!("{} have fewer replicas than are wanted", size(lacking));
        let hint = "`dfs members` shows who is connected; more devices, or more `quota`, are needed";
        return Err(failed("not everything is on other devices", why, hint));
    }
    if !args.repair && found.replicas_wrong > 0 {
        let why = format!(
            "{} copies on other devices were wrong or missing",
            found.replicas_wrong
        );
        let hint = "others take their place in the background; `dfs verify --repair` waits for it";
        return Err(failed("not everything was right", why, hint));
    }
    Ok(())
}

/// Runs `dfs gc`.
pub fn gc(env: &Environment, args: GcArgs) -> Outcome {
    let what = "cannot collect garbage";
    let (socket, _) = running(env, &args.path, what)?;
    let garbage = match ask(&socket, &Request::Collect { now: args.now }, TIMEOUT, |_| ()) {
        Ok(Answer::Garbage(garbage)) => garbage,
        Ok(other) => return Err(from_client(what, unexpected(&socket, &other))),
        Err(e) => return Err(from_client(what, e)),
    };
    if args.json {
        return print_json(&garbage);
    }
    let verb = if garbage.removed { "removed " } else { "unneeded" };
    print(format_args!(
        "{verb} {} blocks, {}",
        garbage.blocks,
        size(garbage.bytes)
    ));
    if garbage.held > 0 {
        print(format_args!("kept     {} blocks for other members", garbage.held));
    }
    Ok(())
}
