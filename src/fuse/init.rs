//! What is agreed with the kernel when a session begins. Each capability is here with its reason; what is not listed is not wanted.
//! Called by `adapter::init`.

use fuser::{InitFlags, KernelConfig};

use super::pool::WAITING_MAX;

/// Largest write request, in bytes: what the kernel allows (256 pages).
const MAX_WRITE: u32 = 1 << 20;
/// Requests that the kernel may have under way on its own account (read-ahead, direct I/O); it keeps further ones back, for whatever file
/// they are. More than may wait for other computers, so that reading of local files is not kept back behind those.
const MAX_BACKGROUND: u16 = 2 * WAITING_MAX as u16;

/// Not asked for, on purpose: `POSIX_LOCKS`, `FLOCK_LOCKS` (the kernel keeps locks, one host is all there is), `EXPORT_SUPPORT`
/// (a forgotten inode cannot be found by its number), `ATOMIC_O_TRUNC` (a running program would be cut before the kernel finds that it must
/// not be), `SETXATTR_EXT` (fuser 0.18 cannot decode it), `NO_OPEN_SUPPORT` (opening matters).
const WANTED: [InitFlags; 11] = [
    // Reads of one file may overtake each other.
    InitFlags::FUSE_ASYNC_READ,
    // Direct I/O is split and sent at once.
    InitFlags::FUSE_ASYNC_DIO,
    // Writes of more than a page; more pages than 32 in a request.
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    // Lookups and listings in one directory at once.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // Listings bring attributes when they are asked for.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    // Cached pages are dropped when time or size say that the file was changed from outside.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    // The targets of symbolic links are cached with their inode.
    InitFlags::FUSE_CACHE_SYMLINKS,
    // Access control lists are enforced; the volume applies the umask, because a default list replaces it.
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DONT_MASK,
];

/// Without this the kernel asks for `security.capability` before every single write. The adapter clears set-id bits in return.
const KILLPRIV: InitFlags = InitFlags::FUSE_HANDLE_KILLPRIV_V2;

/// What was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Agreed {
    /// The kernel leaves it to us to clear set-id bits.
    pub(super) killpriv: bool,
    /// The kernel collects writes: it reads through handles that were opened for writing only, and places appended data itself.
    pub(super) writeback: bool,
}

pub(super) fn negotiate(config: &mut KernelConfig, writeback: bool) -> Agreed {
    let optional = if writeback {
        InitFlags::FUSE_WRITEBACK_CACHE
    } else {
        InitFlags::empty()
    };
    let wanted = WANTED
        .into_iter()
        .fold(KILLPRIV | optional, |all, flag| all | flag);
    let agreed = config.capabilities() & wanted;
    // Each of these can only answer that a value is out of range, and says which is not; none of ours is on a current kernel.
    if let Err(missing) = config.add_capabilities(agreed) {
        tracing::debug!(?missing, "capabilities refused");
    }
    if let Err(nearest) = config.set_max_write(MAX_WRITE) {
        tracing::debug!(nearest, "write size refused");
    }
    if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
        tracing::debug!(nearest, "background requests refused");
    }
    tracing::debug!(capabilities = ?agreed, not_offered = ?(wanted & !agreed), "agreed with the kernel");
    Agreed {
        killpriv: agreed.contains(KILLPRIV),
        writeback: agreed.contains(InitFlags::FUSE_WRITEBACK_CACHE),
    }
}
