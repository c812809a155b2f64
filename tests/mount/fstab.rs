//! mount(8) and fstab(5): in a mount namespace of its own, with an fstab of its own and the helpers where mount(8) looks.

use std::fs;

use crate::harness::command::{Cmd, own_path};
use crate::harness::volume::TestVolume;

/// Binds a private `/etc/fstab`, and private helpers over `/usr/sbin` through an overlay in memory, then runs the steps.
const SCRIPT: &str = r#"
mount --make-rprivate /
mkdir -p "$PLACE/upper"
mount -t tmpfs none "$PLACE/upper"
mkdir "$PLACE/upper/u" "$PLACE/upper/w"
mount -t overlay overlay -o lowerdir=/usr/sbin,upperdir="$PLACE/upper/u",workdir="$PLACE/upper/w" /usr/sbin
DFS_TEST_COPY() { cp "$1" "/usr/sbin/$2"; chmod 755 "/usr/sbin/$2"; }
DFS_TEST_COPY "$MOUNT_HELPER" mount.dfs
DFS_TEST_COPY "$UMOUNT_HELPER" umount.dfs
ln -s umount.dfs /usr/sbin/umount.fuse.dfs
ln -s mount.dfs /usr/sbin/mount.fuse.dfs
printf '%s %s dfs defaults,_netdev,nofail 0 0\n' "$FOLDER" "$MOUNTPOINT" > "$PLACE/fstab"
touch /etc/fstab
mount --bind "$PLACE/fstab" /etc/fstab

for way in "$MOUNTPOINT" -a; do
    timeout 60 mount "$way"
    test "$(findmnt -no FSTYPE "$MOUNTPOINT")" = fuse.dfs
    test "$(findmnt -no SOURCE "$MOUNTPOINT")" = "$FOLDER"
    echo "through $way" >> "$MOUNTPOINT/log"
    timeout 60 mount -a
    timeout 60 umount "$MOUNTPOINT"
    ! findmnt "$MOUNTPOINT"
done
timeout 60 mount "$MOUNTPOINT"
cat "$MOUNTPOINT/log"
timeout 60 umount "$MOUNTPOINT"
"#;

#[test]
fn an_fstab_line_mounts_by_name_and_with_all_and_again() {
    let volume = TestVolume::new();
    let said = Cmd::new("unshare")
        .args(["-m", "bash", "-euxo", "pipefail", "-c", SCRIPT])
        .env("PLACE", volume.place())
        .env("FOLDER", volume.folder())
        .env("MOUNTPOINT", volume.mountpoint())
        .env("MOUNT_HELPER", own_path("mount-dfs"))
        .env("UMOUNT_HELPER", own_path("umount-dfs"))
        .ok();
    let expected = format!("through {}\nthrough -a\n", volume.mountpoint().display());
    assert_eq!(said, expected);
}

#[test]
fn the_install_script_puts_everything_in_its_place_and_takes_it_away() {
    let volume = TestVolume::empty();
    let dest = volume.place().join("dest");
    let release = volume.place().join("built/release");
    fs::create_dir_all(&release).unwrap();
    for name in ["dfs", "mount-dfs", "umount-dfs", "fsck-dfs"] {
        std::os::unix::fs::symlink(own_path(name), release.join(name)).unwrap();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/install.sh");
    let install = || {
        Cmd::new(script)
            .env("DESTDIR", &dest)
            .env("CARGO_TARGET_DIR", volume.place().join("built"))
    };
    install().ok();
    for path in [
        "usr/local/bin/dfs",
        "usr/sbin/mount.dfs",
        "usr/sbin/umount.dfs",
        "usr/sbin/fsck.dfs",
        "usr/sbin/mount.fuse.dfs",
        "usr/local/share/man/man1/dfs.1",
        "usr/local/share/man/man8/mount.dfs.8",
        "usr/local/share/bash-completion/completions/dfs",
        "usr/lib/systemd/system/dfs@.service",
    ] {
        let meta = fs::metadata(dest.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(meta.len() > 0, "{path} is empty");
    }
    let unit = fs::read_to_string(dest.join("usr/lib/systemd/system/dfs@.service")).unwrap();
    assert!(unit.contains("ExecStart=/usr/sbin/mount.dfs"), "{unit}");
    install().arg("--uninstall").ok();
    let left = Cmd::new("find").arg(&dest).args(["!", "-type", "d"]).ok();
    assert_eq!(left, "", "left behind");
}
