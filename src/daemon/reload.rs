//! The reload of settings while the daemon runs.

use super::error::DaemonError;
use super::event_loop::Daemon;
use super::requests::settings_error;
use super::service::ReloadSettings;
use mayfly_api::types::{ApiError, ReloadReport};
use mayfly_config::Settings;
use mayfly_forge::ForgeDriver;

impl Daemon {
    /// Reads the settings again and applies what a running daemon can change. Wrong settings change
    /// nothing.
    pub(super) fn reload(
        &mut self,
        reload_settings: &mut ReloadSettings,
        driver: &dyn ForgeDriver,
    ) -> Result<Result<ReloadReport, ApiError>, DaemonError> {
        let new = match reload_settings() {
            Ok(new) => new,
            Err(error) => return Ok(Err(error)),
        };
        // Fail now, not at the next start, if the credentials can't be used.
        if let Err(error) = driver.check(&new) {
            return Ok(Err(settings_error(&error)));
        }
        let warnings = new.warnings.clone();
        let (new, changes) = new.apply_reload(&self.settings);
        self.apply_settings(new)?;
        Ok(Ok(ReloadReport {
            applied: changes.applied,
            needs_restart: changes.needs_restart,
            warnings,
        }))
    }

    pub(super) fn apply_settings(&mut self, new: Settings) -> Result<(), DaemonError> {
        self.pools.apply_settings(&new.pools);
        self.registry.apply_settings(new.github.as_ref());
        self.fleet.clear_boot_failures();
        self.settings = new;
        self.update_drain_deadline();
        let (backlog, mut context) = self.backlog_and_context();
        backlog.restore(&mut context)?;
        self.views.mark_changed();
        self.update_listen_request();
        Ok(())
    }
}
