//! The page of events, as far as types say what is in it: samples of each kind, and the causes.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use mayfly_protocol::frame::FrameError;
use mayfly_protocol::message::{JobStatus, NotStarted, Statistics};

use super::cause::Cause;
use super::egress::EgressError;
use super::enclosure::EnclosureError;
use super::event::{Event, FailureReport, Happened, Outcome, Phase};
use super::plan::{Farewell, Id};
use super::runner::{JobResult, RunnerMark};
use crate::channel::{ChannelError, Violation};
use crate::egress::record::{Report, Row, Total, Totals};
use crate::failure::Failure;
use crate::machine::{Death, MachineError};
use crate::network::NetworkError;
use crate::reference::assert_made_in_parts;

pub(super) const NAME: &str = "m-0123456789";

/// What each kind of event tells. A new kind goes to [`samples`], too.
fn told(happened: &Happened) -> &'static str {
    match happened {
        Happened::Phase(_) => "a phase began",
        Happened::Greeted { .. } => "the guest's agent said hello; both texts are the guest's word",
        Happened::Egress(_) => {
            "what the guest reached and was refused: a row for each destination, port, verdict and \
             cause, at most 512, with bytes `up` and `down`; `unrecorded` counts what is missing"
        }
        Happened::Reached(_) => {
            "the same so far, while the job runs, when there is a row that was not told: at most 64 \
             rows, 32 times"
        }
        Happened::Interrupted(_) => {
            "the job was interrupted: by whom and why, and how long it may take to end by itself"
        }
        Happened::Unknown(_) => {
            "something that another version of Mayfly recorded and this one does not know; kept as \
             it is, and skipped"
        }
        Happened::Runner(mark) => match mark {
            RunnerMark::Connected => {
                "the job is a runner, and says so before it was in touch with GitHub"
            }
            RunnerMark::Retrying => "the runner can't reach GitHub, and tries again without end",
            RunnerMark::Listening => "the runner waits for a job",
            RunnerMark::Running { .. } => "the runner has a job",
            RunnerMark::Completed { .. } => "the runner's job is over",
        },
        Happened::Ended(Outcome::Job { status, .. }) => match status {
            JobStatus::Code(_) => {
                "the command ended by itself; `not_copied` names what could not be copied out, `oom_kills` \
                 counts processes that the guest's kernel killed for want of memory"
            }
            JobStatus::Signal(_) => "a signal ended the command",
            JobStatus::NotStarted(_) => "the command never ran",
        },
        Happened::Ended(Outcome::Failed(_)) => {
            "the microVM failed: in which phase, by which of the causes below, in words, what to do, \
             the exit code, the last that was heard of the guest, the directory of the evidence"
        }
    }
}

pub(super) fn samples() -> Vec<Happened> {
    let job =
        |status| Happened::Ended(Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 });
    let name = || "build".to_owned();
    let total = Total { connections: 2, up: 1200, down: 34_000 };
    let totals = Totals { allowed: total, ..Totals::default() };
    let none = Totals::default();
    let row = Row {
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
        message: "the guest did not say hello within 20s".to_owned(),
        hint: Some("the console's last lines are in the black box".to_owned()),
        code: 125,
        statistics: None::<Statistics>,
        black_box: format!("/var/lib/mayfly/microvms/{NAME}").into(),
    };
    vec![
        Happened::Phase(Phase::Booting),
        Happened::Greeted { agent: "0.1.0".to_owned(), kernel: "6.12.1".to_owned() },
        Happened::Runner(RunnerMark::Connected),
        Happened::Runner(RunnerMark::Listening),
        Happened::Runner(RunnerMark::Retrying),
        Happened::Runner(RunnerMark::Running { job: name() }),
        Happened::Runner(RunnerMark::Completed { job: name(), result: JobResult::Succeeded }),
        Happened::Egress(Report { rows: vec![row], totals, omitted: 0, unrecorded: 0 }),
        Happened::Reached(Report { rows: Vec::new(), totals: none, omitted: 0, unrecorded: 0 }),
        Happened::Interrupted(Farewell {
            within: Duration::from_secs(60),
            why: "the job did not end within 6h".to_owned(),
        }),
        Happened::Unknown(serde_json::json!({ "of_another_version": {} })),
        job(JobStatus::Code(0)),
        job(JobStatus::Signal(9)),
        job(JobStatus::NotStarted(NotStarted::CommandNotFound)),
        Happened::Ended(Outcome::Failed(failed)),
    ]
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

/// One whole line, then what `happened` can be.
fn events() -> String {
    let event = Event {
        time: "2026-01-02T03:04:05.678Z".to_owned(),
        microvm: Id::parse(NAME).unwrap(),
        elapsed_ms: 12.6,
        happened: Happened::Phase(Phase::Booting),
    };
    let mut text =
        format!("```json\n{}\n```\n\n| `happened` | meaning |\n|---|---|\n", json(&event));
    for happened in samples() {
        // Writing to a string can't fail.
        let _ = writeln!(text, "| `{}` | {} |", json(&happened), told(&happened));
    }
    text
}

/// What each cause means. A new one goes to [`causes`], too.
fn meaning(cause: &Cause) -> &'static str {
    match cause {
        Cause::Enclosure(_) => "namespaces or the private tmpfs were refused",
        Cause::Network(_) => "the network namespace or its tap could not be made",
        Cause::Egress(_) => "a listener, the record or the parent proxy's credentials were refused",
        Cause::Machine(_) => "overlay, QEMU or vhost-device-vsock did not start",
        Cause::Shepherd(..) => "a socket or thread of the shepherd's own was refused",
        Cause::Record(..) => "the record can't be written",
        Cause::Deadline(phase, _) => match phase {
            Phase::Planned => "the microVM was not prepared in time",
            Phase::Prepared | Phase::Booting => "the guest did not say hello in time",
            Phase::Ready => "no job came in time",
            Phase::Claimed => "the job did not start in time",
            _ => "the job did not end in time",
        },
        Cause::Died(death) => match death {
            Death::PoweredOff => "the guest powered itself off",
            Death::Rebooted => "the guest rebooted itself",
            Death::KernelPanic(_) => "the guest's kernel panicked, as its console says",
            Death::HostDiskFull => "the host's disk had no room for what the guest wrote",
            Death::DiskError(_) => "the host could not read or write the disk",
            Death::Disturbed => "something on the host paused or reset the machine",
            Death::QemuEnded(_) => "QEMU ended by itself or was killed",
            Death::VsockEnded(_) => "vhost-device-vsock ended by itself or was killed",
        },
        Cause::Channel(ChannelError::Closed) => "the guest closed the channel but lives on",
        Cause::Channel(ChannelError::TooLong(_)) => {
            "arguments and variables do not fit into a message"
        }
        Cause::Channel(ChannelError::Violation(Violation::Version { .. })) => {
            "the image's agent speaks another version"
        }
        Cause::Channel(ChannelError::Violation(_)) => {
            "the guest broke the protocol; the message says how"
        }
        Cause::Agent { .. } => "the agent gave up; the message says at what",
        Cause::Silent(_) => "no heartbeat came",
        Cause::Abandoned => "the front end went away without a word",
        Cause::Ended => "the microVM was ended on request",
    }
}

fn causes() -> Vec<Cause> {
    let error = || io::Error::other("a sample");
    let text = String::new;
    let late = |phase| Cause::Deadline(phase, Duration::ZERO);
    let deaths = [
        Death::PoweredOff,
        Death::Rebooted,
        Death::KernelPanic(text()),
        Death::HostDiskFull,
        Death::DiskError(text()),
        Death::Disturbed,
        Death::QemuEnded(text()),
        Death::VsockEnded(text()),
    ];
    let phases =
        [Phase::Planned, Phase::Booting, Phase::Ready, Phase::Claimed, Phase::Running].map(late);
    let mut causes = vec![
        Cause::Enclosure(EnclosureError::Forbidden(error())),
        Cause::Network(NetworkError::Tap(error())),
        Cause::Egress(EgressError::Addresses(error())),
        Cause::Machine(MachineError::Socket(error())),
        Cause::Shepherd("begin", error()),
        Cause::Record("record".into(), error()),
    ];
    causes.extend(phases);
    causes.extend(deaths.map(Cause::Died));
    causes.extend([
        Cause::Channel(ChannelError::Closed),
        Cause::Channel(ChannelError::TooLong(FrameError::Empty)),
        Cause::Channel(ChannelError::Violation(Violation::Version { theirs: 1, ours: 2 })),
        Cause::Channel(ChannelError::Violation(Violation::NotReading)),
        Cause::Agent { step: text(), error: text() },
        Cause::Silent(Duration::ZERO),
        Cause::Abandoned,
        Cause::Ended,
    ]);
    causes
}

fn table_of_causes() -> String {
    let mut table = "| cause | exit code | meaning |\n|---|---|---|\n".to_owned();
    for cause in causes() {
        let code = match cause {
            // What the host lacks or forbids.
            Cause::Enclosure(_) | Cause::Network(_) | Cause::Egress(_) | Cause::Machine(_) => {
                "as the message says".to_owned()
            }
            _ => (cause.code() as u8).to_string(),
        };
        let _ = writeln!(table, "| `{}` | {code} | {} |", cause.name(), meaning(&cause));
    }
    table
}

#[test]
fn the_page_is_made_from_the_types() {
    let parts = [("events", events()), ("causes", table_of_causes())];
    assert_made_in_parts("reference/events.md", &parts);
}
