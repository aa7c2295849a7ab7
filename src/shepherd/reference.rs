//! Generates the parts of the events page that follow from types: sample events and failure causes.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{JobExit, StartFailure, Statistics};

use super::cause::FailureCause;
use super::egress::EgressError;
use super::enclosure::EnclosureError;
use super::event::{Event, EventKind, FailureReport, JobOutcome, Phase};
use super::plan::{InterruptRequest, MicrovmId};
use super::runner::{RunnerProgress, RunnerResult};
use mayfly_channel::{ChannelError, Violation};
use mayfly_egress::record::{EgressReport, EgressRow, EgressTotal, EgressTotals};
use mayfly_failure::Failure;
use mayfly_machine::{MachineError, StopReason};
use mayfly_network::NetworkError;
use mayfly_reference::assert_generated_parts;

pub(super) const NAME: &str = "m-0123456789";

/// Describes each kind of event. Add a new kind to [`samples`], too.
fn describe_event(kind: &EventKind) -> &'static str {
    match kind {
        EventKind::Phase(_) => "a phase began",
        EventKind::Greeted { .. } => {
            "the guest's agent sent its hello; both values come from the guest"
        }
        EventKind::Egress(_) => {
            "what the guest reached and what was refused: a row for each destination, port, \
             verdict and cause, at most 512, with bytes `up` and `down`; `unrecorded` counts \
             missing entries"
        }
        EventKind::Reached(_) => {
            "the same so far, while the job runs, when there is a new row: at most 64 rows, at \
             most 32 times"
        }
        EventKind::Interrupted(_) => {
            "the job was interrupted: `within` is the time it has to end by itself, `why` says who \
             interrupted it and why"
        }
        EventKind::Unknown(_) => {
            "an event of another version of Mayfly that this version does not know; kept as it is \
             and skipped"
        }
        EventKind::Runner(progress) => match progress {
            RunnerProgress::Connected => {
                "the job is a runner that found its configuration; it has not contacted GitHub yet"
            }
            RunnerProgress::Retrying => "the runner can't reach GitHub and keeps trying",
            RunnerProgress::Listening => "the runner waits for a job",
            RunnerProgress::Running { .. } => "the runner has a job",
            RunnerProgress::Completed { .. } => "the runner's job ended",
        },
        EventKind::Ended(JobOutcome::Job { status, .. }) => match status {
            JobExit::Code(_) => {
                "the command ended by itself; `not_copied` lists what could not be copied out, \
                 `oom_kills` counts processes that the guest's kernel killed when memory ran out"
            }
            JobExit::Signal(_) => "a signal ended the command",
            JobExit::NotStarted(_) => "the command did not start",
        },
        EventKind::Ended(JobOutcome::Failed(_)) => {
            "the microVM failed: the phase, one of the causes below, the message and hint, the \
             exit code, the last statistics of the guest, the directory of the evidence"
        }
    }
}

pub(super) fn samples() -> Vec<EventKind> {
    let job =
        |status| EventKind::Ended(JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 });
    let name = || "build".to_owned();
    let total = EgressTotal { connections: 2, up: 1200, down: 34_000 };
    let totals = EgressTotals { allowed: total, ..EgressTotals::default() };
    let none = EgressTotals::default();
    let row = EgressRow {
        host: "github.com".to_owned(),
        port: 443,
        verdict: "allowed".to_owned(),
        cause: None,
        connections: 2,
        up: 1200,
        down: 34_000,
    };
    let failed = FailureReport {
        phase: Phase::Booting,
        cause: "boot_deadline".to_owned(),
        message: "the guest did not become ready within 20s".to_owned(),
        hint: Some("see the last lines of the console in the black box".to_owned()),
        code: 125,
        statistics: None::<Statistics>,
        black_box: format!("/var/lib/mayfly/microvms/{NAME}").into(),
    };
    vec![
        EventKind::Phase(Phase::Booting),
        EventKind::Greeted { agent: "0.1.0".to_owned(), kernel: "6.12.1".to_owned() },
        EventKind::Runner(RunnerProgress::Connected),
        EventKind::Runner(RunnerProgress::Listening),
        EventKind::Runner(RunnerProgress::Retrying),
        EventKind::Runner(RunnerProgress::Running { job: name() }),
        EventKind::Runner(RunnerProgress::Completed {
            job: name(),
            result: RunnerResult::Succeeded,
        }),
        EventKind::Egress(EgressReport { rows: vec![row], totals, omitted: 0, unrecorded: 0 }),
        EventKind::Reached(EgressReport {
            rows: Vec::new(),
            totals: none,
            omitted: 0,
            unrecorded: 0,
        }),
        EventKind::Interrupted(InterruptRequest {
            grace: Duration::from_secs(60),
            reason: "the job did not end within 6h".to_owned(),
        }),
        EventKind::Unknown(serde_json::json!({ "of_another_version": {} })),
        job(JobExit::Code(0)),
        job(JobExit::Signal(9)),
        job(JobExit::NotStarted(StartFailure::CommandNotFound)),
        EventKind::Ended(JobOutcome::Failed(failed)),
    ]
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

/// Returns a complete line and the table of values of `happened`.
fn events() -> String {
    let event = Event {
        time: "2026-01-02T03:04:05.678Z".to_owned(),
        microvm: MicrovmId::parse(NAME).unwrap(),
        elapsed_ms: 12.6,
        kind: EventKind::Phase(Phase::Booting),
    };
    let mut text =
        format!("```json\n{}\n```\n\n| `happened` | meaning |\n|---|---|\n", json(&event));
    for kind in samples() {
        // Writing to a string can't fail.
        let _ = writeln!(text, "| `{}` | {} |", json(&kind), describe_event(&kind));
    }
    text
}

/// Describes each cause. Add a new one to [`causes`], too.
fn describe_cause(cause: &FailureCause) -> &'static str {
    match cause {
        FailureCause::Enclosure(_) => "namespaces or the private tmpfs could not be created",
        FailureCause::Network(_) => "the network namespace or its tap could not be created",
        FailureCause::Egress(_) => {
            "a listener, the egress record or the parent proxy's credentials could not be opened"
        }
        FailureCause::Machine(_) => {
            "the overlay could not be created, or QEMU or vhost-device-vsock did not start"
        }
        FailureCause::Shepherd(..) => "a socket or thread of the shepherd could not be created",
        FailureCause::Record(..) => "the record can't be written",
        FailureCause::Deadline(phase, _) => match phase {
            Phase::Planned => "the microVM was not prepared in time",
            Phase::Prepared | Phase::Booting => "the guest did not become ready in time",
            Phase::Ready => "no job arrived in time",
            Phase::Claimed => "the job did not start in time",
            _ => "the job did not end in time",
        },
        FailureCause::MachineStopped(reason) => match reason {
            StopReason::PoweredOff => "the guest powered itself off",
            StopReason::Rebooted => "the guest rebooted itself",
            StopReason::KernelPanic(_) => "the guest's kernel panicked, according to its console",
            StopReason::HostDiskFull => "the host's disk had no space for what the guest wrote",
            StopReason::DiskError(_) => "the host could not read or write the disk",
            StopReason::Disturbed => "something on the host paused or reset the machine",
            StopReason::QemuExited(_) => "QEMU exited by itself or was killed",
            StopReason::VsockExited(_) => "vhost-device-vsock exited by itself or was killed",
        },
        FailureCause::Channel(ChannelError::Closed) => {
            "the guest closed the channel but keeps running"
        }
        FailureCause::Channel(ChannelError::TooLong(_)) => {
            "the job's arguments and variables exceed the limit of one message"
        }
        FailureCause::Channel(ChannelError::Violation(Violation::Version { .. })) => {
            "the image's agent has another protocol version"
        }
        FailureCause::Channel(ChannelError::Violation(_)) => {
            "the guest violated the protocol; the message says how"
        }
        FailureCause::Agent { .. } => "the agent failed; the message says at which step",
        FailureCause::Silent(_) => "no heartbeat arrived in time",
        FailureCause::Abandoned => "the front end exited without ending the microVM",
        FailureCause::Ended => "the microVM was ended on request",
    }
}

fn causes() -> Vec<FailureCause> {
    let error = || io::Error::other("a sample");
    let text = String::new;
    let late = |phase| FailureCause::Deadline(phase, Duration::ZERO);
    let reasons = [
        StopReason::PoweredOff,
        StopReason::Rebooted,
        StopReason::KernelPanic(text()),
        StopReason::HostDiskFull,
        StopReason::DiskError(text()),
        StopReason::Disturbed,
        StopReason::QemuExited(text()),
        StopReason::VsockExited(text()),
    ];
    let phases =
        [Phase::Planned, Phase::Booting, Phase::Ready, Phase::Claimed, Phase::Running].map(late);
    let mut causes = vec![
        FailureCause::Enclosure(EnclosureError::Forbidden(error())),
        FailureCause::Network(NetworkError::Tap(error())),
        FailureCause::Egress(EgressError::Addresses(error())),
        FailureCause::Machine(MachineError::Socket(error())),
        FailureCause::Shepherd("begin", error()),
        FailureCause::Record("record".into(), error()),
    ];
    causes.extend(phases);
    causes.extend(reasons.map(FailureCause::MachineStopped));
    causes.extend([
        FailureCause::Channel(ChannelError::Closed),
        FailureCause::Channel(ChannelError::TooLong(FrameError::Empty)),
        FailureCause::Channel(ChannelError::Violation(Violation::Version { theirs: 1, ours: 2 })),
        FailureCause::Channel(ChannelError::Violation(Violation::NotReading)),
        FailureCause::Agent { step: text(), error: text() },
        FailureCause::Silent(Duration::ZERO),
        FailureCause::Abandoned,
        FailureCause::Ended,
    ]);
    causes
}

fn table_of_causes() -> String {
    let mut table = "| cause | exit code | meaning |\n|---|---|---|\n".to_owned();
    for cause in causes() {
        let code = match cause {
            // Depends on what the host lacks or forbids.
            FailureCause::Enclosure(_)
            | FailureCause::Network(_)
            | FailureCause::Egress(_)
            | FailureCause::Machine(_) => "as the message says".to_owned(),
            _ => (cause.code() as u8).to_string(),
        };
        let _ = writeln!(table, "| `{}` | {code} | {} |", cause.name(), describe_cause(&cause));
    }
    table
}

#[test]
fn the_page_is_made_from_the_types() {
    let parts = [("events", events()), ("causes", table_of_causes())];
    assert_generated_parts("reference/events.md", &parts);
}
