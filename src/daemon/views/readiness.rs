//! Whether the daemon can do its work: it takes jobs, the forge answers, a pool can boot.

use super::Look;
use crate::api::types::{Check, Readiness};
use crate::config::Pool;
use crate::daemon::decide::{Blocker, Load, PoolId};
use crate::daemon::pools::load;

impl Look<'_> {
    pub(in crate::daemon) fn readiness(self) -> Readiness {
        let check = |name: &str, ok, message: String| Check { name: name.to_owned(), ok, message };
        let file = self.settings.file.as_ref();
        let read = file.map_or_else(
            || "settings from variables".to_owned(),
            |file| format!("settings from {}", file.display()),
        );
        let takes = if self.draining {
            "the daemon drains: it takes no new jobs"
        } else {
            "jobs are taken"
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

    /// Why a pool can serve nothing, if it can't.
    fn unusable(self, id: PoolId, pool: &Pool) -> Option<String> {
        let host = &self.settings.host;
        let budget = Load { processors: host.cpus, memory: host.memory.0 };
        if budget.fits(load(pool)) == 0 {
            return Some(Blocker::LargerThanHost.to_string());
        }
        let obstacle = self.fleet.obstacle(id).or_else(|| self.registry.obstacle(id, pool));
        obstacle.map(|obstacle| obstacle.why.to_string())
    }
}

/// One pool that works is enough; why each of the others does not is told where it is asked for.
fn pools_check(pools: &[(&str, Option<String>)]) -> Check {
    let unusable: Vec<_> =
        pools.iter().filter_map(|(name, why)| Some((*name, why.as_ref()?))).collect();
    let usable = pools.len() - unusable.len();
    let message = match (pools.len(), usable) {
        (0, _) => "there is no pool".to_owned(),
        (all, 0) => {
            let reasons = unusable.iter().map(|(name, why)| format!("{name}: {why}"));
            let reasons: Vec<_> = reasons.collect();
            format!("none of {all} pools can be used; {}", reasons.join("; "))
        }
        (all, usable) if all == usable => format!("{all} of {all} pools can be used"),
        (all, usable) => {
            let names: Vec<_> = unusable.iter().map(|(name, _)| *name).collect();
            format!("{usable} of {all} pools can be used, not {}", names.join(", "))
        }
    };
    Check { name: "pools".to_owned(), ok: usable > 0, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pool_that_works_is_enough() {
        let check = pools_check(&[("a", None), ("b", Some("no image".to_owned()))]);
        assert!(check.ok);
        assert_eq!(check.message, "1 of 2 pools can be used, not b");
        let check = pools_check(&[("b", Some("no image".to_owned()))]);
        assert!(!check.ok);
        assert_eq!(check.message, "none of 1 pools can be used; b: no image");
        assert!(!pools_check(&[]).ok);
    }
}
