//! A bounded pool of connections that read; each is used by one thread at a time and keeps its prepared statements.
//!
//! Invariant: no read holds its transaction beyond one statement, so the log can always start again from its beginning.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::failure::Failure;
use super::schema;
use crate::store::StoreError;

/// Most reader connections. More threads than this wait for each other; the disk is the limit long before.
const READERS_MAX: usize = 8;

/// Longest wait for a reader. Reads take milliseconds: whoever waits this long has a disk that does not answer.
const READER_WAIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Pool {
    idle: Vec<Connection>,
    open: usize,
    closed: bool,
}

/// The pool.
#[derive(Debug)]
pub(super) struct Readers {
    failure: Failure,
    pool: Mutex<Pool>,
    returned: Condvar,
}

impl Readers {
    /// An empty pool; connections are opened as they are needed.
    pub(super) fn new(failure: Failure) -> Self {
        Self {
            failure,
            pool: Mutex::new(Pool {
                idle: Vec::new(),
                open: 0,
                closed: false,
            }),
            returned: Condvar::new(),
        }
    }

    /// Runs `read` with a connection.
    pub(super) fn with<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let conn = self.take()?;
        let result = read(&conn);
        let mut pool = self.pool.lock();
        if pool.closed {
            pool.open -= 1;
        } else {
            pool.idle.push(conn);
        }
        drop(pool);
        self.returned.notify_one();
        result
    }

    /// Lets no one read any more, and waits a while for those who do.
    pub(super) fn close(&self) {
        let deadline = Instant::now() + READER_WAIT;
        let mut pool = self.pool.lock();
        pool.closed = true;
        pool.open -= pool.idle.len();
        pool.idle.clear();
        self.returned.notify_all();
        while pool.open > 0 && !self.returned.wait_until(&mut pool, deadline).timed_out() {}
    }

    fn take(&self) -> Result<Connection, StoreError> {
        let deadline = Instant::now() + READER_WAIT;
        let mut pool = self.pool.lock();
        loop {
            if pool.closed {
                return Err(StoreError::Closed);
            }
            if let Some(conn) = pool.idle.pop() {
                return Ok(conn);
            }
            if pool.open < READERS_MAX {
                pool.open += 1;
                break;
            }
            if self.returned.wait_until(&mut pool, deadline).timed_out() {
                return Err(StoreError::Io(format!(
                    "{}: the disk did not answer for {} s",
                    self.failure.path().display(),
                    READER_WAIT.as_secs()
                )));
            }
        }
        drop(pool);
        schema::open_reader(&self.failure).inspect_err(|_| {
            self.pool.lock().open -= 1;
            self.returned.notify_one();
        })
    }
}
