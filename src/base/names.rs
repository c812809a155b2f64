//! The naming rule between the mount and the folder, and its inverse.
//!
//! In the folder every non-directory `NAME` is `NAME.f` and a directory keeps its name, except that a directory that ends in
//! `.f`, or in `.f` and tildes, gets one more `~`. So a host name says by itself what it stands for, and no two names collide:
//! a host name that ends in `.f` is always a file, one that does not is always a directory (or a plain file to be imported).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::limits::NAME_MAX;

/// The text file at the top of a folder that says which volume it is.
pub const MARKER: &str = ".dfs";

/// Prefix of the temporary host names of unfinished imports and renames; never shown in the mount.
pub const TEMP_PREFIX: &str = ".dfs-tmp-";

/// Why a name cannot exist in the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Longer than [`NAME_MAX`] bytes.
    #[error("the name is longer than {NAME_MAX} bytes")]
    TooLong,
    /// Empty, `.`, `..`, or with a slash or NUL in it.
    #[error("not a file name")]
    Invalid,
    /// Kept for dfs itself.
    #[error("names that begin with .dfs-tmp- are kept for dfs itself")]
    Reserved,
}

/// Checks a name as the mount shows it.
pub fn check(name: &OsStr) -> Result<(), BadName> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|&b| b == b'/' || b == 0) {
        return Err(BadName::Invalid);
    }
    if bytes.len() > NAME_MAX {
        return Err(BadName::TooLong);
    }
    if bytes.starts_with(TEMP_PREFIX.as_bytes()) {
        return Err(BadName::Reserved);
    }
    Ok(())
}

/// The host name of a non-directory.
pub fn file_to_host(name: &OsStr) -> OsString {
    let mut bytes = name.as_bytes().to_vec();
    bytes.extend_from_slice(b".f");
    OsString::from_vec(bytes)
}

/// The host name of a directory.
pub fn dir_to_host(name: &OsStr) -> OsString {
    let mut bytes = name.as_bytes().to_vec();
    if ends_like_file(&bytes) {
        bytes.push(b'~');
    }
    OsString::from_vec(bytes)
}

/// What a host name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// The host name of a non-directory, with the name it has in the mount.
    File(OsString),
    /// The host name of a directory, with the name it has in the mount.
    Dir(OsString),
}

/// Reads a host name. `None` for `.f` itself, which is no file of ours.
pub fn from_host(host: &OsStr) -> Option<HostName> {
    let bytes = host.as_bytes();
    if let Some(stem) = bytes.strip_suffix(b".f") {
        return (!stem.is_empty()).then(|| HostName::File(OsString::from_vec(stem.to_vec())));
    }
    let shown = match bytes.strip_suffix(b"~") {
        Some(stem) if ends_like_file(stem) => stem,
        _ => bytes,
    };
    Some(HostName::Dir(OsString::from_vec(shown.to_vec())))
}

fn ends_like_file(bytes: &[u8]) -> bool {
    let tildes = bytes.iter().rev().take_while(|&&b| b == b'~').count();
    bytes[..bytes.len() - tildes].ends_with(b".f")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn os(text: &str) -> OsString {
        OsString::from(text)
    }

    #[test]
    fn the_rule_by_example() {
        assert_eq!(file_to_host(&os("a")), os("a.f"));
        assert_eq!(file_to_host(&os("a.f")), os("a.f.f"));
        assert_eq!(dir_to_host(&os("a")), os("a"));
        assert_eq!(dir_to_host(&os("a.f")), os("a.f~"));
        assert_eq!(dir_to_host(&os("a.f~")), os("a.f~~"));
        assert_eq!(dir_to_host(&os("a~")), os("a~"));
        assert_eq!(from_host(&os(".f")), None);
        assert_eq!(from_host(&os("a.f~")), Some(HostName::Dir(os("a.f"))));
        assert_eq!(check(&os("..")), Err(BadName::Invalid));
        assert_eq!(check(&os(&"n".repeat(254))), Err(BadName::TooLong));
        assert_eq!(check(&os(".dfs-tmp-1")), Err(BadName::Reserved));
    }

    proptest! {
        #[test]
        fn both_directions_agree_and_nothing_collides(name in "[af.~]{1,6}") {
            let name = os(&name);
            let (file, dir) = (file_to_host(&name), dir_to_host(&name));
            prop_assert_ne!(&file, &dir);
            prop_assert_eq!(from_host(&file), Some(HostName::File(name.clone())));
            prop_assert_eq!(from_host(&dir), Some(HostName::Dir(name)));
        }
    }
}
