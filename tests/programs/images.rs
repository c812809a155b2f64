//! qemu-img: images of disks, in one file with an index of its own (qcow2) and as plain bytes (raw), with direct and native asynchronous I/O.

use super::MINUTES;
use crate::harness::command::Cmd;
use crate::harness::volume::TestVolume;

#[test]
fn qemu_images_are_created_written_converted_checked_and_compared() {
    let mut volume = TestVolume::mounted();
    let script = r#"
qemu-img create -q -f qcow2 disk.qcow2 256M
qemu-io -c 'write -q -P 0xa5 0 8M' -c 'write -q -P 0x5a 100M 1M' -c 'discard -q 2M 1M' -c 'write -q -z 4M 64k' disk.qcow2
# Past the page cache, in parallel.
qemu-io -t none -n -c 'aio_write -q -P 0x11 16M 4M' -c 'aio_write -q -P 0x12 20M 4M' -c 'aio_write -q -P 0x13 24M 4M' -c aio_flush -c flush disk.qcow2
qemu-img check -q disk.qcow2
qemu-img convert -O raw disk.qcow2 disk.raw
qemu-img convert -O qcow2 -c disk.raw packed.qcow2
qemu-img convert -t none -T none -O raw -S 4k disk.qcow2 direct.raw
for other in disk.raw packed.qcow2 direct.raw; do qemu-img compare -q -s -f qcow2 disk.qcow2 $other 2>/dev/null || qemu-img compare -q disk.qcow2 $other; done
# The zeros of a raw image are holes.
test "$(du -k disk.raw | cut -f1)" -lt 40000
# The same commands on both sides, buffered and direct, leave the same disk.
for image in '-f qcow2 -t writethrough disk.qcow2' '-f raw -t none -n disk.raw' '-f raw -t directsync direct.raw'; do
  qemu-io -c 'write -q -P 0x77 30M 1M' -c 'write -q -P 0x78 31457792 512' -c 'write -q -z -u 0 1M' -c 'discard -q 101M 64k' -c 'truncate 300M' -c 'write -q -P 9 299M 1M' $image
done
qemu-img compare -q disk.qcow2 disk.raw
qemu-img compare -q disk.raw direct.raw
qemu-img snapshot -c before disk.qcow2
qemu-io -c 'write -q -P 1 0 32M' disk.qcow2
qemu-img snapshot -a before disk.qcow2
qemu-img check -q disk.qcow2
qemu-img compare -q disk.qcow2 disk.raw
qemu-img create -q -f qcow2 -b disk.raw -F raw overlay.qcow2
qemu-io -c 'write -q -P 3 5M 2M' overlay.qcow2
qemu-img commit -q overlay.qcow2
qemu-io -f raw -c 'read -q -P 3 5M 2M' disk.raw
qemu-io -f raw -c 'write -q -P 3 5M 2M' direct.raw
"#;
    Cmd::bash(script).dir(volume.mountpoint()).within(MINUTES).ok();
    volume.kill();
    volume.mount();
    let check = r#"
for image in disk.qcow2 packed.qcow2 overlay.qcow2; do qemu-img check -q $image; done
qemu-img compare -q -f raw -F raw disk.raw direct.raw
qemu-img compare -q overlay.qcow2 disk.raw
qemu-io -f raw -r -c 'read -q -P 0 0 1M' -c 'read -q -P 0xa5 8323072 64k' -c 'read -q -P 0x5a 100M 512k' -c 'read -q -P 0x78 31457792 512' \
  -c 'read -q -P 0x12 20M 4M' -c 'read -q -P 9 299M 1M' disk.raw
"#;
    let said = Cmd::bash(check).dir(volume.mountpoint()).within(MINUTES).run();
    assert!(said.succeeded() && said.said().is_empty(), "{said}");
}

#[test]
fn two_writers_of_one_image_are_kept_apart_by_its_locks() {
    let volume = TestVolume::mounted();
    let script = r#"
qemu-img create -q -f qcow2 disk.qcow2 16M
mkfifo held
qemu-io disk.qcow2 < held > /dev/null & holder=$!
exec 3> held
echo 'write -P 1 0 64k' >&3
# Held as soon as its write has grown the image.
for try in $(seq 300); do [ "$(stat -c %s disk.qcow2)" -gt 300000 ] && break; sleep 0.02; done
if qemu-io -c 'write -P 2 0 64k' disk.qcow2 2> refused; then exit 9; fi
grep -q 'Failed to get "write" lock' refused
echo quit >&3
exec 3>&-
wait $holder
qemu-io -c 'write -q -P 2 0 64k' disk.qcow2
"#;
    Cmd::bash(script).dir(volume.mountpoint()).ok();
}
