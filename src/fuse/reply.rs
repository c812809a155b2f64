//! Answers with an error, whatever the kind of answer, so that `adapter` says it in one line.

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::errno::errno;
use crate::volume::VolumeError;

/// An answer that may be an error.
pub(super) trait Answer: Sized + Send + 'static {
    fn fail(self, errno: Errno);
}

macro_rules! answers {
    ($($reply:ty),* $(,)?) => {
        $(impl Answer for $reply {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

answers!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

/// Gives `reply` to `done` with the value, or answers with the error's number.
pub(super) fn answer<T, R: Answer>(
    operation: &'static str,
    reply: R,
    result: Result<T, VolumeError>,
    done: impl FnOnce(R, T),
) {
    match result {
        Ok(value) => done(reply, value),
        Err(error) => reply.fail(errno(operation, &error)),
    }
}
