//! `dfs conflicts`: what two devices changed at the same time, and which of both stays.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::environment::Environment;
use super::locate::{self, Place};
use super::report::{Exit, Outcome, failed, from_client, note, print, print_json, size};
use super::when;
use crate::control::client::{ask, unexpected};
use crate::control::{Answer, ConflictCopy, Conflicts, Request};
use crate::merge::parse_conflict_name;

/// Longest silence of a daemon that reads the tree: blocks that only others have are waited for.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Show the conflict copies in a volume, or settle them.
///
/// Where two devices wrote the same file at the same time, one content keeps the name and the other one is beside it, as
/// NAME.conflict-DEVICE-HASH.EXT, with the beginning of the id of the device that wrote it. With --keep or --as the paths are conflict copies to
/// be settled; that is a change like any other, in the mount: it reaches the other devices, and `dfs restore` brings back what went.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Paths in the folder or in the mount: what is below them is shown; to settle, conflict copies.
    #[arg(default_value = ".")]
    paths: Vec<PathBuf>,
    /// Settle: keep the current file and remove the copy, or put the copy in the place of the file.
    #[arg(long, value_name = "WHICH", conflicts_with = "name")]
    keep: Option<Keep>,
    /// Settle: keep both, the copy under this name in the same directory.
    #[arg(long = "as", value_name = "NAME")]
    name: Option<OsString>,
    /// Print JSON.
    #[arg(long, conflicts_with_all = ["keep", "name"])]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Keep {
    /// The file stays as it is, and the copy goes.
    Current,
    /// The copy takes the place of the file.
    Copy,
}

/// Runs the verb.
pub fn run(env: &Environment, args: Args) -> Outcome {
    match (args.keep, args.name) {
        (None, None) => list(env, &args.paths, args.json),
        (Some(keep), _) => args.paths.iter().try_for_each(|path| {
            let mut copy = Copy::find(env, path)?;
            match keep {
                Keep::Current => copy.remove(),
                Keep::Copy => copy.take(),
            }
        }),
        (None, Some(name)) => match &args.paths[..] {
            [path] => Copy::find(env, path)?.rename(&name),
            _ => Err(Exit::Usage("--as gives one conflict copy another name".into())),
        },
    }
}

fn list(env: &Environment, paths: &[PathBuf], json: bool) -> Outcome {
    let what = "cannot list the conflict copies";
    let mut all = Conflicts {
        committed: true,
        ..Conflicts::default()
    };
    for path in paths {
        let (socket, inside) = when::running(env, path, what)?;
        let some = asked(&socket, inside, what)?;
        all.left_out += some.left_out;
        all.committed &= some.committed;
        all.conflicts.extend(some.conflicts);
    }
    if json {
        return print_json(&all);
    }
    for copy in &all.conflicts {
        print(line(copy));
    }
    if all.left_out > 0 {
        note(format_args!(
            "{} more: name a directory to see those in it",
            all.left_out
        ));
    }
    Ok(())
}

fn asked(socket: &Path, path: PathBuf, what: &str) -> Outcome<Conflicts> {
    match ask(socket, &Request::Conflicts { path }, TIMEOUT, |_| ()) {
        Ok(Answer::Conflicts(all)) => Ok(all),
        Ok(other) => Err(from_client(what, unexpected(socket, &other))),
        Err(e) => Err(from_client(what, e)),
    }
}

fn line(copy: &ConflictCopy) -> String {
    let of = match (&copy.of, copy.of_size) {
        (Some(of), Some(bytes)) => format!("beside {}, {}", of.display(), size(bytes)),
        (Some(of), None) => format!("beside {}", of.display()),
        (None, _) => "the file itself is not there any more".into(),
    };
    let bytes = copy
        .size
        .map_or_else(String::new, |bytes| format!(", {}", size(bytes)));
    let device = copy.device.as_deref().unwrap_or("unknown");
    let time = when::local(u64::try_from(copy.time).unwrap_or(0));
    format!("{time}  {device:8}  {}{bytes}; {of}", copy.path.display())
}

/// A conflict copy that is to be settled, in the mount.
struct Copy {
    /// As it was named on the command line.
    shown: String,
    /// In the mount.
    path: PathBuf,
    /// The mount.
    mount: PathBuf,
    /// What the daemon knows of it.
    known: ConflictCopy,
}

impl Copy {
    /// Finds out whether it really is one, and that what is there now is in the past, whatever is done.
    fn find(env: &Environment, path: &Path) -> Outcome<Self> {
        let what = format!("cannot settle {}", path.display());
        let no_copy = || {
            failed(
                &what,
                "it is no conflict copy",
                "`dfs conflicts` lists them: NAME.conflict-DEVICE-HASH.EXT",
            )
        };
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        if parse_conflict_name(name).is_none() && parse_conflict_name(without_f(name)).is_none() {
            return Err(no_copy());
        }
        let itself = locate::find_absolute(env, &env.absolute_name(path))?;
        let (socket, mount, inside) = match itself {
            Place::Running { daemon, inside } => (daemon.socket, daemon.status.mountpoint, inside),
            Place::Folder { folder, .. } => return Err(locate::silent(env, &folder, &what)),
        };
        let mount = mount.ok_or_else(|| {
            failed(
                &what,
                "the volume is not mounted",
                "mount it with `dfs up` on a device that writes",
            )
        })?;
        let all = asked(&socket, inside.clone(), &what)?;
        let known = all.conflicts.into_iter().find(|copy| copy.path == inside);
        let known = known.ok_or_else(no_copy)?;
        if !all.committed {
            return Err(failed(
                &what,
                "what is there now could not be made a part of the past yet",
                "try again in a minute: `dfs status` shows what is under way",
            ));
        }
        Ok(Self {
            shown: path.display().to_string(),
            path: mount.join(inside),
            mount,
            known,
        })
    }

    fn failed(&self, why: impl ToString, hint: &str) -> Exit {
        failed(format!("cannot settle {}", self.shown), why, hint)
    }

    /// The file that it is a copy of, relative to the mount.
    fn of(&self) -> Outcome<&Path> {
        self.known.of.as_deref().ok_or_else(|| {
            self.failed(
                "the file that it is a copy of is not there any more, or its name is too long to be told",
                "`--as NAME` gives the copy a name of its own; or remove it like any other file",
            )
        })
    }

    fn remove(&mut self) -> Outcome {
        let of = self.of()?;
        // It may have gone since the snapshot, and then this is the last one.
        std::fs::symlink_metadata(self.mount.join(of)).map_err(|e| self.failed(e, ""))?;
        std::fs::remove_file(&self.path).map_err(|e| self.failed(e, ""))?;
        print(format_args!(
            "removed  {}; {} stays as it is",
            self.shown,
            of.display()
        ));
        Ok(())
    }

    fn take(&mut self) -> Outcome {
        let of = self.of()?;
        std::fs::rename(&self.path, self.mount.join(of)).map_err(|e| self.failed(e, ""))?;
        print(format_args!(
            "replaced {} by {}; `dfs restore` brings back what it was",
            of.display(),
            self.shown
        ));
        Ok(())
    }

    fn rename(&mut self, name: &OsStr) -> Outcome {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(self.failed("a name in the same directory is wanted", ""));
        }
        if parse_conflict_name(bytes).is_some() {
            return Err(self.failed(
                format_args!("{} would be the name of a conflict copy", name.display()),
                "choose another one",
            ));
        }
        let to = self.path.with_file_name(name);
        renameat_with(CWD, &self.path, CWD, &to, RenameFlags::NOREPLACE).map_err(|e| match e {
            rustix::io::Errno::EXIST => {
                self.failed(format_args!("{} exists", name.display()), "choose another name")
            }
            e => self.failed(std::io::Error::from(e), ""),
        })?;
        print(format_args!("renamed  {} to {}", self.shown, name.display()));
        Ok(())
    }
}

/// A name in the folder is that of the mount and `.f`.
fn without_f(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".f").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_every_copy() {
        let mut copy = ConflictCopy {
            path: "a/b.conflict-01010101-abababab.txt".into(),
            of: Some("a/b.txt".into()),
            device: Some("01010101".into()),
            time: 0,
            size: Some(3),
            of_size: Some(2048),
        };
        let end = "  01010101  a/b.conflict-01010101-abababab.txt, 3 B; beside a/b.txt, 2.0 KiB";
        assert!(line(&copy).ends_with(end), "{}", line(&copy));
        (copy.of, copy.of_size, copy.size, copy.device) = (None, None, None, None);
        let end = "  unknown   a/b.conflict-01010101-abababab.txt; the file itself is not there any more";
        assert!(line(&copy).ends_with(end), "{}", line(&copy));
    }
}
