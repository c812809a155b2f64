//! The task that decides who is asked for what: it feeds `fetch` with what happens and carries its actions out.
//!
//! Invariant: every `FetchDone` and every `Done` that reaches this task is called exactly once, also when the node shuts down.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::base::{BlockId, DeviceId, RootId};
use crate::keys::Role;
use crate::keys::invitation::InvitationId;
use crate::store::{FetchDone, FetchError, Want};

use super::client::{Ask, Reply};
use super::fetch::Engine;
use super::fetch_events::{Action, Event, LinkId};
use super::find::{FAN, Find};
use super::local::Command;
use super::partner::{Done, Partner};
use super::work::Work;

/// Events that wait for the exchange.
pub(super) const EVENTS: usize = 8192;
/// Events that are taken together, so that what is asked of a peer about several blocks is asked in one frame.
const TOGETHER: usize = 256;
/// Answers to searches that wait for a connection.
const FOUND_MAX: usize = 64;

/// What the exchange hears.
pub(super) enum ToExchange {
    /// Fetch a block.
    Want {
        /// The block.
        want: Want,
        /// Who has it by what it said under a lease.
        holders: Vec<DeviceId>,
        /// By when.
        deadline: Instant,
        /// Who wants it.
        done: FetchDone,
    },
    /// Somebody waits for a block that was wanted ahead.
    Hurry(BlockId),
    /// Place a block on a device.
    Put {
        /// The device.
        device: DeviceId,
        /// The block's id.
        id: BlockId,
        /// The block.
        block: Bytes,
        /// By when.
        deadline: Instant,
        /// Who wants to know.
        done: Done,
    },
    /// Bring a message to a device.
    Say {
        /// The device.
        device: DeviceId,
        /// The message.
        body: Bytes,
        /// By when the answer is to be there.
        deadline: Instant,
        /// Who wants to know.
        done: Done,
    },
    /// Tell this one who is reachable, now and from now on.
    Partner(Arc<dyn Partner>),
    /// A stream to a member is ready.
    LinkUp {
        /// The stream.
        link: LinkId,
        /// The member.
        device: DeviceId,
        /// Its role.
        role: Role,
        /// Requests that may be open.
        capacity: usize,
        /// Where its requests go.
        asks: mpsc::Sender<Ask>,
    },
    /// Tell these members that this device has files.
    Provide {
        /// The members.
        devices: Vec<DeviceId>,
        /// The files' roots.
        roots: Vec<[u8; 32]>,
    },
    /// Pass a search on, but not to these.
    Find {
        /// The search.
        find: Box<Find>,
        /// Who wants the blocks, and who passed it on.
        except: Vec<DeviceId>,
    },
    /// Tell a member, as soon as it is connected, that this device has blocks that it searches for.
    Found {
        /// The member.
        device: DeviceId,
        /// Its search.
        search: [u8; 16],
        /// The blocks.
        ids: Vec<BlockId>,
    },
    /// This member has blocks that this device searches for.
    Told(DeviceId, Vec<BlockId>),
    /// How many members are not connected.
    Absent(usize),
    /// A stream ended.
    LinkDown(LinkId),
    /// A peer answered.
    Reply(LinkId, Reply),
    /// The DHT has answered.
    LookedUp(RootId),
    /// How many members are known or being dialled but not connected.
    Prospects(usize),
    /// Tell the connected admins that an invitation was used.
    Spent {
        /// The invitation.
        invitation: InvitationId,
        /// Its expiry date.
        expires: u64,
        /// The device it admitted.
        device: [u8; 32],
    },
    /// End.
    Shutdown,
}

/// To whom, about which search, and the blocks.
type Answer = (DeviceId, [u8; 16], Vec<BlockId>);

struct Link {
    device: DeviceId,
    role: Role,
    asks: mpsc::Sender<Ask>,
}

/// A PUT or a message on its way.
struct Errand {
    link: LinkId,
    deadline: Instant,
    done: Done,
}

/// The task's state.
pub(super) struct Exchange {
    engine: Engine,
    links: BTreeMap<LinkId, Link>,
    waiters: HashMap<u64, FetchDone>,
    errands: HashMap<u64, Errand>,
    partner: Option<Arc<dyn Partner>>,
    next: u64,
    /// What members are to be told when they are connected.
    found: VecDeque<Answer>,
    /// What the engine has not heard yet.
    heard: Vec<Event>,
    work: Arc<Work>,
    actor: mpsc::Sender<Command>,
    /// What an admin tells other admins when they connect.
    ledger: Option<Arc<super::admit::Desk>>,
}

impl Exchange {
    /// A new exchange.
    pub(super) fn new(
        actor: mpsc::Sender<Command>,
        ledger: Option<Arc<super::admit::Desk>>,
        work: Arc<Work>,
    ) -> Self {
        Self {
            engine: Engine::default(),
            links: BTreeMap::new(),
            waiters: HashMap::new(),
            errands: HashMap::new(),
            partner: None,
            next: 1,
            found: VecDeque::new(),
            heard: Vec::new(),
            work,
            actor,
            ledger,
        }
    }

    /// Runs until `Shutdown` or until nobody can send any more.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<ToExchange>) {
        loop {
            let puts = self.errands.values().map(|p| p.deadline).min();
            let wakeup = self.engine.wakeup().into_iter().chain(puts).min();
            let sleep = async {
                match wakeup {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = sleep => {
                    self.expire_errands();
                    self.settle();
                    continue;
                }
            };
            let mut next = event;
            for _ in 0..TOGETHER {
                match next {
                    None | Some(ToExchange::Shutdown) => return self.close(events),
                    Some(event) => self.take(event),
                }
                match events.try_recv() {
                    Ok(event) => next = Some(event),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.close(events),
                }
            }
            self.settle();
        }
    }

    fn take(&mut self, event: ToExchange) {
        match event {
            ToExchange::Want {
                want,
                holders,
                deadline,
                done,
            } => {
                let waiter = self.number();
                self.waiters.insert(waiter, done);
                self.heard.push(Event::Want {
                    waiter,
                    want,
                    holders,
                    deadline,
                });
            }
            ToExchange::Hurry(id) => self.heard.push(Event::Hurry(id)),
            ToExchange::Put {
                device,
                id,
                block,
                deadline,
                done,
            } => self.send(device, deadline, done, |token| Ask::Put { token, id, block }),
            ToExchange::Say {
                device,
                body,
                deadline,
                done,
            } => self.send(device, deadline, done, |token| Ask::Say { token, body }),
            ToExchange::Partner(partner) => {
                let devices: BTreeSet<DeviceId> = self.links.values().map(|link| link.device).collect();
                for device in devices {
                    partner.reachable(device, true);
                }
                self.partner = Some(partner);
            }
            ToExchange::LinkUp {
                link,
                device,
                role,
                capacity,
                asks,
            } => {
                if role == Role::Admin
                    && let Some(desk) = &self.ledger
                {
                    for ask in desk.spent() {
                        let _ = asks.try_send(ask);
                    }
                }
                if !self.is_linked(&device)
                    && let Some(partner) = &self.partner
                {
                    partner.reachable(device, true);
                }
                let (found, others) = std::mem::take(&mut self.found)
                    .into_iter()
                    .partition(|(to, ..)| *to == device);
                self.found = others;
                for (_, search, ids) in Vec::from_iter::<VecDeque<Answer>>(found) {
                    let _ = asks.try_send(Ask::Found(search, ids));
                }
                self.links.insert(link, Link { device, role, asks });
                self.heard.push(Event::LinkUp {
                    link,
                    device,
                    capacity,
                });
            }
            ToExchange::LinkDown(link) => {
                self.unlink(link);
                let lost: Vec<u64> = self
                    .errands
                    .iter()
                    .filter(|(_, p)| p.link == link)
                    .map(|(token, _)| *token)
                    .collect();
                for token in lost {
                    self.done(token, Err("the connection was lost".into()));
                }
                self.heard.push(Event::LinkDown(link));
            }
            ToExchange::Reply(_, Reply::Done(token, body)) => self.done(token, Ok(body)),
            ToExchange::Reply(_, Reply::NotDone(token, why)) => self.done(token, Err(why)),
            ToExchange::Reply(link, reply) => self.heard.push(Event::Reply(link, reply)),
            ToExchange::LookedUp(root) => self.heard.push(Event::LookedUp(root)),
            ToExchange::Prospects(count) => self.heard.push(Event::Prospects(count)),
            ToExchange::Find { find, except } => {
                let mut told: BTreeSet<DeviceId> = except.into_iter().collect();
                let mut left = FAN;
                for link in self.links.values() {
                    if left > 0 && told.insert(link.device) {
                        left -= 1;
                        let _ = link.asks.try_send(Ask::Find(find.clone()));
                    }
                }
            }
            ToExchange::Found { device, search, ids } => {
                let link = self.links.values().find(|l| l.device == device);
                match link {
                    Some(link) => drop(link.asks.try_send(Ask::Found(search, ids))),
                    None => {
                        // Of those that never come, the oldest are forgotten.
                        self.found.truncate(FOUND_MAX - 1);
                        self.found.push_front((device, search, ids));
                    }
                }
            }
            ToExchange::Told(device, ids) => self.heard.push(Event::Found(device, ids)),
            ToExchange::Absent(count) => self.heard.push(Event::Absent(count)),
            ToExchange::Provide { devices, roots } => {
                for device in devices {
                    if let Some(link) = self.links.values().find(|l| l.device == device) {
                        let _ = link.asks.try_send(Ask::Provide(roots.clone()));
                    }
                }
            }
            ToExchange::Spent {
                invitation,
                expires,
                device,
            } => {
                for link in self.links.values().filter(|l| l.role == Role::Admin) {
                    let _ = link.asks.try_send(Ask::Spent {
                        invitation,
                        expires,
                        device,
                    });
                }
            }
            ToExchange::Shutdown => {}
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Tells the engine what was heard, and carries out what it says.
    fn settle(&mut self) {
        let mut events = std::mem::take(&mut self.heard);
        loop {
            for action in self.engine.handle_all(events.drain(..), Instant::now()) {
                match action {
                    Action::Send(link, ask) => {
                        match &ask {
                            Ask::Get(_) => self.work.get(),
                            Ask::Have(_) => self.work.have(),
                            Ask::Cancel(_) => self.work.cancel(),
                            _ => {}
                        }
                        let sent = self
                            .links
                            .get(&link)
                            .is_some_and(|l| l.asks.try_send(ask).is_ok());
                        if !sent {
                            // Its task ended, or does not keep up: forget the stream, which ends it.
                            self.unlink(link);
                            events.push(Event::LinkDown(link));
                        }
                    }
                    Action::Done(waiter, result) => {
                        if let Some(done) = self.waiters.remove(&waiter) {
                            done(result);
                        }
                    }
                    Action::Lookup(root) => {
                        if self.actor.try_send(Command::Lookup(root)).is_err() {
                            events.push(Event::LookedUp(root));
                        }
                    }
                    Action::Find(ids) => {
                        self.work.find();
                        let _ = self.actor.try_send(Command::Find(ids));
                    }
                    Action::Banned(device, id) => tracing::warn!(
                        device = %device.short(),
                        "sent wrong bytes for block {id}; it is not asked again for a while"
                    ),
                }
            }
            if events.is_empty() {
                return;
            }
        }
    }

    fn is_linked(&self, device: &DeviceId) -> bool {
        self.links.values().any(|link| link.device == *device)
    }

    /// Forgets a stream, and tells the partner when it was the last one to its device.
    fn unlink(&mut self, link: LinkId) {
        if let Some(link) = self.links.remove(&link)
            && !self.is_linked(&link.device)
            && let Some(partner) = &self.partner
        {
            partner.reachable(link.device, false);
        }
    }

    fn send(&mut self, device: DeviceId, deadline: Instant, done: Done, ask: impl FnOnce(u64) -> Ask) {
        let token = self.number();
        let Some((link, state)) = self.links.iter().find(|(_, l)| l.device == device) else {
            done(Err(format!("device {} is not connected", device.short())));
            return;
        };
        if state.asks.try_send(ask(token)).is_err() {
            done(Err(format!("device {} does not keep up", device.short())));
            return;
        }
        let errand = Errand {
            link: *link,
            deadline,
            done,
        };
        self.errands.insert(token, errand);
    }

    fn done(&mut self, token: u64, result: Result<Bytes, String>) {
        if let Some(errand) = self.errands.remove(&token) {
            (errand.done)(result);
        }
    }

    fn expire_errands(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .errands
            .iter()
            .filter(|(_, p)| p.deadline <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.done(token, Err("no answer in time".into()));
        }
    }

    fn close(mut self, mut events: mpsc::Receiver<ToExchange>) {
        events.close();
        while let Ok(event) = events.try_recv() {
            match event {
                ToExchange::Want { done, .. } => done(Err(FetchError::Closed)),
                ToExchange::Put { done, .. } | ToExchange::Say { done, .. } => {
                    done(Err("shutting down".into()))
                }
                _ => {}
            }
        }
        for (_, done) in self.waiters.drain() {
            done(Err(FetchError::Closed));
        }
        for (_, errand) in self.errands.drain() {
            (errand.done)(Err("shutting down".into()));
        }
    }
}
