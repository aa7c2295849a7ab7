//! Whether the daemon can do its work: it takes jobs, GitHub answers, a pool can boot.

use std::time::Duration;

use super::decide::{Blocker, Load};
use super::happening::Happening;
use super::millis::Millis;
use super::pools::Pool;
use super::world::World;
use crate::api::types::{Check, Readiness};
use crate::failure::chain;
use crate::github::CallError;

/// How long GitHub may fail before it counts as out of reach: one lost call is no news.
const FAILING: Duration = Duration::from_secs(60);
/// How much later than due an answer may come.
const LATE: Duration = Duration::from_secs(60);

/// When GitHub last answered, and last did not.
#[derive(Debug, Default)]
pub(super) struct Heard {
    answered: Option<Millis>,
    failed: Option<(Millis, String)>,
}

impl Heard {
    /// Takes in what a happening says of GitHub, if it says anything.
    pub(super) fn take(&mut self, happening: &Happening, now: Millis) {
        let error = match happening {
            Happening::Minted(_, _, Ok(_))
            | Happening::Removed(_, Ok(_))
            | Happening::Listed(_, Ok(_))
            | Happening::Source(None, None)
            | Happening::ScaleSet(..) => None,
            Happening::Minted(_, _, Err(error))
            | Happening::Removed(_, Err(error))
            | Happening::Listed(_, Err(error))
            | Happening::Source(_, Some(error)) => Some(error),
            _ => return,
        };
        if let Some(
            error @ (CallError::NotSent { .. }
            | CallError::Ambiguous { .. }
            | CallError::Unauthorized { .. }),
        ) = error
        {
            // It can't be spoken to, or doesn't know who speaks.
            self.failed = Some((now, chain(error)));
        } else {
            // Whatever else it says, it answers.
            (self.answered, self.failed) = (Some(now), None);
        }
    }

    /// Whether GitHub is in reach; it is asked every `interval` at least.
    fn check(&self, interval: Duration, now: Millis) -> Check {
        let lately = if self.failed.is_some() { FAILING } else { interval * 2 + LATE };
        let ago = self.answered.map(|answered| now.since(answered));
        let ok = ago.is_some_and(|ago| ago <= lately);
        let ago = ago
            .map(|ago| humantime::format_duration(Duration::from_secs(ago.as_secs())).to_string());
        let message = match (&self.failed, ago) {
            (None, Some(ago)) => format!("GitHub last answered {ago} ago"),
            (None, None) => "GitHub has not been heard of yet".to_owned(),
            (Some((_, why)), Some(ago)) => format!("GitHub last answered {ago} ago: {why}"),
            (Some((_, why)), None) => format!("GitHub has never answered: {why}"),
        };
        Check { name: "github".to_owned(), ok, message }
    }
}

impl World {
    pub(super) fn readiness(&self) -> Readiness {
        let check = |name: &str, ok, message: String| Check { name: name.to_owned(), ok, message };
        let file = self.settings.file.as_ref();
        let read = file.map_or_else(
            || "settings from variables".to_owned(),
            |file| format!("settings from {}", file.display()),
        );
        let takes = match self.draining {
            Some(_) => "the daemon drains: it takes no new jobs",
            None => "jobs are taken",
        };
        let mut checks = vec![
            check("settings", true, read),
            check("jobs", self.draining.is_none(), takes.to_owned()),
        ];
        let github = self.settings.github.as_ref();
        checks.extend(github.map(|github| self.github_heard.check(github.reconcile, self.now())));
        let budget =
            Load { processors: self.settings.host.cpus, memory: self.settings.host.memory.0 };
        let pools: Vec<_> =
            self.pools.iter().map(|pool| (name(pool), unusable(pool, budget))).collect();
        checks.push(pools_check(&pools));
        Readiness { ready: checks.iter().all(|check| check.ok), checks }
    }
}

fn name(pool: &Pool) -> &str {
    pool.settings.name.as_str()
}

/// Why a pool can serve nothing, if it can't.
fn unusable(pool: &Pool, budget: Load) -> Option<String> {
    if budget.fits(pool.load()) == 0 {
        return Some(Blocker::LargerThanHost.to_string());
    }
    pool.obstacle().map(|obstacle| obstacle.why.to_string())
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

    fn heard(answered: Option<u64>, failed: Option<u64>) -> Heard {
        let failed = failed.map(|at| (Millis(at * 1000), "no route".to_owned()));
        Heard { answered: answered.map(|at| Millis(at * 1000)), failed }
    }

    #[test]
    fn github_is_in_reach_as_long_as_its_answers_come() {
        let every = Duration::from_secs(300);
        for (answered, failed, now, ok, says) in [
            (None, None, 5, false, "has not been heard"),
            (None, Some(1), 5, false, "never answered: no route"),
            (Some(1), None, 600, true, "last answered"),
            (Some(1), None, 700, false, "last answered"),
            (Some(100), Some(130), 150, true, "50s ago: no route"),
            (Some(100), Some(130), 170, false, "1m 10s ago: no route"),
        ] {
            let check = heard(answered, failed).check(every, Millis(now * 1000));
            assert_eq!(check.ok, ok, "{answered:?} {failed:?} at {now}: {check:?}");
            assert!(check.message.contains(says), "{check:?}");
        }
    }

    #[test]
    fn an_answer_ends_a_failure_whatever_it_says() {
        let mut heard = heard(Some(1), Some(2));
        heard.take(&Happening::Source(None, None), Millis(3000));
        assert_eq!((heard.answered, heard.failed.is_none()), (Some(Millis(3000)), true));
        heard.take(
            &Happening::NotBooted(super::super::decide::MachineKey(1), String::new()),
            Millis(4000),
        );
        assert_eq!(heard.answered, Some(Millis(3000)));
    }

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
