//! Checks the settings as a whole.

use std::path::Path;

use super::check_host::host;
use super::check_pool::{PoolContext, pool};
use super::check_telemetry::telemetry;
use super::container;
use super::draft::Draft;
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::github::Scope;
use super::sources::{self, Sources};
use super::types::{GitHubConfig, PoolConfig, Settings, Trigger};
use super::{check_github, check_status, labels};
use mayfly_egress::host::Host;
use mayfly_egress::policy::{Policies, RequiredHost, required_hosts};
use mayfly_image::Reference;

/// The port that runners connect to.
const HTTPS: u16 = 443;

/// The maximum number of pools.
const MAX_POOLS: usize = 64;

impl Settings {
    /// Reads and checks the settings: the file if one is given, then variables
    /// (`MAYFLY_TABLE__KEY`), then the plain variables of a container.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let sources = Sources::read(file, environment)?;
        let mut draft = sources.draft()?;
        let mut warnings = sources::misspelled_variables(environment);
        if draft.pool.is_none() {
            let (pool, more) =
                container::pool(draft.github.is_some(), &mut draft.egress, environment)?;
            draft.pool = Some(vec![pool]);
            warnings.extend(more);
        }
        let origin = file.unwrap_or(Path::new("settings"));
        let policies = Policies::check(origin, &draft.egress.policy, &draft.egress.set)?;
        if draft.github.is_none() && environment.variable("GITHUB_TOKEN").is_some() {
            warnings.push(
                "GITHUB_TOKEN is set but GITHUB_REPOSITORY is not: running local jobs only".into(),
            );
        }
        let github = draft.github.as_ref();
        let github = github.map(|draft| check_github::check(draft, &sources, environment));
        let github = github.transpose()?;
        let host = host(&draft.host, &sources, environment)?;
        let status = draft.status.as_ref();
        let status =
            status.map(|draft| check_status::status(draft, &sources, environment)).transpose()?;
        let telemetry = telemetry(&draft.telemetry, &sources, environment)?;
        let context = PoolContext {
            sources: &sources,
            host: &host,
            github: github.as_ref(),
            policies: &policies,
        };
        let pools = pools(&draft, &context)?;
        warnings.extend(labels::overlaps(&pools));
        warnings.extend(advice(github.as_ref(), &pools));
        if host.memory > environment.memory {
            let has = environment.memory;
            warnings.push(format!("host.memory is {}, but this host has only {has}", host.memory));
        }
        Ok(Self {
            file: file.map(Path::to_owned),
            github,
            pools,
            host,
            status,
            telemetry,
            policies,
            warnings,
        })
    }

    /// Returns the images that the pools of a settings file name. Reads none of its secrets.
    pub fn images(file: &Path, environment: &Environment) -> Result<Vec<Reference>, ConfigError> {
        let draft = Sources::read(Some(file), environment)?.draft()?;
        Ok(draft.pool.into_iter().flatten().filter_map(|pool| pool.image).collect())
    }
}

fn pools(draft: &Draft, context: &PoolContext<'_>) -> Result<Vec<PoolConfig>, ConfigError> {
    let drafts = draft.pool.as_deref().unwrap_or_default();
    let sources = context.sources;
    if drafts.len() > MAX_POOLS {
        return Err(sources.error("pool", drafts.len(), ValueError::TooMany(MAX_POOLS)));
    }
    let mut pools: Vec<PoolConfig> = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        let checked = pool(draft, index, context)?;
        if pools.iter().any(|other| other.name == checked.name) {
            let key = format!("pool[{index}].name");
            return Err(sources.error(key, checked.name, ValueError::DuplicateName));
        }
        pools.push(checked);
    }
    Ok(pools)
}

/// Returns warnings about settings that are valid but probably a mistake.
fn advice(github: Option<&GitHubConfig>, pools: &[PoolConfig]) -> Vec<String> {
    let mut advice = Vec::new();
    if pools.is_empty() {
        advice.push("no pool is configured: no job can run".to_owned());
    }
    let Some(github) = github else { return advice };
    let for_github = |pool: &&PoolConfig| pool.trigger != Trigger::None;
    if !pools.iter().any(|pool| for_github(&pool)) {
        advice.push("[github] is set, but no pool takes jobs from GitHub".to_owned());
    }
    advice.extend(pools.iter().filter(for_github).filter_map(|pool| refused_needs(github, pool)));
    if github.webhook.is_some() && github.repositories.is_empty() {
        advice.push(
            "github.repositories is empty: Mayfly can't poll for jobs whose delivery was lost"
                .into(),
        );
    }
    let polled = |pool: &&PoolConfig| pool.trigger == Trigger::Auto;
    if let Some(pool) = pools.iter().find(polled)
        && github.repositories.is_empty()
        && matches!(github.target.scope, Scope::Organization(_) | Scope::Enterprise(_))
    {
        advice.push(format!(
            "pool {} has trigger auto, but github.repositories is empty: without a scale set, \
             Mayfly has nothing to poll",
            pool.name
        ));
    }
    advice
}

/// Returns a warning if a pool's egress policy refuses hosts that its runner needs.
fn refused_needs(github: &GitHubConfig, pool: &PoolConfig) -> Option<String> {
    let policy = &pool.egress;
    let refused = |host: &str| {
        let host = Host::parse(host).ok()?;
        (!policy.decide(&host, HTTPS).verdict.passes()).then_some(())
    };
    let needs = required_hosts(&github.target.origin);
    let refused: Vec<_> = needs.iter().filter(|need| refused(&need.probe).is_some()).collect();
    let (first, more) = refused.split_first()?;
    let more = match more.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let (name, policy) = (&pool.name, &policy.name);
    let RequiredHost { host, purpose, .. } = first;
    let rule = match refused.iter().find_map(|need| need.set) {
        Some(set) => format!("`include = [\"{set}\"]`"),
        None => format!("`allow = [{{ host = \"{host}\", ports = [443] }}]`"),
    };
    Some(format!(
        "pool {name}: egress policy {policy} refuses {host}{more}, which its runner needs \
         ({purpose}); to allow it, add {rule} to a policy for this pool"
    ))
}
