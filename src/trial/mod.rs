//! An image on trial: booted once with one job in it, to see what it is like before anybody's job
//! meets it.
//!
//! ```text
//! audit    each hardening control, looked at from inside
//! smoke    a job like those that the image is for
//! refresh  why an image is to be built anew
//! ```
//!
//! The image is one that was built here, not a hostile one; what it prints is bounded all the
//! same. Owns the trials; knows nothing of people, of pools or of GitHub.

pub mod audit;
pub mod refresh;
pub mod smoke;

use std::io::{self, PipeReader, Read, Seek, Write};
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_protocol::message::{Bytes, Job, JobStatus};

use crate::egress::policy::Policy;
use crate::failure::{Code, Failure};
use crate::host::size::Size;
use crate::host::state::StateDirectory;
use crate::image::{Reference, Store, Trust};
use crate::machine::accelerator::Wish;
use crate::shepherd::event::{FailureReport, Happened, Outcome};
use crate::shepherd::plan::{Deadlines, Order, Plan, monotonic};
use crate::shepherd::planner::{self, PlanError, Wanted};
use crate::shepherd::{Descriptors, Handle, HandleError};

/// What a trial may print on each output, in bytes.
const OUTPUT_LIMIT: u64 = 4 << 20;

/// How long the job of a trial may take; emulation is slow.
const JOB_LIMIT: Duration = Duration::from_secs(600);

/// How long after its job a shepherd may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Why a trial could not be held. That an image fails one is no error.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The microVM can't be had.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The shepherd could not be started, or was lost.
    #[error(transparent)]
    Handle(#[from] HandleError),
    /// The microVM failed before its job ended.
    #[error("the image's microVM failed: {}", .0.message)]
    Machine(Box<FailureReport>),
    /// The job's streams could not be set up or read.
    #[error("can't hold the trial's streams")]
    Streams(#[source] io::Error),
    /// The shepherd did not end with its microVM.
    #[error("the shepherd did not end")]
    Endless,
}

impl Failure for TrialError {
    fn code(&self) -> Code {
        match self {
            Self::Plan(error) => error.code(),
            Self::Handle(error) => error.code(),
            Self::Machine(_) | Self::Endless => Code::MachineFailed,
            Self::Streams(_) => Code::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Plan(error) => error.hint(),
            Self::Handle(error) => error.hint(),
            Self::Machine(report) => report.hint.clone(),
            Self::Streams(_) | Self::Endless => None,
        }
    }
}

/// What a job on trial did.
#[derive(Debug)]
pub struct Tried {
    /// How it ended.
    pub status: JobStatus,
    /// What it printed on its standard output, cut at [`OUTPUT_LIMIT`].
    pub output: Vec<u8>,
    /// The same of its standard error.
    pub errors: Vec<u8>,
}

/// Where trials are held.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The store that the image is in.
    pub store: &'a Store,
    /// The state directory.
    pub state: &'a StateDirectory,
    /// What is to execute the guest's instructions.
    pub accelerator: Wish,
    /// What the guest may reach; a trial needs nothing.
    pub egress: Policy,
}

/// The memory and processors of a microVM on trial: what the smallest pool would give.
const MEMORY: Size = Size::gibibytes(1);
const PROCESSORS: u32 = 1;

impl Bench<'_> {
    /// Boots an image and runs a shell script in it, as `user`.
    pub fn run(&self, image: &Reference, user: &str, script: &[u8]) -> Result<Tried, TrialError> {
        let wanted = Wanted {
            asked: monotonic(),
            image: image.clone(),
            // It was built here, and may be signed once it has passed.
            trust: Trust::default(),
            accelerator: self.accelerator,
            processors: PROCESSORS,
            memory: MEMORY,
            disk: None,
            egress: self.egress.clone(),
            egress_record: None,
            deadlines: Deadlines { job: JOB_LIMIT, ..Deadlines::default() },
            boot: None,
            detached: None,
        };
        let (plan, _) = planner::plan_from(wanted, self.store, self.state)?;
        try_out(&plan, &shell(user), script)
    }
}

/// A shell that reads its script from standard input: it is in no argument and on no disk.
fn shell(user: &str) -> Job {
    Job {
        arguments: ["sh", "-s"].map(|text| Bytes::from(text.as_bytes().to_vec())).to_vec(),
        environment: Vec::new(),
        directory: None,
        user: Some(user.to_owned()),
        terminal: None,
        stdin: true,
        copy_in: Vec::new(),
        copy_out: Vec::new(),
        follow: None,
    }
}

fn try_out(plan: &Plan, job: &Job, input: &[u8]) -> Result<Tried, TrialError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut stdin = tempfile::tempfile().map_err(TrialError::Streams)?;
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(TrialError::Streams)?;
    let (output, stdout) = io::pipe().map_err(TrialError::Streams)?;
    let (errors, stderr) = io::pipe().map_err(TrialError::Streams)?;
    let descriptors =
        Descriptors { standard: [stdin.into(), stdout.into(), stderr.into()], copies: Vec::new() };
    let (output, errors) = (gather(output), gather(errors));
    let status = runtime.map_err(TrialError::Streams)?.block_on(follow(plan, job, descriptors));
    // Both end with the shepherd, whose ends were the last.
    let (output, errors) = (gathered(output)?, gathered(errors)?);
    Ok(Tried { status: status?, output, errors })
}

async fn follow(plan: &Plan, job: &Job, descriptors: Descriptors) -> Result<JobStatus, TrialError> {
    let mut shepherd = Handle::spawn(&descriptors)?;
    drop(descriptors);
    shepherd.order(&Order::Prepare(Box::new(plan.clone())))?;
    shepherd.order(&Order::Start(Box::new(job.clone())))?;
    // Every phase has its deadline in the shepherd, so there is an end to this.
    let mut outcome = None;
    while let Some(event) = shepherd.event().await {
        if let Happened::Ended(ended) = event.happened {
            outcome = Some(ended);
        }
    }
    let ended = tokio::time::timeout(END_LIMIT, shepherd.ended());
    let ended = ended.await.map_err(|_| TrialError::Endless)??;
    match outcome {
        Some(Outcome::Job { status, .. }) => Ok(status),
        Some(Outcome::Failed(report)) => Err(TrialError::Machine(Box::new(report))),
        None => Err(HandleError::Vanished(ended).into()),
    }
}

/// Reads what there is, up to the limit; whoever writes more finds nobody there.
fn gather(from: PipeReader) -> JoinHandle<io::Result<Vec<u8>>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.take(OUTPUT_LIMIT).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

fn gathered(thread: JoinHandle<io::Result<Vec<u8>>>) -> Result<Vec<u8>, TrialError> {
    match thread.join() {
        Ok(read) => read.map_err(TrialError::Streams),
        Err(_) => Err(TrialError::Streams(io::Error::other("a thread panicked"))),
    }
}
