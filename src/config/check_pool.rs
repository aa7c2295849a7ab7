//! The check of `[[pool]]`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::draft::{DeadlinesDraft, HooksDraft, PoolDraft};
use super::error::{ConfigError, Problem};
use super::labels;
use super::sources::Sources;
use super::types::{Deadlines, GitHub, Hooks, Host, Pool, PoolName, Scope, Trigger};
use crate::egress::policy::{FileError, Policies};
use crate::host::size::Size;
use crate::image::{ImageName, Reference};

/// The least memory in which the kernel and the agent leave something for a job.
const LEAST_MEMORY: Size = Size::mebibytes(192);
const MEMORY: Size = Size::gibibytes(2);
const IMAGE: &str = "base";
const EGRESS: &str = "github";
const RUNNER_DIRECTORY: &str = "/home/runner/actions-runner";
/// The most microVMs of one pool.
const MAX_MACHINES: u32 = 10_000;
const MAX_VARIABLES: usize = 256;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
/// GitHub ends a job on a self-hosted runner after five days.
const MAX_JOB: Duration = Duration::from_secs(5 * 86_400);
/// Spare microVMs outlast the pauses between pushes.
const IDLE: Duration = Duration::from_secs(600);
/// GitHub requeues a job that no runner takes within a minute; the rest is for starting the runner.
const CLAIM: Duration = Duration::from_secs(300);
/// What GitHub gives a job by default.
const JOB: Duration = Duration::from_secs(6 * 3600);
/// Most runners end their job within 14 s, with a step that ignores signals within 18 s.
const FAREWELL: Duration = Duration::from_secs(60);
/// A runner gives up its last report after 264 s.
const MAX_FAREWELL: Duration = Duration::from_secs(600);

/// What a pool is checked against.
pub(super) struct Surroundings<'a> {
    pub(super) sources: &'a Sources,
    pub(super) host: &'a Host,
    pub(super) github: Option<&'a GitHub>,
    pub(super) policies: &'a Policies,
}

/// Makes errors that know which pool they are of.
struct Place<'a> {
    index: usize,
    sources: &'a Sources,
}

impl Place<'_> {
    fn error(&self, key: &str, value: impl Display, problem: Problem) -> ConfigError {
        self.sources.error(format!("pool[{}].{key}", self.index), value, problem)
    }
}

pub(super) fn pool(
    draft: &PoolDraft,
    index: usize,
    surroundings: &Surroundings<'_>,
) -> Result<Pool, ConfigError> {
    let Surroundings { sources, host, github, policies } = *surroundings;
    let place = Place { index, sources };
    let name = PoolName::parse(&draft.name)
        .ok_or_else(|| place.error("name", &draft.name, Problem::Name))?;
    let (cpus, memory) = sizes(draft, host, &place)?;
    let trigger = trigger(draft, github, &place)?;
    let labels = labels(&draft.labels, trigger, &place)?;
    let (min_idle, max) = counts(draft, trigger, fitting(host, cpus, memory), &place)?;
    let policy = draft.egress.as_deref().unwrap_or(EGRESS);
    let egress = policies.get(policy).cloned().map_err(|error| {
        let known = match error {
            FileError::Unknown { known, .. } => known,
            _ => Vec::new(),
        };
        place.error("egress", policy, Problem::NoPolicy(known))
    })?;
    let runner_directory = draft.runner_directory.as_deref().unwrap_or(RUNNER_DIRECTORY);
    Ok(Pool {
        name,
        labels,
        runner_group: draft.runner_group.clone(),
        image: draft.image.clone().map_or_else(|| default_image(&place), Ok)?,
        cpus,
        memory,
        disk: draft.disk,
        min_idle,
        max,
        trigger,
        egress,
        deadlines: deadlines(&draft.deadlines, &place)?,
        environment: environment(&draft.environment, &place)?,
        hooks: hooks(&draft.hooks, &place)?,
        runner_directory: guest_path("runner_directory", runner_directory, &place)?,
        job_log: draft.job_log.unwrap_or(false),
    })
}

fn default_image(place: &Place<'_>) -> Result<Reference, ConfigError> {
    let name: Result<ImageName, _> = IMAGE.parse();
    name.map(|name| Reference { name, digest_prefix: None })
        .map_err(|_| place.error("image", IMAGE, Problem::Empty))
}

fn sizes(draft: &PoolDraft, host: &Host, place: &Place<'_>) -> Result<(u32, Size), ConfigError> {
    let cpus = draft.cpus.unwrap_or(1);
    if !(1..=255).contains(&cpus) {
        return Err(place.error("cpus", cpus, Problem::Range(1, 255)));
    }
    if cpus > host.cpus {
        let budget = format!("{} processors", host.cpus);
        return Err(place.error("cpus", cpus, Problem::Budget(budget)));
    }
    let memory = draft.memory.unwrap_or(MEMORY);
    if memory < LEAST_MEMORY {
        return Err(place.error("memory", memory, Problem::LittleMemory(LEAST_MEMORY)));
    }
    if memory > host.memory {
        return Err(place.error("memory", memory, Problem::Budget(host.memory.to_string())));
    }
    Ok((cpus, memory))
}

/// How many of these fit the host's budget; at least one, as each alone does.
fn fitting(host: &Host, cpus: u32, memory: Size) -> u32 {
    let by_memory = u32::try_from(host.memory.0 / memory.0.max(1)).unwrap_or(u32::MAX);
    (host.cpus / cpus.max(1)).min(by_memory).clamp(1, MAX_MACHINES)
}

fn counts(
    draft: &PoolDraft,
    trigger: Trigger,
    fitting: u32,
    place: &Place<'_>,
) -> Result<(u32, u32), ConfigError> {
    let max = draft.max.unwrap_or(fitting);
    if !(1..=MAX_MACHINES).contains(&max) {
        return Err(place.error("max", max, Problem::Range(1, MAX_MACHINES.into())));
    }
    let min_idle = draft.min_idle.unwrap_or(1);
    if min_idle > max {
        return Err(place.error("min_idle", min_idle, Problem::MoreThanMax(max)));
    }
    if trigger == Trigger::Always && min_idle == 0 {
        return Err(place.error("min_idle", 0, Problem::Range(1, max.into())));
    }
    Ok((min_idle, max))
}

fn trigger(
    draft: &PoolDraft,
    github: Option<&GitHub>,
    place: &Place<'_>,
) -> Result<Trigger, ConfigError> {
    let Some(github) = github else {
        return match draft.trigger {
            None | Some(Trigger::None) => Ok(Trigger::None),
            Some(other) => Err(place.error("trigger", other, Problem::NoGitHub)),
        };
    };
    let trigger = draft.trigger.unwrap_or(Trigger::Auto);
    let lacks = match trigger {
        Trigger::Webhook if github.webhook.is_none() => "there is no [github.webhook]",
        Trigger::Poll if github.repositories.is_empty() => "github.repositories is empty",
        _ => "",
    };
    if !lacks.is_empty() {
        return Err(place.error("trigger", trigger, Problem::NoEffect(lacks)));
    }
    if let (Some(group), Scope::Repository(_)) = (&draft.runner_group, &github.scope) {
        let problem = Problem::NoEffect("a repository has no runner groups");
        return Err(place.error("runner_group", group, problem));
    }
    Ok(trigger)
}

fn labels(
    written: &[String],
    trigger: Trigger,
    place: &Place<'_>,
) -> Result<Vec<String>, ConfigError> {
    if written.is_empty() && trigger != Trigger::None {
        return Err(place.error("labels", "[]", Problem::Empty));
    }
    if written.len() > labels::MAX_LABELS {
        return Err(place.error("labels", written.len(), Problem::TooMany(labels::MAX_LABELS)));
    }
    let mut checked = Vec::new();
    for (index, label) in written.iter().enumerate() {
        let error = |problem| place.error(&format!("labels[{index}]"), label, problem);
        if !labels::is_label(label) {
            return Err(error(Problem::Label));
        }
        if labels::is_hosted(label) {
            return Err(error(Problem::Hosted));
        }
        let label = label.to_lowercase();
        if !checked.contains(&label) {
            checked.push(label);
        }
    }
    Ok(checked)
}

fn deadlines(draft: &DeadlinesDraft, place: &Place<'_>) -> Result<Deadlines, ConfigError> {
    let within = |key: &str, value: Duration, least: Duration, most: Duration| {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        let problem = Problem::Duration(least.into(), most.into());
        Err(place.error(&format!("deadlines.{key}"), humantime::format_duration(value), problem))
    };
    Ok(Deadlines {
        boot: draft.boot.map(|boot| within("boot", boot, SECOND, HOUR)).transpose()?,
        idle: within("idle", draft.idle.unwrap_or(IDLE), Duration::ZERO, 24 * 7 * HOUR)?,
        claim: within("claim", draft.claim.unwrap_or(CLAIM), 10 * SECOND, 24 * HOUR)?,
        job: within("job", draft.job.unwrap_or(JOB), SECOND, MAX_JOB)?,
        farewell: within("farewell", draft.farewell.unwrap_or(FAREWELL), SECOND, MAX_FAREWELL)?,
    })
}

fn environment(
    variables: &BTreeMap<String, String>,
    place: &Place<'_>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    if variables.len() > MAX_VARIABLES {
        let problem = Problem::TooMany(MAX_VARIABLES);
        return Err(place.error("environment", variables.len(), problem));
    }
    for (name, value) in variables {
        let key = format!("environment.{name}");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !first || !name.bytes().all(plain) {
            return Err(place.error("environment", name, Problem::Variable));
        }
        if name.starts_with("ACTIONS_RUNNER_INPUT_") || name.starts_with("ACTIONS_RUNNER_HOOK_") {
            return Err(place.error("environment", name, Problem::OwnVariable));
        }
        if value.contains('\0') {
            return Err(place.error(&key, "…", Problem::Zero));
        }
    }
    Ok(variables.clone())
}

fn hooks(draft: &HooksDraft, place: &Place<'_>) -> Result<Hooks, ConfigError> {
    let path = |key: &str, path: &Option<String>| {
        path.as_deref().map(|path| guest_path(key, path, place)).transpose()
    };
    Ok(Hooks {
        job_started: path("hooks.job_started", &draft.job_started)?,
        job_completed: path("hooks.job_completed", &draft.job_completed)?,
    })
}

fn guest_path(key: &str, path: &str, place: &Place<'_>) -> Result<String, ConfigError> {
    if !path.starts_with('/') {
        return Err(place.error(key, path, Problem::Relative));
    }
    if path.contains('\0') {
        return Err(place.error(key, "…", Problem::Zero));
    }
    Ok(path.to_owned())
}
