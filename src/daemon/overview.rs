//! Everything that the status page shows, as of one moment.

use super::decide::Load;
use super::error::DaemonError;
use super::world::World;
use crate::api::types::{Budget, Explanation, Overview, Time};
use crate::ledger::{Job, JobState};

impl World {
    pub(super) fn overview(&self) -> Result<Overview, DaemonError> {
        let reader = self.ledger.reader();
        let mut active = reader.unfinished()?;
        // Of GitHub's jobs only those that run here: others' runners have the rest.
        active.retain(|job| job.state == JobState::Claimed || job.microvm.is_some());
        Ok(Overview {
            at: Time::now(),
            status: self.status(),
            readiness: self.readiness(),
            budget: self.budget(),
            pools: self.pool_views(),
            waiting: self.briefs(&reader.queued(Overview::JOBS)?)?,
            active: self.briefs(&active)?,
            ended: self.briefs(&reader.ended_jobs(Overview::JOBS)?)?,
            microvms: self.microvm_views(),
        })
    }

    fn briefs(&self, jobs: &[Job]) -> Result<Vec<Explanation>, DaemonError> {
        jobs.iter().map(|job| self.brief(job)).collect()
    }

    fn budget(&self) -> Budget {
        let loads = self.microvms.values().map(|held| held.microvm.load);
        let used = loads.fold(Load::default(), Load::plus);
        let host = &self.settings.host;
        Budget {
            cpus_used: used.processors,
            cpus: host.cpus,
            memory_used: used.memory,
            memory: host.memory.0,
        }
    }
}
