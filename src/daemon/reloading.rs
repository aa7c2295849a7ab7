//! Settings that are read again while the daemon runs.

use super::answering::problem;
use super::error::DaemonError;
use super::running::Daemon;
use super::serving::Reread;
use crate::api::types::{Problem, ReloadReport};
use crate::config::Settings;
use crate::github::forge::github_client;

impl Daemon {
    /// Takes on settings that were read again, as far as a running daemon can. Wrong ones change
    /// nothing.
    pub(super) fn reload(
        &mut self,
        reread: &mut Reread,
    ) -> Result<Result<ReloadReport, Problem>, DaemonError> {
        let new = match reread() {
            Ok(new) => new,
            Err(problem) => return Ok(Err(problem)),
        };
        // Tried here, so that a key that can't be used is told now and not at the next start.
        if let Err(error) = new.github.as_ref().map(github_client).transpose() {
            return Ok(Err(problem(&error)));
        }
        let warnings = new.warnings.clone();
        let (new, changes) = new.take_on(&self.settings);
        self.take_on(new)?;
        Ok(Ok(ReloadReport {
            applied: changes.applied,
            needs_restart: changes.needs_restart,
            warnings,
        }))
    }

    pub(super) fn take_on(&mut self, new: Settings) -> Result<(), DaemonError> {
        self.pools.take_on(&new.pools);
        self.registry.take_on(new.github.as_ref());
        self.fleet.try_again();
        self.settings = new;
        self.postpone_drain();
        let (backlog, mut desk) = self.desk();
        backlog.take_back(&mut desk)?;
        self.views.change();
        self.want();
        Ok(())
    }
}
