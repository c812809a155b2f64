//! The commands without a mount: what they print, what they leave on the disk, how they end. Needs no right of root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// One user's places, apart from everybody else's.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `dfs` with these arguments and standard input, in this home.
    fn dfs(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dfs"))
            .args(args)
            .current_dir(self.0.path())
            .env("HOME", self.0.path())
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that does not read its input may be gone already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str], input: &str) -> String {
        let output = self.dfs(args, input);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs, expects this exit code, and gives what was said about it.
    #[track_caller]
    fn fails(&self, args: &[&str], input: &str, code: i32) -> String {
        let output = self.dfs(args, input);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert_eq!(text(&output.stdout), "", "errors go to standard error");
        said
    }

    fn init(&self) -> String {
        self.ok(&["init", "folder", "--state", "state"], "")
    }

    fn volume(&self) -> String {
        let status = self.ok(&["status", "folder", "--json"], "");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["volume"].as_str().unwrap().to_owned()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The lines of the frame: numbers and words, as a person copies them.
fn framed_words(printed: &str) -> String {
    printed.lines().filter(|line| line.starts_with('│')).collect()
}

fn words(printed: &str) -> Vec<String> {
    framed_words(printed)
        .split(|c: char| !c.is_ascii_lowercase())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

fn all_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all_files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn init_makes_a_private_state_and_a_marker_and_nothing_else() {
    let home = Home::new();
    let printed = home.init();
    assert_eq!(words(&printed).len(), 24, "{printed}");
    let mut left: Vec<_> = fs::read_dir(home.at("folder")).unwrap().collect();
    assert_eq!(left.pop().unwrap().unwrap().file_name(), ".dfs");
    assert!(left.is_empty());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode(&home.at("state")), mode(&home.at("state/keys"))),
        (0o700, 0o700)
    );
    let mut files = Vec::new();
    all_files(&home.at("state"), &mut files);
    assert!(files.len() >= 5, "{files:?}");
    for path in files {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn the_framed_words_as_copied_recover_the_same_volume() {
    let home = Home::new();
    let printed = home.init();
    let volume = home.volume();
    let copied = framed_words(&printed);
    let said = home.ok(&["init", "again", "--state", "state2", "--recover"], &copied);
    assert!(said.contains(&volume), "{said}");
    assert!(words(&said).is_empty(), "the words are not shown again");
}

#[test]
fn wrong_words_are_named_by_their_place_never_repeated() {
    let home = Home::new();
    let mut words = words(&home.init());
    words[4] = "xyzzy".into();
    let recover = ["init", "again", "--state", "state2", "--recover"];
    let said = home.fails(&recover, &words.join(" "), 1);
    assert!(
        said.contains('5') && !said.contains("xyzzy") && !said.contains(&words[0]),
        "{said}"
    );
    assert!(!home.at("again").exists() && !home.at("state2").exists());
}

#[test]
fn no_secret_is_in_the_folder_or_in_an_error() {
    let home = Home::new();
    let printed = home.init();
    let root = fs::read(home.at("state/keys/root.key")).unwrap();
    let mut files = Vec::new();
    all_files(&home.at("folder"), &mut files);
    for path in files {
        let bytes = fs::read(&path).unwrap();
        assert!(
            !bytes
                .windows(32)
                .any(|part| root.windows(32).any(|secret| secret == part))
        );
    }
    let twice = home.fails(&["init", "folder"], "", 1);
    assert!(twice.contains("why:") && twice.contains("do:"), "{twice}");
    let pairs = words(&printed);
    assert!(
        pairs.windows(2).all(|pair| !twice.contains(&pair.join(" "))),
        "{twice}"
    );
    let ticket = format!("dfs1-{}", "abcdefgh".repeat(40));
    let refused = home.fails(&["join", "other"], &ticket, 1);
    assert!(!refused.contains("abcdefghabcdefgh"), "{refused}");
}

#[test]
fn a_passphrase_file_seals_the_keys() {
    let home = Home::new();
    fs::write(home.at("pass"), "correct horse\n").unwrap();
    let init = ["init", "folder", "--state", "state", "--passphrase-file", "pass"];
    home.ok(&init, "");
    fs::write(home.at("plain"), "content").unwrap();
    let refused = home.fails(&["import", "plain", "folder"], "", 1);
    assert!(refused.contains("passphrase"), "{refused}");
    home.ok(&["import", "--passphrase-file", "pass", "plain", "folder"], "");
    fs::write(home.at("wrong"), "incorrect horse\n").unwrap();
    let refused = home.fails(
        &["export", "--passphrase-file", "wrong", "folder/plain.f", "out"],
        "",
        1,
    );
    assert!(
        refused.contains("passphrase") && !refused.contains("incorrect"),
        "{refused}"
    );
}

#[test]
fn import_show_and_export_work_without_a_daemon() {
    let home = Home::new();
    home.init();
    let content: Vec<u8> = (0..700_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::create_dir(home.at("tree")).unwrap();
    fs::write(home.at("tree/large"), &content).unwrap();
    fs::write(home.at("tree/empty"), b"").unwrap();
    std::os::unix::fs::symlink("large", home.at("tree/link")).unwrap();
    fs::hard_link(home.at("tree/large"), home.at("tree/twin")).unwrap();
    fs::set_permissions(home.at("tree/large"), fs::Permissions::from_mode(0o640)).unwrap();
    home.ok(&["import", "tree", "folder"], "");
    assert!(home.at("folder/tree/large.f").exists() && !home.at("folder/tree/large").exists());
    let shown = home.ok(&["show", "--json", "folder/tree/large.f"], "");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(shown.to_string().contains("2800000"), "{shown}");
    home.ok(&["export", "folder/tree", "out"], "");
    assert!(fs::read(home.at("out/large")).unwrap() == content);
    assert_eq!(fs::read(home.at("out/empty")).unwrap(), b"");
    assert_eq!(fs::read_link(home.at("out/link")).unwrap(), Path::new("large"));
    let inode = |name| std::os::unix::fs::MetadataExt::ino(&fs::metadata(home.at(name)).unwrap());
    assert_eq!(inode("out/large"), inode("out/twin"));
    let mode = fs::metadata(home.at("out/large")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
    let again = home.fails(&["export", "folder/tree", "out"], "", 1);
    assert!(again.contains("exists"), "{again}");
}

#[test]
fn a_damaged_key_file_is_named() {
    let home = Home::new();
    home.init();
    let path = home.at("state/keys/volume.key");
    let mut bytes = fs::read(&path).unwrap();
    bytes[60] ^= 1;
    fs::write(&path, bytes).unwrap();
    fs::write(home.at("plain"), "x").unwrap();
    let said = home.fails(&["import", "plain", "folder"], "", 1);
    assert!(said.contains("volume.key") && said.contains("damaged"), "{said}");
}

#[test]
fn wrong_settings_are_named_with_their_line() {
    let home = Home::new();
    home.init();
    fs::write(home.at("state/dfs.toml"), "[network]\ntimeout = 0\n").unwrap();
    fs::write(home.at("plain"), "x").unwrap();
    let said = home.fails(&["import", "plain", "folder"], "", 1);
    assert!(said.contains("dfs.toml: line 2: timeout"), "{said}");
}

#[test]
fn commands_that_need_a_daemon_say_so() {
    let home = Home::new();
    home.init();
    for verb in [
        &["peers", "folder"][..],
        &["invite", "folder", "--role", "reader"],
    ] {
        let said = home.fails(verb, "", 1);
        assert!(said.contains("dfs up"), "{said}");
    }
    let said = home.fails(&["invite", "folder", "--role", "owner"], "", 2);
    assert!(said.contains("owner"), "{said}");
}

#[test]
fn the_pages_are_made_from_the_parser() {
    let home = Home::new();
    home.ok(&["generate", "man", "man"], "");
    for page in [
        "dfs.1",
        "dfs-init.1",
        "dfs-join.1",
        "mount.dfs.8",
        "umount.dfs.8",
        "fsck.dfs.8",
    ] {
        let text = fs::read_to_string(home.at("man").join(page)).unwrap();
        assert!(text.contains(".SH") && text.len() > 300, "{page}");
    }
    let completions = home.ok(&["generate", "completions", "bash"], "");
    assert!(completions.contains("invite") && !completions.contains("frobnicate"));
}
