//! Everything that the status page shows, as of one moment.

use super::Sight;
use crate::api::types::{Explanation, Overview, Time};
use crate::ledger::{Job, JobState, LedgerError, Reader};

impl Sight {
    pub(in crate::daemon) fn overview(self, reader: &Reader) -> Result<Overview, LedgerError> {
        let mut active = reader.unfinished()?;
        // Of the forge's jobs only those that run here: others' runners have the rest.
        active.retain(|job| job.state == JobState::Claimed || job.microvm.is_some());
        Ok(Overview {
            at: Time::now(),
            waiting: self.briefs(&reader.queued(Overview::JOBS)?, reader)?,
            active: self.briefs(&active, reader)?,
            ended: self.briefs(&reader.ended_jobs(Overview::JOBS)?, reader)?,
            status: self.status,
            readiness: self.readiness,
            budget: self.budget,
            pools: self.pools,
            microvms: self.microvms,
        })
    }

    fn briefs(&self, jobs: &[Job], reader: &Reader) -> Result<Vec<Explanation>, LedgerError> {
        jobs.iter().map(|job| self.brief(job, reader)).collect()
    }
}
