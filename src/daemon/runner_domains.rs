//! The domains that the forge lists for its runners, beyond the built-in sets. Requested at the
//! start and once a day. If the forge does not respond, the last list stays in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::DaemonError;
use super::event::DaemonEvent;
use super::tasks::Tasks;
use super::time::Millis;
use mayfly_egress::policy::new_github_names;
use mayfly_forge::{Forge, ForgeError};
use mayfly_ledger::Ledger;

/// Time between two requests.
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Time until the next try after a failed request.
const RETRY: Duration = Duration::from_secs(3600);
/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The accepted domains of the forge's list.
pub(super) struct RunnerDomains {
    /// When to request the list next; `None` while a request runs.
    next_request_at: Option<Millis>,
    accepted: BTreeSet<String>,
}

impl RunnerDomains {
    pub(super) fn new(has_forge: bool, ledger: &mut Ledger) -> Result<Self, DaemonError> {
        Ok(Self {
            next_request_at: has_forge.then_some(Millis(0)),
            accepted: ledger.github_names()?,
        })
    }

    /// Returns the domains that are added to policies.
    pub(super) fn accepted(&self) -> &BTreeSet<String> {
        &self.accepted
    }

    /// Starts a request if one is due.
    pub(super) fn start_if_due(
        &mut self,
        forge: Option<Arc<dyn Forge>>,
        now: Millis,
        tasks: &mut Tasks,
    ) {
        let Some(forge) = forge.filter(|_| self.next_request_at.is_some_and(|next| next <= now))
        else {
            return;
        };
        self.next_request_at = None;
        tasks.spawn_reporting(async move {
            let late = |_| Err(ForgeError::Unreachable("no response within 5 minutes".to_owned()));
            let listed = tokio::time::timeout(TIMEOUT, forge.runner_domains()).await;
            DaemonEvent::RunnerDomainsListed(listed.unwrap_or_else(late))
        });
    }

    /// Returns when the next request is due.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        self.next_request_at
    }

    /// Applies the result of a request.
    pub(super) fn apply(
        &mut self,
        names: &Result<Option<Vec<String>>, ForgeError>,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        let names = match names {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!("can't list GitHub's domains, keeping the last list: {error}");
                self.next_request_at = Some(now + RETRY);
                return Ok(());
            }
        };
        self.next_request_at = Some(now + INTERVAL);
        // A forge without a list, or with an empty one, leaves the domains as they are.
        let Some(names) = names.as_ref().filter(|names| !names.is_empty()) else { return Ok(()) };
        let accepted = new_github_names(names.iter().map(String::as_str));
        ledger.record_github_names(&accepted)?;
        if let Some(names) = difference(&accepted, &self.accepted) {
            tracing::info!(names, "added domains that GitHub lists beyond the built-in sets");
        }
        if let Some(names) = difference(&self.accepted, &accepted) {
            tracing::info!(names, "removed domains that GitHub no longer lists");
        }
        self.accepted = accepted;
        Ok(())
    }
}

/// Returns the domains that only the first set has; `None` if it has none.
fn difference(one: &BTreeSet<String>, other: &BTreeSet<String>) -> Option<String> {
    let names: Vec<_> = one.difference(other).map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: [&str; 2] = [
        "productionresultssa20.blob.core.windows.net",
        "productionresultssa21.blob.core.windows.net",
    ];

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn only_the_difference_of_two_lists_is_logged() {
        let [first, second] = ACCOUNTS;
        let (before, now) = (set(&[first]), set(&[first, second]));
        assert_eq!(difference(&now, &before).as_deref(), Some(second));
        assert_eq!(difference(&before, &now), None, "none is removed");
        assert_eq!(difference(&before, &before), None);
    }

    #[test]
    fn an_empty_list_is_no_answer() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&directory.path().join("ledger.db")).unwrap();
        let mut domains = RunnerDomains::new(true, &mut ledger).unwrap();
        let mut apply = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            domains.apply(&Ok(Some(names)), &mut ledger, Millis(0)).unwrap();
            (domains.accepted().clone(), ledger.github_names().unwrap())
        };
        let both = (set(&ACCOUNTS), set(&ACCOUNTS));
        assert_eq!(apply(&ACCOUNTS), both);
        assert_eq!(apply(&[]), both);
        assert_eq!(apply(&ACCOUNTS[..1]), (set(&ACCOUNTS[..1]), set(&ACCOUNTS[..1])));
    }
}
