//! The text of the `.dfs` file at the top of a folder: which volume it is and, if not in the default place, where its state is.
//!
//! Never longer than [`MARKER_MAX`] bytes; what is not understood is refused, not ignored. `daemon` writes it at init and join, and reads it
//! before anything is mounted over the folder.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::state::files;
use crate::base::VolumeId;
use crate::base::names::MARKER;

/// Longest marker, in bytes: a path of `PATH_MAX` bytes with room for quoting.
pub const MARKER_MAX: usize = 16 << 10;

/// What a folder's `.dfs` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The volume whose tree the folder is.
    pub volume: VolumeId,
    /// The state directory, absolute, when it is not in the default place.
    pub state: Option<PathBuf>,
}

/// Why the text of a `.dfs` is no marker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// Longer than any marker can be.
    #[error("it is longer than {MARKER_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("it is not UTF-8 text")]
    NotText,
    /// Not the two keys that a marker has.
    #[error("{0}")]
    Malformed(String),
    /// The path of the state directory is relative, or not UTF-8.
    #[error("the state directory must be an absolute path in UTF-8")]
    BadState,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    volume: String,
    state: Option<String>,
}

/// Why a folder's marker cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// `.dfs` is a directory, as it is in a mount.
    #[error("{0} is a mount of a dfs volume, not its folder")]
    Mount(PathBuf),
    /// `.dfs` is no marker.
    #[error("{path} is not the marker of a dfs volume: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MarkerError,
    },
    /// The host refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: std::io::Error,
    },
}

impl Marker {
    /// Reads the marker of a folder; `None` when the folder, or its marker, is not there.
    pub fn load(folder: &Path) -> Result<Option<Self>, LoadError> {
        let path = folder.join(MARKER);
        let mut bytes = Vec::new();
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(MARKER_MAX as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) if e.kind() == ErrorKind::IsADirectory => return Err(LoadError::Mount(folder.to_owned())),
            Err(source) => return Err(LoadError::Io { path, source }),
        }
        match Self::parse(&bytes) {
            Ok(marker) => Ok(Some(marker)),
            Err(source) => Err(LoadError::Malformed { path, source }),
        }
    }

    /// Writes the marker of a folder, whole or not at all, durably.
    pub fn save(&self, folder: &Path) -> Result<(), LoadError> {
        let path = folder.join(MARKER);
        match self.format() {
            Ok(text) => files::replace_with_mode(&path, text.as_bytes(), 0o644)
                .map_err(|source| LoadError::Io { path, source }),
            Err(source) => Err(LoadError::Malformed { path, source }),
        }
    }

    /// Reads the text of a `.dfs`.
    pub fn parse(bytes: &[u8]) -> Result<Self, MarkerError> {
        if bytes.len() > MARKER_MAX {
            return Err(MarkerError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| MarkerError::NotText)?;
        let text: Text = toml::from_str(text).map_err(|e| MarkerError::Malformed(e.message().to_owned()))?;
        let volume = text
            .volume
            .parse()
            .map_err(|e: crate::base::ids::BadId| MarkerError::Malformed(format!("volume: {e}")))?;
        let state = text.state.map(PathBuf::from);
        if state.as_deref().is_some_and(|path| !is_acceptable(path)) {
            return Err(MarkerError::BadState);
        }
        Ok(Self { volume, state })
    }

    /// The text to write into `.dfs`.
    pub fn format(&self) -> Result<String, MarkerError> {
        let mut text = format!(
            "# This folder is a dfs volume; see dfs(1).\nvolume = \"{}\"\n",
            self.volume
        );
        if let Some(state) = &self.state {
            let path = state
                .to_str()
                .filter(|_| is_acceptable(state))
                .ok_or(MarkerError::BadState)?;
            text.push_str(&format!("state = {}\n", toml::Value::from(path)));
        }
        if text.len() > MARKER_MAX {
            return Err(MarkerError::TooLong);
        }
        Ok(text)
    }
}

fn is_acceptable(path: &Path) -> bool {
    path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn volume() -> VolumeId {
        VolumeId([7; 16])
    }

    #[test]
    fn the_two_keys_and_nothing_else() {
        let hex = volume().to_string();
        let plain = Marker::parse(format!("volume = \"{hex}\"").as_bytes()).unwrap();
        assert_eq!(
            plain,
            Marker {
                volume: volume(),
                state: None
            }
        );
        for bad in [
            String::new(),
            "volume = \"abc\"".into(),
            format!("volume = \"{hex}\"\nother = 1"),
            format!("volume = \"{hex}\"\nstate = \"relative\""),
            format!("volume = \"{hex}\"\nvolume = \"{hex}\""),
            "#".repeat(MARKER_MAX + 1),
        ] {
            assert!(Marker::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(Marker::parse(b"\xff"), Err(MarkerError::NotText));
        let relative = Marker {
            volume: volume(),
            state: Some("x".into()),
        };
        assert_eq!(relative.format(), Err(MarkerError::BadState));
    }

    #[test]
    fn a_folder_without_a_marker_is_told_from_one_with_a_strange_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Marker::load(dir.path()).unwrap(), None);
        assert_eq!(Marker::load(&dir.path().join("none")).unwrap(), None);
        let marker = Marker {
            volume: volume(),
            state: Some("/s \"quoted\"\n".into()),
        };
        marker.save(dir.path()).unwrap();
        assert_eq!(Marker::load(dir.path()).unwrap(), Some(marker));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(dir.path().join(MARKER), "other").unwrap();
        assert!(matches!(
            Marker::load(dir.path()),
            Err(LoadError::Malformed { .. })
        ));
        std::fs::remove_file(dir.path().join(MARKER)).unwrap();
        std::fs::create_dir(dir.path().join(MARKER)).unwrap();
        assert!(matches!(Marker::load(dir.path()), Err(LoadError::Mount(_))));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(path in proptest::option::of("/[^\0]{0,60}")) {
            let marker = Marker { volume: volume(), state: path.map(PathBuf::from) };
            prop_assert_eq!(Marker::parse(marker.format().unwrap().as_bytes()), Ok(marker));
        }

        #[test]
        fn any_bytes_are_an_error_or_a_marker(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Marker::parse(&bytes);
        }
    }
}
