//! `dfs show FILE.f`: what a manifest says, for people and as JSON.

use std::path::PathBuf;

use super::environment::Environment;
use super::locate::{self, Place};
use super::passphrase;
use super::report::{Outcome, failed, from_daemon, print, print_json, size};
use crate::daemon::{self, ShownManifest, ShownSlot};

/// Show what the manifest in a .f file says.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The .f file, in the folder or copied from it.
    file: PathBuf,
    /// The folder of its volume, when the file is elsewhere.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The passphrase of the keys is on the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    let what = format!("cannot show {}", args.file.display());
    let file = env.absolute(&args.file);
    if !file.is_file() {
        return Err(failed(what, "it is no file", "name a .f file"));
    }
    let located = match locate::find(env, args.folder.as_deref().unwrap_or(&file))? {
        Place::Running { daemon, .. } => {
            let status = &daemon.status;
            if status.mountpoint.as_deref() == Some(&*status.folder) {
                return Err(failed(
                    what,
                    format!("the mount covers the folder {}", status.folder.display()),
                    "mount the volume elsewhere (`dfs up FOLDER MOUNTPOINT`), or unmount it first",
                ));
            }
            daemon::locate(&env.places, &status.folder, Some(&status.state))
        }
        Place::Folder { folder, .. } => daemon::locate(&env.places, &folder, None),
    }
    .map_err(|e| from_daemon(&what, e))?;
    let slots = daemon::show(&located, passphrase::source(args.passphrase_file), &file)
        .map_err(|e| from_daemon(&what, e))?;
    if args.json {
        return print_json(&slots);
    }
    for slot in &slots {
        show(slot);
    }
    Ok(())
}

fn show(slot: &ShownSlot) {
    match (&slot.manifest, &slot.damage) {
        (Some(manifest), _) => {
            print(format_args!(
                "slot {}: version {}",
                slot.slot, manifest.generation
            ));
            show_manifest(manifest);
        }
        (None, Some(damage)) => print(format_args!("slot {}: {damage}", slot.slot)),
        (None, None) => print(format_args!("slot {}: empty", slot.slot)),
    }
}

fn show_manifest(manifest: &ShownManifest) {
    print(format_args!("  file id  {}", manifest.file_id));
    print(format_args!(
        "  size     {} ({} bytes)",
        size(manifest.size_bytes),
        manifest.size_bytes
    ));
    print(format_args!(
        "  store    {}, commit {}",
        manifest.store, manifest.seq
    ));
    if let Some(root) = &manifest.root {
        print(format_args!("  root     {root}"));
    }
    match manifest.content {
        "index" => print(format_args!("  content  index of depth {}", manifest.index_depth)),
        other => print(format_args!("  content  {other}")),
    }
    for part in &manifest.parts {
        let block = part.block.as_deref().unwrap_or("hole");
        print(format_args!("    {:>12}  {block}", part.len_bytes));
    }
}
