//! Names of what gives way to something of the same name, and what they say.

use super::tree::Content;

/// Longest name, in bytes: 255 of the host, less the two that `.f` takes.
const NAME_MAX: usize = 253;

/// Longest extension, with its dot, in bytes.
const EXTENSION_MAX: usize = 16;

/// The name of a conflict copy: `NAME.conflict-DEVICE-HASH.EXT`, with `digits` hexadecimal digits of each; `HASH` alone where nobody is known
/// to have written it. A name that is too long loses the end of `NAME`.
pub fn conflict_name(name: &[u8], content: &Content, salt: &[u8], digits: usize) -> Box<[u8]> {
    let hex = |bytes: &[u8]| {
        let mut text = data_encoding::HEXLOWER.encode(bytes);
        text.truncate(digits);
        text
    };
    let mark = match content {
        Content::File(version) => format!(".conflict-{}-{}", hex(&version.author.0), hex(&version.hash)),
        Content::Symlink(target) => format!(".conflict-{}", hex(blake3::hash(target).as_bytes())),
        Content::Special(..) | Content::Directory => format!(".conflict-{}", hex(salt)),
    };
    // A dot at the beginning hides a file, it is no extension; neither is what is long or has a space.
    let dot = name.iter().rposition(|byte| *byte == b'.');
    let is_extension =
        |at: &usize| *at > 0 && name.len() - at <= EXTENSION_MAX && !name[*at..].contains(&b' ');
    let dot = dot.filter(|at| is_extension(at) && !content.is_directory());
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let room = NAME_MAX.saturating_sub(mark.len() + extension.len());
    let mut end = stem.len().min(room);
    // Not in the middle of a character.
    while end < stem.len() && end > 0 && stem[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    [&stem[..end], mark.as_bytes(), extension].concat().into()
}

/// What stands between a name and the rest of its conflict copy's.
const MARK: &[u8] = b".conflict-";

/// Fewest hexadecimal digits of each part of a conflict name, and most.
const DIGITS: std::ops::RangeInclusive<usize> = 8..=64;

/// What the name of a conflict copy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictName {
    /// The name that it gave way to.
    pub original: Box<[u8]>,
    /// The beginning of the id of the device that wrote the copy, in hexadecimal digits; `None` where nobody is known.
    pub device: Option<String>,
    /// The end of the name's stem may be missing: the whole would not have fitted.
    pub may_be_cut: bool,
}

/// Reads a name that [`conflict_name`] made; `None` of any other name.
pub fn parse_conflict_name(name: &[u8]) -> Option<ConflictName> {
    let marks = name.windows(MARK.len()).enumerate().rev();
    let mut marks = marks.filter(|(_, part)| *part == MARK);
    marks.find_map(|(at, _)| parse_at(name, at))
}

fn parse_at(name: &[u8], at: usize) -> Option<ConflictName> {
    let (stem, rest) = (&name[..at], &name[at + MARK.len()..]);
    let dot = rest.iter().position(|byte| *byte == b'.').unwrap_or(rest.len());
    let (mark, extension) = rest.split_at(dot);
    let is_part = |part: &[u8]| {
        let digits = part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digits && DIGITS.contains(&part.len())
    };
    let device = match mark.iter().position(|byte| *byte == b'-') {
        Some(dash) => {
            let (device, hash) = (&mark[..dash], &mark[dash + 1..]);
            if device.len() != hash.len() || !is_part(device) || !is_part(hash) {
                return None;
            }
            Some(String::from_utf8_lossy(device).into_owned())
        }
        None if is_part(mark) => None,
        None => return None,
    };
    let is_extension = extension.len() <= EXTENSION_MAX
        && !extension.contains(&b' ')
        && extension.iter().filter(|byte| **byte == b'.').count() <= 1;
    (is_extension && !stem.is_empty()).then(|| ConflictName {
        original: [stem, extension].concat().into(),
        device,
        // A character that did not fit has four bytes at most.
        may_be_cut: name.len() + 3 >= NAME_MAX,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tree::Version;
    use super::*;
    use crate::base::DeviceId;

    fn named(name: &str) -> String {
        let version = Version {
            hash: [0xab; 32],
            author: DeviceId([0x12; 32]),
        };
        let name = conflict_name(name.as_bytes(), &Content::File(version), &[], 8);
        String::from_utf8(name.into()).unwrap()
    }

    #[test]
    fn the_extension_stays_and_long_names_are_cut_between_characters() {
        assert_eq!(named("a.txt"), "a.conflict-12121212-abababab.txt");
        assert_eq!(named("notes"), "notes.conflict-12121212-abababab");
        assert_eq!(named(".profile"), ".profile.conflict-12121212-abababab");
        assert_eq!(
            named("a.b c. d e f g h i j"),
            "a.b c. d e f g h i j.conflict-12121212-abababab"
        );
        let long = named(&format!("{}.jpeg", "ü".repeat(124)));
        assert!(long.len() <= 253 && long.ends_with("abababab.jpeg"), "{long}");
    }
    #[test]
    fn what_a_name_says_is_read_again() {
        let original = |name: &str| {
            let parsed = parse_conflict_name(named(name).as_bytes()).unwrap();
            assert_eq!(parsed.device.as_deref(), Some("12121212"));
            (
                String::from_utf8(parsed.original.into()).unwrap(),
                parsed.may_be_cut,
            )
        };
        let twice = [named("a.txt"), named("notes")];
        for name in [
            "a.txt",
            "notes",
            ".profile",
            "a.b c. d e f",
            "a.conflict-x",
            &twice[0],
            &twice[1],
        ] {
            assert_eq!(original(name), (name.to_owned(), false));
        }
        let long = "ü".repeat(124);
        let (cut, may_be_cut) = original(&format!("{long}.jpeg"));
        assert!(may_be_cut && cut.ends_with(".jpeg") && long.starts_with(cut.trim_end_matches(".jpeg")));
        let link = conflict_name(b"link", &Content::Symlink(b"to"[..].into()), &[], 16);
        let parsed = parse_conflict_name(&link).unwrap();
        assert_eq!((&*parsed.original, parsed.device), (&b"link"[..], None));
        for name in [
            "a.txt",
            "a.conflict-",
            "a.conflict-1234567.txt",
            "a.conflict-1234abcd-.txt",
            "a.conflict-1234abcd-1234abcde",
            "a.conflict-1234ABCD-1234abcd",
            "a.conflict-1234abcd-1234abcd-1234abcd",
            "a.conflict-1234abcd-1234abcd x",
            "a.conflict-1234abcd.b c",
            "a.conflict-1234abcd.tar.gz",
            "a.conflict-1234abcd.much-too-long-to-be-one",
            ".conflict-1234abcd-1234abcd",
        ] {
            assert_eq!(parse_conflict_name(name.as_bytes()), None, "{name}");
        }
    }
}
