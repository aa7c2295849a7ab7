//! Shepherds as processes of this host: the real driver of the seam.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::shepherds::{Left, NotPlanned, Shepherd, Shepherds, Unacknowledged};
use crate::daemon::decide::Load;
use crate::egress::record as egress;
use crate::failure::{Failure, chain};
use crate::forge::Promise;
use crate::host::descriptors;
use crate::host::state::StateDirectory;
use crate::shepherd::event::{Event, Phase};
use crate::shepherd::plan::{Id, Order, Plan};
use crate::shepherd::planner::{self, PlanError, Wanted};
use crate::shepherd::record::{self, Found, Liveness};
use crate::shepherd::{AttachError, Handle, output};

/// After there were no descriptors to keep a log.
const AGAIN: Duration = Duration::from_secs(1);

/// The shepherds below a state directory.
#[derive(Debug)]
pub(in crate::daemon) struct Processes {
    /// Mayfly's executable, as shepherds are started.
    program: PathBuf,
    state: StateDirectory,
}

impl Processes {
    pub(in crate::daemon) fn new(program: PathBuf, state: StateDirectory) -> Self {
        Self { program, state }
    }

    fn directory(&self, id: &Id) -> PathBuf {
        self.state.microvms().join(id.as_str())
    }
}

impl Shepherds for Processes {
    fn plan(&self, wanted: Wanted) -> Promise<'static, Result<Box<Plan>, NotPlanned>> {
        let state = self.state.clone();
        Box::pin(async move {
            // It reads files, and hashes an image that was not verified yet.
            let planned = tokio::task::spawn_blocking(move || planner::plan(wanted, &state)).await;
            match planned {
                Ok(Ok((plan, _))) => Ok(Box::new(plan)),
                Ok(Err(error)) => Err(NotPlanned {
                    image: matches!(error, PlanError::Image(_)),
                    why: with_hint(&error),
                }),
                Err(error) => Err(NotPlanned { image: false, why: chain(&error) }),
            }
        })
    }

    fn start(&self, plan: Plan) -> Promise<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async move {
            descriptors::spare().map_err(|error| format!("{error}: {}", descriptors::HINT))?;
            match Handle::spawn_detached(&self.program, &plan).await {
                Ok(handle) => Ok(Box::new(handle) as Box<dyn Shepherd>),
                Err(error) => Err(chain(&error)),
            }
        })
    }

    fn attach<'a>(&'a self, id: &'a Id) -> Promise<'a, Result<Box<dyn Shepherd>, AttachError>> {
        Box::pin(async move {
            // Of one that is gone only its record is read.
            if !self.is_gone(id) {
                descriptors::spare()?;
            }
            let handle = Handle::attach(&self.directory(id)).await?;
            Ok(Box::new(handle) as Box<dyn Shepherd>)
        })
    }

    fn is_gone(&self, id: &Id) -> bool {
        match record::liveness(&self.directory(id)) {
            Ok(liveness) => liveness == Liveness::Gone,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    fn kill(&self, id: &Id) -> io::Result<()> {
        record::kill(&self.directory(id))
    }

    fn list(&self) -> io::Result<Vec<Left>> {
        let found = record::owned(&self.state.microvms())?.into_iter().map(|found| {
            let summary = record::summary(&found.directory).ok().flatten();
            let load =
                |own: &record::Summary| Load { processors: own.processors, memory: own.memory.0 };
            let ran = [Phase::Running, Phase::Claimed];
            let ran = ran.into_iter().find_map(|phase| record::ago(&found, phase));
            let summary = summary.map(|own| (own.image.clone(), load(&own)));
            let Found { id, living, events, .. } = found;
            Left { id, living, events, summary, ran }
        });
        Ok(found.collect())
    }

    fn keep_output(&self, id: &Id, log: PathBuf) -> Promise<'static, u64> {
        let (directory, id) = (self.directory(id), id.clone());
        Box::pin(async move {
            // What there are no descriptors for now is kept later; how long that may take is the caller's
            // to say.
            loop {
                let (own, from, to) = (id.clone(), directory.clone(), log.clone());
                let keep = tokio::task::spawn_blocking(move || keep_output(&own, &from, &to));
                match keep.await {
                    Ok(Err(error)) => {
                        tracing::warn!(microvm = %id, "its log is kept later: {error}");
                    }
                    Ok(Ok(bytes)) => return bytes,
                    Err(_) => return 0,
                }
                tokio::time::sleep(AGAIN).await;
            }
        })
    }

    fn put_away(&self, id: &Id, black_box_of: Option<String>) -> Promise<'static, io::Result<()>> {
        let (directory, all) = (self.directory(id), self.state.microvms());
        Box::pin(async move {
            let put_away = move || match black_box_of {
                Some(pool) => record::keep(&directory, &pool).and_then(|()| record::prune(&all)),
                None => record::collect(&directory).or_else(absent),
            };
            tokio::task::spawn_blocking(put_away).await.unwrap_or_else(|error| Err(error.into()))
        })
    }
}

impl Shepherd for Handle {
    fn event(&mut self) -> Promise<'_, Option<Event>> {
        Box::pin(Self::event(self))
    }

    fn order(&mut self, order: &Order) -> Result<(), String> {
        Self::order(self, order).map(drop).map_err(|error| chain(&error))
    }

    fn kill(&self) -> io::Result<()> {
        Self::kill(self).map_err(io::Error::other)
    }

    fn resume(&mut self, orders: Unacknowledged) -> Result<(), String> {
        Self::resume(self, orders).map_err(|error| chain(&error))
    }

    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged {
        Self::into_unacknowledged(*self)
    }

    fn ended(self: Box<Self>) -> Promise<'static, String> {
        Box::pin(async move { Self::ended(*self).await.unwrap_or_else(|error| chain(&error)) })
    }
}

/// Keeps what a job wrote and the record of what it reached, which outlive its microVM. Gives how many
/// bytes; an error where there are no descriptors left.
fn keep_output(id: &Id, directory: &Path, log: &Path) -> io::Result<u64> {
    let output = directory.join(output::OUTPUT);
    let kept = output::complete(directory).and_then(|()| std::fs::rename(&output, log));
    let mut bytes = count(id, log, kept)?;
    for (from, to) in [(egress::JSON, "egress.jsonl"), (egress::SQUID, "access.log")] {
        let to = log.with_extension(to);
        // Of a try before this one.
        let removed = std::fs::remove_file(&to).or_else(absent);
        // A black box has it, too.
        let kept = removed.and_then(|()| std::fs::hard_link(directory.join(from), &to));
        bytes = bytes.saturating_add(count(id, &to, kept)?);
    }
    Ok(bytes)
}

fn count(id: &Id, path: &Path, kept: io::Result<()>) -> io::Result<u64> {
    match kept.and_then(|()| path.metadata()) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if descriptors::ran_out(&error) => Err(error),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(microvm = %id, "can't keep {}: {error}", path.display());
            }
            // What an earlier try kept is there.
            Ok(path.metadata().map_or(0, |metadata| metadata.len()))
        }
    }
}

/// What is not there is no failure.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn with_hint(error: &impl Failure) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", chain(error))
}
