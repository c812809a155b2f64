//! An ordinary user: his own folder, mounted through fusermount3, without any right of root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use crate::harness::command::{Cmd, own_path};

/// A user id that nobody has.
const USER: u32 = 54_017;

#[test]
fn an_ordinary_user_mounts_his_own_folder() {
    let home = tempfile::Builder::new()
        .prefix("dfs-test-user-")
        .tempdir()
        .unwrap();
    let at = |name: &str| home.path().join(name);
    for name in ["dfs", "mount-dfs", "umount-dfs"] {
        fs::copy(own_path(name), at(name)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["folder", "files", "run", "data"] {
        fs::create_dir(at(name)).unwrap();
        chown(at(name), Some(USER), Some(USER)).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut mounted = Unmount(at("files"), true);

    as_user(home.path(), "\"$HOME/dfs\" init \"$HOME/folder\"").ok();
    let state = fs::read_dir(at("data/dfs"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(state.join("dfs.toml"), crate::harness::volume::ALONE).unwrap();
    as_user(
        home.path(),
        "\"$HOME/mount-dfs\" \"$HOME/folder\" \"$HOME/files\"",
    )
    .ok();
    let shown = Cmd::new("findmnt")
        .args(["-no", "FSTYPE,OPTIONS"])
        .arg(at("files"))
        .ok();
    assert!(shown.contains("fuse.dfs"), "{shown}");
    assert!(shown.contains(&format!("user_id={USER}")), "{shown}");

    let said = as_user(
        home.path(),
        "cd \"$HOME/files\"; echo mine > a; cat a; stat -c %u:%g a; \"$HOME/dfs\" status . >/dev/null",
    );
    assert_eq!(said.ok(), format!("mine\n{USER}:{USER}\n"));
    as_user(home.path(), "\"$HOME/umount-dfs\" \"$HOME/files\"").ok();
    assert!(!mounts().contains(at("files").to_str().unwrap()));
    assert!(at("folder/a.f").exists());

    as_user(
        home.path(),
        "\"$HOME/mount-dfs\" \"$HOME/folder\" \"$HOME/files\"",
    )
    .ok();
    as_user(home.path(), "fusermount3 -u \"$HOME/files\"").ok();
    mounted.1 = mounts().contains(at("files").to_str().unwrap());
    assert!(!mounted.1);
}

fn as_user(home: &Path, script: &str) -> Cmd {
    Cmd::new("setpriv")
        .args([
            format!("--reuid={USER}"),
            format!("--regid={USER}"),
            "--clear-groups".into(),
        ])
        .args(["bash", "-euo", "pipefail", "-c", script])
        .dir(home)
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home.join("run"))
        .env("XDG_DATA_HOME", home.join("data"))
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

/// Takes the mount away after a failed test.
struct Unmount(std::path::PathBuf, bool);

impl Drop for Unmount {
    fn drop(&mut self) {
        if self.1 {
            Cmd::new("umount").args(["--quiet", "--lazy"]).arg(&self.0).run();
        }
    }
}
