//! The domains that the forge lists for its runners, beyond the built-in sets. Requested at the
//! start and once a day. If the forge does not respond, the last list stays in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::DaemonError;
use super::event::DaemonEvent;
use super::tasks::Tasks;
use super::time::Millis;
use crate::egress::policy::new_github_names;
use crate::forge::{Forge, ForgeError};
use crate::ledger::Ledger;

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
        // A forge without a list leaves the domains as they are.
        let Some(names) = names else { return Ok(()) };
        let accepted = new_github_names(names.iter().map(String::as_str));
        if ledger.record_github_names(&accepted)? {
            let names = accepted.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            tracing::info!(names, "added domains that GitHub lists beyond the built-in sets");
        }
        self.accepted = accepted;
        Ok(())
    }
}
