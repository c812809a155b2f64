//! The 24 words, the passphrase, and what `dfs init` refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::noise;
use crate::harness::volume::{ALONE, TestVolume};

#[test]
fn the_words_bring_a_lost_volume_back() {
    let mut volume = TestVolume::mounted();
    let words = words(&volume.printed);
    let content = noise(7, 2 << 20);
    fs::write(volume.at("large"), &content).unwrap();
    fs::write(volume.at("small"), b"inline").unwrap();
    let id = volume.status()["volume"].clone();
    volume.unmount();

    // The keys are lost; the folder, and the store as a pile of blocks, are not.
    let store = volume.place().join("store.sqlite");
    fs::copy(volume.state().join("store.sqlite"), &store).unwrap();
    let blocks = volume.place().join("store.sqlite-blocks");
    fs::rename(volume.state().join("store.sqlite-blocks"), &blocks).unwrap();
    fs::remove_dir_all(volume.state()).unwrap();
    let refused = volume.try_mount([]);
    assert!(refused.code() > 0, "{refused}");
    let recover = |phrase: &str| {
        let command = volume.dfs(["init"]).arg(volume.folder()).arg("--recover");
        command.arg("--state").arg(volume.state()).stdin(phrase)
    };
    let wrong = recover(&words.replacen(words.split(' ').next().unwrap(), "zoo", 1)).fails();
    assert!(
        !wrong.said().contains(&words[10..]),
        "words are never repeated: {wrong}"
    );
    recover(&format!("{words}\n")).ok();
    fs::copy(&store, volume.state().join("store.sqlite")).unwrap();
    fs::rename(&blocks, volume.state().join("store.sqlite-blocks")).unwrap();
    volume.configure(ALONE);
    volume.mount();
    assert_eq!(volume.status()["volume"], id);
    assert_eq!(fs::read(volume.at("small")).unwrap(), b"inline");
    assert!(fs::read(volume.at("large")).unwrap() == content);
}

#[test]
fn other_words_do_not_open_the_folder() {
    let mut volume = TestVolume::mounted();
    fs::write(volume.at("a"), b"x").unwrap();
    volume.unmount();
    let other = words(&TestVolume::new().printed);
    fs::remove_dir_all(volume.state()).unwrap();
    let command = volume.dfs(["init"]).arg(volume.folder()).arg("--recover");
    let refused = command.arg("--state").arg(volume.state()).stdin(other).fails();
    assert!(refused.err.contains("volume"), "{refused}");
}

#[test]
fn init_refuses_a_folder_that_is_a_volume_already() {
    let volume = TestVolume::new();
    let marker = fs::read(volume.folder().join(".dfs")).unwrap();
    let other = volume.place().join("other-state");
    volume
        .dfs(["init"])
        .arg(volume.folder())
        .arg("--state")
        .arg(&other)
        .fails();
    assert_eq!(fs::read(volume.folder().join(".dfs")).unwrap(), marker);
}

#[test]
fn the_state_directory_is_for_its_owner_alone() {
    let mut volume = TestVolume::mounted();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(volume.state()), 0o700);
    for entry in fs::read_dir(volume.state()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            mode(&path) & 0o077 == 0 || name.starts_with("dfs.toml"),
            "{name} is open to others"
        );
    }
    volume.unmount();
    fs::set_permissions(volume.state(), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = volume.try_mount([]);
    assert!(
        refused.code() > 0 && refused.err.contains("chmod 700"),
        "{refused}"
    );
}

#[test]
fn a_passphrase_locks_the_keys() {
    let mut volume = TestVolume::empty();
    let (right, wrong) = (volume.place().join("right"), volume.place().join("wrong"));
    fs::write(&right, "correct horse battery staple\n").unwrap();
    fs::write(&wrong, "incorrect horse\n").unwrap();
    for path in [&right, &wrong] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let command = volume
        .dfs(["init"])
        .arg(volume.folder())
        .arg("--state")
        .arg(volume.state());
    command.arg("--passphrase-file").arg(&right).ok();
    volume.configure(ALONE);
    let option = |path: &std::path::Path| format!("passphrase_file={}", path.display());
    let refused = volume.try_mount(["-o", &option(&wrong)]);
    assert!(
        refused.code() > 0 && refused.err.contains("passphrase"),
        "{refused}"
    );
    let refused = volume.try_mount([]);
    assert!(
        refused.code() > 0 && refused.err.contains("passphrase"),
        "{refused}"
    );
    volume.mount_with(["-o", &option(&right)]);
    fs::write(volume.at("a"), b"x").unwrap();
    volume.unmount();
}

/// The recovery words among all that `dfs init` printed.
fn words(printed: &str) -> String {
    let language = bip39::Language::English;
    let tokens: Vec<&str> = printed
        .split(|c: char| !c.is_ascii_lowercase())
        .filter(|token| !token.is_empty())
        .collect();
    let run = tokens.windows(24).find(|window| {
        let phrase = window.join(" ");
        bip39::Mnemonic::parse_in(language, phrase.as_str()).is_ok()
    });
    run.unwrap_or_else(|| panic!("no recovery words in: {printed}"))
        .join(" ")
}
