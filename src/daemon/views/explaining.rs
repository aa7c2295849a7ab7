//! "Why is my job waiting?": what happened to a job so far, and what it waits for.

use super::{Read, Sight};
use crate::api::types::{
    Blocker, DestinationView, EgressView, Explanation, JobId, JobSource, JobState, JobView,
    PhaseView, Problem, ProblemKind, Time,
};
use crate::config::GitHub;
use crate::daemon::clock::Clock;
use crate::daemon::decide::{JobKey, Obstacle};
use crate::egress::policy::{Refused, missed_of};
use crate::ledger::{self, Destination, Egress, JobResult, LedgerError, Reader, Verdicts};

impl Sight {
    pub(in crate::daemon) fn explain(self, id: JobId, reader: &Reader) -> Read<Explanation> {
        let Some(job) = reader.job(ledger::JobId(id))? else { return Ok(Err(no_job(id))) };
        let noted = match &job.microvm {
            Some(microvm) => reader.egress(microvm)?,
            None => None,
        };
        let egress = noted.as_ref().or_else(|| self.reached(&job)).map(|egress| EgressView {
            destinations: egress.destinations.iter().map(destination_view).collect(),
            ..egress_view(egress.verdicts)
        });
        let mut explanation = Explanation { egress, ..self.story(&job, reader)? };
        if let (None, ledger::Source::Github) = (&noted, job.source) {
            explanation.job.warning = self.reached(&job).and_then(|egress| self.missed(egress));
        }
        Ok(Ok(explanation))
    }

    /// What a job's microVM reached so far, while it lives.
    fn reached(&self, job: &ledger::Job) -> Option<&Egress> {
        self.reached.get(job.microvm.as_deref()?)
    }

    /// What a runner needed of that and was refused so far.
    fn missed(&self, egress: &Egress) -> Option<String> {
        let refused = egress.destinations.iter().filter(|one| one.verdict == "refused");
        let refused = refused.map(|one| Refused::of(&one.host, one.port, one.cause.as_deref()));
        missed_of(&self.github.as_ref()?.server, refused)
    }

    /// The same without what its microVM reached.
    fn story(&self, job: &ledger::Job, reader: &Reader) -> Result<Explanation, LedgerError> {
        let mut phases = vec![began("queued", job.queued_at)];
        let mut black_box = None;
        if let Some(id) = &job.microvm {
            phases.extend(job.claimed_at.map(|at| began("given a microVM", at)));
            for phase in reader.phases(id)? {
                let detail = Some(format!("microVM {id}"));
                phases.push(PhaseView { detail, ..began(&phase.phase, phase.at) });
            }
            black_box = reader.microvm(id)?.and_then(|microvm| microvm.black_box);
        }
        if job.source == ledger::Source::Github {
            // Its runner was there before it, and its microVM tells of that one.
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
        let job = judged_view(job, self.github.as_ref(), reader)?;
        Ok(Explanation { job, phases, blocker, black_box, egress: None })
    }

    /// The same with what its microVM reached in numbers only.
    pub(super) fn brief(
        &self,
        job: &ledger::Job,
        reader: &Reader,
    ) -> Result<Explanation, LedgerError> {
        let verdicts = match &job.microvm {
            Some(microvm) => reader.verdicts(microvm)?,
            None => None,
        };
        let verdicts = verdicts.or_else(|| self.reached(job).map(|egress| egress.verdicts));
        Ok(Explanation { egress: verdicts.map(egress_view), ..self.story(job, reader)? })
    }

    /// What a job waits for; none where it does not wait.
    fn blocker(&self, job: &ledger::Job) -> Option<Blocker> {
        if job.state != ledger::JobState::Queued {
            return None;
        }
        let say = |code: &str, message: String| {
            Some(Blocker { code: code.to_owned(), message, until: None })
        };
        let is_there = |name: &&str| self.pools.iter().any(|pool| pool.name == *name);
        let Some(pool) = job.pool.as_deref().filter(is_there) else {
            return say("no_pool", no_pool(&job.labels));
        };
        let blocker = self.blockers.get(pool).cloned();
        if let (None, Some(before @ 1..)) = (&blocker, self.before.get(&JobKey(job.id.0))) {
            return say("behind_others", format!("{before} jobs of its pool are before it"));
        }
        blocker.or_else(|| say("deciding", "it is about to be given a microVM".to_owned()))
    }
}

/// Why no pool serves a job with these labels. A label may contain a comma or a quote.
fn no_pool(labels: &[String]) -> String {
    if labels.is_empty() {
        // A runner group is not told by GitHub.
        return "it names no label, perhaps only a runner group, so no pool can be chosen for it; \
                give runs-on a label of a pool"
            .to_owned();
    }
    let quoted: Vec<String> = labels.iter().map(|label| format!("{label:?}")).collect();
    format!("no pool has all of these labels: {}", quoted.join(", "))
}

fn egress_view(verdicts: Verdicts) -> EgressView {
    let Verdicts { allowed, refused, would_refuse, up, down, omitted, unrecorded } = verdicts;
    let destinations = Vec::new();
    EgressView { allowed, refused, would_refuse, up, down, omitted, unrecorded, destinations }
}

fn destination_view(destination: &Destination) -> DestinationView {
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

fn began(phase: &str, at: ledger::Time) -> PhaseView {
    PhaseView { phase: phase.to_owned(), at: time(at), lasted_ms: None, detail: None }
}

fn time(time: ledger::Time) -> Time {
    Time(u64::try_from(time.0).unwrap_or_default())
}

/// An obstacle as the API shows it.
pub(super) fn blocker_view(obstacle: &Obstacle, clock: Clock) -> Blocker {
    let value = serde_json::to_value(&obstacle.why).unwrap_or_default();
    let code = value.get("blocker").and_then(serde_json::Value::as_str).unwrap_or("unknown");
    Blocker {
        code: code.to_owned(),
        message: obstacle.why.to_string(),
        until: obstacle.until.map(|until| clock.wall(until)),
    }
}

pub(in crate::daemon) fn no_job(job: JobId) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no job {job}"))
}

/// A job as the API shows it.
pub(in crate::daemon) fn job_view(job: &ledger::Job, github: Option<&GitHub>) -> JobView {
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
            ledger::Source::Local => JobSource::Local,
            ledger::Source::Github => JobSource::Github,
        },
        pool: job.pool.clone(),
        state: match job.state {
            ledger::JobState::Queued => JobState::Queued,
            ledger::JobState::Claimed => JobState::Claimed,
            ledger::JobState::Running => JobState::Running,
            ledger::JobState::Finished => JobState::Finished,
            ledger::JobState::Failed => JobState::Failed,
            ledger::JobState::Cancelled => JobState::Cancelled,
        },
        // The command of a local job may be much longer.
        name: ledger::cut(&name.unwrap_or_default()),
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
            JobResult::Signalled(number) => format!("signal {number}"),
            JobResult::Concluded(conclusion) => conclusion.clone(),
        }),
        cause: job.cause.clone(),
        warning: None,
    }
}

/// The same with what its runner needed and was refused, once its microVM has ended.
pub(in crate::daemon) fn judged_view(
    job: &ledger::Job,
    github: Option<&GitHub>,
    reader: &Reader,
) -> Result<JobView, LedgerError> {
    let refused = match (&job.microvm, job.source) {
        (Some(microvm), ledger::Source::Github) => reader.refused(microvm)?,
        _ => Vec::new(),
    };
    let refused = refused.iter().map(|(host, port, cause)| Refused::of(host, *port, Some(cause)));
    let warning = github.and_then(|github| missed_of(&github.server, refused));
    Ok(JobView { warning, ..job_view(job, github) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Credentials, Scope, Secret};
    use crate::ledger::{ForgeNote, ForgeState, Ledger, RunnerKnown};

    fn github(server: &str) -> GitHub {
        GitHub {
            server: server.to_owned(),
            scope: Scope::Organization("octo".to_owned()),
            api: server.to_owned(),
            credentials: Credentials::Token(Secret {
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
    fn a_job_whose_log_was_refused_its_way_to_github_has_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&directory.path().join("ledger.db")).unwrap();
        ledger.planned("m-1", "ci", "runner").unwrap();
        let note = ForgeNote {
            forge_id: 7,
            run_id: Some(6),
            attempt: 1,
            repository: "octo/hello",
            name: Some("build"),
            labels: &[],
            pool: Some("ci"),
            microvm: Some("m-1"),
            runner: RunnerKnown::Told,
            state: ForgeState::Completed,
            conclusion: Some("success"),
        };
        let id = ledger.note_forge_job(&note).unwrap().id;
        let row = |host: &str, cause: Option<&str>| Destination {
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
        let verdicts = Verdicts { allowed: 1, refused: 3, ..Verdicts::default() };
        ledger.note_egress("m-1", &Egress { verdicts, destinations }).unwrap();
        let job = ledger.reader().job(id).unwrap().unwrap();
        let view = |server| judged_view(&job, Some(&github(server)), ledger.reader()).unwrap();
        let warning = view("https://github.com").warning.unwrap();
        assert!(warning.contains(results) && warning.contains("github-results"), "{warning}");
        assert_eq!(view("https://ghes.example").warning, None);
    }

    #[test]
    fn labels_are_told_apart_and_a_job_without_any_is_told_so() {
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
