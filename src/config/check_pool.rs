//! Checks `[[pool]]`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::draft::{DeadlinesDraft, HooksDraft, PoolDraft};
use super::error::{ConfigError, ValueError};
use super::github::Scope;
use super::labels;
use super::sources::Sources;
use super::types::{
    GitHubConfig, HostConfig, PoolConfig, PoolDeadlines, PoolName, RunnerHooks, Trigger,
};
use mayfly_egress::policy::{Policies, PolicyFileError};
use mayfly_host::size::Size;
use mayfly_image::{ImageName, Reference};

/// The minimum memory: below it the kernel and the agent leave nothing for a job.
const MIN_MEMORY: Size = Size::mebibytes(192);
const MEMORY: Size = Size::gibibytes(2);
const IMAGE: &str = "base";
const EGRESS: &str = "github";
const RUNNER_DIRECTORY: &str = "/home/runner/actions-runner";
/// The maximum number of microVMs in one pool.
const MAX_MICROVMS: u32 = 10_000;
const MAX_VARIABLES: usize = 256;

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);
/// GitHub ends a job on a self-hosted runner after five days.
const MAX_JOB: Duration = Duration::from_secs(5 * 86_400);
/// Long enough for warm microVMs to outlast the pauses between pushes.
const IDLE: Duration = Duration::from_secs(600);
/// GitHub requeues a job that no runner takes within a minute. The rest is for starting the runner.
const CLAIM: Duration = Duration::from_secs(300);
/// GitHub's default timeout of a job.
const JOB: Duration = Duration::from_secs(6 * 3600);
/// Most runners end their job within 14 s, or within 18 s if a step ignores signals.
const FAREWELL: Duration = Duration::from_secs(60);
/// A runner stops trying to send its last report after 264 s.
const MAX_FAREWELL: Duration = Duration::from_secs(600);

/// The settings that a pool is checked against.
pub(super) struct PoolContext<'a> {
    pub(super) sources: &'a Sources,
    pub(super) host: &'a HostConfig,
    pub(super) github: Option<&'a GitHubConfig>,
    pub(super) policies: &'a Policies,
}

/// The location of a pool in the settings. Creates errors that name the pool.
struct PoolLocation<'a> {
    index: usize,
    sources: &'a Sources,
}

impl PoolLocation<'_> {
    fn error(&self, key: &str, value: impl Display, reason: ValueError) -> ConfigError {
        self.sources.error(format!("pool[{}].{key}", self.index), value, reason)
    }
}

pub(super) fn pool(
    draft: &PoolDraft,
    index: usize,
    context: &PoolContext<'_>,
) -> Result<PoolConfig, ConfigError> {
    let PoolContext { sources, host, github, policies } = *context;
    let location = PoolLocation { index, sources };
    let name = PoolName::parse(&draft.name)
        .ok_or_else(|| location.error("name", &draft.name, ValueError::Name))?;
    let (cpus, memory) = sizes(draft, host, &location)?;
    let trigger = trigger(draft, github, &location)?;
    let labels = labels(&draft.labels, trigger, &location)?;
    let (min_idle, max) = counts(draft, trigger, fitting(host, cpus, memory), &location)?;
    let policy = draft.egress.as_deref().unwrap_or(EGRESS);
    let egress = policies.get(policy).cloned().map_err(|error| {
        let known = match error {
            PolicyFileError::Unknown { known, .. } => known,
            _ => Vec::new(),
        };
        location.error("egress", policy, ValueError::UnknownPolicy(known))
    })?;
    let runner_directory = draft.runner_directory.as_deref().unwrap_or(RUNNER_DIRECTORY);
    Ok(PoolConfig {
        name,
        labels,
        runner_group: draft.runner_group.clone(),
        image: draft.image.clone().map_or_else(|| default_image(&location), Ok)?,
        cpus,
        memory,
        disk: draft.disk,
        min_idle,
        max,
        trigger,
        egress,
        deadlines: deadlines(&draft.deadlines, &location)?,
        environment: environment(&draft.environment, &location)?,
        hooks: hooks(&draft.hooks, &location)?,
        runner_directory: guest_path("runner_directory", runner_directory, &location)?,
        job_log: draft.job_log.unwrap_or(false),
    })
}

fn default_image(location: &PoolLocation<'_>) -> Result<Reference, ConfigError> {
    let name: Result<ImageName, _> = IMAGE.parse();
    name.map(|name| Reference { name, digest_prefix: None })
        .map_err(|_| location.error("image", IMAGE, ValueError::Empty))
}

fn sizes(
    draft: &PoolDraft,
    host: &HostConfig,
    location: &PoolLocation<'_>,
) -> Result<(u32, Size), ConfigError> {
    let cpus = draft.cpus.unwrap_or(1);
    if !(1..=255).contains(&cpus) {
        return Err(location.error("cpus", cpus, ValueError::Range(1, 255)));
    }
    if cpus > host.cpus {
        let budget = format!("{} processors", host.cpus);
        return Err(location.error("cpus", cpus, ValueError::OverBudget(budget)));
    }
    let memory = draft.memory.unwrap_or(MEMORY);
    if memory < MIN_MEMORY {
        return Err(location.error("memory", memory, ValueError::TooLittleMemory(MIN_MEMORY)));
    }
    if memory > host.memory {
        return Err(location.error(
            "memory",
            memory,
            ValueError::OverBudget(host.memory.to_string()),
        ));
    }
    Ok((cpus, memory))
}

/// Returns how many such microVMs fit the host's budget. At least one always does.
fn fitting(host: &HostConfig, cpus: u32, memory: Size) -> u32 {
    let by_memory = u32::try_from(host.memory.0 / memory.0.max(1)).unwrap_or(u32::MAX);
    (host.cpus / cpus.max(1)).min(by_memory).clamp(1, MAX_MICROVMS)
}

fn counts(
    draft: &PoolDraft,
    trigger: Trigger,
    fitting: u32,
    location: &PoolLocation<'_>,
) -> Result<(u32, u32), ConfigError> {
    let max = draft.max.unwrap_or(fitting);
    if !(1..=MAX_MICROVMS).contains(&max) {
        return Err(location.error("max", max, ValueError::Range(1, MAX_MICROVMS.into())));
    }
    let min_idle = draft.min_idle.unwrap_or(1);
    if min_idle > max {
        return Err(location.error("min_idle", min_idle, ValueError::MoreThanMax(max)));
    }
    if trigger == Trigger::Always && min_idle == 0 {
        return Err(location.error("min_idle", 0, ValueError::Range(1, max.into())));
    }
    Ok((min_idle, max))
}

fn trigger(
    draft: &PoolDraft,
    github: Option<&GitHubConfig>,
    location: &PoolLocation<'_>,
) -> Result<Trigger, ConfigError> {
    let Some(github) = github else {
        return match draft.trigger {
            None | Some(Trigger::None) => Ok(Trigger::None),
            Some(other) => Err(location.error("trigger", other, ValueError::NeedsGitHub)),
        };
    };
    let trigger = draft.trigger.unwrap_or(Trigger::Auto);
    let missing = match trigger {
        Trigger::Webhook if github.webhook.is_none() => "[github.webhook] is missing",
        Trigger::Poll if github.repositories.is_empty() => "github.repositories is empty",
        _ => "",
    };
    if !missing.is_empty() {
        return Err(location.error("trigger", trigger, ValueError::NoEffect(missing)));
    }
    if let (Some(group), Scope::Repository(_)) = (&draft.runner_group, &github.target.scope) {
        let reason = ValueError::NoEffect("a repository has no runner groups");
        return Err(location.error("runner_group", group, reason));
    }
    Ok(trigger)
}

fn labels(
    written: &[String],
    trigger: Trigger,
    location: &PoolLocation<'_>,
) -> Result<Vec<String>, ConfigError> {
    if written.is_empty() && trigger != Trigger::None {
        return Err(location.error("labels", "[]", ValueError::Empty));
    }
    if written.len() > labels::MAX_LABELS {
        return Err(location.error(
            "labels",
            written.len(),
            ValueError::TooMany(labels::MAX_LABELS),
        ));
    }
    let mut checked = Vec::new();
    for (index, label) in written.iter().enumerate() {
        let error = |reason| location.error(&format!("labels[{index}]"), label, reason);
        if !labels::is_label(label) {
            return Err(error(ValueError::Label));
        }
        if labels::is_hosted(label) {
            return Err(error(ValueError::HostedLabel));
        }
        let label = label.to_lowercase();
        if !checked.contains(&label) {
            checked.push(label);
        }
    }
    Ok(checked)
}

fn deadlines(
    draft: &DeadlinesDraft,
    location: &PoolLocation<'_>,
) -> Result<PoolDeadlines, ConfigError> {
    let within = |key: &str, value: Duration, least: Duration, most: Duration| {
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        let reason = ValueError::Duration(least.into(), most.into());
        Err(location.error(&format!("deadlines.{key}"), humantime::format_duration(value), reason))
    };
    Ok(PoolDeadlines {
        boot: draft.boot.map(|boot| within("boot", boot, SECOND, HOUR)).transpose()?,
        idle: within("idle", draft.idle.unwrap_or(IDLE), Duration::ZERO, 24 * 7 * HOUR)?,
        claim: within("claim", draft.claim.unwrap_or(CLAIM), 10 * SECOND, 24 * HOUR)?,
        job: within("job", draft.job.unwrap_or(JOB), SECOND, MAX_JOB)?,
        farewell: within("farewell", draft.farewell.unwrap_or(FAREWELL), SECOND, MAX_FAREWELL)?,
    })
}

fn environment(
    variables: &BTreeMap<String, String>,
    location: &PoolLocation<'_>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    if variables.len() > MAX_VARIABLES {
        let reason = ValueError::TooMany(MAX_VARIABLES);
        return Err(location.error("environment", variables.len(), reason));
    }
    for (name, value) in variables {
        let key = format!("environment.{name}");
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let first = name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !first || !name.bytes().all(plain) {
            return Err(location.error("environment", name, ValueError::Variable));
        }
        if name.starts_with("ACTIONS_RUNNER_INPUT_") || name.starts_with("ACTIONS_RUNNER_HOOK_") {
            return Err(location.error("environment", name, ValueError::ReservedVariable));
        }
        if value.contains('\0') {
            return Err(location.error(&key, "…", ValueError::NulByte));
        }
    }
    Ok(variables.clone())
}

fn hooks(draft: &HooksDraft, location: &PoolLocation<'_>) -> Result<RunnerHooks, ConfigError> {
    let path = |key: &str, path: &Option<String>| {
        path.as_deref().map(|path| guest_path(key, path, location)).transpose()
    };
    Ok(RunnerHooks {
        job_started: path("hooks.job_started", &draft.job_started)?,
        job_completed: path("hooks.job_completed", &draft.job_completed)?,
    })
}

fn guest_path(key: &str, path: &str, location: &PoolLocation<'_>) -> Result<String, ConfigError> {
    if !path.starts_with('/') {
        return Err(location.error(key, path, ValueError::RelativePath));
    }
    if path.contains('\0') {
        return Err(location.error(key, "…", ValueError::NulByte));
    }
    Ok(path.to_owned())
}
