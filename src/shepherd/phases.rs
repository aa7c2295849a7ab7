//! The phases as types: each holds what a microVM has in that phase and moves it to the next.
//!
//! A transition consumes its phase. On failure it returns a [`Failed`] with everything that exists,
//! to be destroyed, so a phase can't be left halfway or entered twice.

use std::os::fd::OwnedFd;

use mayfly_protocol::CONTROL_PORT;
use mayfly_protocol::message::{HostMessage, Job};
use tokio::net::UnixListener;

use super::cause::FailureCause;
use super::context::Context;
use super::egress::{self, Egress};
use super::event::{EventKind, FailureReport, JobOutcome, Phase};
use super::front_end::FrontEnd;
use super::handshake::{refine_cause, shake_hands, wall_clock};
use super::plan::MicrovmPlan;
use super::privileges::drop_privileges;
use super::program_log::ProgramLog;
use super::record::Record;
use super::streams::JobStreams;
use super::timeouts::HeartbeatTimeout;
use mayfly_channel::{Link, Received};
use mayfly_failure::Failure;
use mayfly_host::clock::{self, ActiveClock};
use mayfly_image::Hold;
use mayfly_machine::arguments::MachineSpec;
use mayfly_machine::{Machine, MachineParts, MachinePaths};
use mayfly_network::{GATEWAY, Namespace};

/// A failed microVM with everything that exists of it.
pub(super) struct Failed {
    context: Context,
    cause: FailureCause,
    machine: Option<Machine>,
}

impl Failed {
    fn new(context: Context, cause: FailureCause, machine: Option<Machine>) -> Self {
        Self { context, cause, machine }
    }
}

/// Everything is decided, nothing is created.
pub(super) struct Planned(Context);

/// Overlay, network and sockets exist.
pub(super) struct Prepared {
    context: Context,
    spec: MachineSpec,
    namespace: Namespace,
    parts: MachineParts,
    listener: UnixListener,
}

/// QEMU runs; the guest has not connected yet.
pub(super) struct Booting {
    context: Context,
    // Keeps the network of the machine's tap alive.
    namespace: Namespace,
    machine: Machine,
    listener: UnixListener,
}

/// The guest is up and waits for a job.
pub(super) struct Ready {
    context: Context,
    namespace: Namespace,
    machine: Machine,
    link: Link,
}

/// A job was assigned.
pub(super) struct Claimed {
    ready: Ready,
    job: Job,
}

/// The job runs.
pub(super) struct Running {
    ready: Ready,
    streams: JobStreams,
}

/// The job ended and all of its output was delivered.
pub(super) struct Finished {
    context: Context,
    machine: Machine,
    outcome: JobOutcome,
}

impl Planned {
    /// Creates the record.
    pub(super) fn start(
        plan: MicrovmPlan,
        lock: Option<OwnedFd>,
        front: FrontEnd,
    ) -> Result<Self, Box<(FailureCause, FrontEnd)>> {
        let record = match Record::create(&plan, lock) {
            Ok(record) => record,
            Err(cause) => return Err(Box::new((cause, front))),
        };
        let image = match Hold::take(&plan.boot.directory) {
            Ok(hold) => hold,
            Err(error) => {
                return Err(Box::new((FailureCause::Shepherd("lock the image", error), front)));
            }
        };
        let phase = Phase::Planned;
        let programs = ProgramLog::new(&plan.directory);
        let mut context = Context {
            plan,
            front,
            record,
            _image: image,
            phase,
            statistics: None,
            egress: None,
            programs,
            clock: ActiveClock::start(clock::boot_time()),
        };
        match context.enter(phase) {
            Ok(()) => Ok(Self(context)),
            Err(cause) => Err(Box::new((cause, context.front))),
        }
    }

    /// Creates overlay, network and sockets concurrently.
    pub(super) async fn prepare(self) -> Result<Prepared, Failed> {
        let Self(mut context) = self;
        let plan = context.plan.clone();
        let spec = machine_spec(&plan);
        let paths = machine_paths(&plan);
        let created = context.with_deadline(plan.deadlines.prepare, async {
            let listener = mayfly_machine::listen(CONTROL_PORT).map_err(|error| {
                FailureCause::Shepherd("listen for the guest's connection", error)
            })?;
            let parts = MachineParts::create(&plan.programs, paths, &spec);
            let parts = async { parts.await.map_err(FailureCause::from) };
            let policy = plan.egress.clone();
            let listen = move || egress::listen(&policy, GATEWAY).map_err(FailureCause::from);
            let namespace = Namespace::create(listen);
            let (parts, (namespace, listeners)) = tokio::try_join!(parts, namespace)?;
            Ok((listener, parts, namespace, Egress::serve(&plan, listeners)?))
        });
        let (listener, parts, namespace, egress) = match created.await {
            Ok(created) => created,
            Err(cause) => return Err(Failed::new(context, cause, None)),
        };
        context.egress = Some(egress);
        match context.enter(Phase::Prepared) {
            Ok(()) => Ok(Prepared { context, spec, namespace, parts, listener }),
            Err(cause) => Err(Failed::new(context, cause, None)),
        }
    }
}

impl Prepared {
    /// Starts QEMU.
    pub(super) async fn boot(self) -> Result<Booting, Failed> {
        let Self { mut context, spec, namespace, parts, listener } = self;
        if let Err(cause) = context.enter(Phase::Booting) {
            return Err(Failed::new(context, cause, None));
        }
        let plan = context.plan.clone();
        let limit = context.plan.deadlines.boot;
        let started = context.with_deadline(limit, async {
            let (paths, base) = (machine_paths(&plan), &plan.boot.rootfs);
            let tap = namespace.tap();
            let machine = Machine::start(parts, paths, &spec, base, tap).await?;
            drop_privileges(&plan)
                .map_err(|error| FailureCause::Shepherd("drop privileges", error))?;
            Ok(machine)
        });
        match started.await {
            Ok(machine) => Ok(Booting { context, namespace, machine, listener }),
            Err(cause) => Err(Failed::new(context, cause, None)),
        }
    }
}

impl Booting {
    /// Waits for the guest's connection and prepares the guest.
    pub(super) async fn ready(self) -> Result<Ready, Failed> {
        let Self { mut context, namespace, mut machine, listener } = self;
        let limit = context.plan.deadlines.boot;
        let hostname = context.plan.id.to_string();
        let handshake = context.with_deadline(limit, async {
            tokio::select! {
                biased;
                handshake = shake_hands(listener, hostname) => handshake,
                reason = machine.stopped() => Err(FailureCause::MachineStopped(reason)),
            }
        });
        let (link, greeted) = match handshake.await {
            Ok(handshake) => handshake,
            Err(cause) => {
                let cause = refine_cause(cause, &mut machine, &mut context.front).await;
                return Err(Failed::new(context, cause, Some(machine)));
            }
        };
        let reported = async {
            context.report(greeted)?;
            context.enter(Phase::Ready)
        };
        match reported.await {
            Ok(()) => Ok(Ready { context, namespace, machine, link }),
            Err(cause) => Err(Failed::new(context, cause, Some(machine))),
        }
    }
}

impl Ready {
    /// Waits for a job.
    pub(super) async fn claim(self) -> Result<Claimed, Failed> {
        let mut ready = self;
        let claimed = match ready.wait_for_job().await {
            Ok(job) => ready.context.enter(Phase::Claimed).map(|()| job),
            Err(cause) => Err(cause),
        };
        match claimed {
            Ok(job) => Ok(Claimed { ready, job }),
            Err(cause) => Err(ready.fail(cause).await),
        }
    }

    async fn wait_for_job(&mut self) -> Result<Job, FailureCause> {
        let Self { context, machine, link, .. } = self;
        let idle = context.deadline_in(context.plan.deadlines.idle);
        let mut heartbeat = HeartbeatTimeout::start(context);
        loop {
            let deadlines = [idle, heartbeat.next()];
            tokio::select! {
                biased;
                expired = context.clock.wait_any(&deadlines) => match expired {
                    0 => return Err(FailureCause::Deadline(Phase::Ready, idle.limit())),
                    _ => heartbeat.expired(link)?,
                },
                job = context.front.wait_for_job() => return job,
                received = link.receive() => {
                    heartbeat = HeartbeatTimeout::start(context);
                    match received? {
                        Received::Heartbeat(statistics) => context.statistics = Some(statistics),
                        Received::Failed { step, error } => {
                            return Err(FailureCause::Agent { step, error });
                        }
                        _ => {}
                    }
                }
                reason = machine.stopped() => return Err(FailureCause::MachineStopped(reason)),
                error = egress::wait_for_failure(&mut context.egress) => return Err(error.into()),
            }
        }
    }

    async fn fail(mut self, cause: FailureCause) -> Failed {
        let cause = refine_cause(cause, &mut self.machine, &mut self.context.front).await;
        Failed::new(self.context, cause, Some(self.machine))
    }
}

impl Claimed {
    /// Sends the job to the guest and waits until it runs or fails to start.
    pub(super) async fn start(self) -> Result<Running, Failed> {
        let Self { mut ready, mut job } = self;
        let limit = ready.context.plan.deadlines.claim;
        // The job's own variables come later and take precedence.
        job.environment.splice(..0, egress::proxy_variables(&ready.context.plan));
        let Ready { context, machine, link, .. } = &mut ready;
        let started = async {
            let mut streams = JobStreams::open(&context.plan, &job, link)?;
            // The guest may have waited for a long time.
            link.send(&HostMessage::SetClock(wall_clock()))?;
            link.send(&HostMessage::Start(job))?;
            streams.until_started(context, link, machine, limit).await?;
            context.enter(Phase::Running)?;
            Ok(streams)
        };
        match started.await {
            Ok(streams) => Ok(Running { ready, streams }),
            Err(cause) => Err(ready.fail(cause).await),
        }
    }
}

impl Running {
    /// Moves data of the job's streams until the job ends.
    pub(super) async fn finish(self) -> Result<Finished, Failed> {
        let Self { mut ready, mut streams } = self;
        let limit = ready.context.plan.deadlines.job;
        let Ready { context, machine, link, .. } = &mut ready;
        let ended = async {
            let status = streams.until_ended(context, link, machine, limit).await?;
            context.enter(Phase::Finished)?;
            Ok(status)
        };
        let ended = ended.await;
        if let Err(FailureCause::Deadline(..)) = ended {
            streams.finish_copies(context, link, machine).await;
        }
        let Ready { mut context, mut machine, namespace, link } = ready;
        // Network and channel end with the job. Dropping the channel discards input that the guest
        // did not read, so that closing the streams does not block.
        drop((namespace, link));
        let not_copied = streams.close().await;
        match ended {
            Ok(status) => {
                // The last heartbeat comes right before the job's end.
                let oom_kills = context.statistics.map_or(0, |last| last.oom_kills);
                let outcome = JobOutcome::Job { status, not_copied, oom_kills };
                Ok(Finished { context, machine, outcome })
            }
            Err(cause) => {
                let cause = refine_cause(cause, &mut machine, &mut context.front).await;
                Err(Failed::new(context, cause, Some(machine)))
            }
        }
    }
}

impl Finished {
    /// Stops the machine and removes the record. A detached microVM's record is for the daemon.
    pub(super) async fn destroy(self) {
        let Self { mut context, machine, outcome } = self;
        let limit = context.plan.deadlines.destroy;
        // What does not end in time ends with this process.
        let _ = tokio::time::timeout(limit, machine.destroy()).await;
        context.programs.finish();
        let reported = context.close_egress().await;
        let reported = reported.and(context.enter(Phase::Destroyed));
        let reported = reported.and(context.report(EventKind::Ended(outcome)));
        let Context { plan, front, record, .. } = context;
        let removed = if plan.detached.is_some() { Ok(()) } else { record.remove() };
        // The job has ended and its outcome is reported. A failure to write or remove the record
        // changes neither.
        let _ = reported.and(removed);
        front.close().await;
    }
}

impl Failed {
    /// Stops the machine, if there is one, and completes the black box.
    pub(super) async fn destroy(self) {
        let Self { mut context, cause, machine } = self;
        let limit = context.plan.deadlines.destroy;
        if let Some(machine) = machine {
            let _ = tokio::time::timeout(limit, machine.destroy()).await;
        }
        let report = FailureReport {
            phase: context.phase,
            cause: cause.name().to_owned(),
            message: mayfly_failure::chain(&cause),
            hint: cause.hint(),
            code: cause.code() as u8,
            statistics: context.statistics,
            black_box: context.plan.directory.clone(),
        };
        context.programs.finish();
        // The record itself may have failed; the front end still gets the events.
        let _ = context.close_egress().await;
        let _ = context.enter(Phase::Failed);
        let _ = context.enter(Phase::Destroyed);
        let _ = context.report(EventKind::Ended(JobOutcome::Failed(report)));
        context.front.close().await;
    }
}

fn machine_spec(plan: &MicrovmPlan) -> MachineSpec {
    MachineSpec {
        name: plan.id.to_string(),
        accelerator: plan.accelerator,
        processors: plan.processors,
        memory: plan.memory,
        disk: plan.disk,
        kernel: plan.boot.kernel.clone(),
        initramfs: plan.boot.initramfs.clone(),
        kernel_arguments: plan.boot.arguments.clone(),
    }
}

fn machine_paths(plan: &MicrovmPlan) -> MachinePaths<'_> {
    MachinePaths { directory: &plan.directory, private: &plan.private }
}
