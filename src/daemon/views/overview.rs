//! The data of the status page, as of one moment.

use super::Snapshot;
use mayfly_api::types::{Explanation, Overview, Time};
use mayfly_ledger::{JobRecord, JobState, LedgerError, LedgerReader};

impl Snapshot {
    pub(crate) fn overview(self, reader: &LedgerReader) -> Result<Overview, LedgerError> {
        let mut active = reader.unfinished_jobs()?;
        // Only those of the forge's jobs that run here: runners of others have the rest.
        active.retain(|job| job.state == JobState::Claimed || job.microvm.is_some());
        Ok(Overview {
            at: Time::now(),
            waiting: self.briefs(&reader.queued_jobs(Overview::JOBS)?, reader)?,
            active: self.briefs(&active, reader)?,
            ended: self.briefs(&reader.ended_jobs(Overview::JOBS)?, reader)?,
            status: self.status,
            readiness: self.readiness,
            budget: self.budget,
            pools: self.pools,
            microvms: self.microvms,
        })
    }

    fn briefs(
        &self,
        jobs: &[JobRecord],
        reader: &LedgerReader,
    ) -> Result<Vec<Explanation>, LedgerError> {
        jobs.iter().map(|job| self.brief(job, reader)).collect()
    }
}
