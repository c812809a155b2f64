//! The task that decides who is asked for what: it feeds `fetch` with what happens and carries its actions out.
//!
//! Invariant: every `FetchDone` and every `PutDone` that reaches this task is called exactly once, also when the node shuts down.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::base::{BlockId, DeviceId, RootId};
use crate::keys::Role;
use crate::keys::invitation::InvitationId;
use crate::store::{FetchDone, FetchError, Want};

use super::client::{Ask, Reply};
use super::fetch::{Action, Engine, Event, LinkId};
use super::local::Command;
use super::receipt::Receipt;

/// Events that wait for the exchange.
pub(super) const EVENTS: usize = 8192;

/// Called exactly once with the result of a PUT, on a thread that must not be blocked.
pub type PutDone = Box<dyn FnOnce(Result<Receipt, String>) + Send>;

/// What the exchange hears.
pub(super) enum ToExchange {
    /// Fetch a block.
    Want(Want, Instant, FetchDone),
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
        done: PutDone,
    },
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

struct Link {
    device: DeviceId,
    role: Role,
    asks: mpsc::Sender<Ask>,
}

struct Placing {
    link: LinkId,
    device: DeviceId,
    deadline: Instant,
    done: PutDone,
}

/// The task's state.
pub(super) struct Exchange {
    engine: Engine,
    links: BTreeMap<LinkId, Link>,
    waiters: HashMap<u64, FetchDone>,
    placing: HashMap<u64, Placing>,
    next: u64,
    actor: mpsc::Sender<Command>,
    /// What an admin tells other admins when they connect.
    ledger: Option<std::sync::Arc<super::admit::Desk>>,
}

impl Exchange {
    /// A new exchange.
    pub(super) fn new(
        actor: mpsc::Sender<Command>,
        ledger: Option<std::sync::Arc<super::admit::Desk>>,
    ) -> Self {
        Self {
            engine: Engine::default(),
            links: BTreeMap::new(),
            waiters: HashMap::new(),
            placing: HashMap::new(),
            next: 1,
            actor,
            ledger,
        }
    }

    /// Runs until `Shutdown` or until nobody can send any more.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<ToExchange>) {
        loop {
            let puts = self.placing.values().map(|p| p.deadline).min();
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
                    self.drive(Event::Tick);
                    self.expire_puts();
                    continue;
                }
            };
            match event {
                None | Some(ToExchange::Shutdown) => break,
                Some(event) => self.take(event),
            }
        }
        self.close(events);
    }

    fn take(&mut self, event: ToExchange) {
        match event {
            ToExchange::Want(want, deadline, done) => {
                let waiter = self.number();
                self.waiters.insert(waiter, done);
                self.drive(Event::Want {
                    waiter,
                    want,
                    deadline,
                });
            }
            ToExchange::Put {
                device,
                id,
                block,
                deadline,
                done,
            } => self.put(device, id, block, deadline, done),
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
                self.links.insert(link, Link { device, role, asks });
                self.drive(Event::LinkUp {
                    link,
                    device,
                    capacity,
                });
            }
            ToExchange::LinkDown(link) => {
                self.links.remove(&link);
                let lost: Vec<u64> = self
                    .placing
                    .iter()
                    .filter(|(_, p)| p.link == link)
                    .map(|(token, _)| *token)
                    .collect();
                for token in lost {
                    self.placed(token, Err("the connection was lost".into()));
                }
                self.drive(Event::LinkDown(link));
            }
            ToExchange::Reply(_, Reply::Receipt(token, id, receipt)) => self.receipt(token, id, &receipt),
            ToExchange::Reply(_, Reply::PutFailed(token, why)) => self.placed(token, Err(why)),
            ToExchange::Reply(link, reply) => self.drive(Event::Reply(link, reply)),
            ToExchange::LookedUp(root) => self.drive(Event::LookedUp(root)),
            ToExchange::Prospects(count) => self.drive(Event::Prospects(count)),
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

    fn drive(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.engine.handle(event, Instant::now()) {
                match action {
                    Action::Send(link, ask) => {
                        let sent = self
                            .links
                            .get(&link)
                            .is_some_and(|l| l.asks.try_send(ask).is_ok());
                        if !sent {
                            // Its task ended, or does not keep up: forget the stream, which ends it.
                            self.links.remove(&link);
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
                    Action::Banned(device, id) => tracing::warn!(
                        device = %device.short(),
                        "sent wrong bytes for block {id}; it is not asked again for a while"
                    ),
                }
            }
        }
    }

    fn put(&mut self, device: DeviceId, id: BlockId, block: Bytes, deadline: Instant, done: PutDone) {
        let token = self.number();
        let Some((link, state)) = self.links.iter().find(|(_, l)| l.device == device) else {
            done(Err(format!("device {} is not connected", device.short())));
            return;
        };
        if state.asks.try_send(Ask::Put { token, id, block }).is_err() {
            done(Err(format!("device {} does not keep up", device.short())));
            return;
        }
        let placing = Placing {
            link: *link,
            device,
            deadline,
            done,
        };
        self.placing.insert(token, placing);
    }

    fn receipt(&mut self, token: u64, id: BlockId, bytes: &[u8]) {
        let Some(placing) = self.placing.get(&token) else {
            return;
        };
        let result = match Receipt::decode(bytes) {
            Ok(receipt)
                if receipt.verify()
                    && receipt.block == id
                    && super::local::device_of(&receipt.holder) == placing.device =>
            {
                Ok(receipt)
            }
            _ => Err("its receipt is not valid".into()),
        };
        self.placed(token, result);
    }

    fn placed(&mut self, token: u64, result: Result<Receipt, String>) {
        if let Some(placing) = self.placing.remove(&token) {
            (placing.done)(result);
        }
    }

    fn expire_puts(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .placing
            .iter()
            .filter(|(_, p)| p.deadline <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            self.placed(token, Err("no receipt in time".into()));
        }
    }

    fn close(mut self, mut events: mpsc::Receiver<ToExchange>) {
        events.close();
        while let Ok(event) = events.try_recv() {
            match event {
                ToExchange::Want(_, _, done) => done(Err(FetchError::Closed)),
                ToExchange::Put { done, .. } => done(Err("shutting down".into())),
                _ => {}
            }
        }
        for (_, done) in self.waiters.drain() {
            done(Err(FetchError::Closed));
        }
        for (_, placing) in self.placing.drain() {
            (placing.done)(Err("shutting down".into()));
        }
    }
}
