//! The asking side of one block stream, as a state machine without I/O: `ask` and `receive` return what to send and what was learnt.
//!
//! Invariant: every request gets exactly one [`Reply`], every block that leaves here hashes to the id that was asked for, and an
//! answer to something that was not asked is a [`Violation`], which costs the peer the connection. Carried out by `link`.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::base::BlockId;
use crate::keys::invitation::InvitationId;
use crate::keys::statement::StatementId;
use crate::store::CheckedBlock;

use super::find::Find;
use super::frame::{Frame, Gift};
use super::head_news::{HeadNews, Place};

/// Bytes of blocks that a peer may send here before it needs more credit: 64 average blocks.
pub(super) const WINDOW: u32 = 20 << 20;

/// The peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(pub &'static str);

/// What the rest of the node wants from the peer.
#[derive(Debug)]
pub(super) enum Ask {
    /// A block.
    Get(BlockId),
    /// Whether it has these blocks.
    Have(Vec<BlockId>),
    /// To keep a block; `token` returns in the reply.
    Put {
        /// Chosen by the asker.
        token: u64,
        /// The block's id.
        id: BlockId,
        /// The block.
        block: Bytes,
    },
    /// To answer a message of our replication; `token` returns in the reply.
    Say {
        /// Chosen by the asker.
        token: u64,
        /// The message.
        body: Bytes,
    },
    /// Not to bother about a block any more.
    Cancel(BlockId),
    /// Tells an admin that an invitation was used.
    Spent {
        /// The invitation.
        invitation: InvitationId,
        /// Its expiry date.
        expires: u64,
        /// The device it admitted.
        device: [u8; 32],
    },
    /// Shows it the digest of our roster.
    Roster([u8; 32]),
    /// Tells it statements that it lacks, encoded.
    Statements(Vec<Vec<u8>>),
    /// Shows it our own presence, encoded.
    Presence(Vec<u8>),
    /// Tells it that this device has these files.
    Provide(Vec<[u8; 32]>),
    /// Passes a search on to it.
    Find(Box<Find>),
    /// Tells it that this device has blocks that it searches for.
    Found([u8; 16], Vec<BlockId>),
    /// Wants keys beyond this epoch, and the root secret or not.
    Keys(u32, bool),
    /// Tells it of heads.
    Heads(HeadNews),
}

/// What the peer said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The block.
    Block(CheckedBlock),
    /// It sent bytes that are not the block.
    Wrong(BlockId),
    /// It does not have the block.
    Missing(BlockId),
    /// It is busy; ask again in so many milliseconds.
    Busy(BlockId, u32),
    /// It could not, and why.
    Failed(BlockId, String),
    /// Which of the blocks it has.
    Held(Vec<(BlockId, bool)>),
    /// What the errand of this token brought: nothing for a PUT, the answer to a message.
    Done(u64, Bytes),
    /// The errand of this token failed.
    NotDone(u64, String),
    /// Its roster differs from ours and has these statements.
    Known(Vec<StatementId>),
    /// It was shown this presence of ours before, which does not go with the present one.
    Seen(Vec<u8>),
    /// Keys, not checked yet.
    Keys(Gift),
    /// It knows other heads than we do, these.
    Heads(Vec<Place>),
}

enum Pending {
    Get { id: BlockId, cancelled: bool },
    Have(Vec<BlockId>),
    Put { token: u64 },
    Say { token: u64 },
}

/// State of the asking side of a stream.
pub(super) struct Client {
    next: u32,
    pending: HashMap<u32, Pending>,
    /// Bytes of blocks that may still be sent.
    credit: u64,
    /// PUTs that wait for credit.
    waiting: VecDeque<(u32, BlockId, Bytes)>,
    /// PUTs that were sent and not answered, and how many may be.
    puts: usize,
    puts_max: usize,
    /// Bytes that were granted to the peer.
    window: u32,
    /// Bytes received since credit was last granted.
    consumed: u32,
    /// How often our roster, our presence, the digest of heads were shown and keys were asked for: as often they may be answered.
    shown: u32,
    present: u32,
    keys: u32,
    heads: u32,
}

impl Client {
    /// The state after a handshake in which the peer granted `credit` bytes and so many `requests`, and was granted `window`.
    pub(super) fn new(credit: u32, requests: u16, window: u32) -> Self {
        Self {
            next: 1,
            pending: HashMap::new(),
            credit: u64::from(credit),
            waiting: VecDeque::new(),
            puts: 0,
            // The rest is for questions and messages.
            puts_max: usize::from(requests / 4).max(1),
            window,
            consumed: 0,
            shown: 0,
            present: 0,
            keys: 0,
            heads: 0,
        }
    }

    /// Takes a wish and returns the frames to send now.
    pub(super) fn ask(&mut self, ask: Ask) -> Vec<Frame> {
        match ask {
            Ask::Get(id) => {
                let request = self.register(Pending::Get { id, cancelled: false });
                vec![Frame::Get { request, id }]
            }
            Ask::Have(ids) => {
                let request = self.register(Pending::Have(ids.clone()));
                vec![Frame::Have { request, ids }]
            }
            Ask::Put { token, id, block } => {
                let request = self.register(Pending::Put { token });
                self.waiting.push_back((request, id, block));
                self.release_puts()
            }
            Ask::Say { token, body } => {
                let request = self.register(Pending::Say { token });
                vec![Frame::Say { request, body }]
            }
            Ask::Cancel(wanted) => {
                let found = self.pending.iter_mut().find_map(|(request, p)| match p {
                    Pending::Get { id, cancelled } if *id == wanted && !*cancelled => {
                        *cancelled = true;
                        Some(*request)
                    }
                    _ => None,
                });
                found
                    .map(|request| Frame::Cancel { request })
                    .into_iter()
                    .collect()
            }
            Ask::Spent {
                invitation,
                expires,
                device,
            } => vec![Frame::Spent {
                invitation,
                expires,
                device,
            }],
            Ask::Roster(digest) => {
                self.shown = self.shown.saturating_add(1);
                vec![Frame::Roster { digest }]
            }
            Ask::Find(find) => vec![Frame::Find(find)],
            Ask::Found(search, ids) => vec![Frame::Found { search, ids }],
            Ask::Provide(roots) => vec![Frame::Provide { roots }],
            Ask::Statements(statements) => vec![Frame::Statements { statements }],
            Ask::Presence(presence) => {
                self.present = self.present.saturating_add(1);
                vec![Frame::Presence { presence }]
            }
            Ask::Keys(newest, root) => {
                self.keys = self.keys.saturating_add(1);
                vec![Frame::KeysWanted { newest, root }]
            }
            Ask::Heads(news) => {
                let answered = matches!(news, HeadNews::Digest(_));
                self.heads = self.heads.saturating_add(u32::from(answered));
                vec![Frame::Heads(news)]
            }
        }
    }

    /// Takes a frame from the peer; returns what it means and the frames to send now.
    pub(super) fn receive(&mut self, frame: Frame) -> Result<(Option<Reply>, Vec<Frame>), Violation> {
        let mut send = Vec::new();
        let reply = match frame {
            Frame::Data { request, block } => {
                // Credit is given back for what is dropped too: the peer spent it.
                self.consumed = self.consumed.saturating_add(block.len() as u32);
                if self.consumed >= self.window / 4 {
                    send.push(Frame::Credit { bytes: self.consumed });
                    self.consumed = 0;
                }
                match self.get(request)? {
                    (_, true) => None,
                    (id, false) => Some(match CheckedBlock::new(id, block) {
                        Some(block) => Reply::Block(block),
                        None => Reply::Wrong(id),
                    }),
                }
            }
            Frame::Missing { request } => {
                let (id, cancelled) = self.get(request)?;
                (!cancelled).then_some(Reply::Missing(id))
            }
            Frame::Busy { request, retry_ms } => match self.take(request)? {
                Pending::Get { id, cancelled } => (!cancelled).then_some(Reply::Busy(id, retry_ms)),
                Pending::Have(ids) => Some(Reply::Held(ids.into_iter().map(|id| (id, false)).collect())),
                Pending::Put { token } => {
                    send = self.put_ended();
                    Some(Reply::NotDone(token, "the peer is busy".into()))
                }
                Pending::Say { token } => Some(Reply::NotDone(token, "the peer is busy".into())),
            },
            Frame::Error { request, text, .. } => match self.take(request)? {
                Pending::Get { id, cancelled } => (!cancelled).then_some(Reply::Failed(id, text)),
                Pending::Have(ids) => Some(Reply::Held(ids.into_iter().map(|id| (id, false)).collect())),
                Pending::Put { token } => {
                    send = self.put_ended();
                    Some(Reply::NotDone(token, text))
                }
                Pending::Say { token } => Some(Reply::NotDone(token, text)),
            },
            Frame::Held { request, held } => match self.take(request)? {
                Pending::Have(ids) if ids.len() == held.len() => {
                    Some(Reply::Held(ids.into_iter().zip(held).collect()))
                }
                _ => return Err(Violation("HELD does not fit what was asked")),
            },
            Frame::Stored { request } => match self.take(request)? {
                Pending::Put { token } => {
                    send = self.put_ended();
                    Some(Reply::Done(token, Bytes::new()))
                }
                _ => return Err(Violation("STORED for what was not put")),
            },
            Frame::Said { request, body } => match self.take(request)? {
                Pending::Say { token } => Some(Reply::Done(token, body)),
                _ => return Err(Violation("SAID to what was not said")),
            },
            Frame::Credit { bytes } => {
                self.credit = self.credit.saturating_add(u64::from(bytes));
                send = self.release_puts();
                None
            }
            Frame::Cancel { request } => {
                // The peer confirms that it forgot a cancelled request.
                match self.take(request)? {
                    Pending::Get { cancelled: true, .. } => None,
                    _ => return Err(Violation("CANCEL of what was not cancelled")),
                }
            }
            Frame::Known { ids } => {
                spend(&mut self.shown)?;
                Some(Reply::Known(ids))
            }
            Frame::Seen { presence } => {
                spend(&mut self.present)?;
                Some(Reply::Seen(presence))
            }
            Frame::Keys { gift } => {
                spend(&mut self.keys)?;
                Some(Reply::Keys(gift))
            }
            Frame::Heads(HeadNews::Known(known)) => {
                spend(&mut self.heads)?;
                Some(Reply::Heads(known))
            }
            Frame::Hello { .. }
            | Frame::Roster { .. }
            | Frame::Statements { .. }
            | Frame::Presence { .. }
            | Frame::KeysWanted { .. }
            | Frame::Have { .. }
            | Frame::Get { .. }
            | Frame::Put { .. }
            | Frame::Say { .. }
            | Frame::Provide { .. }
            | Frame::Find(_)
            | Frame::Found { .. }
            | Frame::Heads(_)
            | Frame::Spent { .. } => {
                return Err(Violation("a request on the answering side of a stream"));
            }
        };
        Ok((reply, send))
    }

    fn register(&mut self, pending: Pending) -> u32 {
        // Request 0 stands for the connection; ids still open are skipped, so wrapping around is harmless.
        while self.next == 0 || self.pending.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let request = self.next;
        self.next = self.next.wrapping_add(1);
        self.pending.insert(request, pending);
        request
    }

    fn take(&mut self, request: u32) -> Result<Pending, Violation> {
        self.pending
            .remove(&request)
            .ok_or(Violation("an answer to what was not asked"))
    }

    fn get(&mut self, request: u32) -> Result<(BlockId, bool), Violation> {
        match self.take(request)? {
            Pending::Get { id, cancelled } => Ok((id, cancelled)),
            _ => Err(Violation("an answer of the wrong kind")),
        }
    }

    fn put_ended(&mut self) -> Vec<Frame> {
        self.puts = self.puts.saturating_sub(1);
        self.release_puts()
    }

    fn release_puts(&mut self) -> Vec<Frame> {
        let mut send = Vec::new();
        while let Some((_, _, block)) = self.waiting.front() {
            let len = block.len() as u64;
            if len > self.credit || self.puts >= self.puts_max {
                break;
            }
            self.credit -= len;
            self.puts += 1;
            if let Some((request, id, block)) = self.waiting.pop_front() {
                send.push(Frame::Put { request, id, block });
            }
        }
        send
    }
}

/// Uses up one of the answers that are due.
fn spend(due: &mut u32) -> Result<(), Violation> {
    *due = due
        .checked_sub(1)
        .ok_or(Violation("an answer to what was not asked"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(client: &mut Client, id: BlockId) -> u32 {
        match client.ask(Ask::Get(id)).as_slice() {
            [Frame::Get { request, .. }] => *request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_may_come_in_any_order_and_are_checked() {
        let mut client = Client::new(0, 8, WINDOW);
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let (ia, ib) = (BlockId::of(&a), BlockId::of(&b));
        let (ra, rb) = (asked(&mut client, ia), asked(&mut client, ib));
        let data = |request, block: &Bytes| Frame::Data {
            request,
            block: block.clone(),
        };
        assert_eq!(
            client.receive(data(rb, &b)).unwrap().0,
            CheckedBlock::new(ib, b.clone()).map(Reply::Block)
        );
        assert_eq!(client.receive(data(ra, &b)).unwrap().0, Some(Reply::Wrong(ia)));
        assert!(client.receive(data(ra, &a)).is_err(), "answered twice");
    }

    #[test]
    fn a_cancelled_request_is_silent_but_still_costs_credit() {
        let mut client = Client::new(0, 8, WINDOW);
        let block = Bytes::from(vec![1; WINDOW as usize / 4]);
        let id = BlockId::of(&block);
        let request = asked(&mut client, id);
        assert_eq!(client.ask(Ask::Cancel(id)), vec![Frame::Cancel { request }]);
        assert_eq!(client.ask(Ask::Cancel(id)), vec![]);
        let (reply, send) = client.receive(Frame::Data { request, block }).unwrap();
        assert_eq!(reply, None);
        assert_eq!(send, vec![Frame::Credit { bytes: WINDOW / 4 }]);
    }

    #[test]
    fn puts_wait_for_credit_in_order() {
        let mut client = Client::new(10, 12, WINDOW);
        let put = |token, len| Ask::Put {
            token,
            id: BlockId([0; 32]),
            block: Bytes::from(vec![0; len]),
        };
        assert_eq!(client.ask(put(1, 8)).len(), 1);
        assert_eq!(client.ask(put(2, 8)).len(), 0);
        assert_eq!(client.ask(put(3, 1)).len(), 0, "no overtaking");
        assert_eq!(client.receive(Frame::Credit { bytes: 8 }).unwrap().1.len(), 2);
        // And for answers: three of twelve requests may be PUTs.
        client.receive(Frame::Credit { bytes: 100 }).unwrap();
        assert_eq!(client.ask(put(4, 8)).len(), 0);
        let (reply, send) = client.receive(Frame::Stored { request: 1 }).unwrap();
        assert_eq!((reply, send.len()), (Some(Reply::Done(1, Bytes::new())), 1));
    }

    #[test]
    fn what_was_not_asked_is_a_violation() {
        let mut client = Client::new(0, 8, WINDOW);
        let id = BlockId([0; 32]);
        assert!(client.receive(Frame::Missing { request: 1 }).is_err());
        assert!(client.receive(Frame::Get { request: 1, id }).is_err());
        assert!(client.receive(Frame::Known { ids: Vec::new() }).is_err());
        client.ask(Ask::Roster([0; 32]));
        assert!(client.receive(Frame::Known { ids: Vec::new() }).is_ok());
        assert!(
            client.receive(Frame::Known { ids: Vec::new() }).is_err(),
            "answered twice"
        );
        let request = asked(&mut client, id);
        assert!(
            client
                .receive(Frame::Held {
                    request,
                    held: vec![true]
                })
                .is_err()
        );
    }
}
