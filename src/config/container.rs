//! The default pool of a container that is configured by plain variables only: `NUM_CPUS`,
//! `MEMORY_ALLOC` (MB) and the proxy variables.

use std::collections::BTreeMap;
use std::path::Path;

use super::draft::{DeadlinesDraft, EgressDraft, HooksDraft, PoolDraft};
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use mayfly_egress::policy::{Policy, PolicyDraft};
use mayfly_host::size::Size;

/// The name of the pool, and of its egress policy if a proxy is set.
const NAME: &str = "default";

/// The labels of workflows that only request a self-hosted runner.
const LABELS: [&str; 3] =
    ["self-hosted", "linux", if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" }];

/// The image that contains GitHub's runner (`images/runner`).
const RUNNER_IMAGE: &str = "runner";

/// Returns the pool that is used if the settings define none, and warnings.
pub(super) fn pool(
    for_github: bool,
    egress: &mut EgressDraft,
    environment: &Environment,
) -> Result<(PoolDraft, Vec<String>), ConfigError> {
    let warnings = proxy(egress, environment)?;
    let pool = PoolDraft {
        name: NAME.into(),
        labels: LABELS.map(str::to_owned).into(),
        runner_group: None,
        image: for_github.then(|| RUNNER_IMAGE.parse().ok()).flatten(),
        cpus: number(environment, "NUM_CPUS", 255)?.and_then(|cpus| u32::try_from(cpus).ok()),
        memory: number(environment, "MEMORY_ALLOC", 16 << 20)?.map(Size::mebibytes),
        disk: None,
        min_idle: None,
        max: None,
        trigger: None,
        egress: egress.policy.contains_key(NAME).then(|| NAME.into()),
        deadlines: DeadlinesDraft::default(),
        environment: BTreeMap::new(),
        hooks: HooksDraft::default(),
        runner_directory: None,
        job_log: None,
    };
    Ok((pool, warnings))
}

fn number(
    environment: &Environment,
    name: &'static str,
    most: u64,
) -> Result<Option<u64>, ConfigError> {
    let Some(text) = environment.variable(name) else { return Ok(None) };
    let number = text.trim().parse().ok().filter(|number| (1..=most).contains(number));
    number.map(Some).ok_or_else(|| ConfigError::Value {
        origin: "environment".into(),
        key: name.into(),
        value: text.into(),
        reason: ValueError::Range(1, most),
    })
}

/// Adds an egress policy that sends the traffic of microVMs through the container's proxy.
fn proxy(egress: &mut EgressDraft, environment: &Environment) -> Result<Vec<String>, ConfigError> {
    let found = ["https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"]
        .into_iter()
        .find_map(|name| Some((name, environment.variable(name)?)));
    let Some((name, proxy)) = found else { return Ok(Vec::new()) };
    let parent = if proxy.contains("://") { proxy.into() } else { format!("http://{proxy}") };
    let draft =
        PolicyDraft { include: vec!["github".into()], parent: Some(parent), ..Default::default() };
    // Checked separately first, so that an error names the variable.
    Policy::check(Path::new(name), NAME, &draft)?;
    egress.policy.entry(NAME.into()).or_insert(draft);
    let exceptions =
        ["no_proxy", "NO_PROXY"].into_iter().find(|name| environment.variable(name).is_some());
    Ok(exceptions
        .map(|name| {
            format!("{name} applies to Mayfly's own requests only; microVMs always use the proxy")
        })
        .into_iter()
        .collect())
}
