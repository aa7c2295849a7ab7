//! Answers "Why is my job waiting?": the history of a job, and what it waits for.

use super::{ReadResult, Snapshot};
use crate::clock::Clock;
use crate::decide::{ActiveBlocker, JobKey};
use mayfly_api::types::{
    ApiError, ApiErrorKind, BlockerView, DestinationView, EgressView, Explanation, JobId,
    JobSource, JobState, JobView, PhaseView, Time,
};
use mayfly_config::GitHubConfig;
use mayfly_egress::policy::{RefusedDestination, explain_missing_for};
use mayfly_ledger::{
    DestinationRecord, EgressSummary, JobResult, LedgerError, LedgerReader, VerdictTotals,
};

impl Snapshot {
    pub(crate) fn explain(self, id: JobId, reader: &LedgerReader) -> ReadResult<Explanation> {
        let Some(job) = reader.job(mayfly_ledger::JobId(id))? else {
            return Ok(Err(unknown_job(id)));
        };
        let recorded = match &job.microvm {
            Some(microvm) => reader.egress(microvm)?,
            None => None,
        };
        let egress =
            recorded.as_ref().or_else(|| self.current_egress(&job)).map(|egress| EgressView {
                destinations: egress.destinations.iter().map(destination_view).collect(),
                ..egress_view(egress.verdicts)
            });
        let mut explanation = Explanation { egress, ..self.history(&job, reader)? };
        if let (None, mayfly_ledger::JobSource::Github) = (&recorded, job.source) {
            explanation.job.warning =
                self.current_egress(&job).and_then(|egress| self.refused_needs(egress));
        }
        Ok(Ok(explanation))
    }

    /// Returns what a running job's microVM has reached so far.
    fn current_egress(&self, job: &mayfly_ledger::JobRecord) -> Option<&EgressSummary> {
        self.egress_so_far.get(job.microvm.as_deref()?)
    }

    /// Returns a warning if a runner was refused something it needs.
    fn refused_needs(&self, egress: &EgressSummary) -> Option<String> {
        let refused = egress.destinations.iter().filter(|one| one.verdict == "refused");
        let refused =
            refused.map(|one| RefusedDestination::new(&one.host, one.port, one.cause.as_deref()));
        explain_missing_for(&self.github.as_ref()?.target.origin, refused)
    }

    /// Builds the explanation without the microVM's egress.
    fn history(
        &self,
        job: &mayfly_ledger::JobRecord,
        reader: &LedgerReader,
    ) -> Result<Explanation, LedgerError> {
        let mut phases = vec![began("queued", job.queued_at)];
        let mut black_box = None;
        if let Some(id) = &job.microvm {
            phases.extend(job.claimed_at.map(|at| began("assigned to a microVM", at)));
            for phase in reader.phases(id)? {
                let detail = Some(format!("microVM {id}"));
                phases.push(PhaseView { detail, ..began(&phase.phase, phase.at) });
            }
            black_box = reader.microvm(id)?.and_then(|microvm| microvm.black_box);
        }
        if job.source == mayfly_ledger::JobSource::Github {
            // The microVM's phases are its runner's, which started before the job.
            phases.extend(job.started_at.map(|at| began("started", at)));
        }
        phases.extend(
            job.ended_at
                .map(|at| PhaseView { detail: job.cause.clone(), ..began(job.state.as_str(), at) }),
        );
        phases.sort_by_key(|phase| phase.at);
        for index in 1..phases.len() {
            let lasted = phases[index].at.since(phases[index - 1].at);
            phases[index - 1].lasted_ms = u64::try_from(lasted.as_millis()).ok();
        }
        let blocker = self.blocker(job);
        let job = job_view_with_warning(job, self.github.as_ref(), reader)?;
        Ok(Explanation { job, phases, blocker, black_box, egress: None })
    }

    /// Builds the explanation with counts of the microVM's egress only.
    pub(super) fn brief(
        &self,
        job: &mayfly_ledger::JobRecord,
        reader: &LedgerReader,
    ) -> Result<Explanation, LedgerError> {
        let verdicts = match &job.microvm {
            Some(microvm) => reader.verdicts(microvm)?,
            None => None,
        };
        let verdicts = verdicts.or_else(|| self.current_egress(job).map(|egress| egress.verdicts));
        Ok(Explanation { egress: verdicts.map(egress_view), ..self.history(job, reader)? })
    }

    /// Returns what a job waits for; `None` if it does not wait.
    fn blocker(&self, job: &mayfly_ledger::JobRecord) -> Option<BlockerView> {
        if job.state != mayfly_ledger::JobState::Queued {
            return None;
        }
        let say = |code: &str, message: String| {
            Some(BlockerView { code: code.to_owned(), message, until: None })
        };
        let is_there = |name: &&str| self.pools.iter().any(|pool| pool.name == *name);
        let Some(pool) = job.pool.as_deref().filter(is_there) else {
            return say("no_pool", no_pool(&job.labels));
        };
        let blocker = self.blockers.get(pool).cloned();
        if let (None, Some(before @ 1..)) = (&blocker, self.jobs_ahead.get(&JobKey(job.id.0))) {
            return say("behind_others", format!("{before} jobs of its pool are ahead of it"));
        }
        blocker.or_else(|| say("deciding", "it waits for the next decision".to_owned()))
    }
}

/// Explains why no pool serves a job with these labels. A label may contain a comma or a quote.
fn no_pool(labels: &[String]) -> String {
    if labels.is_empty() {
        // GitHub does not report the runner group.
        return "it has no labels, perhaps only a runner group, so no pool matches it; \
                add a pool's label to runs-on"
            .to_owned();
    }
    let quoted: Vec<String> = labels.iter().map(|label| format!("{label:?}")).collect();
    format!("no pool has all of these labels: {}", quoted.join(", "))
}

fn egress_view(verdicts: VerdictTotals) -> EgressView {
    let VerdictTotals { allowed, refused, would_refuse, up, down, omitted, unrecorded } = verdicts;
    let destinations = Vec::new();
    EgressView { allowed, refused, would_refuse, up, down, omitted, unrecorded, destinations }
}

fn destination_view(destination: &DestinationRecord) -> DestinationView {
    DestinationView {
        host: destination.host.clone(),
        port: destination.port,
        verdict: destination.verdict.clone(),
        cause: destination.cause.clone(),
        connections: destination.connections,
        up: destination.up,
        down: destination.down,
    }
}

fn began(phase: &str, at: mayfly_ledger::Time) -> PhaseView {
    PhaseView { phase: phase.to_owned(), at: time(at), lasted_ms: None, detail: None }
}

fn time(time: mayfly_ledger::Time) -> Time {
    Time(u64::try_from(time.0).unwrap_or_default())
}

/// Converts a blocker for the API.
pub(super) fn blocker_view(blocker: &ActiveBlocker, clock: Clock) -> BlockerView {
    let value = serde_json::to_value(&blocker.reason).unwrap_or_default();
    let code = value.get("blocker").and_then(serde_json::Value::as_str).unwrap_or("unknown");
    BlockerView {
        code: code.to_owned(),
        message: blocker.reason.to_string(),
        until: blocker.until.map(|until| clock.wall_time(until)),
    }
}

pub(crate) fn unknown_job(job: JobId) -> ApiError {
    ApiError::new(ApiErrorKind::NotFound, format!("unknown job {job}"))
}

/// Converts a job for the API.
pub(crate) fn job_view(job: &mayfly_ledger::JobRecord, github: Option<&GitHubConfig>) -> JobView {
    let page = || github?.job_page(job.repository.as_deref()?, job.run_id?, job.forge_id?);
    let name = job.name.clone().or_else(|| {
        let command = job.command.as_ref()?;
        let words =
            command.arguments.iter().map(|word| String::from_utf8_lossy(&word.0).into_owned());
        Some(words.collect::<Vec<_>>().join(" "))
    });
    JobView {
        id: job.id.0,
        source: match job.source {
            mayfly_ledger::JobSource::Local => JobSource::Local,
            mayfly_ledger::JobSource::Github => JobSource::Github,
        },
        pool: job.pool.clone(),
        state: match job.state {
            mayfly_ledger::JobState::Queued => JobState::Queued,
            mayfly_ledger::JobState::Claimed => JobState::Claimed,
            mayfly_ledger::JobState::Running => JobState::Running,
            mayfly_ledger::JobState::Finished => JobState::Finished,
            mayfly_ledger::JobState::Failed => JobState::Failed,
            mayfly_ledger::JobState::Cancelled => JobState::Cancelled,
        },
        // The command of a local job may be much longer than what is shown.
        name: mayfly_ledger::truncate(&name.unwrap_or_default()),
        repository: job.repository.clone(),
        github_id: job.forge_id,
        url: page(),
        microvm: job.microvm.clone(),
        queued: time(job.queued_at),
        started: job.started_at.map(time),
        ended: job.ended_at.map(time),
        exit_code: job.exit_code,
        result: job.result.as_ref().map(|result| match result {
            JobResult::Exited(code) => format!("exit {code}"),
            JobResult::Signaled(number) => format!("signal {number}"),
            JobResult::Concluded(conclusion) => conclusion.clone(),
        }),
        cause: job.cause.clone(),
        warning: None,
    }
}

/// Converts a job for the API, with a warning if its runner was refused something it needs. The
/// warning is known once its microVM has ended.
pub(crate) fn job_view_with_warning(
    job: &mayfly_ledger::JobRecord,
    github: Option<&GitHubConfig>,
    reader: &LedgerReader,
) -> Result<JobView, LedgerError> {
    let refused = match (&job.microvm, job.source) {
        (Some(microvm), mayfly_ledger::JobSource::Github) => {
            reader.refused_destinations(microvm)?
        }
        _ => Vec::new(),
    };
    let refused =
        refused.iter().map(|(host, port, cause)| RefusedDestination::new(host, *port, Some(cause)));
    let warning = github.and_then(|github| explain_missing_for(&github.target.origin, refused));
    Ok(JobView { warning, ..job_view(job, github) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use mayfly_config::{GitHubCredentials, Secret};
    use mayfly_ledger::{ForgeJobUpdate, ForgeState, Ledger, RunnerMatch};

    fn github(server: &str) -> GitHubConfig {
        GitHubConfig {
            target: format!("{server}/octo").parse().unwrap(),
            api: server.parse().unwrap(),
            credentials: GitHubCredentials::Token(Secret {
                value: "token".into(),
                source: "a test".to_owned(),
            }),
            webhook: None,
            repositories: Vec::new(),
            poll: None,
            reconcile: Duration::from_secs(300),
        }
    }

    #[test]
    fn a_job_whose_log_upload_was_refused_has_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&directory.path().join("ledger.db")).unwrap();
        ledger.record_planned("m-1", "ci", "runner").unwrap();
        let note = ForgeJobUpdate {
            forge_id: 7,
            run_id: Some(6),
            attempt: 1,
            repository: "octo/hello",
            name: Some("build"),
            labels: &[],
            pool: Some("ci"),
            microvm: Some("m-1"),
            runner: RunnerMatch::Confirmed,
            state: ForgeState::Completed,
            conclusion: Some("success"),
        };
        let id = ledger.record_forge_job(&note).unwrap().id;
        let row = |host: &str, cause: Option<&str>| DestinationRecord {
            host: host.to_owned(),
            port: 443,
            verdict: if cause.is_some() { "refused" } else { "allowed" }.to_owned(),
            cause: cause.map(str::to_owned),
            connections: 1,
            up: 0,
            down: 0,
        };
        let results = "productionresultssa7.blob.core.windows.net";
        let destinations = vec![
            row("github.com", None),
            row("evil.example", Some("no-rule")),
            row("api.github.com", Some("connect")),
            row(results, Some("no-rule")),
        ];
        let verdicts = VerdictTotals { allowed: 1, refused: 3, ..VerdictTotals::default() };
        ledger.record_egress("m-1", &EgressSummary { verdicts, destinations }).unwrap();
        let job = ledger.reader().job(id).unwrap().unwrap();
        let view =
            |server| job_view_with_warning(&job, Some(&github(server)), ledger.reader()).unwrap();
        let warning = view("https://github.com").warning.unwrap();
        assert!(warning.contains(results) && warning.contains("github-results"), "{warning}");
        assert_eq!(view("https://ghes.example").warning, None);
    }

    #[test]
    fn labels_are_quoted_and_missing_ones_are_explained() {
        for (labels, said) in [
            (&["a"][..], r#"these labels: "a""#),
            (&["a, b", "c"], r#"these labels: "a, b", "c""#),
            (&["a\"", ""], r#"these labels: "a\"", """#),
            (&[], "perhaps only a runner group"),
        ] {
            let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
            assert!(no_pool(&labels).contains(said), "{}", no_pool(&labels));
        }
    }
}
