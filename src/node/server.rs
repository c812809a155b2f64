//! The answering side of one block stream, as a state machine without I/O: it takes frames and finished loads, and says what to load,
//! to store and to send.
//!
//! Invariant: at most [`REQUESTS_MAX`] requests are open and at most [`LOAD_AHEAD`] blocks are in memory for one stream, whatever the
//! peer asks for; no block is sent without credit; every request gets one answer. Carried out by `serve`.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::base::BlockId;
use crate::base::limits::BLOCK_MAX;
use crate::keys::Role;
use crate::keys::invitation::InvitationId;

use super::client::Violation;
use super::find::Find;
use super::frame::{Code, Frame};
use super::head_news::HeadNews;

/// Requests that a peer may have open on one stream; more are answered BUSY.
pub(super) const REQUESTS_MAX: u16 = 128;
/// Blocks loaded or being loaded for one stream before the earlier ones are written to it. Few, so that a block is still in the
/// processor's cache when it is encrypted.
const LOAD_AHEAD: usize = 8;
/// When no more than this many are left, the next are loaded, several at a time.
const LOAD_AGAIN: usize = LOAD_AHEAD / 2;
/// When a peer may ask again after BUSY, in milliseconds.
const RETRY_MS: u32 = 200;
/// Bytes of blocks a peer may PUT before it needs more credit.
pub(super) const PUT_WINDOW: u32 = 8 << 20;

/// What `serve` has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Read these blocks and call [`Server::loaded`] for each.
    Load(Vec<(u32, BlockId)>),
    /// Look which blocks are here and call [`Server::looked`].
    Look(u32, Vec<BlockId>),
    /// Check and store a block, then call [`Server::stored`].
    Store(u32, BlockId, Bytes),
    /// Hand a message to our replication, then call [`Server::said`].
    Hear(u32, Bytes),
    /// An admin says that an invitation was used.
    Spent {
        /// The invitation.
        invitation: InvitationId,
        /// Its expiry date.
        expires: u64,
        /// The device it admitted.
        device: [u8; 32],
    },
    /// The peer has these files.
    Provided(Vec<[u8; 32]>),
    /// Somebody searches for blocks.
    Find(Box<Find>),
    /// The peer has blocks that this device may be searching for.
    Found([u8; 16], Vec<BlockId>),
    /// The peer tells of the group: its roster, statements, its presence, heads, or that it lacks keys.
    News(Frame),
    /// Send a frame; after a block, call [`Server::written`].
    Send(Frame),
}

/// What came of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loaded {
    /// The block.
    Block(Bytes),
    /// Not here, or damaged.
    Missing,
    /// The store failed.
    Failed(String),
}

enum Open {
    /// Waits for a load to begin.
    Queued(BlockId),
    /// Is being loaded; whether it was cancelled meanwhile.
    Loading(bool),
    /// Is loaded and waits for credit.
    Ready(Bytes),
    /// HAVE, SAY or PUT under way; `usize` bytes of PUT to give credit for.
    Other(u32),
}

/// State of the answering side of a stream.
pub(super) struct Server {
    role: Role,
    credit: u64,
    put_credit: u64,
    open: HashMap<u32, Open>,
    /// GETs in the order in which they came, not yet loading.
    queue: VecDeque<u32>,
    /// GETs in the order in which they were loaded, not yet sent.
    ready: VecDeque<u32>,
    in_memory: usize,
}

impl Server {
    /// The state after a handshake with a peer of this role that granted `credit` bytes and was granted `put_credit`.
    pub(super) fn new(role: Role, credit: u32, put_credit: u32) -> Self {
        Self {
            role,
            credit: u64::from(credit),
            put_credit: u64::from(put_credit),
            open: HashMap::new(),
            queue: VecDeque::new(),
            ready: VecDeque::new(),
            in_memory: 0,
        }
    }

    /// Takes a frame from the peer.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<Vec<Work>, Violation> {
        match frame {
            Frame::Get { request, id } => {
                if let Some(busy) = self.admit(request)? {
                    return Ok(vec![busy]);
                }
                self.open.insert(request, Open::Queued(id));
                self.queue.push_back(request);
                Ok(self.progress())
            }
            Frame::Have { request, ids } => {
                if let Some(busy) = self.admit(request)? {
                    return Ok(vec![busy]);
                }
                self.open.insert(request, Open::Other(0));
                Ok(vec![Work::Look(request, ids)])
            }
            Frame::Put { request, id, block } => self.put(request, id, block),
            Frame::Say { request, body } => {
                if let Some(busy) = self.admit(request)? {
                    return Ok(vec![busy]);
                }
                self.open.insert(request, Open::Other(0));
                Ok(vec![Work::Hear(request, body)])
            }
            Frame::Cancel { request } => {
                match self.open.get_mut(&request) {
                    Some(Open::Queued(_)) => self.queue.retain(|r| *r != request),
                    Some(Open::Ready(_)) => {
                        self.ready.retain(|r| *r != request);
                        self.in_memory -= 1;
                    }
                    Some(Open::Loading(cancelled)) => {
                        *cancelled = true;
                        return Ok(Vec::new());
                    }
                    // Crossed with its answer, or not cancellable.
                    Some(Open::Other(_)) | None => return Ok(Vec::new()),
                }
                self.open.remove(&request);
                let mut work = vec![Work::Send(Frame::Cancel { request })];
                work.extend(self.progress());
                Ok(work)
            }
            Frame::Credit { bytes } => {
                self.credit = self.credit.saturating_add(u64::from(bytes));
                Ok(self.progress())
            }
            Frame::Spent {
                invitation,
                expires,
                device,
            } => {
                if self.role < Role::Admin {
                    return Err(Violation("SPENT from a device that is no admin"));
                }
                Ok(vec![Work::Spent {
                    invitation,
                    expires,
                    device,
                }])
            }
            Frame::Find(find) => Ok(vec![Work::Find(find)]),
            Frame::Found { search, ids } => Ok(vec![Work::Found(search, ids)]),
            Frame::Provide { roots } => Ok(vec![Work::Provided(roots)]),
            Frame::Roster { .. }
            | Frame::Statements { .. }
            | Frame::Presence { .. }
            | Frame::KeysWanted { .. }
            | Frame::Heads(HeadNews::Digest(_) | HeadNews::Newer(_)) => Ok(vec![Work::News(frame)]),
            _ => Err(Violation("an answer on the asking side of a stream")),
        }
    }

    /// Takes the result of [`Work::Load`].
    pub(super) fn loaded(&mut self, request: u32, result: Loaded) -> Vec<Work> {
        let Some(Open::Loading(cancelled)) = self.open.get(&request) else {
            return Vec::new();
        };
        let answer = match (*cancelled, result) {
            (true, _) => Frame::Cancel { request },
            (false, Loaded::Block(block)) => {
                self.open.insert(request, Open::Ready(block));
                self.ready.push_back(request);
                return self.progress();
            }
            (false, Loaded::Missing) => Frame::Missing { request },
            (false, Loaded::Failed(text)) => Frame::Error {
                request,
                code: Code::StoreFailed,
                text,
            },
        };
        self.open.remove(&request);
        self.in_memory -= 1;
        let mut work = vec![Work::Send(answer)];
        work.extend(self.progress());
        work
    }

    /// Takes note that a block which was to be sent is written.
    pub(super) fn written(&mut self) -> Vec<Work> {
        self.in_memory -= 1;
        self.progress()
    }

    /// Takes the result of [`Work::Look`].
    pub(super) fn looked(&mut self, request: u32, held: Vec<bool>) -> Vec<Work> {
        self.open.remove(&request);
        vec![Work::Send(Frame::Held { request, held })]
    }

    /// Takes the result of [`Work::Hear`]: the answer, or why there is none.
    pub(super) fn said(&mut self, request: u32, result: Result<Vec<u8>, String>) -> Vec<Work> {
        self.open.remove(&request);
        vec![Work::Send(match result {
            Ok(body) => Frame::Said {
                request,
                body: body.into(),
            },
            Err(text) => Frame::Error {
                request,
                code: Code::NotAllowed,
                text,
            },
        })]
    }

    /// Takes the result of [`Work::Store`].
    pub(super) fn stored(&mut self, request: u32, result: Result<(), String>) -> Vec<Work> {
        let mut work = Vec::new();
        if let Some(Open::Other(bytes)) = self.open.remove(&request) {
            self.put_credit += u64::from(bytes);
            work.push(Work::Send(Frame::Credit { bytes }));
        }
        work.push(Work::Send(match result {
            Ok(()) => Frame::Stored { request },
            Err(text) => Frame::Error {
                request,
                code: Code::StoreFailed,
                text,
            },
        }));
        work
    }

    fn put(&mut self, request: u32, id: BlockId, block: Bytes) -> Result<Vec<Work>, Violation> {
        let len = block.len() as u32;
        self.put_credit = self
            .put_credit
            .checked_sub(u64::from(len))
            .ok_or(Violation("more was put than credit was granted"))?;
        let refused = if !self.role.places_blocks() {
            Some(Frame::Error {
                request,
                code: Code::NotAllowed,
                text: format!("a {} may not place blocks", self.role),
            })
        } else {
            match self.admit(request)? {
                Some(Work::Send(busy)) => Some(busy),
                _ => None,
            }
        };
        if let Some(answer) = refused {
            self.put_credit += u64::from(len);
            return Ok(vec![Work::Send(Frame::Credit { bytes: len }), Work::Send(answer)]);
        }
        if block.len() > BLOCK_MAX {
            return Err(Violation("a block longer than any block"));
        }
        self.open.insert(request, Open::Other(len));
        Ok(vec![Work::Store(request, id, block)])
    }

    /// Whether a new request may be opened; the BUSY to send if not.
    fn admit(&self, request: u32) -> Result<Option<Work>, Violation> {
        if request == 0 || self.open.contains_key(&request) {
            return Err(Violation("a request id that is in use"));
        }
        Ok(
            (self.open.len() >= usize::from(REQUESTS_MAX)).then_some(Work::Send(Frame::Busy {
                request,
                retry_ms: RETRY_MS,
            })),
        )
    }

    /// Sends what credit allows, then loads what memory allows.
    fn progress(&mut self) -> Vec<Work> {
        let mut work = Vec::new();
        while let Some(request) = self.ready.front().copied() {
            let Some(Open::Ready(block)) = self.open.get(&request) else {
                self.ready.pop_front();
                continue;
            };
            let len = block.len() as u64;
            if len > self.credit {
                break;
            }
            self.credit -= len;
            self.ready.pop_front();
            if let Some(Open::Ready(block)) = self.open.remove(&request) {
                work.push(Work::Send(Frame::Data { request, block }));
            }
        }
        if self.in_memory > LOAD_AGAIN {
            return work;
        }
        let mut loads = Vec::new();
        while self.in_memory < LOAD_AHEAD {
            let Some(request) = self.queue.pop_front() else {
                break;
            };
            if let Some(Open::Queued(id)) = self.open.get(&request) {
                loads.push((request, *id));
                self.open.insert(request, Open::Loading(false));
                self.in_memory += 1;
            }
        }
        if !loads.is_empty() {
            work.push(Work::Load(loads));
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: BlockId = BlockId([1; 32]);

    fn get(request: u32) -> Frame {
        Frame::Get { request, id: ID }
    }

    #[test]
    fn blocks_wait_for_credit_and_only_a_few_are_in_memory() {
        let mut server = Server::new(Role::Reader, 10, PUT_WINDOW);
        let mut loads = 0;
        for request in 1..=20 {
            loads += server.receive(get(request)).unwrap().len();
        }
        assert_eq!(loads, LOAD_AGAIN + 1);
        let block = Bytes::from(vec![0; 10]);
        let work = server.loaded(1, Loaded::Block(block.clone()));
        assert_eq!(
            work[0],
            Work::Send(Frame::Data {
                request: 1,
                block: block.clone()
            })
        );
        assert_eq!(work.len(), 1, "it is not written yet");
        let next: Vec<_> = (6..=9).map(|request| (request, ID)).collect();
        assert_eq!(server.written(), [Work::Load(next)]);
        assert_eq!(
            server.loaded(2, Loaded::Block(block)),
            vec![],
            "no credit is left"
        );
        let work = server.receive(Frame::Credit { bytes: 10 }).unwrap();
        assert!(matches!(work[0], Work::Send(Frame::Data { request: 2, .. })));
    }

    #[test]
    fn too_many_requests_are_busy() {
        let mut server = Server::new(Role::Reader, 0, PUT_WINDOW);
        for request in 1..=u32::from(REQUESTS_MAX) {
            server.receive(get(request)).unwrap();
        }
        assert!(matches!(
            server.receive(get(1000)).unwrap()[..],
            [Work::Send(Frame::Busy { request: 1000, .. })]
        ));
        assert!(server.receive(get(1)).is_err(), "an id in use");
        assert!(server.receive(get(0)).is_err());
    }

    #[test]
    fn roles_are_enforced() {
        for (role, allowed) in [
            (Role::Host, false),
            (Role::Guest, true),
            (Role::Reader, false),
            (Role::Writer, true),
            (Role::Admin, true),
        ] {
            let mut server = Server::new(role, 0, PUT_WINDOW);
            let put = Frame::Put {
                request: 1,
                id: ID,
                block: Bytes::from_static(b"x"),
            };
            let work = server.receive(put).unwrap();
            assert_eq!(
                work.iter().any(|w| matches!(w, Work::Store(..))),
                allowed,
                "{role}"
            );
            let spent = Frame::Spent {
                invitation: InvitationId([0; 16]),
                expires: 0,
                device: [0; 32],
            };
            assert_eq!(server.receive(spent).is_ok(), role == Role::Admin);
        }
    }

    #[test]
    fn putting_beyond_the_credit_is_a_violation() {
        let mut server = Server::new(Role::Writer, 0, PUT_WINDOW);
        let block = Bytes::from(vec![0; 1 << 20]);
        let put = |request| Frame::Put {
            request,
            id: ID,
            block: block.clone(),
        };
        for request in 1..=8 {
            server.receive(put(request)).unwrap();
        }
        assert!(server.receive(put(9)).is_err());
    }

    proptest! {
        /// Whatever a peer does, each GET is answered exactly once after all loads ended and credit came, and memory is bounded.
        #[test]
        fn every_get_is_answered_once(script in proptest::collection::vec((0u8..4, 1u32..40), 0..200)) {
            let mut server = Server::new(Role::Reader, 5, PUT_WINDOW);
            let (mut loading, mut asked, mut answered) = (Vec::new(), Vec::new(), Vec::new());
            let block = Bytes::from_static(b"abc");
            let mut todo: Vec<Work> = Vec::new();
            let mut writing = 0;
            let mut note = |work: Vec<Work>, loading: &mut Vec<u32>, writing: &mut usize| for w in work {
                *writing += usize::from(matches!(w, Work::Send(Frame::Data { .. })));
                match w {
                    Work::Load(loads) => loading.extend(loads.into_iter().map(|(r, _)| r)),
                    Work::Send(Frame::Data { request, .. } | Frame::Cancel { request } | Frame::Missing { request } | Frame::Busy { request, .. }) => answered.push(request),
                    other => todo.push(other),
                }
            };
            for (op, request) in script {
                if writing > 0 && request % 2 == 0 {
                    writing -= 1;
                    note(server.written(), &mut loading, &mut writing);
                }
                match op {
                    0 => if let Ok(work) = server.receive(get(request)) {
                        asked.push(request);
                        note(work, &mut loading, &mut writing);
                    },
                    1 => note(server.receive(Frame::Cancel { request }).unwrap(), &mut loading, &mut writing),
                    2 => if !loading.is_empty() {
                        let r = loading.remove(request as usize % loading.len());
                        let result = if request % 3 == 0 { Loaded::Missing } else { Loaded::Block(block.clone()) };
                        note(server.loaded(r, result), &mut loading, &mut writing);
                    },
                    _ => note(server.receive(Frame::Credit { bytes: request }).unwrap(), &mut loading, &mut writing),
                }
                prop_assert!(server.in_memory <= LOAD_AHEAD);
            }
            note(server.receive(Frame::Credit { bytes: u32::MAX }).unwrap(), &mut loading, &mut writing);
            loop {
                if let Some(r) = loading.pop() {
                    note(server.loaded(r, Loaded::Block(block.clone())), &mut loading, &mut writing);
                } else if writing > 0 {
                    writing -= 1;
                    note(server.written(), &mut loading, &mut writing);
                } else {
                    break;
                }
            }
            asked.sort_unstable();
            answered.sort_unstable();
            prop_assert_eq!(asked, answered);
            prop_assert!(server.open.is_empty() && server.in_memory == 0 && todo.is_empty());
        }
    }
}
