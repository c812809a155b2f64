//! The bytes of larger blocks, in files beside the database, which knows where each lies.
//!
//! One address space: segment `n` is a file for addresses from `n` times [`SEGMENT_LEN`]. Blocks are only ever appended, each from a
//! multiple of [`ALIGN`]; what is deleted becomes a hole. Invariant: no address is written twice as long as a row may name it, so a
//! reader finds either its block or something that its id exposes. `docs/store.md` has the reasons.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;

use crate::base::limits::BLOCK_MAX;

/// Length of a segment, in bytes. Small enough for every file system, large enough that few files are needed.
pub(super) const SEGMENT_LEN: u64 = 4 << 30;

/// Blocks begin at multiples of this, so that deleting one frees whole pages of the file system.
pub(super) const ALIGN: u64 = 4096;

/// Largest block that stays in the database, in bytes: with 16 KiB pages two fit on one. Those of a file's small changes are smaller, so
/// that making them durable takes one sync and not two.
pub(super) const IN_ROW_MAX: usize = 8 << 10;

/// Files kept open.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// Slices in one system call (`IOV_MAX` of Linux).
const SLICES_MAX: usize = 1024;

/// What fills up to the next multiple of [`ALIGN`].
static PADDING: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// Space that a block of `len` bytes takes.
pub(super) fn padded(len: u64) -> u64 {
    len.checked_next_multiple_of(ALIGN).unwrap_or(u64::MAX)
}

/// Number of the segment that an address lies in.
pub(super) fn segment_of(at: u64) -> u64 {
    at / SEGMENT_LEN
}

/// Addresses of a segment.
pub(super) fn addresses(segment: u64) -> Range<u64> {
    let start = segment.saturating_mul(SEGMENT_LEN);
    start..start.saturating_add(SEGMENT_LEN)
}

/// The segment files of one store.
#[derive(Debug)]
pub(super) struct Segments {
    dir: PathBuf,
    files: Mutex<LruCache<u64, Arc<File>>>,
    /// A file was created whose name is not yet durable.
    created: AtomicBool,
    /// Everything before this address is written.
    end: AtomicU64,
    /// Everything before this address is durable.
    synced: AtomicU64,
    /// A sync failed, so that the kernel may have dropped what no later sync brings back.
    failed: AtomicBool,
    /// Held while files are synced: the kernel reports a failure once, so who syncs next must see that it was reported to another.
    syncing: Mutex<()>,
}

impl Segments {
    /// The segments in directory `dir`, which is created for its owner alone when it does not exist.
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        Ok(Self {
            dir,
            files: Mutex::new(LruCache::new(OPEN_MAX)),
            created: AtomicBool::new(true),
            end: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            syncing: Mutex::new(()),
        })
    }

    /// Says where the last block ends and up to where everything was durable, as the database knows.
    pub(super) fn resume(&self, synced: u64, end: u64) {
        self.synced.store(synced, Ordering::Release);
        self.end.store(end, Ordering::Release);
    }

    /// Where the next block begins.
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Up to where everything is durable.
    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// The `len` bytes at address `at`. [`ErrorKind::NotFound`] and [`ErrorKind::UnexpectedEof`] say that they are not there.
    pub(super) fn read(&self, at: u64, len: u64) -> Result<Bytes> {
        let len = match usize::try_from(len) {
            Ok(len) if len <= BLOCK_MAX => len,
            _ => return Err(ErrorKind::UnexpectedEof.into()),
        };
        let (file, mut from) = (self.file(segment_of(at), false)?, at % SEGMENT_LEN);
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            // A vector may have room for more than it was asked for.
            let missing = len - bytes.len();
            let room = rustix::buffer::spare_capacity(&mut bytes);
            let read = match rustix::io::pread(&*file, room, from) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            from += read.min(missing) as u64;
            bytes.truncate(len);
        }
        Ok(bytes.into())
    }

    /// Writes blocks that were [placed](Appender::place) at the end. They count from [`Segments::advance`] on.
    pub(super) fn write(&self, blocks: &[(u64, Bytes)]) -> Result<()> {
        for run in blocks
            .chunk_by(|a, b| segment_of(a.0) == segment_of(b.0) && a.0 + padded(a.1.len() as u64) == b.0)
        {
            for part in run.chunks(SLICES_MAX / 2) {
                self.write_run(part)?;
            }
        }
        Ok(())
    }

    fn write_run(&self, run: &[(u64, Bytes)]) -> Result<()> {
        let Some((at, _)) = run.first() else {
            return Ok(());
        };
        let (file, from) = (self.file(segment_of(*at), true)?, at % SEGMENT_LEN);
        let padding = |bytes: &Bytes| padded(bytes.len() as u64) as usize - bytes.len();
        let slices: Vec<IoSlice<'_>> = run
            .iter()
            .flat_map(|(_, bytes)| [IoSlice::new(bytes), IoSlice::new(&PADDING[..padding(bytes)])])
            .collect();
        let mut written = loop {
            match rustix::io::pwritev(&*file, &slices, from) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other?,
            }
        };
        // The kernel may take less than all (at a signal, or 2 GiB): the rest goes one by one.
        let mut at = from;
        for slice in &slices {
            let done = written.min(slice.len());
            file.write_all_at(&slice[done..], at + done as u64)?;
            written -= done;
            at += slice.len() as u64;
        }
        Ok(())
    }

    /// Everything before `end` is written and belongs to a commit.
    pub(super) fn advance(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Makes everything before `end` durable, for the writer. A failure is for ever.
    pub(super) fn sync(&self, end: u64) -> Result<()> {
        self.syncing(|| {
            self.sync_files(end)?;
            if self.created.swap(false, Ordering::AcqRel) {
                File::open(&self.dir)?.sync_all()?;
            }
            Ok(())
        })
    }

    /// Lets the disk begin, for who will ask the writer to sync: it then finds little left to do, and others can commit meanwhile.
    pub(super) fn sync_ahead(&self) -> Result<()> {
        self.syncing(|| self.sync_files(self.end()))
    }

    fn syncing(&self, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let _one = self.syncing.lock();
        if self.has_failed() {
            return Err(Error::other("an earlier sync failed"));
        }
        sync().inspect_err(|_| self.failed.store(true, Ordering::Release))
    }

    fn sync_files(&self, end: u64) -> Result<()> {
        let synced = self.synced();
        if synced >= end {
            return Ok(());
        }
        for segment in segment_of(synced)..=segment_of(end - 1) {
            match self.file(segment, false) {
                Ok(file) => file.sync_data()?,
                // Nothing is left of a segment whose blocks are all deleted.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A commit says that everything before `end` is durable.
    pub(super) fn note_synced(&self, end: u64) {
        self.synced.store(end, Ordering::Release);
    }

    /// Whether a sync failed since the store was opened.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Takes away what a failed commit wrote from `end` on, as far as it can.
    pub(super) fn cut(&self, end: u64) {
        let cut = |segment: u64, len: u64| match self.file(segment, false) {
            Ok(file) if file.metadata().is_ok_and(|meta| meta.len() > len) => file.set_len(len),
            _ => Ok(()),
        };
        for (segment, len) in [(segment_of(end), end % SEGMENT_LEN), (segment_of(end) + 1, 0)] {
            if let Err(error) = cut(segment, len) {
                tracing::debug!(%error, segment, "what a failed commit wrote stays until it is overwritten");
            }
        }
    }

    /// Gives the space of addresses back to the file system, all in one segment.
    pub(super) fn punch(&self, range: Range<u64>) -> Result<()> {
        let file = match self.file(segment_of(range.start), false) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&*file, flags, range.start % SEGMENT_LEN, range.end - range.start) {
            Ok(()) => Ok(()),
            // Some file systems have no holes: their space comes back with the whole segment.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a segment in which no block is left.
    pub(super) fn delete(&self, segment: u64) -> Result<()> {
        self.files.lock().pop(&segment);
        match std::fs::remove_file(self.path(segment)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Bytes that a segment takes on the disk.
    pub(super) fn disk_bytes(&self, segment: u64) -> Result<u64> {
        match self.file(segment, false) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            file => Ok(file?.metadata()?.blocks() * 512),
        }
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.dir.join(format!("{segment:08x}"))
    }

    fn file(&self, segment: u64, create: bool) -> Result<Arc<File>> {
        if let Some(file) = self.files.lock().get(&segment) {
            return Ok(file.clone());
        }
        let path = self.path(segment);
        let file = match open(&path, false) {
            Err(error) if error.kind() == ErrorKind::NotFound && create => {
                let file = open(&path, true)?;
                self.created.store(true, Ordering::Release);
                file
            }
            other => other?,
        };
        let file = Arc::new(file);
        self.files.lock().put(segment, file.clone());
        Ok(file)
    }
}

fn open(path: &Path, create: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(create).mode(0o600);
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(Error::other(format!("{} is not a file", path.display())))
    }
}

/// What one commit appends: places are given at once, bytes are written together before the commit.
#[derive(Debug)]
pub(super) struct Appender {
    end: u64,
    blocks: Vec<(u64, Bytes)>,
}

impl Appender {
    /// Goes on at address `end`.
    pub(super) fn new(end: u64) -> Self {
        Self {
            end,
            blocks: Vec::new(),
        }
    }

    /// The address at which the block will be.
    pub(super) fn place(&mut self, bytes: &Bytes) -> u64 {
        let space = padded(bytes.len() as u64);
        let left = addresses(segment_of(self.end)).end - self.end;
        let at = if space <= left { self.end } else { self.end + left };
        self.end = at + space;
        self.blocks.push((at, bytes.clone()));
        at
    }

    /// Where the next block would begin.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The blocks, in ascending order of address.
    pub(super) fn blocks(&self) -> &[(u64, Bytes)] {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::block;

    fn append(segments: &Segments, blocks: &[Bytes]) -> Vec<u64> {
        let mut appender = Appender::new(segments.end());
        let places = blocks.iter().map(|bytes| appender.place(bytes)).collect();
        segments.write(appender.blocks()).unwrap();
        segments.advance(appender.end());
        places
    }

    #[test]
    fn blocks_come_back_from_their_addresses_also_across_segments() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path().join("blocks")).unwrap();
        segments.resume(0, SEGMENT_LEN - 3 * ALIGN);
        let blocks: Vec<Bytes> = [1, 4096, 4097, 100_000]
            .iter()
            .map(|len| block(*len as u64, *len))
            .collect();
        let places = append(&segments, &blocks);
        assert_eq!(places[0], SEGMENT_LEN - 3 * ALIGN);
        assert_eq!(places[2], SEGMENT_LEN, "no block lies in two segments");
        for (at, bytes) in places.iter().zip(&blocks) {
            assert_eq!(&segments.read(*at, bytes.len() as u64).unwrap(), bytes);
        }
        segments.sync(segments.end()).unwrap();
        let error = segments.read(5 * SEGMENT_LEN, 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error = segments.read(places[3], 200_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn many_blocks_take_several_calls() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path().join("blocks")).unwrap();
        let blocks: Vec<Bytes> = (0..SLICES_MAX as u64).map(|seed| block(seed, 10)).collect();
        let places = append(&segments, &blocks);
        for (at, bytes) in places.iter().zip(&blocks) {
            assert_eq!(&segments.read(*at, 10).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_punched_takes_no_space_and_what_is_cut_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::open(dir.path().join("blocks")).unwrap();
        let places = append(
            &segments,
            &[block(1, 1 << 20), block(2, 1 << 20), block(3, 1 << 20)],
        );
        let before = segments.disk_bytes(0).unwrap();
        segments.punch(places[1]..places[2]).unwrap();
        assert!(segments.disk_bytes(0).unwrap() + (1 << 20) <= before);
        assert_eq!(segments.read(places[1], 1 << 20).unwrap(), vec![0; 1 << 20]);
        assert_eq!(segments.read(places[2], 1 << 20).unwrap(), block(3, 1 << 20));
        segments.cut(places[2]);
        assert!(segments.read(places[2], 1).is_err());
        segments.delete(0).unwrap();
        assert_eq!(segments.disk_bytes(0).unwrap(), 0);
    }
}
