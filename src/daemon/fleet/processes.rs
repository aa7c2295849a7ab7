//! Shepherds as processes of this host: the real implementation of [`Shepherds`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::shepherds::{FoundMicrovm, PlanFailure, Shepherd, Shepherds, Unacknowledged};
use crate::decide::Resources;
use mayfly_egress::record as egress;
use mayfly_failure::{Failure, chain};
use mayfly_forge::BoxFuture;
use mayfly_host::descriptors;
use mayfly_host::state::StateDirectory;
use mayfly_shepherd::event::{Event, Phase};
use mayfly_shepherd::plan::{MicrovmId, MicrovmPlan, ShepherdCommand};
use mayfly_shepherd::planner::{self, MicrovmRequest, PlanError};
use mayfly_shepherd::record::{self, Liveness, RecordedMicrovm};
use mayfly_shepherd::{AttachError, ShepherdHandle, output};

/// Wait before the next try to save a log when the process is out of descriptors.
const AGAIN: Duration = Duration::from_secs(1);

/// The shepherds of a state directory.
#[derive(Debug)]
pub(crate) struct ShepherdProcesses {
    /// Mayfly's executable, which starts shepherds.
    program: PathBuf,
    state: StateDirectory,
}

impl ShepherdProcesses {
    pub(crate) fn new(program: PathBuf, state: StateDirectory) -> Self {
        Self { program, state }
    }

    fn directory(&self, id: &MicrovmId) -> PathBuf {
        self.state.microvms().join(id.as_str())
    }
}

impl Shepherds for ShepherdProcesses {
    fn plan(
        &self,
        request: MicrovmRequest,
    ) -> BoxFuture<'static, Result<Box<MicrovmPlan>, PlanFailure>> {
        let state = self.state.clone();
        Box::pin(async move {
            // Planning reads files, and hashes an image that was not verified yet.
            let planned = tokio::task::spawn_blocking(move || planner::plan(request, &state)).await;
            match planned {
                Ok(Ok((plan, _))) => Ok(Box::new(plan)),
                Ok(Err(error)) => Err(PlanFailure {
                    is_image_error: matches!(error, PlanError::Image(_)),
                    message: with_hint(&error),
                }),
                Err(error) => Err(PlanFailure { is_image_error: false, message: chain(&error) }),
            }
        })
    }

    fn start(&self, plan: MicrovmPlan) -> BoxFuture<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async move {
            descriptors::check_spare()
                .map_err(|error| format!("{error}: {}", descriptors::HINT))?;
            match ShepherdHandle::spawn_detached(&self.program, &plan).await {
                Ok(handle) => Ok(Box::new(handle) as Box<dyn Shepherd>),
                Err(error) => Err(chain(&error)),
            }
        })
    }

    fn attach<'a>(
        &'a self,
        id: &'a MicrovmId,
    ) -> BoxFuture<'a, Result<Box<dyn Shepherd>, AttachError>> {
        Box::pin(async move {
            // If it is gone, only its record is read.
            if !self.is_gone(id) {
                descriptors::check_spare()?;
            }
            let handle = ShepherdHandle::attach(&self.directory(id)).await?;
            Ok(Box::new(handle) as Box<dyn Shepherd>)
        })
    }

    fn is_gone(&self, id: &MicrovmId) -> bool {
        match record::liveness(&self.directory(id)) {
            Ok(liveness) => liveness == Liveness::Gone,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn kill(&self, id: &MicrovmId) -> io::Result<()> {
        record::kill(&self.directory(id))
    }

    fn list(&self) -> io::Result<Vec<FoundMicrovm>> {
        let found = record::uncollected(&self.state.microvms())?.into_iter().map(|found| {
            let summary = record::read_summary(&found.directory).ok().flatten();
            let resources = |own: &record::MicrovmSummary| Resources {
                processors: own.processors,
                memory: own.memory.0,
            };
            let ran = [Phase::Running, Phase::Claimed];
            let ran_for = ran.into_iter().find_map(|phase| record::time_since_phase(&found, phase));
            let deadlines = summary.as_ref().and_then(|own| own.deadlines);
            let summary = summary.map(|own| (own.image.clone(), resources(&own)));
            let RecordedMicrovm { id, is_alive, events, .. } = found;
            FoundMicrovm { id, is_alive, events, summary, deadlines, ran_for }
        });
        Ok(found.collect())
    }

    fn save_output(&self, id: &MicrovmId, log: PathBuf) -> BoxFuture<'static, u64> {
        let (directory, id) = (self.directory(id), id.clone());
        Box::pin(async move {
            // When out of descriptors, try again later. The caller limits the total time.
            loop {
                let (own, from, to) = (id.clone(), directory.clone(), log.clone());
                let keep = tokio::task::spawn_blocking(move || save_output(&own, &from, &to));
                match keep.await {
                    Ok(Err(error)) => {
                        tracing::warn!(microvm = %id, "can't save its log yet, retrying: {error}");
                    }
                    Ok(Ok(bytes)) => return bytes,
                    Err(_) => return 0,
                }
                tokio::time::sleep(AGAIN).await;
            }
        })
    }

    fn dispose(
        &self,
        id: &MicrovmId,
        black_box_pool: Option<String>,
    ) -> BoxFuture<'static, io::Result<()>> {
        let (directory, all) = (self.directory(id), self.state.microvms());
        Box::pin(async move {
            let dispose = move || match black_box_pool {
                Some(pool) => {
                    record::keep_black_box(&directory, &pool).and_then(|()| record::prune(&all))
                }
                None => record::collect(&directory).or_else(absent),
            };
            tokio::task::spawn_blocking(dispose).await.unwrap_or_else(|error| Err(error.into()))
        })
    }
}

impl Shepherd for ShepherdHandle {
    fn event(&mut self) -> BoxFuture<'_, Option<Event>> {
        Box::pin(self.next_event())
    }

    fn send_command(&mut self, command: &ShepherdCommand) -> Result<(), String> {
        Self::send_command(self, command).map(drop).map_err(|error| chain(&error))
    }

    fn kill(&self) -> io::Result<()> {
        Self::kill(self).map_err(io::Error::other)
    }

    fn resume(&mut self, orders: Unacknowledged) -> Result<(), String> {
        self.resend(orders).map_err(|error| chain(&error))
    }

    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged {
        Self::into_unacknowledged(*self)
    }

    fn wait(self: Box<Self>) -> BoxFuture<'static, String> {
        Box::pin(async move { Self::wait(*self).await.unwrap_or_else(|error| chain(&error)) })
    }
}

/// Saves a job's output and its egress record, which outlive the microVM. Returns the number of
/// bytes, or an error if the process is out of descriptors.
fn save_output(id: &MicrovmId, directory: &Path, log: &Path) -> io::Result<u64> {
    let output = directory.join(output::OUTPUT);
    let kept = output::append_tail(directory).and_then(|()| std::fs::rename(&output, log));
    let mut bytes = count(id, log, kept)?;
    for (from, to) in [(egress::JSON, "egress.jsonl"), (egress::SQUID, "access.log")] {
        let to = log.with_extension(to);
        // From an earlier try.
        let removed = std::fs::remove_file(&to).or_else(absent);
        // A link, not a rename: a black box needs the file too.
        let kept = removed.and_then(|()| std::fs::hard_link(directory.join(from), &to));
        bytes = bytes.saturating_add(count(id, &to, kept)?);
    }
    Ok(bytes)
}

fn count(id: &MicrovmId, path: &Path, kept: io::Result<()>) -> io::Result<u64> {
    match kept.and_then(|()| path.metadata()) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if descriptors::is_exhausted(&error) => Err(error),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(microvm = %id, "can't save {}: {error}", path.display());
            }
            // An earlier try may have saved it.
            Ok(path.metadata().map_or(0, |metadata| metadata.len()))
        }
    }
}

/// Treats a missing file as success.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn with_hint(error: &impl Failure) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", chain(error))
}
