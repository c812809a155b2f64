//! Names of what gives way to something of the same name.

use super::tree::Content;

/// Longest name, in bytes: 255 of the host, less the two that `.f` takes.
const NAME_MAX: usize = 253;

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
    let is_extension = |at: &usize| *at > 0 && name.len() - at <= 16 && !name[*at..].contains(&b' ');
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
}
