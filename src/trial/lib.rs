//! Trials of an image: it is booted once with one job, to check it before any real job uses it.
//!
//! ```text
//! audit  checks each hardening control from inside
//! smoke  runs a job like those that the image is for
//! ```
//!
//! The image was built on this host and is not hostile; its output is limited nevertheless. This
//! crate owns the trials and knows nothing of user interfaces, pools or GitHub.

pub mod audit;
pub mod smoke;

use std::io::{self, PipeReader, Read, Seek, Write};
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_protocol::message::{Bytes, Job, JobExit};

use mayfly_egress::policy::Policy;
use mayfly_failure::{Code, Failure};
use mayfly_host::size::Size;
use mayfly_host::state::StateDirectory;
use mayfly_image::{Reference, Store, Trust};
use mayfly_machine::accelerator::AcceleratorPreference;
use mayfly_shepherd::event::{EventKind, FailureReport, JobOutcome};
use mayfly_shepherd::plan::{Deadlines, MicrovmPlan, ShepherdCommand, monotonic};
use mayfly_shepherd::planner::{self, MicrovmRequest, PlanError};
use mayfly_shepherd::{HandleError, JobDescriptors, ShepherdHandle};

/// The most bytes of each output stream that are kept.
const MAX_OUTPUT: u64 = 4 << 20;

/// The timeout of a trial's job; emulation is slow.
const JOB_TIMEOUT: Duration = Duration::from_secs(600);

/// The timeout for the shepherd to exit after its job.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The reason why a trial could not run. An image that fails a trial is not an error.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The microVM can't be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The shepherd could not be started, or was lost.
    #[error(transparent)]
    Handle(#[from] HandleError),
    /// The microVM failed before its job ended.
    #[error("the image's microVM failed: {}", .0.message)]
    Machine(Box<FailureReport>),
    /// The job's streams could not be set up or read.
    #[error("can't set up or read the trial's streams")]
    Streams(#[source] io::Error),
    /// The shepherd did not exit after its microVM.
    #[error("the shepherd did not exit within {} s", EXIT_TIMEOUT.as_secs())]
    ShepherdTimeout,
}

impl Failure for TrialError {
    fn code(&self) -> Code {
        match self {
            Self::Plan(error) => error.code(),
            Self::Handle(error) => error.code(),
            Self::Machine(_) | Self::ShepherdTimeout => Code::MachineFailed,
            Self::Streams(_) => Code::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Plan(error) => error.hint(),
            Self::Handle(error) => error.hint(),
            Self::Machine(report) => report.hint.clone(),
            Self::Streams(_) | Self::ShepherdTimeout => None,
        }
    }
}

/// The result of a trial's job.
#[derive(Debug)]
pub struct TrialOutput {
    /// Its status.
    pub status: JobExit,
    /// Its standard output, up to [`MAX_OUTPUT`].
    pub output: Vec<u8>,
    /// Its standard error, up to [`MAX_OUTPUT`].
    pub errors: Vec<u8>,
}

/// The environment of trials.
#[derive(Debug)]
pub struct TrialEnvironment<'a> {
    /// The store of the image.
    pub store: &'a Store,
    /// The state directory.
    pub state: &'a StateDirectory,
    /// The preferred accelerator.
    pub accelerator: AcceleratorPreference,
    /// The egress policy; a trial needs no egress.
    pub egress: Policy,
}

/// The memory and processors of a trial's microVM: those of the smallest pool.
const MEMORY: Size = Size::gibibytes(1);
const PROCESSORS: u32 = 1;

impl TrialEnvironment<'_> {
    /// Boots an image and runs a shell script in it, as `user`.
    pub fn run(
        &self,
        image: &Reference,
        user: &str,
        script: &[u8],
    ) -> Result<TrialOutput, TrialError> {
        let request = MicrovmRequest {
            requested_at: monotonic(),
            image: image.clone(),
            // It was built on this host, and may be signed after it has passed.
            trust: Trust::default(),
            accelerator: self.accelerator,
            processors: PROCESSORS,
            memory: MEMORY,
            disk: None,
            egress: self.egress.clone(),
            egress_record: None,
            deadlines: Deadlines { job: JOB_TIMEOUT, ..Deadlines::default() },
            boot: None,
            detached: None,
        };
        let (plan, _) = planner::plan_from(request, self.store, self.state)?;
        run_job(&plan, &shell(user), script)
    }
}

/// A shell that reads its script from standard input, so that the script appears in no argument and
/// on no disk.
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

fn run_job(plan: &MicrovmPlan, job: &Job, input: &[u8]) -> Result<TrialOutput, TrialError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut stdin = tempfile::tempfile().map_err(TrialError::Streams)?;
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(TrialError::Streams)?;
    let (output, stdout) = io::pipe().map_err(TrialError::Streams)?;
    let (errors, stderr) = io::pipe().map_err(TrialError::Streams)?;
    let descriptors = JobDescriptors {
        standard: [stdin.into(), stdout.into(), stderr.into()],
        copies: Vec::new(),
    };
    let (output, errors) = (spawn_reader(output), spawn_reader(errors));
    let status = runtime.map_err(TrialError::Streams)?.block_on(follow(plan, job, descriptors));
    // Both end with the shepherd, which holds the last write ends.
    let (output, errors) = (join_reader(output)?, join_reader(errors)?);
    Ok(TrialOutput { status: status?, output, errors })
}

async fn follow(
    plan: &MicrovmPlan,
    job: &Job,
    descriptors: JobDescriptors,
) -> Result<JobExit, TrialError> {
    let mut shepherd = ShepherdHandle::spawn(&descriptors)?;
    drop(descriptors);
    shepherd.send_command(&ShepherdCommand::Prepare(Box::new(plan.clone())))?;
    shepherd.send_command(&ShepherdCommand::Start(Box::new(job.clone())))?;
    // The shepherd has a deadline for every phase, so this loop ends.
    let mut outcome = None;
    while let Some(event) = shepherd.next_event().await {
        if let EventKind::Ended(ended) = event.kind {
            outcome = Some(ended);
        }
    }
    let ended = tokio::time::timeout(EXIT_TIMEOUT, shepherd.wait());
    let ended = ended.await.map_err(|_| TrialError::ShepherdTimeout)??;
    match outcome {
        Some(JobOutcome::Job { status, .. }) => Ok(status),
        Some(JobOutcome::Failed(report)) => Err(TrialError::Machine(Box::new(report))),
        None => Err(HandleError::Exited(ended).into()),
    }
}

/// Reads up to the limit on a thread, then closes the pipe.
fn spawn_reader(from: PipeReader) -> JoinHandle<io::Result<Vec<u8>>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
        Ok(bytes)
    })
}

fn join_reader(thread: JoinHandle<io::Result<Vec<u8>>>) -> Result<Vec<u8>, TrialError> {
    match thread.join() {
        Ok(read) => read.map_err(TrialError::Streams),
        Err(_) => Err(TrialError::Streams(io::Error::other("a thread panicked"))),
    }
}
