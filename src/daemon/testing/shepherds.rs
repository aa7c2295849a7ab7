//! The scripted driver of the seam to shepherds: each of its calls may go wrong, and what it reaches
//! are the lives in [`super::host`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::faults::{Call, Fault};
use super::host::FakeHost;
use crate::daemon::decide::Load;
use crate::daemon::fleet::{Left, NotPlanned, Shepherd, Shepherds, Unacknowledged};
use crate::forge::Promise;
use crate::machine::Programs;
use crate::machine::accelerator::Accelerator;
use crate::shepherd::AttachError;
use crate::shepherd::event::Event;
use crate::shepherd::plan::{Boot, Id, Order, Plan, monotonic};
use crate::shepherd::planner::Wanted;

/// A connection to a shepherd.
struct Connection {
    host: Arc<FakeHost>,
    id: Id,
    number: u64,
    told: usize,
    last: u64,
    unacknowledged: Unacknowledged,
}

impl Connection {
    fn open(host: &Arc<FakeHost>, id: &Id) -> Result<Box<dyn Shepherd>, AttachError> {
        let mut state = host.state();
        let machine = state.machines.get_mut(id).ok_or(AttachError::NoDirectory)?;
        if machine.stopped && machine.alive {
            return Err(AttachError::Silent);
        }
        machine.connection += 1;
        let (number, last) = (machine.connection, machine.acknowledged);
        let (host, id) = (host.clone(), id.clone());
        let unacknowledged = Unacknowledged::new();
        Ok(Box::new(Self { host, id, number, told: 0, last, unacknowledged }))
    }

    /// The next event, which stays the next; none where the connection ended; an error where there is
    /// none yet.
    fn next(&self) -> Result<Option<Event>, ()> {
        let state = self.host.state();
        let Some(machine) = state.machines.get(&self.id) else { return Ok(None) };
        if machine.connection != self.number {
            return Ok(None);
        }
        match machine.events.get(self.told) {
            Some(event) => Ok(Some(event.clone())),
            None if machine.alive => Err(()),
            None => Ok(None),
        }
    }

    /// Whether it is alive and this connection to it stands.
    fn stands(&self) -> bool {
        let state = self.host.state();
        let machine = state.machines.get(&self.id);
        machine.is_some_and(|one| one.alive && one.connection == self.number)
    }

    /// Notes that an event was told.
    fn tell(&mut self, next: Option<Event>) -> Option<Event> {
        self.told += usize::from(next.is_some());
        next
    }

    /// Gives an order with its number; whether it was received.
    fn give(&self, number: u64, order: &Order) -> bool {
        let mut state = self.host.state();
        let machine = state.machines.get_mut(&self.id);
        let Some(machine) = machine.filter(|one| one.connection == self.number && !one.stopped)
        else {
            return false;
        };
        if number > machine.acknowledged {
            machine.acknowledged = number;
            machine.orders.push_back(order.clone());
        }
        drop(state);
        self.host.changed();
        true
    }
}

impl Shepherd for Connection {
    fn event(&mut self) -> Promise<'_, Option<Event>> {
        Box::pin(async move {
            let mut changes = self.host.changes.subscribe();
            let mut stalled = false;
            loop {
                changes.mark_unchanged();
                // What stalls is told in the end: it is in the record of one that died.
                if let Ok(next) = self.next()
                    && (!stalled || !self.stands())
                {
                    match self.host.faults.at(Call::Event).filter(|_| next.is_some()) {
                        None => return self.tell(next),
                        Some(Fault::Error | Fault::Twice) => return None,
                        Some(Fault::Late(time)) => {
                            tokio::time::sleep(time).await;
                            return self.tell(next);
                        }
                        Some(Fault::Never) => {
                            stalled = true;
                            continue;
                        }
                        Some(Fault::KilledBefore | Fault::KilledAfter) => {
                            self.host.faults.kill();
                            std::future::pending::<()>().await;
                        }
                    }
                }
                let _ = changes.changed().await;
            }
        })
    }

    fn order(&mut self, order: &Order) -> Result<(), String> {
        let number = self.last + 1;
        let fault = self.host.faults.at(Call::Order);
        if fault == Some(Fault::Error) {
            return Err("the shepherd takes no more orders".to_owned());
        }
        self.last = number;
        let is_killed = matches!(fault, Some(Fault::KilledBefore | Fault::KilledAfter));
        let is_given = !matches!(fault, Some(Fault::Never | Fault::KilledBefore));
        if !is_given || !self.give(number, order) {
            self.unacknowledged.push_back((number, order.clone()));
        }
        if fault == Some(Fault::Twice) {
            self.give(number, order);
        }
        if is_killed {
            self.host.faults.kill();
        }
        Ok(())
    }

    fn kill(&self) -> io::Result<()> {
        self.host.kill(&self.id)
    }

    fn resume(&mut self, orders: Unacknowledged) -> Result<(), String> {
        for (number, order) in orders {
            if number > self.last {
                self.last = number;
                if !self.give(number, &order) {
                    self.unacknowledged.push_back((number, order));
                }
            }
        }
        Ok(())
    }

    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged {
        self.unacknowledged
    }

    fn ended(self: Box<Self>) -> Promise<'static, String> {
        Box::pin(async { "signal 9".to_owned() })
    }
}

/// The seam itself, for one daemon after another.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Scripted(pub(in crate::daemon) Arc<FakeHost>);

impl Shepherds for Scripted {
    fn plan(&self, wanted: Wanted) -> Promise<'static, Result<Box<Plan>, NotPlanned>> {
        let host = self.0.clone();
        Box::pin(async move {
            let effect = || {
                let mut state = host.state();
                state.planned += 1;
                Ok(Box::new(plan(&wanted, state.planned)))
            };
            let why = "no program".to_owned();
            host.faults.call(Call::Plan, effect, || Err(NotPlanned { image: false, why })).await
        })
    }

    fn start(&self, plan: Plan) -> Promise<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async move {
            let effect = || {
                if !self.0.begin(&plan) {
                    return Err("its directory is there already".to_owned());
                }
                Connection::open(&self.0, &plan.id).map_err(|error| error.to_string())
            };
            let error = || Err("no more processes".to_owned());
            self.0.faults.call(Call::Start, effect, error).await
        })
    }

    fn attach<'a>(&'a self, id: &'a Id) -> Promise<'a, Result<Box<dyn Shepherd>, AttachError>> {
        let effect = || Connection::open(&self.0, id);
        let error = || Err(AttachError::Busy(io::ErrorKind::OutOfMemory.into()));
        Box::pin(self.0.faults.call(Call::Attach, effect, error))
    }

    fn is_gone(&self, id: &Id) -> bool {
        self.0.state().machines.get(id).is_none_or(|machine| !machine.alive)
    }

    fn kill(&self, id: &Id) -> io::Result<()> {
        self.0.kill(id)
    }

    fn list(&self) -> io::Result<Vec<Left>> {
        if self.0.faults.at(Call::List).is_some() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let state = self.0.state();
        let left = state.machines.iter().map(|(id, machine)| {
            let Plan { image, processors, memory, .. } = &machine.plan;
            let load = Load { processors: *processors, memory: memory.0 };
            Left {
                id: id.clone(),
                living: machine.alive,
                events: machine.events.clone(),
                summary: Some((image.clone(), load)),
                ran: None,
            }
        });
        Ok(left.collect())
    }

    fn keep_output(&self, _id: &Id, _log: PathBuf) -> Promise<'static, u64> {
        let host = self.0.clone();
        Box::pin(async move { host.faults.call(Call::KeepOutput, || 10, || 0).await })
    }

    fn put_away(&self, id: &Id, _black_box_of: Option<String>) -> Promise<'static, io::Result<()>> {
        let (host, id) = (self.0.clone(), id.clone());
        Box::pin(async move {
            let effect = || {
                host.state().machines.remove(&id);
                Ok(())
            };
            let error = || Err(io::ErrorKind::StorageFull.into());
            host.faults.call(Call::PutAway, effect, error).await
        })
    }
}

fn plan(wanted: &Wanted, number: u64) -> Plan {
    let id = Id::parse(&format!("m-{number:010}")).unwrap();
    let boot = Boot {
        directory: "/image".into(),
        kernel: "/image/kernel".into(),
        initramfs: "/image/initramfs".into(),
        rootfs: "/image/rootfs".into(),
        arguments: String::new(),
    };
    let programs = Programs { qemu: "qemu".into(), qemu_img: "img".into(), vsock: "vsock".into() };
    Plan {
        asked: monotonic(),
        image: "base@0123".to_owned(),
        boot,
        accelerator: Accelerator::Kvm,
        processors: wanted.processors,
        memory: wanted.memory,
        disk: wanted.memory,
        egress: wanted.egress.clone(),
        egress_record: PathBuf::new(),
        deadlines: wanted.deadlines,
        programs,
        directory: format!("/microvms/{id}").into(),
        private: "/private".into(),
        detached: wanted.detached,
        id,
    }
}
