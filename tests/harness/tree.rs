//! Trees of files to copy in, what must be the same afterwards, and the search for plaintext where none may be.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::command::Cmd;
use super::noise;

/// A text that stands in several files of every tree and must be found nowhere in folder or state.
pub const CANARY: &str = "the quick canary 7f3a91c4 sings in the coal mine";

/// Everything about one file that must survive a way through a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: String,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Of what is no directory, in nanoseconds.
    pub mtime: Option<i128>,
    pub links: Option<u64>,
    /// The first of the names in the tree that a file with several of them has.
    pub first: Option<PathBuf>,
    pub content: String,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All of a tree, by path below `root`.
pub type Tree = BTreeMap<PathBuf, Entry>;

/// All of a tree that stays as it is.
pub fn snapshot(root: &Path) -> Tree {
    try_snapshot(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()))
}

/// All of a tree; an error when something in it goes, or cannot be read, meanwhile.
pub fn try_snapshot(root: &Path) -> io::Result<Tree> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::<u64, Vec<PathBuf>>::new());
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        for path in fs::read_dir(folder)? {
            let path = path?.path();
            let meta = fs::symlink_metadata(&path)?;
            let name = path.strip_prefix(root).map_err(io::Error::other)?.to_owned();
            if meta.is_dir() {
                todo.push(path.clone());
            } else if meta.nlink() > 1 {
                inodes.entry(meta.ino()).or_default().push(name.clone());
            }
            found.insert(name, entry(&path, &meta)?);
        }
    }
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            if let Some(entry) = found.get_mut(name) {
                entry.first = names.first().cloned();
            }
        }
    }
    Ok(found)
}

/// Panics with the first differences between two trees.
#[track_caller]
pub fn assert_same(expected: &Tree, found: &Tree) {
    let mut differences = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            None => differences.push(format!("{} is missing", path.display())),
            Some(other) if other != entry => {
                differences.push(format!("{}\n  {entry:?}\n  {other:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|path| !expected.contains_key(*path));
    differences.extend(extra.map(|path| format!("{} is too many", path.display())));
    let shown = differences
        .iter()
        .take(10)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        differences.is_empty(),
        "{} differences:\n{shown}",
        differences.len()
    );
}

/// At least `files` real source files below `target` when the cargo registry has them, made ones otherwise.
pub fn real_tree(target: &Path, files: usize) {
    fs::create_dir_all(target).unwrap();
    let mut count = 0;
    let mut crates: Vec<PathBuf> = registry().iter().flat_map(|folder| list(folder)).collect();
    crates.sort();
    for source in crates {
        let (mut here, mut bytes) = (0, 0);
        visit(&source, &mut |_, meta| {
            here += usize::from(meta.is_file());
            bytes += meta.len();
        });
        if count < files && bytes < 4 << 20 {
            Cmd::new("cp").arg("-a").arg(&source).arg(target).ok();
            count += here;
        }
    }
    for number in count..files {
        let folder = target.join(format!("made/{}", number % 97));
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join(format!("{number}.txt")),
            noise(number as u64, number % 9000),
        )
        .unwrap();
    }
    fs::write(target.join("canary.txt"), CANARY).unwrap();
    fs::write(target.join("canaries.txt"), format!("{CANARY}\n").repeat(30_000)).unwrap();
}

/// One of everything that a Linux filesystem can hold, below `target`.
pub fn odd_tree(target: &Path) {
    let at = |name: &str| target.join(name);
    fs::create_dir_all(at("deep/er/and/deeper")).unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("inline"), b"x").unwrap();
    fs::write(at("name.f"), b"a file that is called like ours").unwrap();
    fs::write(at("deep/.hidden"), b"hidden").unwrap();
    fs::create_dir(at("folder.f")).unwrap();
    fs::write(at("folder.f/x~"), b"tilde").unwrap();
    fs::create_dir(at("folder.f~")).unwrap();
    fs::write(at("long-").with_file_name("n".repeat(240)), b"long").unwrap();
    fs::write(at("ünïcode – 名前"), b"name").unwrap();
    fs::write(target.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"bytes").unwrap();
    fs::write(at("line\nbreak"), b"line").unwrap();
    for (number, len) in [4095, 4096, 4097, 65_535, 262_144, 1 << 20, (3 << 20) + 1]
        .iter()
        .enumerate()
    {
        fs::write(at(&format!("size-{len}")), noise(number as u64, *len)).unwrap();
    }
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 40 << 20).unwrap();
    symlink("inline", at("link")).unwrap();
    symlink("/nowhere/at/all", at("dangling")).unwrap();
    fs::hard_link(at("size-4096"), at("second-name")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for (name, bits) in [("size-4097", 0o4751), ("inline", 0o000), ("empty", 0o1644)] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(bits)).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("size-65535"), "user.note", b"kept\0with", flags).unwrap();
    rustix::fs::setxattr(at("deep"), "user.note", b"of a folder", flags).unwrap();
    Cmd::new("setfacl")
        .args(["-m", "u:nobody:r"])
        .arg(at("size-262144"))
        .ok();
    Cmd::new("touch")
        .args(["-d", "1969-12-31 23:59:58.25 UTC"])
        .arg(at("size-4095"))
        .ok();
    // rsync leaves a time alone that differs in its fraction of a second only.
    for name in ["link", "dangling", "pipe"] {
        let touch = Cmd::new("touch").args(["-h", "-d", "2001-02-03 04:05:06.789123456 UTC"]);
        touch.arg(at(name)).ok();
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(at("size-1048576"), Some(12_345), Some(54_321)).unwrap();
    }
}

/// Panics when a folder holds anything but directories, `.f` files and its `.dfs`.
#[track_caller]
pub fn assert_only_manifests(folder: &Path) {
    visit(folder, &mut |path, meta| {
        let is_marker = path == folder.join(".dfs");
        let name = path.as_os_str().as_bytes();
        assert!(
            meta.is_dir() || is_marker || name.ends_with(b".f"),
            "{} does not belong into a folder",
            path.display()
        );
        if meta.is_file() && !is_marker {
            assert!(
                meta.len() <= 8 << 10,
                "{} has {} bytes",
                path.display(),
                meta.len()
            );
        }
    });
}

/// Panics when `text` is found in any file below `root`.
#[track_caller]
pub fn assert_absent(text: &str, root: &Path) {
    let ran = Cmd::new("grep")
        .args(["-r", "-l", "-a", "-F", "-e", text])
        .arg(root)
        .run();
    assert_eq!(ran.code(), 1, "plaintext was found: {ran}");
}

/// Calls `with` for everything below `root`, links not followed.
pub fn visit(root: &Path, with: &mut impl FnMut(&Path, &fs::Metadata)) {
    for path in list(root) {
        let meta = fs::symlink_metadata(&path).unwrap();
        with(&path, &meta);
        if meta.is_dir() {
            visit(&path, with);
        }
    }
}

/// BLAKE3 of a file's content.
pub fn hash(path: &Path) -> blake3::Hash {
    try_hash(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn try_hash(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize())
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Folders of unpacked crates.
fn registry() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.map(|home| home.join("registry/src"));
    sources
        .filter(|path| path.is_dir())
        .map(|path| list(&path))
        .unwrap_or_default()
}

fn entry(path: &Path, meta: &fs::Metadata) -> io::Result<Entry> {
    let kind = meta.file_type();
    let content = if kind.is_file() {
        format!("{} bytes, {}", meta.len(), try_hash(path)?)
    } else if kind.is_symlink() {
        format!("{:?}", fs::read_link(path)?)
    } else if kind.is_block_device() || kind.is_char_device() {
        format!("device {}", meta.rdev())
    } else {
        String::new()
    };
    let mtime = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    Ok(Entry {
        kind: format!("{kind:?}"),
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (!kind.is_dir()).then_some(mtime),
        links: (!kind.is_dir()).then_some(meta.nlink()),
        first: None,
        content,
        xattrs: if kind.is_symlink() {
            BTreeMap::new()
        } else {
            xattrs(path)?
        },
    })
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found = BTreeMap::new();
    for name in names[..len].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let name_c = CString::new(name)?;
        let len = rustix::fs::lgetxattr(path, &name_c, &mut value[..])?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
