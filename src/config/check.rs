//! The check of the settings as a whole.

use std::path::Path;

use super::check_host::host;
use super::check_pool::{Surroundings, pool};
use super::check_telemetry::telemetry;
use super::container;
use super::draft::Draft;
use super::environment::Environment;
use super::error::{ConfigError, Problem};
use super::sources::{self, Sources};
use super::types::{GitHub, Pool, Scope, Settings, Trigger};
use super::{check_github, check_status, labels};
use crate::egress::host::Host;
use crate::egress::policy::{Need, Policies, needs_of};
use crate::image::Reference;

/// The port that runners use.
const HTTPS: u16 = 443;

/// The most pools.
const MAX_POOLS: usize = 64;

impl Settings {
    /// Reads the settings: the file where one is given, then variables (`MAYFLY_TABLE__KEY`), then
    /// what a plain container is given.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        let sources = Sources::read(file, environment)?;
        let mut draft = sources.draft()?;
        let mut warnings = sources::strays(environment);
        if draft.pool.is_none() {
            let (pool, more) =
                container::pool(draft.github.is_some(), &mut draft.egress, environment)?;
            draft.pool = Some(vec![pool]);
            warnings.extend(more);
        }
        let place = file.unwrap_or(Path::new("settings"));
        let policies = Policies::check(place, &draft.egress.policy, &draft.egress.set)?;
        if draft.github.is_none() && environment.variable("GITHUB_TOKEN").is_some() {
            warnings
                .push("GITHUB_TOKEN is set and GITHUB_REPOSITORY isn't: local jobs only".into());
        }
        let github = draft.github.as_ref();
        let github = github.map(|draft| check_github::check(draft, &sources, environment));
        let github = github.transpose()?;
        let host = host(&draft.host, &sources, environment)?;
        let status = draft.status.as_ref();
        let status =
            status.map(|draft| check_status::status(draft, &sources, environment)).transpose()?;
        let telemetry = telemetry(&draft.telemetry, &sources, environment)?;
        let surroundings = Surroundings {
            sources: &sources,
            host: &host,
            github: github.as_ref(),
            policies: &policies,
        };
        let pools = pools(&draft, &surroundings)?;
        warnings.extend(labels::overlaps(&pools));
        warnings.extend(advice(github.as_ref(), &pools));
        if host.memory > environment.memory {
            let has = environment.memory;
            warnings.push(format!("host.memory is {}, and this host has {has}", host.memory));
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

    /// The images that the pools of a settings file name, for whoever has none of its secrets.
    pub fn images(file: &Path, environment: &Environment) -> Result<Vec<Reference>, ConfigError> {
        let draft = Sources::read(Some(file), environment)?.draft()?;
        Ok(draft.pool.into_iter().flatten().filter_map(|pool| pool.image).collect())
    }
}

fn pools(draft: &Draft, surroundings: &Surroundings<'_>) -> Result<Vec<Pool>, ConfigError> {
    let drafts = draft.pool.as_deref().unwrap_or_default();
    let sources = surroundings.sources;
    if drafts.len() > MAX_POOLS {
        return Err(sources.error("pool", drafts.len(), Problem::TooMany(MAX_POOLS)));
    }
    let mut pools: Vec<Pool> = Vec::new();
    for (index, draft) in drafts.iter().enumerate() {
        let checked = pool(draft, index, surroundings)?;
        if pools.iter().any(|other| other.name == checked.name) {
            let key = format!("pool[{index}].name");
            return Err(sources.error(key, checked.name, Problem::SameName));
        }
        pools.push(checked);
    }
    Ok(pools)
}

/// What is allowed but likely not meant.
fn advice(github: Option<&GitHub>, pools: &[Pool]) -> Vec<String> {
    let mut advice = Vec::new();
    if pools.is_empty() {
        advice.push("there is no pool, so no job can run".to_owned());
    }
    let Some(github) = github else { return advice };
    let for_github = |pool: &&Pool| pool.trigger != Trigger::None;
    if !pools.iter().any(|pool| for_github(&pool)) {
        advice.push("[github] is set, and no pool takes jobs from there".to_owned());
    }
    advice.extend(pools.iter().filter(for_github).filter_map(|pool| unmet(github, pool)));
    if github.webhook.is_some() && github.repositories.is_empty() {
        advice.push(
            "github.repositories is empty: a delivery that GitHub loses is missed for good".into(),
        );
    }
    let polled = |pool: &&Pool| pool.trigger == Trigger::Auto;
    if let Some(pool) = pools.iter().find(polled)
        && github.repositories.is_empty()
        && matches!(github.scope, Scope::Organization(_) | Scope::Enterprise(_))
    {
        advice.push(format!(
            "pool {} has trigger auto: without a scale set nothing can be polled, as \
             github.repositories is empty",
            pool.name
        ));
    }
    advice
}

/// What a pool's policy refuses of what its runner needs.
fn unmet(github: &GitHub, pool: &Pool) -> Option<String> {
    let policy = &pool.egress;
    let refused = |host: &str| {
        let host = Host::parse(host).ok()?;
        (!policy.decide(&host, HTTPS).verdict.passes()).then_some(())
    };
    let needs = needs_of(&github.server);
    let refused: Vec<_> = needs.iter().filter(|need| refused(&need.probe).is_some()).collect();
    let (first, more) = refused.split_first()?;
    let more = match more.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let (name, policy) = (&pool.name, &policy.name);
    let Need { host, purpose, .. } = first;
    let rule = match refused.iter().find_map(|need| need.set) {
        Some(set) => format!("`include = [\"{set}\"]`"),
        None => format!("`allow = [{{ host = \"{host}\", ports = [443] }}]`"),
    };
    Some(format!(
        "pool {name}: egress policy {policy} refuses {host}{more}, which its runner needs \
         ({purpose}); {rule} in a policy of the pool's own allows it"
    ))
}
