//! An ordinary user: his own folder, mounted through fusermount3, without any right of root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::harness::command::{Cmd, own_path};
use crate::harness::volume::ALONE;

/// A user id that nobody has.
const USER: u32 = 54_017;

/// In a mount namespace of its own, because `/dev/fuse` is closed to users where no udev opens it, and fusermount3
/// serves only those whom it finds in `/etc/passwd`.
const SCRIPT: &str = r#"
mount --make-rprivate /
mknod "$HOME/fuse" c 10 229
chmod 666 "$HOME/fuse"
mount --bind "$HOME/fuse" /dev/fuse
{ cat /etc/passwd; echo "dfs-test:x:$USER_ID:$USER_ID::$HOME:/bin/sh"; } > "$HOME/passwd"
mount --bind "$HOME/passwd" /etc/passwd
as_user() { setpriv --reuid="$USER_ID" --regid="$USER_ID" --clear-groups "$@"; }
export XDG_RUNTIME_DIR=$HOME/run XDG_DATA_HOME=$HOME/data
cd "$HOME"

as_user ./dfs init "$HOME/folder" >/dev/null
cp "$HOME/settings" "$(echo "$HOME"/data/dfs/*)/dfs.toml"
as_user ./mount-dfs "$HOME/folder" "$HOME/files"
findmnt -no FSTYPE "$HOME/files"
findmnt -no OPTIONS "$HOME/files" | tr , '\n' | grep user_id
as_user bash -euc 'cd "$HOME/files"; echo mine > a; cat a; stat -c %u:%g a; mkdir d; "$HOME/dfs" status . >/dev/null'
as_user ./umount-dfs "$HOME/files"
! findmnt "$HOME/files"
test -f "$HOME/folder/a.f"

as_user ./mount-dfs "$HOME/folder" "$HOME/files"
as_user cat "$HOME/files/a"
as_user fusermount3 -u "$HOME/files"
! findmnt "$HOME/files"

as_user ./dfs up "$HOME/folder"
as_user cat "$HOME/folder/a"
as_user ./dfs umount "$HOME/folder"
! findmnt "$HOME/folder"
"#;

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
    fs::write(at("settings"), ALONE).unwrap();
    let said = Cmd::new("unshare")
        .args(["-m", "bash", "-euxo", "pipefail", "-c", SCRIPT])
        .env("HOME", home.path())
        .env("USER_ID", USER.to_string())
        .ok();
    assert_eq!(
        said,
        format!("fuse.dfs\nuser_id={USER}\nmine\n{USER}:{USER}\nmine\nmine\n")
    );
}
