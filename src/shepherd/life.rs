//! The phases, as types: what a microVM has in each, and the step that leads to the next.
//!
//! A step consumes its phase. One that fails gives back a [`Failed`] with what there was, to be
//! destroyed; so no phase can be left half-way, and none be entered twice.

use std::os::fd::OwnedFd;

use mayfly_protocol::CONTROL_PORT;
use mayfly_protocol::message::{HostMessage, Job};
use tokio::net::UnixListener;

use super::cause::Cause;
use super::context::Context;
use super::egress::{self, Egress};
use super::event::{FailureReport, Happened, Outcome, Phase};
use super::front::Front;
use super::greeting::{explain, greet, wall_clock};
use super::job::Streams;
use super::late::Silence;
use super::plan::Plan;
use super::programs::Programs;
use super::record::Record;
use super::renounce::renounce;
use crate::channel::{Heard, Link};
use crate::failure::{self, Failure};
use crate::host::clock::{self, ActiveClock};
use crate::image::Hold;
use crate::machine::arguments::Specification;
use crate::machine::{self, Machine, Parts, Places};
use crate::network::{GATEWAY, Namespace};

/// A microVM that failed, with what there is of it.
pub(super) struct Failed {
    context: Context,
    cause: Cause,
    machine: Option<Machine>,
}

impl Failed {
    fn of(context: Context, cause: Cause, machine: Option<Machine>) -> Self {
        Self { context, cause, machine }
    }
}

/// Everything is decided, nothing made.
pub(super) struct Planned(Context);

/// Overlay, network and sockets are there.
pub(super) struct Prepared {
    context: Context,
    specification: Specification,
    namespace: Namespace,
    parts: Parts,
    listener: UnixListener,
}

/// QEMU runs, the guest has not spoken yet.
pub(super) struct Booting {
    context: Context,
    // Holds the network that the machine's tap is in.
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

/// The job is known.
pub(super) struct Claimed {
    ready: Ready,
    job: Job,
}

/// The job runs.
pub(super) struct Running {
    ready: Ready,
    streams: Streams,
}

/// The job ended and its output was passed on.
pub(super) struct Finished {
    context: Context,
    machine: Machine,
    outcome: Outcome,
}

impl Planned {
    /// Begins the record.
    pub(super) fn begin(
        plan: Plan,
        lock: Option<OwnedFd>,
        front: Front,
    ) -> Result<Self, Box<(Cause, Front)>> {
        let record = match Record::begin(&plan, lock) {
            Ok(record) => record,
            Err(cause) => return Err(Box::new((cause, front))),
        };
        let image = match Hold::take(&plan.boot.directory) {
            Ok(hold) => hold,
            Err(error) => return Err(Box::new((Cause::Shepherd("hold the image", error), front))),
        };
        let phase = Phase::Planned;
        let programs = Programs::new(&plan.directory);
        let mut context = Context {
            plan,
            front,
            record,
            _image: image,
            phase,
            statistics: None,
            egress: None,
            programs,
            clock: ActiveClock::begin(clock::boot_time()),
        };
        match context.enter(phase) {
            Ok(()) => Ok(Self(context)),
            Err(cause) => Err(Box::new((cause, context.front))),
        }
    }

    /// Makes the overlay, the network and the sockets, all at once.
    pub(super) async fn prepare(self) -> Result<Prepared, Failed> {
        let Self(mut context) = self;
        let plan = context.plan.clone();
        let specification = specification(&plan);
        let places = places(&plan);
        let made = context.within(plan.deadlines.prepare, async {
            let listener = machine::listen(CONTROL_PORT)
                .map_err(|error| Cause::Shepherd("listen for the guest", error))?;
            let parts = Parts::make(&plan.programs, places, &specification);
            let parts = async { parts.await.map_err(Cause::from) };
            let policy = plan.egress.clone();
            let listen = move || egress::listen(&policy, GATEWAY).map_err(Cause::from);
            let namespace = Namespace::create(listen);
            let (parts, (namespace, listeners)) = tokio::try_join!(parts, namespace)?;
            Ok((listener, parts, namespace, Egress::serve(&plan, listeners)?))
        });
        let (listener, parts, namespace, egress) = match made.await {
            Ok(made) => made,
            Err(cause) => return Err(Failed::of(context, cause, None)),
        };
        context.egress = Some(egress);
        match context.enter(Phase::Prepared) {
            Ok(()) => Ok(Prepared { context, specification, namespace, parts, listener }),
            Err(cause) => Err(Failed::of(context, cause, None)),
        }
    }
}

impl Prepared {
    /// Starts QEMU.
    pub(super) async fn boot(self) -> Result<Booting, Failed> {
        let Self { mut context, specification, namespace, parts, listener } = self;
        if let Err(cause) = context.enter(Phase::Booting) {
            return Err(Failed::of(context, cause, None));
        }
        let plan = context.plan.clone();
        let limit = context.plan.deadlines.boot;
        let started = context.within(limit, async {
            let (places, base) = (places(&plan), &plan.boot.rootfs);
            let tap = namespace.tap();
            let machine = Machine::start(parts, places, &specification, base, tap).await?;
            renounce(&plan).map_err(|error| Cause::Shepherd("give up its rights", error))?;
            Ok(machine)
        });
        match started.await {
            Ok(machine) => Ok(Booting { context, namespace, machine, listener }),
            Err(cause) => Err(Failed::of(context, cause, None)),
        }
    }
}

impl Booting {
    /// Waits for the guest, and gives it what it needs.
    pub(super) async fn ready(self) -> Result<Ready, Failed> {
        let Self { mut context, namespace, mut machine, listener } = self;
        let limit = context.plan.deadlines.boot;
        let hostname = context.plan.id.to_string();
        let greeted = context.within(limit, async {
            tokio::select! {
                biased;
                greeted = greet(listener, hostname) => greeted,
                death = machine.died() => Err(Cause::Died(death)),
            }
        });
        let (link, greeting) = match greeted.await {
            Ok(greeted) => greeted,
            Err(cause) => {
                let cause = explain(cause, &mut machine, &mut context.front).await;
                return Err(Failed::of(context, cause, Some(machine)));
            }
        };
        let told = async {
            context.tell(greeting)?;
            context.enter(Phase::Ready)
        };
        match told.await {
            Ok(()) => Ok(Ready { context, namespace, machine, link }),
            Err(cause) => Err(Failed::of(context, cause, Some(machine))),
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

    async fn wait_for_job(&mut self) -> Result<Job, Cause> {
        let Self { context, machine, link, .. } = self;
        let idle = context.after(context.plan.deadlines.idle);
        let mut silence = Silence::begin(context);
        loop {
            let deadlines = [idle, silence.next()];
            tokio::select! {
                biased;
                late = context.clock.passed(&deadlines) => match late {
                    0 => return Err(Cause::Deadline(Phase::Ready, idle.limit())),
                    _ => silence.passed(link)?,
                },
                job = context.front.job() => return job,
                heard = link.hear() => {
                    silence = Silence::begin(context);
                    match heard? {
                        Heard::Heartbeat(statistics) => context.statistics = Some(statistics),
                        Heard::Failed { step, error } => return Err(Cause::Agent { step, error }),
                        _ => {}
                    }
                }
                death = machine.died() => return Err(Cause::Died(death)),
                error = egress::failed(&mut context.egress) => return Err(error.into()),
            }
        }
    }

    async fn fail(mut self, cause: Cause) -> Failed {
        let cause = explain(cause, &mut self.machine, &mut self.context.front).await;
        Failed::of(self.context, cause, Some(self.machine))
    }
}

impl Claimed {
    /// Hands the job over and waits until it runs, or can't.
    pub(super) async fn start(self) -> Result<Running, Failed> {
        let Self { mut ready, mut job } = self;
        let limit = ready.context.plan.deadlines.claim;
        // What the job's own variables say comes later and wins.
        job.environment.splice(..0, egress::variables(&ready.context.plan));
        let Ready { context, machine, link, .. } = &mut ready;
        let started = async {
            let mut streams = Streams::open(&context.plan, &job, link)?;
            // It may have waited for long.
            link.say(&HostMessage::SetClock(wall_clock()))?;
            link.say(&HostMessage::Start(job))?;
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
    /// Moves the job's streams until it ends.
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
        if let Err(Cause::Deadline(..)) = ended {
            streams.save(context, link, machine).await;
        }
        let Ready { mut context, mut machine, namespace, link } = ready;
        // The network and the channel end with the job; input that a guest would not take is let
        // go with the channel, so that nobody waits for it.
        drop((namespace, link));
        let not_copied = streams.close().await;
        match ended {
            Ok(status) => {
                // The last figures come right before the job's end.
                let oom_kills = context.statistics.map_or(0, |last| last.oom_kills);
                let outcome = Outcome::Job { status, not_copied, oom_kills };
                Ok(Finished { context, machine, outcome })
            }
            Err(cause) => {
                let cause = explain(cause, &mut machine, &mut context.front).await;
                Err(Failed::of(context, cause, Some(machine)))
            }
        }
    }
}

impl Finished {
    /// Ends the machine and removes the record, unless a daemon is to look at it.
    pub(super) async fn destroy(self) {
        let Self { mut context, machine, outcome } = self;
        let limit = context.plan.deadlines.destroy;
        // What does not end now ends with this process.
        let _ = tokio::time::timeout(limit, machine.destroy()).await;
        context.programs.end();
        let told = context.close_egress().await;
        let told = told.and(context.enter(Phase::Destroyed));
        let told = told.and(context.tell(Happened::Ended(outcome)));
        let Context { plan, front, record, .. } = context;
        let removed = if plan.detached.is_some() { Ok(()) } else { record.remove() };
        // The job is over and its outcome told: a record that could not be written or removed
        // changes neither.
        let _ = told.and(removed);
        front.close().await;
    }
}

impl Failed {
    /// Ends the machine, if there is one, and completes the black box.
    pub(super) async fn destroy(self) {
        let Self { mut context, cause, machine } = self;
        let limit = context.plan.deadlines.destroy;
        if let Some(machine) = machine {
            let _ = tokio::time::timeout(limit, machine.destroy()).await;
        }
        let report = FailureReport {
            phase: context.phase,
            cause: cause.name().to_owned(),
            message: failure::chain(&cause),
            hint: cause.hint(),
            code: cause.code() as u8,
            statistics: context.statistics,
            black_box: context.plan.directory.clone(),
        };
        context.programs.end();
        // The record may be what failed; the front end is told all the same.
        let _ = context.close_egress().await;
        let _ = context.enter(Phase::Failed);
        let _ = context.enter(Phase::Destroyed);
        let _ = context.tell(Happened::Ended(Outcome::Failed(report)));
        context.front.close().await;
    }
}

fn specification(plan: &Plan) -> Specification {
    Specification {
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

fn places(plan: &Plan) -> Places<'_> {
    Places { directory: &plan.directory, private: &plan.private }
}
