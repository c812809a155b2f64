//! Where a passphrase comes from: a file, or the terminal. Never the command line or the environment, which others can see.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::report::{Outcome, failed};
use crate::daemon::PassphraseSource;
use crate::keys::key_file::Passphrase;

/// Longest secret read from a file or from standard input, in bytes.
pub const SECRET_TEXT_MAX: u64 = 16 << 10;

/// The passphrase of existing keys: from `file`, else asked for on the terminal should the keys need one.
pub fn source(file: Option<PathBuf>) -> PassphraseSource {
    match file {
        Some(path) => PassphraseSource::File(path),
        None if std::io::stdin().is_terminal() => PassphraseSource::Ask(Box::new(|| {
            rpassword::prompt_password("Passphrase: ").map(Zeroizing::new)
        })),
        None => PassphraseSource::None,
    }
}

/// The passphrase for new keys, when one is wanted.
pub fn for_new_keys(file: Option<&Path>) -> Outcome<Option<Passphrase>> {
    let Some(path) = file else { return Ok(None) };
    let what = "cannot read the passphrase";
    let text = File::open(path).and_then(read_text).map_err(|e| {
        failed(
            what,
            format!("{}: {e}", path.display()),
            "name a file that holds it",
        )
    })?;
    match Passphrase::new(Zeroizing::new(first_line(&text).to_owned())) {
        Some(passphrase) => Ok(Some(passphrase)),
        None => Err(failed(
            what,
            format!("the first line of {} is empty", path.display()),
            "write the passphrase there",
        )),
    }
}

/// Reads a short secret text, bounded.
pub fn read_text(from: impl Read) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(SECRET_TEXT_MAX as usize + 1));
    from.take(SECRET_TEXT_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > SECRET_TEXT_MAX {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "the text is too long",
        ));
    }
    Ok(text)
}

fn first_line(text: &str) -> &str {
    text.split(['\n', '\r']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_file_is_its_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "one two\r\nthree").unwrap();
        assert!(for_new_keys(Some(&path)).unwrap().is_some());
        assert_eq!(first_line("one two\r\nthree"), "one two");
        std::fs::write(&path, "\nthree").unwrap();
        assert!(for_new_keys(Some(&path)).is_err());
        assert!(for_new_keys(Some(&dir.path().join("none"))).is_err());
        assert!(for_new_keys(None).unwrap().is_none());
    }

    #[test]
    fn endless_input_is_refused() {
        assert!(read_text(std::io::repeat(b'a')).is_err());
    }
}
