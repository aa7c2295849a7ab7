//! The names that the forge lists as its own, beyond the built-in sets: asked for at the start and
//! each day. A forge that does not answer leaves those of its last answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::error::DaemonError;
use super::happening::Happening;
use super::millis::Millis;
use super::tasks::Tasks;
use crate::egress::policy::listed;
use crate::forge::{Forge, ForgeError};
use crate::ledger::Ledger;

/// Between two lists.
const DAILY: Duration = Duration::from_secs(24 * 3600);
/// After one that did not come.
const AGAIN: Duration = Duration::from_secs(3600);
/// How long a list may take.
const CALL: Duration = Duration::from_secs(5 * 60);

/// What is taken of the forge's list.
pub(super) struct Names {
    /// When it is asked for next; none while it is.
    next: Option<Millis>,
    taken: BTreeSet<String>,
}

impl Names {
    pub(super) fn new(has_forge: bool, ledger: &mut Ledger) -> Result<Self, DaemonError> {
        Ok(Self { next: has_forge.then_some(Millis(0)), taken: ledger.names()? })
    }

    /// Those that policies have beside their own.
    pub(super) fn taken(&self) -> &BTreeSet<String> {
        &self.taken
    }

    /// Asks where it is time.
    pub(super) fn act(&mut self, forge: Option<Arc<dyn Forge>>, now: Millis, tasks: &mut Tasks) {
        let Some(forge) = forge.filter(|_| self.next.is_some_and(|next| next <= now)) else {
            return;
        };
        self.next = None;
        tasks.report(async move {
            let late = |_| Err(ForgeError::Unreachable("it takes too long".to_owned()));
            let listed = tokio::time::timeout(CALL, forge.names()).await;
            Happening::Named(listed.unwrap_or_else(late))
        });
    }

    /// When to ask again.
    pub(super) fn wake(&self) -> Option<Millis> {
        self.next
    }

    /// The forge's list, or why there is none.
    pub(super) fn named(
        &mut self,
        names: &Result<Option<Vec<String>>, ForgeError>,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        let names = match names {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!("no list of GitHub's names, the last one stays: {error}");
                self.next = Some(now + AGAIN);
                return Ok(());
            }
        };
        self.next = Some(now + DAILY);
        // One that has no list says nothing about those of before.
        let Some(names) = names else { return Ok(()) };
        let taken = listed(names.iter().map(String::as_str));
        if ledger.note_names(&taken)? {
            let names = taken.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            tracing::info!(names, "GitHub lists names beyond the built-in sets: taken");
        }
        self.taken = taken;
        Ok(())
    }
}
