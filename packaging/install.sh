#!/usr/bin/env bash
# Installs dfs: the program, the helpers where mount(8) looks, man pages, completions, the systemd unit.
#
#   packaging/install.sh [--uninstall]
#
# PREFIX (default /usr/local) takes the program and its pages; the helpers go to SBINDIR (default /usr/sbin), because mount(8)
# looks nowhere else. DESTDIR is put before every path. A release is built when there is none: run it as yourself, sudo is used where needed.
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=${PREFIX:-/usr/local}
sbindir=${SBINDIR:-/usr/sbin}
unitdir=${UNITDIR:-/usr/lib/systemd/system}
dest=${DESTDIR:-}
release=${CARGO_TARGET_DIR:-target}/release

# Name that cargo builds, and where it goes.
programs="
dfs        $prefix/bin/dfs
mount-dfs  $sbindir/mount.dfs
umount-dfs $sbindir/umount.dfs
fsck-dfs   $sbindir/fsck.dfs
"
# findmnt and /etc/mtab show the type fuse.dfs: umount(8) and mount -a look for helpers under that name too.
links="
$sbindir/mount.fuse.dfs  mount.dfs
$sbindir/umount.fuse.dfs umount.dfs
"
man=$prefix/share/man
bash_completion=$prefix/share/bash-completion/completions/dfs
zsh_completion=$prefix/share/zsh/site-functions/_dfs
fish_completion=$prefix/share/fish/vendor_completions.d/dfs.fish
unit=$unitdir/dfs@.service

as_root() {
    if [ -n "$dest" ] || [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

uninstall() {
    local built path target
    while read -r built path; do
        [ -z "$built" ] || as_root rm -f "$dest$path"
    done <<<"$programs"
    while read -r path target; do
        [ -z "$path" ] || as_root rm -f "$dest$path"
    done <<<"$links"
    as_root rm -f "$dest$bash_completion" "$dest$zsh_completion" "$dest$fish_completion" "$dest$unit"
    as_root find "$dest$man/man1" "$dest$man/man8" -maxdepth 1 \
        \( -name 'dfs.1' -o -name 'dfs-*.1' -o -name 'mount.dfs.8' -o -name 'umount.dfs.8' -o -name 'fsck.dfs.8' \) \
        -delete 2>/dev/null || true
    echo "dfs is uninstalled; volumes and their state directories were left alone"
}

put() { as_root install -D -m "$1" "$2" "$dest$3"; }

case "${1:-}" in
    --uninstall)
        uninstall
        exit 0
        ;;
    "") ;;
    *)
        echo "usage: packaging/install.sh [--uninstall]" >&2
        exit 2
        ;;
esac

if ! [ -x "$release/dfs" ] || ! [ -x "$release/mount-dfs" ]; then
    echo "building a release"
    cargo build --release --locked --bins
fi

while read -r built path; do
    [ -z "$built" ] || put 755 "$release/$built" "$path"
done <<<"$programs"
while read -r path target; do
    [ -z "$path" ] || as_root ln -sf "$target" "$dest$path"
done <<<"$links"

pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
"$release/dfs" generate man "$pages"
for page in "$pages"/*.[18]; do
    put 644 "$page" "$man/man${page##*.}/$(basename "$page")"
done
"$release/dfs" generate completions bash >"$pages/bash" && put 644 "$pages/bash" "$bash_completion"
"$release/dfs" generate completions zsh >"$pages/zsh" && put 644 "$pages/zsh" "$zsh_completion"
"$release/dfs" generate completions fish >"$pages/fish" && put 644 "$pages/fish" "$fish_completion"

sed "s|@SBINDIR@|$sbindir|g" packaging/dfs@.service >"$pages/unit"
put 644 "$pages/unit" "$unit"
echo "installed: $dest$prefix/bin/dfs, $dest$sbindir/{mount,umount,fsck}.dfs, $dest$unit"
