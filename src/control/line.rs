//! One JSON value a line, no line longer than [`LINE_MAX`]: the framing of the control socket, for both ends.

use std::io::{BufRead, ErrorKind, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::LINE_MAX;

/// Reads the next line; `None` at the end of the stream.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl BufRead) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LINE_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    match line.last() {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) if line.len() > LINE_MAX => {
            return Err(std::io::Error::new(
                ErrorKind::InvalidData,
                "the line is too long",
            ));
        }
        Some(_) => return Err(ErrorKind::UnexpectedEof.into()),
    }
    serde_json::from_slice(&line).map(Some).map_err(Into::into)
}

/// A line.
pub(super) fn encode<T: Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() > LINE_MAX {
        return Err(std::io::Error::new(
            ErrorKind::InvalidData,
            "the line is too long",
        ));
    }
    Ok(line)
}

/// Writes one line.
pub(super) fn write<T: Serialize>(to: &mut impl Write, value: &T) -> std::io::Result<()> {
    to.write_all(&encode(value)?)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_bounded() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"a").unwrap();
        write(&mut bytes, &"b").unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read::<String>(&mut from).unwrap().unwrap(), "a");
        assert_eq!(read::<String>(&mut from).unwrap().unwrap(), "b");
        assert!(read::<String>(&mut from).unwrap().is_none());
        assert!(read::<String>(&mut &b"\"cut"[..]).is_err());
        assert!(read::<String>(&mut &b"{}\n"[..]).is_err());
        let endless = vec![b'x'; LINE_MAX + 10];
        let error = read::<String>(&mut endless.as_slice()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(write(&mut Vec::new(), &"x".repeat(LINE_MAX)).is_err());
    }
}
