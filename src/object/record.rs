//! What the map of a snapshot holds: one record for each name, and one for each directory and each file of several names.
//!
//! A key is a directory's id and a name in it, or an id and no name for what is found by its id. So a directory is listed by its prefix, moving it
//! changes the records of its name and its own, and a file that has one name has one record. Invariant: what decodes encodes to the same bytes.
//! Layout in `docs/format.md`. Called by `merge`, `sync`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::base::codec::{DecodeError, Reader, Writer};
use crate::base::limits::{MAP_VALUE_MAX, NAME_MAX, SYMLINK_MAX};
use crate::base::tree::{Meta, Place, ROOT};
use crate::base::types::{FileKind, Timestamp};
use crate::base::{DeviceId, FileId, names};

use super::content::Content;
use super::slot::packed_max;

const TWIN_CONTEXT: &str = "dfs 2026 v1 id of a file that has another's";
const VERSION_CONTEXT: &str = "dfs 2026 v1 version of a file";

/// Longest name of an extended attribute, in bytes (Linux `XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;
/// Longest value of an extended attribute, in bytes (Linux `XATTR_SIZE_MAX`).
const XATTR_VALUE_MAX: usize = 64 << 10;

/// What is where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// At a name: a file, link or special file that has no other and whose id is not derived.
    Node {
        /// Its id.
        id: FileId,
        /// What it has besides its content.
        meta: Meta,
        /// Its content.
        body: Body,
    },
    /// At a name: a directory. The rest is at its id.
    Directory {
        /// Its id.
        id: FileId,
    },
    /// At a directory's id: where and what it is.
    Own {
        /// The directory that it is in.
        parent: FileId,
        /// Its name there.
        name: Box<[u8]>,
        /// What it has besides.
        meta: Meta,
    },
    /// At a name: one of several of a file. The rest is at its id.
    Link {
        /// Its id.
        id: FileId,
    },
    /// At the id of a file of several names, or of one whose id is derived.
    Shared {
        /// Where it is: two places or more, or the only one.
        places: BTreeSet<Place>,
        /// What it has besides its content.
        meta: Meta,
        /// Its content.
        body: Body,
    },
}

/// What something is that is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A regular file.
    File {
        /// Where its bytes are; inline at most `packed_max` bytes.
        content: Content,
        /// Its length, in bytes: what the content adds up to.
        size: u64,
        /// The device that wrote it.
        author: DeviceId,
    },
    /// A symbolic link to this target of 1 to `SYMLINK_MAX` bytes.
    Symlink(Box<[u8]>),
    /// A pipe or socket, or a device node with its number.
    Special(FileKind, u64),
}

/// The key of a name in a directory.
pub fn key(directory: &FileId, name: &[u8]) -> Vec<u8> {
    [directory.as_bytes(), name].concat()
}

/// The key of what is found by its id.
pub fn own_key(id: &FileId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// The id and the name of a key; the name is empty of what is found by its id.
pub fn parse_key(key: &[u8]) -> Result<(FileId, &[u8]), DecodeError> {
    let mut reader = Reader::new(key);
    let id = FileId(reader.array()?);
    let name = reader.take(reader.remaining())?;
    if !name.is_empty() {
        check_name(name)?;
    }
    Ok((id, name))
}

/// The entries of anything but a directory, at its places: one or more.
///
/// A file whose id is derived has a record at its id even with a single name, because somebody may look for it by its id.
pub fn file_entries(
    id: FileId,
    places: BTreeSet<Place>,
    meta: Meta,
    body: Body,
) -> BTreeMap<Vec<u8>, Record> {
    let keys: Vec<Vec<u8>> = places
        .iter()
        .map(|place| key(&place.parent, &place.name))
        .collect();
    if let ([only], false) = (&keys[..], id.is_derived()) {
        return BTreeMap::from([(only.clone(), Record::Node { id, meta, body })]);
    }
    let links = keys.into_iter().map(|key| (key, Record::Link { id }));
    let shared = (own_key(&id), Record::Shared { places, meta, body });
    links.chain([shared]).collect()
}

/// The entries of a directory.
pub fn directory_entries(id: FileId, place: Place, meta: Meta) -> BTreeMap<Vec<u8>, Record> {
    let Place { parent, name } = place;
    let named = (key(&parent, &name), Record::Directory { id });
    BTreeMap::from([named, (own_key(&id), Record::Own { parent, name, meta })])
}

/// The id of a file that has another one's: what a tree should not have, and must not stop anybody.
pub fn twin(id: &FileId, key: &[u8]) -> FileId {
    let mut hasher = blake3::Hasher::new_derive_key(TWIN_CONTEXT);
    hasher.update(&id.0).update(key);
    FileId::derived(hasher.finalize().as_bytes())
}

/// Stands for what a file's content is: equal of equal contents, whoever wrote them. What is cut into other blocks has another one.
pub fn version_hash(content: &Content) -> [u8; 32] {
    let mut writer = Writer::with_capacity(content.encoded_len());
    content.encode(&mut writer);
    blake3::derive_key(VERSION_CONTEXT, &writer.into_vec())
}

/// Whether the mount can show a name.
fn check_name(name: &[u8]) -> Result<(), DecodeError> {
    names::check(OsStr::from_bytes(name)).map_err(|_| DecodeError::Invalid("a name that no file can have"))
}

impl Record {
    /// The record as a value of the map. One that breaks a rule of its kind, or is longer than `MAP_VALUE_MAX`, will not be read again.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        match self {
            Self::Node { id, meta, body } => {
                writer.u8(1).raw(id.as_bytes());
                encode_meta(meta, &mut writer);
                body.encode(&mut writer);
            }
            Self::Directory { id } => {
                writer.u8(2).raw(id.as_bytes());
            }
            Self::Own { parent, name, meta } => {
                writer.u8(3).raw(parent.as_bytes()).bytes16(name);
                encode_meta(meta, &mut writer);
            }
            Self::Link { id } => {
                writer.u8(4).raw(id.as_bytes());
            }
            Self::Shared { places, meta, body } => {
                writer.u8(5).u32(places.len() as u32);
                for place in places {
                    writer.raw(place.parent.as_bytes()).bytes16(&place.name);
                }
                encode_meta(meta, &mut writer);
                body.encode(&mut writer);
            }
        }
        writer.into_vec()
    }

    /// What `encode` wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let record = match reader.u8()? {
            1 => Self::Node {
                id: decode_id(&mut reader)?,
                meta: decode_meta(&mut reader)?,
                body: Body::decode(&mut reader)?,
            },
            2 => Self::Directory {
                id: decode_id(&mut reader)?,
            },
            3 => {
                let Place { parent, name } = decode_place(&mut reader)?;
                let meta = decode_meta(&mut reader)?;
                Self::Own { parent, name, meta }
            }
            4 => Self::Link {
                id: decode_id(&mut reader)?,
            },
            5 => Self::Shared {
                places: decode_places(&mut reader)?,
                meta: decode_meta(&mut reader)?,
                body: Body::decode(&mut reader)?,
            },
            _ => return Err(DecodeError::Invalid("a record of a newer dfs: update it")),
        };
        reader.finish()?;
        Ok(record)
    }

    /// An entry of the map: the id and the name of its key, and a record that belongs at such a key.
    pub fn decode_entry<'k>(key: &'k [u8], value: &[u8]) -> Result<(FileId, &'k [u8], Self), DecodeError> {
        let (id, name) = parse_key(key)?;
        let record = Self::decode(value)?;
        let is_own = matches!(record, Self::Own { .. } | Self::Shared { .. });
        if is_own != name.is_empty() || (is_own && id == ROOT) {
            return Err(DecodeError::Invalid("a record under a key of another kind"));
        }
        let is_misplaced = match &record {
            Self::Node { id, .. } => id.is_derived(),
            Self::Shared { places, .. } => places.len() < 2 && !id.is_derived(),
            _ => false,
        };
        if is_misplaced {
            return Err(DecodeError::Invalid("a file that has its record elsewhere"));
        }
        Ok((id, name, record))
    }
}

impl Body {
    fn encode(&self, writer: &mut Writer) {
        match self {
            Self::File {
                content,
                size,
                author,
            } => {
                writer.u8(1).raw(author.as_bytes()).u64(*size);
                let mut inner = Writer::with_capacity(content.encoded_len());
                content.encode(&mut inner);
                writer.bytes32(&inner.into_vec());
            }
            Self::Symlink(target) => {
                writer.u8(2).bytes16(target);
            }
            Self::Special(kind, number) => {
                writer.u8(3).u8(kind_code(*kind)).u64(*number);
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            1 => {
                let (author, size) = (DeviceId(reader.array()?), reader.u64()?);
                let content = Content::decode(reader.bytes32(MAP_VALUE_MAX)?)?;
                if content.len() != Some(size) {
                    return Err(DecodeError::Invalid("the content does not add up to the size"));
                }
                if matches!(&content, Content::Inline(bytes) if bytes.len() > packed_max()) {
                    return Err(DecodeError::Invalid("content is too long to be inline"));
                }
                Ok(Self::File {
                    content,
                    size,
                    author,
                })
            }
            2 => {
                let target = reader.bytes16(SYMLINK_MAX)?;
                if target.is_empty() || target.contains(&0) {
                    return Err(DecodeError::Invalid("a target that no symbolic link can have"));
                }
                Ok(Self::Symlink(target.into()))
            }
            3 => {
                let (kind, number) = (reader.u8()?, reader.u64()?);
                let kind = SPECIAL
                    .iter()
                    .find(|known| kind_code(**known) == kind)
                    .ok_or(DecodeError::Invalid("unknown kind of special file"))?;
                let is_device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
                if !is_device && number != 0 {
                    return Err(DecodeError::Invalid("a pipe or socket with a device number"));
                }
                Ok(Self::Special(*kind, number))
            }
            _ => Err(DecodeError::Invalid("unknown form of body")),
        }
    }
}

const SPECIAL: [FileKind; 4] = [
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDevice,
    FileKind::BlockDevice,
];

/// Zero of what is no special file.
fn kind_code(kind: FileKind) -> u8 {
    match kind {
        FileKind::Regular | FileKind::Directory | FileKind::Symlink => 0,
        FileKind::Fifo => 1,
        FileKind::Socket => 2,
        FileKind::CharDevice => 3,
        FileKind::BlockDevice => 4,
    }
}

/// The id of anything but the root directory.
fn decode_id(reader: &mut Reader<'_>) -> Result<FileId, DecodeError> {
    match FileId(reader.array()?) {
        ROOT => Err(DecodeError::Invalid("the root directory under a name")),
        id => Ok(id),
    }
}

fn decode_place(reader: &mut Reader<'_>) -> Result<Place, DecodeError> {
    let parent = FileId(reader.array()?);
    let name = reader.bytes16(NAME_MAX)?;
    check_name(name)?;
    Ok(Place {
        parent,
        name: name.into(),
    })
}

fn decode_places(reader: &mut Reader<'_>) -> Result<BTreeSet<Place>, DecodeError> {
    let count = reader.u32()?;
    if count == 0 {
        return Err(DecodeError::Invalid("a shared file without a name"));
    }
    let mut places = BTreeSet::new();
    for _ in 0..count {
        let place = decode_place(reader)?;
        if places.last().is_some_and(|last| *last >= place) {
            return Err(DecodeError::Invalid("the places of a file are not in order"));
        }
        places.insert(place);
    }
    Ok(places)
}

fn encode_meta(meta: &Meta, writer: &mut Writer) {
    writer.u16(meta.mode as u16).u32(meta.owner.0).u32(meta.owner.1);
    writer.u64(meta.mtime.secs as u64).u32(meta.mtime.nanos);
    writer.u16(meta.xattrs.len() as u16);
    for (name, value) in &meta.xattrs {
        writer.bytes16(name).bytes32(value);
    }
}

fn decode_meta(reader: &mut Reader<'_>) -> Result<Meta, DecodeError> {
    let mode = u32::from(reader.u16()?);
    if mode > 0o7777 {
        return Err(DecodeError::Invalid("a mode with bits that no file has"));
    }
    let owner = (reader.u32()?, reader.u32()?);
    let mtime = Timestamp {
        secs: reader.u64()? as i64,
        nanos: reader.u32()?,
    };
    if mtime.nanos >= 1_000_000_000 {
        return Err(DecodeError::Invalid(
            "a time with more than a second of nanoseconds",
        ));
    }
    let mut xattrs: BTreeMap<Box<[u8]>, Box<[u8]>> = BTreeMap::new();
    for _ in 0..reader.u16()? {
        let name = reader.bytes16(XATTR_NAME_MAX)?;
        let value = reader.bytes32(XATTR_VALUE_MAX)?;
        if name.is_empty() || name.contains(&0) {
            return Err(DecodeError::Invalid("a name that no extended attribute can have"));
        }
        if xattrs.last_key_value().is_some_and(|(last, _)| **last >= *name) {
            return Err(DecodeError::Invalid("extended attributes are not in order"));
        }
        xattrs.insert(name.into(), value.into());
    }
    Ok(Meta {
        mode,
        owner,
        mtime,
        xattrs,
    })
}

#[cfg(test)]
mod tests;
