//! A fake implementation of [`Shepherds`] whose calls may get faults. It reaches the simulated
//! shepherds in [`super::host`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::faults::{DriverCall, Fault};
use super::host::FakeHost;
use crate::decide::Resources;
use crate::fleet::{FoundMicrovm, PlanFailure, Shepherd, Shepherds, Unacknowledged};
use mayfly_forge::BoxFuture;
use mayfly_machine::MachinePrograms;
use mayfly_machine::accelerator::Accelerator;
use mayfly_shepherd::AttachError;
use mayfly_shepherd::event::Event;
use mayfly_shepherd::plan::{BootFiles, MicrovmId, MicrovmPlan, ShepherdCommand, monotonic};
use mayfly_shepherd::planner::MicrovmRequest;

/// A connection to a shepherd.
struct Connection {
    host: Arc<FakeHost>,
    id: MicrovmId,
    number: u64,
    delivered: usize,
    last: u64,
    unacknowledged: Unacknowledged,
}

impl Connection {
    fn open(host: &Arc<FakeHost>, id: &MicrovmId) -> Result<Box<dyn Shepherd>, AttachError> {
        let mut state = host.state();
        let shepherd = state.shepherds.get_mut(id).ok_or(AttachError::NoDirectory)?;
        if shepherd.stopped && shepherd.alive {
            return Err(AttachError::Silent);
        }
        shepherd.connection += 1;
        let (number, last) = (shepherd.connection, shepherd.acknowledged);
        let (host, id) = (host.clone(), id.clone());
        let unacknowledged = Unacknowledged::new();
        Ok(Box::new(Self { host, id, number, delivered: 0, last, unacknowledged }))
    }

    /// Returns the next event without taking it; `None` if the connection ended; an error if no
    /// event is there yet.
    fn next(&self) -> Result<Option<Event>, ()> {
        let state = self.host.state();
        let Some(shepherd) = state.shepherds.get(&self.id) else { return Ok(None) };
        if shepherd.connection != self.number {
            return Ok(None);
        }
        match shepherd.events.get(self.delivered) {
            Some(event) => Ok(Some(event.clone())),
            None if shepherd.alive => Err(()),
            None => Ok(None),
        }
    }

    /// Returns whether the shepherd runs and this connection is current.
    fn is_current(&self) -> bool {
        let state = self.host.state();
        let shepherd = state.shepherds.get(&self.id);
        shepherd.is_some_and(|one| one.alive && one.connection == self.number)
    }

    /// Counts an event as delivered.
    fn mark_delivered(&mut self, next: Option<Event>) -> Option<Event> {
        self.delivered += usize::from(next.is_some());
        next
    }

    /// Sends a numbered command. Returns whether it was received.
    fn send(&self, number: u64, command: &ShepherdCommand) -> bool {
        let mut state = self.host.state();
        let shepherd = state.shepherds.get_mut(&self.id);
        let Some(shepherd) = shepherd.filter(|one| one.connection == self.number && !one.stopped)
        else {
            return false;
        };
        if number > shepherd.acknowledged {
            shepherd.acknowledged = number;
            shepherd.commands.push_back(command.clone());
        }
        drop(state);
        self.host.changed();
        true
    }
}

impl Shepherd for Connection {
    fn event(&mut self) -> BoxFuture<'_, Option<Event>> {
        Box::pin(async move {
            let mut changes = self.host.changes.subscribe();
            let mut stalled = false;
            loop {
                changes.mark_unchanged();
                // A stalled event is delivered in the end: from the record, after the shepherd
                // died.
                if let Ok(next) = self.next()
                    && (!stalled || !self.is_current())
                {
                    match self.host.faults.at(DriverCall::Event).filter(|_| next.is_some()) {
                        None => return self.mark_delivered(next),
                        Some(Fault::Error | Fault::Twice) => return None,
                        Some(Fault::Late(time)) => {
                            tokio::time::sleep(time).await;
                            return self.mark_delivered(next);
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

    fn send_command(&mut self, command: &ShepherdCommand) -> Result<(), String> {
        let number = self.last + 1;
        let fault = self.host.faults.at(DriverCall::SendCommand);
        if fault == Some(Fault::Error) {
            return Err("the shepherd takes no more commands".to_owned());
        }
        self.last = number;
        let is_killed = matches!(fault, Some(Fault::KilledBefore | Fault::KilledAfter));
        let is_sent = !matches!(fault, Some(Fault::Never | Fault::KilledBefore));
        if !is_sent || !self.send(number, command) {
            self.unacknowledged.push_back((number, command.clone()));
        }
        if fault == Some(Fault::Twice) {
            self.send(number, command);
        }
        if is_killed {
            self.host.faults.kill();
        }
        Ok(())
    }

    fn kill(&self) -> io::Result<()> {
        self.host.kill(&self.id)
    }

    fn resume(&mut self, commands: Unacknowledged) -> Result<(), String> {
        for (number, command) in commands {
            if number > self.last {
                self.last = number;
                if !self.send(number, &command) {
                    self.unacknowledged.push_back((number, command));
                }
            }
        }
        Ok(())
    }

    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged {
        self.unacknowledged
    }

    fn wait(self: Box<Self>) -> BoxFuture<'static, String> {
        Box::pin(async { "signal 9".to_owned() })
    }
}

/// The fake driver, which several daemons use one after another.
#[derive(Debug, Clone)]
pub(crate) struct FakeShepherds(pub(crate) Arc<FakeHost>);

impl Shepherds for FakeShepherds {
    fn plan(
        &self,
        request: MicrovmRequest,
    ) -> BoxFuture<'static, Result<Box<MicrovmPlan>, PlanFailure>> {
        let host = self.0.clone();
        Box::pin(async move {
            let effect = || {
                let mut state = host.state();
                state.planned += 1;
                Ok(Box::new(plan(&request, state.planned)))
            };
            let message = "no program".to_owned();
            host.faults
                .call(DriverCall::Plan, effect, || {
                    Err(PlanFailure { is_image_error: false, message })
                })
                .await
        })
    }

    fn start(&self, plan: MicrovmPlan) -> BoxFuture<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async move {
            let effect = || {
                if !self.0.begin(&plan) {
                    return Err("its directory exists already".to_owned());
                }
                Connection::open(&self.0, &plan.id).map_err(|error| error.to_string())
            };
            let error = || Err("can't create more processes".to_owned());
            self.0.faults.call(DriverCall::Start, effect, error).await
        })
    }

    fn attach<'a>(
        &'a self,
        id: &'a MicrovmId,
    ) -> BoxFuture<'a, Result<Box<dyn Shepherd>, AttachError>> {
        let effect = || Connection::open(&self.0, id);
        let error = || Err(AttachError::Busy(io::ErrorKind::OutOfMemory.into()));
        Box::pin(self.0.faults.call(DriverCall::Attach, effect, error))
    }

    fn is_gone(&self, id: &MicrovmId) -> bool {
        self.0.state().shepherds.get(id).is_none_or(|shepherd| !shepherd.alive)
    }

    fn kill(&self, id: &MicrovmId) -> io::Result<()> {
        self.0.kill(id)
    }

    fn list(&self) -> io::Result<Vec<FoundMicrovm>> {
        if self.0.faults.at(DriverCall::List).is_some() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let state = self.0.state();
        let found = state.shepherds.iter().map(|(id, shepherd)| {
            let MicrovmPlan { image, processors, memory, .. } = &shepherd.plan;
            let resources = Resources { processors: *processors, memory: memory.0 };
            FoundMicrovm {
                id: id.clone(),
                is_alive: shepherd.alive,
                events: shepherd.events.clone(),
                summary: Some((image.clone(), resources)),
                deadlines: Some((&shepherd.plan.deadlines).into()),
                ran_for: None,
            }
        });
        Ok(found.collect())
    }

    fn save_output(&self, _id: &MicrovmId, _log: PathBuf) -> BoxFuture<'static, u64> {
        let host = self.0.clone();
        Box::pin(async move { host.faults.call(DriverCall::SaveOutput, || 10, || 0).await })
    }

    fn dispose(
        &self,
        id: &MicrovmId,
        _black_box_pool: Option<String>,
    ) -> BoxFuture<'static, io::Result<()>> {
        let (host, id) = (self.0.clone(), id.clone());
        Box::pin(async move {
            let effect = || {
                host.state().shepherds.remove(&id);
                Ok(())
            };
            let error = || Err(io::ErrorKind::StorageFull.into());
            host.faults.call(DriverCall::Dispose, effect, error).await
        })
    }
}

fn plan(request: &MicrovmRequest, number: u64) -> MicrovmPlan {
    let id = MicrovmId::parse(&format!("m-{number:010}")).unwrap();
    let boot = BootFiles {
        directory: "/image".into(),
        kernel: "/image/kernel".into(),
        initramfs: "/image/initramfs".into(),
        rootfs: "/image/rootfs".into(),
        arguments: String::new(),
    };
    let programs =
        MachinePrograms { qemu: "qemu".into(), qemu_img: "img".into(), vsock: "vsock".into() };
    MicrovmPlan {
        requested_at: monotonic(),
        image: "base@0123".to_owned(),
        boot,
        accelerator: Accelerator::Kvm,
        processors: request.processors,
        memory: request.memory,
        disk: request.memory,
        egress: request.egress.clone(),
        egress_record: PathBuf::new(),
        deadlines: request.deadlines,
        programs,
        directory: format!("/microvms/{id}").into(),
        private: "/private".into(),
        detached: request.detached,
        id,
    }
}
