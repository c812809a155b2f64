//! The bytes of files: holes, reservations, appends, direct I/O, maps, files without a name.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::python;
use crate::harness::noise;
use crate::harness::volume::TestVolume;

fn read_write(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

/// Every stretch of data as (start, end), as `SEEK_DATA` and `SEEK_HOLE` tell them.
fn data(file: &File) -> Vec<(u64, u64)> {
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = seek(file, SeekFrom::Hole(start)).unwrap();
                assert!(at > start);
                found.push((start, at));
            }
            Err(errno) => {
                assert_eq!(errno, Errno::NXIO);
                return found;
            }
        }
    }
}

#[test]
fn holes_are_told_and_never_hide_data() {
    let mut volume = TestVolume::mounted();
    let islands = [
        (0, 1 << 20),
        (8 << 20, 70_000),
        (40 << 20, 6),
        ((60 << 20) + 5, 300_000),
    ];
    let file = read_write(&volume.at("islands"));
    for (seed, (offset, len)) in islands.iter().enumerate() {
        file.write_all_at(&noise(seed as u64, *len), *offset).unwrap();
    }
    file.set_len(64 << 20).unwrap();
    let check = |file: &File| {
        let found = data(file);
        for (offset, len) in islands {
            let covered = found
                .iter()
                .any(|(start, end)| *start <= offset && offset + len as u64 <= *end);
            assert!(covered, "{offset} is not within {found:?}");
        }
        let told: u64 = found.iter().map(|(start, end)| end - start).sum();
        assert!(told < 6 << 20, "few of the holes are told: {found:?}");
        assert_eq!(seek(file, SeekFrom::Hole((64 << 20) - 1)), Ok((64 << 20) - 1));
        assert_eq!(seek(file, SeekFrom::Data(64 << 20)), Err(Errno::NXIO));
        assert_eq!(seek(file, SeekFrom::Hole(64 << 20)), Err(Errno::NXIO));
    };
    check(&file);
    file.sync_all().unwrap();
    check(&file);
    drop(file);
    volume.remount();
    let file = read_write(&volume.at("islands"));
    check(&file);
    let full = read_write(&volume.at("full"));
    full.write_all_at(&noise(9, 3 << 20), 0).unwrap();
    assert_eq!(seek(&full, SeekFrom::Hole(0)), Ok(3 << 20), "the end is a hole");
    assert!(
        fs::metadata(volume.at("islands")).unwrap().blocks() < 2 * (6 << 10),
        "holes take no space"
    );
}

#[test]
fn fallocate_grows_punches_and_zeroes_and_refuses_the_rest() {
    let mut volume = TestVolume::mounted();
    let path = volume.at("file");
    let file = read_write(&path);
    let mut expected = noise(1, 2 << 20);
    file.write_all_at(&expected, 0).unwrap();
    let keep = FallocateFlags::KEEP_SIZE;
    let len = |file: &File| file.metadata().unwrap().len();

    fallocate(&file, keep, 1 << 20, 4 << 20).unwrap();
    assert_eq!(len(&file), 2 << 20);
    fallocate(&file, FallocateFlags::empty(), 1 << 20, 2 << 20).unwrap();
    expected.resize(3 << 20, 0);
    assert_eq!(len(&file), 3 << 20);

    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, 300_000, 600_001).unwrap();
    expected[300_000..900_001].fill(0);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, (3 << 20) - 10, 1 << 20).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE | keep, 1_000_000, 5 << 20).unwrap();
    expected[1_000_000..].fill(0);
    assert_eq!(len(&file), 3 << 20);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 1_000, (4 << 20) - 1_000).unwrap();
    expected[1_000..].fill(0);
    expected.resize(4 << 20, 0);
    assert_eq!(len(&file), 4 << 20);
    assert!(fs::read(&path).unwrap() == expected);

    file.write_all_at(b"after", 2 << 20).unwrap();
    expected[2 << 20..(2 << 20) + 5].copy_from_slice(b"after");
    // The first two are refused by the kernel's own FUSE, whatever a filesystem can do.
    for mode in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
        FallocateFlags::PUNCH_HOLE,
    ] {
        assert_eq!(
            fallocate(&file, mode, 4_096, 4_096),
            Err(Errno::OPNOTSUPP),
            "{mode:?}"
        );
    }
    assert_eq!(fallocate(&file, keep, 0, 0), Err(Errno::INVAL));
    let read_only = File::open(&path).unwrap();
    assert_eq!(fallocate(&read_only, keep, 0, 10), Err(Errno::BADF));
    drop((file, read_only));
    volume.remount();
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn cutting_and_growing_leave_zeros_and_never_old_bytes() {
    let mut volume = TestVolume::mounted();
    let path = volume.at("file");
    let file = read_write(&path);
    file.write_all_at(&noise(1, 1 << 20), 0).unwrap();
    file.set_len(5_000).unwrap();
    file.set_len(900_000).unwrap();
    let mut expected = noise(1, 5_000);
    expected.resize(900_000, 0);
    assert!(fs::read(&path).unwrap() == expected);
    rustix::fs::ftruncate(&file, 0).unwrap();
    rustix::fs::ftruncate(&file, 100).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [0; 100]);
    assert_eq!(
        seek(&file, SeekFrom::Data(0)),
        Err(Errno::NXIO),
        "what is grown is a hole"
    );
    assert_eq!(
        rustix::fs::ftruncate(File::open(&path).unwrap(), 3),
        Err(Errno::INVAL)
    );
    drop(file);
    volume.remount();
    assert_eq!(fs::read(&path).unwrap(), [0; 100]);
    let cut = File::options().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(cut.metadata().unwrap().len(), 0);
}

#[test]
fn records_appended_by_several_processes_stay_whole() {
    let volume = TestVolume::mounted();
    let program = r#"
def writer(number):
    fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for n in range(150):
        record = b"%d-%d-" % (number, n) + bytes([65 + number]) * (n * 37 % 3000) + b"\n"
        # An offset does not count on a file opened for appending, on Linux.
        assert (os.write(fd, record) if n % 3 else os.pwrite(fd, record, 0)) == len(record)
ends_well(*[child(lambda number=number: writer(number)) for number in range(6)])
seen = {}
for line in open("log", "rb").read().splitlines():
    number, n, pad = line.split(b"-")
    number, n = int(number), int(n)
    assert pad == bytes([65 + number]) * (n * 37 % 3000), line
    assert n == seen.get(number, -1) + 1, "lost or out of order"
    seen[number] = n
assert seen == {number: 149 for number in range(6)}, seen
"#;
    python(volume.mountpoint(), program).ok();
}

#[test]
fn direct_buffered_and_mapped_see_the_same_bytes() {
    let mut volume = TestVolume::mounted();
    let path = volume.at("file");
    fs::write(&path, noise(1, 1 << 20)).unwrap();
    let direct = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let buffered = read_write(&path);
    let mut expected = noise(1, 1 << 20);
    let mut found = vec![0; 1 << 20];
    for step in 0..40_u64 {
        let (offset, len) = ((step * 77_777) % 900_000, 1 + (step * 9_973) as usize % 100_000);
        let writer = if step % 2 == 0 { &direct } else { &buffered };
        writer.write_all_at(&noise(step, len), offset).unwrap();
        expected[offset as usize..offset as usize + len].copy_from_slice(&noise(step, len));
        for reader in [&direct, &buffered] {
            reader.read_exact_at(&mut found, 0).unwrap();
            assert!(found == expected, "step {step}");
        }
    }
    let program = r#"
fd = os.open("file", os.O_RDWR)
mapped = mmap.mmap(fd, 1 << 20)
direct = os.open("file", os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
os.preadv(direct, [page], 8192)
assert page[:] == mapped[8192:12288]
page[:] = b"d" * 4096
os.pwritev(direct, [page], 8192)
assert mapped[8192:12288] == b"d" * 4096
mapped[8192:8292] = b"m" * 100
mapped.flush()
os.preadv(direct, [page], 8192)
assert page[:] == b"m" * 100 + b"d" * 3996
"#;
    python(volume.mountpoint(), program).ok();
    expected[8_192..8_292].fill(b'm');
    expected[8_292..12_288].fill(b'd');
    drop((direct, buffered));
    volume.remount();
    assert!(fs::read(&path).unwrap() == expected);
}

#[test]
fn a_shared_map_is_the_file() {
    let volume = TestVolume::mounted();
    let program = r#"
size = 3 * 1024 * 1024
fd = os.open("file", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, size)
mapped = mmap.mmap(fd, size)
# What a write changes, the map shows; what the map changes, a read shows: at once, and in another process.
os.pwrite(fd, b"written", 1_000_000)
assert mapped[1_000_000:1_000_007] == b"written"
mapped[2_000_000:2_000_006] = b"mapped"
assert os.pread(fd, 6, 2_000_000) == b"mapped"
def other():
    theirs = mmap.mmap(os.open("file", os.O_RDWR), size)
    assert theirs[1_000_000:1_000_007] == b"written" and theirs[2_000_000:2_000_006] == b"mapped"
    theirs[5:9] = b"they"
    assert open("file", "rb").read()[5:9] == b"they"
ends_well(child(other))
assert mapped[5:9] == b"they"
# A private map keeps its changes to itself.
private = mmap.mmap(fd, size, mmap.MAP_PRIVATE)
private[5:9] = b"mine"
assert mapped[5:9] == b"they" and os.pread(fd, 4, 5) == b"they"
# Many processes count in one map, each in a place of its own, and all of it is in the file in the end.
def count(number):
    theirs = mmap.mmap(os.open("file", os.O_RDWR), size)
    for page in range(size // 4096):
        place = page * 4096 + 100 + number * 8
        theirs[place:place + 8] = struct.pack("Q", page * 10 + number)
ends_well(*[child(lambda number=number: count(number)) for number in range(4)])
content = open("file", "rb").read()
for page in range(size // 4096):
    assert struct.unpack_from("4Q", content, page * 4096 + 100) == tuple(page * 10 + number for number in range(4))
# A map outlives its descriptor and its name.
os.close(fd)
os.unlink("file")
mapped[:5] = b"alive"
assert mapped[:5] == b"alive"
# Beyond the end there is nothing to map.
def beyond():
    fd = os.open("short", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    short = mmap.mmap(fd, 8192)
    os.ftruncate(fd, 100)
    assert short[:100] == bytes(100) and short[100:4096] == bytes(3996)
    short[5000]
pid = child(beyond)
assert os.waitpid(pid, 0)[1] & 0x7f == signal.SIGBUS
"#;
    python(volume.mountpoint(), program).ok();
}

#[test]
fn an_open_file_without_a_name_lives_until_it_is_closed() {
    let volume = TestVolume::mounted();
    let path = volume.at("file");
    let file = read_write(&path);
    file.write_all_at(&noise(1, 700_000), 0).unwrap();
    let second = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    fs::write(&path, b"another with the name").unwrap();
    file.write_all_at(b"still", 650_000).unwrap();
    file.set_len(800_000).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    let mut found = Vec::new();
    (&second).read_to_end(&mut found).unwrap();
    let mut expected = noise(1, 700_000);
    expected[650_000..650_005].copy_from_slice(b"still");
    expected.resize(800_000, 0);
    assert!(found == expected);
    assert_eq!(second.metadata().unwrap().mode() & 0o7777, 0o640);
    // Another that is replaced by a rename while it is open.
    fs::write(volume.at("replaced"), b"before").unwrap();
    let replaced = File::open(volume.at("replaced")).unwrap();
    fs::rename(&path, volume.at("replaced")).unwrap();
    assert_eq!(std::io::read_to_string(&replaced).unwrap(), "before");
    assert_eq!(replaced.metadata().unwrap().nlink(), 0);
    let names = || -> Vec<_> {
        fs::read_dir(volume.folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    };
    let (mut listed, mut before) = (
        names(),
        vec![std::ffi::OsString::from(".dfs"), "replaced.f".into()],
    );
    listed.sort();
    before.sort();
    assert_eq!(
        listed, before,
        "nothing is left behind in the folder under another name"
    );
}
