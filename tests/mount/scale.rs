//! Many files, big files, many processes: what the daemon needs for them stays bounded.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use crate::harness::command::Cmd;
use crate::harness::tree;
use crate::harness::volume::TestVolume;
use crate::harness::{long, noise, wait_for};

/// For work that takes a while on two busy cores.
const MINUTES: Duration = Duration::from_secs(240);
const HOUR: Duration = Duration::from_secs(3600);

/// Memory for one entry that the kernel knows, with names of this length: 210 bytes when there are many; a table of buckets that doubles
/// needs 380 to 500.
const ENTRY_MAX: u64 = 260;
/// What a walk needs beside, however long it is.
const WALK_MAX: u64 = 8 << 20;

#[test]
fn a_large_tree_is_walked_in_little_memory_with_few_open_files() {
    walk(60_000);
}

#[test]
#[ignore = "a million files: only with --long"]
fn a_million_files_are_walked_in_little_memory_with_few_open_files() {
    walk(1_000_000);
}

/// Walks a tree of `files`, a fifth of them in one directory, made in the folder: an empty `.f` is an empty file, and a copied one its original.
fn walk(files: u64) {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("seed"), b"a small file, in its manifest").unwrap();
    volume.unmount();
    let manifest = fs::read(volume.host("seed")).unwrap();
    let wide = files / 5;
    fill(&volume.folder().join("wide"), wide, &manifest);
    fill(&volume.folder().join("few"), wide / 10, &manifest);
    for below in 0..(files - wide) / 100 {
        let directory = format!("part-{}/below-{}", below / 100, below % 100);
        fill(&volume.folder().join(directory), 100, b"");
    }
    // What was changed in the folder a moment ago is read at every look.
    std::thread::sleep(Duration::from_secs(3));
    // No entry is asked for again because the walk took longer than the kernel believes it.
    volume.mount_with(["-o", "attr_timeout=600"]);
    // The calls of the first snapshot, which looks at everything, are not those of a listing.
    let snapshot = || volume.status()["tree"]["snapshot"].clone();
    let before = snapshot();
    wait_for("the first snapshot of all", MINUTES, || snapshot() != before);
    let pid = volume.pid().unwrap().to_string();
    Cmd::new("prlimit")
        .args(["--pid", &pid, "--nofile=1024:1024"])
        .ok();

    // By names only: the cost of an entry is that of a directory with a tenth as many.
    let few = cost(&volume, || assert_eq!(names(&volume.at("few")), wide / 10)) * 10;
    let many = cost(&volume, || assert_eq!(names(&volume.at("wide")), wide));
    assert!(
        many <= few * 3 / 2,
        "{many} calls for {wide} names, {few} for ten tenths of them"
    );
    // With attributes.
    let few = cost(&volume, || assert_eq!(visited(&volume.at("few")), wide / 10)) * 10;
    let before = volume.memory();
    let many = cost(&volume, || assert_eq!(visited(&volume.at("wide")), wide));
    // The kernel takes attributes with the listing for the first entries, and asks for each of the others.
    assert!(
        many <= few * 5 / 2,
        "{many} calls for {wide} entries, {few} for ten tenths of them"
    );
    let entries = visited(volume.mountpoint());
    assert!(entries > files, "{entries} entries");
    let used = volume.memory().saturating_sub(before);
    let allowed = files * ENTRY_MAX + WALK_MAX;
    eprintln!(
        "{} MiB, at most {} MiB; {} bytes an entry",
        volume.memory() >> 20,
        volume.peak_memory() >> 20,
        used / files
    );
    assert!(
        used < allowed,
        "{used} bytes more for {files} files, {} each",
        used / files
    );
    let peak = volume.peak_memory();
    assert!(peak < 400 << 20, "{} MiB", peak >> 20);
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(open < 400, "{open} open files");
    // It still works.
    fs::write(volume.at("part-0/below-7/new"), b"new").unwrap();
    fs::rename(volume.at("part-0/below-7/new"), volume.at("wide/new")).unwrap();
    assert_eq!(fs::read(volume.at("wide/new")).unwrap(), b"new");
}

fn fill(directory: &Path, files: u64, manifest: &[u8]) {
    fs::create_dir_all(directory).unwrap();
    for n in 0..files {
        let mut file =
            fs::File::create_new(directory.join(format!("picture-of-a-journey-{n:07}.jpeg.f"))).unwrap();
        file.write_all(manifest).unwrap();
    }
}

fn names(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(Result::unwrap).count() as u64
}

fn visited(directory: &Path) -> u64 {
    let mut count = 0;
    tree::visit(directory, &mut |_, _| count += 1);
    count
}

/// Read and write calls of the daemon during `work` (proc(5)): requests and answers, and what is read of the `.f` files.
fn cost(volume: &TestVolume, work: impl FnOnce()) -> u64 {
    let calls = || {
        let text = fs::read_to_string(format!("/proc/{}/io", volume.pid().unwrap())).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse::<u64>().unwrap()
        };
        value("syscr:") + value("syscw:")
    };
    let before = calls();
    work();
    calls() - before
}

#[test]
fn a_sparse_file_of_16_tib() {
    const SIZE: u64 = 16 << 40;
    let mut volume = TestVolume::mounted();
    let path = volume.at("sparse");
    let ends = [0, SIZE / 2 - 7, SIZE - 4096];
    let part = |n: usize| noise(n as u64, 4096);
    let mut file = fs::File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.set_len(SIZE).unwrap();
    for (n, offset) in ends.into_iter().enumerate() {
        file.write_all_at(&part(n), offset).unwrap();
    }
    check_sparse(&mut file, &ends, &part);
    drop(file);
    Cmd::new("cp")
        .args(["--sparse=always"])
        .arg(&path)
        .arg(volume.at("copy"))
        .within(MINUTES)
        .ok();
    Cmd::bash("dd if=\"$0\" of=\"$1\" bs=1M skip=16777215 seek=16777215 conv=sparse status=none")
        .arg(&path)
        .arg(volume.at("end"))
        .ok();
    volume.remount();
    for name in ["sparse", "copy"] {
        let mut file = fs::File::open(volume.at(name)).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), SIZE, "{name}");
        assert!(
            meta.blocks() * 512 < 16 << 20,
            "{name} takes {} blocks",
            meta.blocks()
        );
        check_sparse(&mut file, &ends, &part);
    }
    let end = fs::File::open(volume.at("end")).unwrap();
    assert_eq!(end.metadata().unwrap().len(), SIZE);
    let mut last = vec![0; 4096];
    end.read_exact_at(&mut last, SIZE - 4096).unwrap();
    assert!(last == part(2));
    assert!(volume.stored() < 32 << 20, "{} bytes stored", volume.stored());
    let manifest = fs::metadata(volume.host("sparse")).unwrap().len();
    assert!(manifest <= 8 << 10, "{manifest} bytes");
}

/// The three parts are where they were written, zeros around them, and holes are known as holes.
fn check_sparse(file: &mut fs::File, ends: &[u64; 3], part: &dyn Fn(usize) -> Vec<u8>) {
    use rustix::fs::{SeekFrom, seek};
    let size = file.metadata().unwrap().len();
    let mut found = vec![0; 4096];
    for (n, offset) in ends.iter().enumerate() {
        file.read_exact_at(&mut found, *offset).unwrap();
        assert!(found == part(n), "at {offset}");
        // Data may begin somewhat before it and end somewhat after it, but the rest is holes.
        assert_eq!(seek(&*file, SeekFrom::Data(*offset)).unwrap(), *offset);
        if n > 0 {
            let hole = ends[n - 1] + (64 << 20);
            assert_eq!(seek(&*file, SeekFrom::Hole(hole)).unwrap(), hole);
            let data = seek(&*file, SeekFrom::Data(hole)).unwrap();
            assert!(
                data <= *offset && *offset - data < 4 << 20,
                "data at {data} before {offset}"
            );
        }
    }
    assert_eq!(seek(&*file, SeekFrom::Hole(size - 1)).unwrap(), size);
    for offset in [8192, 3 << 40, size / 2 + 4096, 15 << 40] {
        file.read_exact_at(&mut found, offset).unwrap();
        assert!(found.iter().all(|byte| *byte == 0), "zeros at {offset}");
    }
}

#[test]
fn a_big_file_is_written_and_read_in_little_memory() {
    big(512, 200);
}

#[test]
#[ignore = "20 GiB: only with --long"]
fn a_file_of_20_gib_is_written_and_read_in_little_memory() {
    big(20 << 10, 300);
}

/// A file of so many MiB, a quarter of them noise and all of them different.
fn big(mib: u64, peak_mib: u64) {
    let volume = TestVolume::mounted();
    let path = volume.at("big");
    let piece = |n: u64| {
        let mut piece = noise(n, 256 << 10);
        let line = format!("line {n:011}\n");
        piece.extend(line.as_bytes().iter().cycle().take(768 << 10));
        piece
    };
    let mut file = fs::File::create(&path).unwrap();
    for n in 0..mib {
        file.write_all(&piece(n)).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let written = volume.peak_memory() >> 20;
    let mut file = fs::File::open(&path).unwrap();
    // Not from the kernel's cache.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut found = vec![0; 1 << 20];
    for n in 0..mib {
        file.read_exact(&mut found).unwrap();
        assert!(found == piece(n), "MiB {n}");
    }
    let peak = volume.peak_memory() >> 20;
    eprintln!("{mib} MiB: {written} MiB of memory after writing, {peak} MiB after reading");
    assert!(peak < peak_mib, "{peak} MiB at most, {written} MiB after writing");
}

#[test]
fn sixty_four_processes_at_once() {
    let mut volume = TestVolume::mounted();
    let rounds = if long() { 40 } else { 5 };
    // Each in a directory of its own and all in one, through every kind of operation that takes a lock somewhere.
    let script = r#"
        work() {
            mkdir -p "own-$1"
            for round in $(seq "$2"); do
                head -c $((RANDOM * 3)) /dev/urandom > "own-$1/a"
                cp "own-$1/a" "shared/$1"
                cmp "own-$1/a" "shared/$1"
                echo "$1 $round" >> log
                mv "shared/$1" "own-$1/b"
                ln -f "own-$1/b" "shared/link-$1"
                dd if="own-$1/a" of="own-$1/c" conv=fsync status=none
                truncate -s 100000 "own-$1/c"
                ls -l shared > /dev/null 2>&1 || true
                cat "shared/link-$((RANDOM % 64 + 1))" > /dev/null 2>&1 || true
                rm -f "own-$1/b"
            done
        }
        cd "$0"
        mkdir shared
        pids=()
        for n in $(seq 64); do work $n "$1" & pids+=($!); done
        for pid in "${pids[@]}"; do wait "$pid"; done
        wc -l < log
    "#;
    let bound = if long() { HOUR } else { MINUTES };
    let said = Cmd::bash(script)
        .arg(volume.mountpoint())
        .arg(rounds.to_string())
        .within(bound)
        .ok();
    assert_eq!(
        said.trim(),
        (64 * rounds).to_string(),
        "every appended line is there"
    );
    volume.remount();
    let log = fs::read_to_string(volume.at("log")).unwrap();
    assert_eq!(log.lines().count(), 64 * rounds);
    for n in 1..=64 {
        let (a, link) = (
            volume.at(&format!("own-{n}/a")),
            volume.at(&format!("shared/link-{n}")),
        );
        assert!(fs::read(a).unwrap() == fs::read(link).unwrap(), "process {n}");
    }
}
