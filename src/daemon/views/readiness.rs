//! Readiness: the daemon takes jobs, the forge responds, and a pool can boot microVMs.

use super::DaemonView;
use crate::decide::{Blocker, PoolId, Resources};
use crate::pools::microvm_resources;
use mayfly_api::types::{Readiness, ReadinessCheck};
use mayfly_config::PoolConfig;

impl DaemonView<'_> {
    pub(crate) fn readiness(self) -> Readiness {
        let check =
            |name: &str, ok, message: String| ReadinessCheck { name: name.to_owned(), ok, message };
        let file = self.settings.file.as_ref();
        let read = file.map_or_else(
            || "settings from environment variables".to_owned(),
            |file| format!("settings from {}", file.display()),
        );
        let takes = if self.draining {
            "the daemon is draining and takes no new jobs"
        } else {
            "the daemon takes new jobs"
        };
        let mut checks =
            vec![check("settings", true, read), check("jobs", !self.draining, takes.to_owned())];
        checks.extend(self.registry.check(self.clock.now()));
        let pools: Vec<_> = self
            .pools
            .iter()
            .map(|(id, pool)| (pool.name.as_str(), self.unusable(id, pool)))
            .collect();
        checks.push(pools_check(&pools));
        Readiness { ready: checks.iter().all(|check| check.ok), checks }
    }

    /// Returns why a pool can't serve jobs, if it can't.
    fn unusable(self, id: PoolId, pool: &PoolConfig) -> Option<String> {
        let host = &self.settings.host;
        let budget = Resources { processors: host.cpus, memory: host.memory.0 };
        if budget.fits(microvm_resources(pool)) == 0 {
            return Some(Blocker::LargerThanHost.to_string());
        }
        let blocker = self.fleet.blocker(id).or_else(|| self.registry.blocker(id, pool));
        blocker.map(|blocker| blocker.reason.to_string())
    }
}

/// Checks that at least one pool can be used. Why each of the others can't is shown elsewhere.
fn pools_check(pools: &[(&str, Option<String>)]) -> ReadinessCheck {
    let unusable: Vec<_> =
        pools.iter().filter_map(|(name, why)| Some((*name, why.as_ref()?))).collect();
    let usable = pools.len() - unusable.len();
    let message = match (pools.len(), usable) {
        (0, _) => "no pool is configured".to_owned(),
        (all, 0) => {
            let reasons = unusable.iter().map(|(name, why)| format!("{name}: {why}"));
            let reasons: Vec<_> = reasons.collect();
            format!("none of {all} pools can be used; {}", reasons.join("; "))
        }
        (all, usable) if all == usable => format!("{all} of {all} pools can be used"),
        (all, usable) => {
            let names: Vec<_> = unusable.iter().map(|(name, _)| *name).collect();
            format!("{usable} of {all} pools can be used; not usable: {}", names.join(", "))
        }
    };
    ReadinessCheck { name: "pools".to_owned(), ok: usable > 0, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pool_that_works_is_enough() {
        let check = pools_check(&[("a", None), ("b", Some("no image".to_owned()))]);
        assert!(check.ok);
        assert_eq!(check.message, "1 of 2 pools can be used; not usable: b");
        let check = pools_check(&[("b", Some("no image".to_owned()))]);
        assert!(!check.ok);
        assert_eq!(check.message, "none of 1 pools can be used; b: no image");
        assert!(!pools_check(&[]).ok);
    }
}
