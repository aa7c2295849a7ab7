//! Queries.

use rusqlite::{OptionalExtension as _, Params, Row, params, types::Type};

use super::{
    JobId, JobQuery, JobRecord, JobSource, JobState, LedgerError, LedgerReader, MicrovmRecord,
    PhaseRecord, RegistrationRecord, RegistrationState,
};

const JOB: &str = "SELECT id, source, pool, state, command, github_id, attempt, repository,
    name, labels, microvm, requeued, queued_at, claimed_at, started_at, ended_at, result,
    exit_code, cause, run_id FROM jobs";
const MICROVM: &str =
    "SELECT id, pool, image, phase, planned_at, ended_at, outcome, cause, black_box FROM microvms";
const REGISTRATION: &str =
    "SELECT name, pool, microvm, runner_id, state, job, intended_at, deleted_at FROM registrations";

impl LedgerReader {
    /// Returns a job.
    pub fn job(&self, id: JobId) -> Result<Option<JobRecord>, LedgerError> {
        let jobs = self.all("read a job", &format!("{JOB} WHERE id = ?1"), [id], job);
        Ok(jobs?.pop())
    }

    /// Returns the job of a microVM.
    pub fn job_of(&self, microvm: &str) -> Result<Option<JobRecord>, LedgerError> {
        let sql = format!("{JOB} WHERE microvm = ?1 ORDER BY id DESC LIMIT 1");
        Ok(self.all("read a job", &sql, [microvm], job)?.pop())
    }

    /// Lists jobs, newest first.
    pub fn jobs(&self, filter: &JobQuery, limit: u32) -> Result<Vec<JobRecord>, LedgerError> {
        let sql = format!(
            "{JOB} WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR pool = ?2)
             AND (?3 IS NULL OR source = ?3) ORDER BY id DESC LIMIT ?4"
        );
        let values = params![filter.state, filter.pool, filter.source, limit];
        self.all("list jobs", &sql, values, job)
    }

    /// Lists waiting jobs, oldest first.
    pub fn queued_jobs(&self, limit: u32) -> Result<Vec<JobRecord>, LedgerError> {
        let sql = format!("{JOB} WHERE state = ?1 ORDER BY id LIMIT ?2");
        self.all("list waiting jobs", &sql, params![JobState::Queued, limit], job)
    }

    /// Lists ended jobs, latest first.
    pub fn ended_jobs(&self, limit: u32) -> Result<Vec<JobRecord>, LedgerError> {
        let sql =
            format!("{JOB} WHERE ended_at IS NOT NULL ORDER BY ended_at DESC, id DESC LIMIT ?1");
        self.all("list ended jobs", &sql, [limit], job)
    }

    /// Lists waiting local jobs, oldest first.
    pub fn queued_local_jobs(&self) -> Result<Vec<JobRecord>, LedgerError> {
        let sql = format!("{JOB} WHERE state = ?1 AND source = ?2 ORDER BY id");
        self.all("list waiting jobs", &sql, params![JobState::Queued, JobSource::Local], job)
    }

    /// Returns the newest attempt of a GitHub job, by GitHub's ID.
    pub fn forge_job(&self, forge_id: u64) -> Result<Option<JobRecord>, LedgerError> {
        let sql = format!("{JOB} WHERE github_id = ?1 ORDER BY attempt");
        Ok(self.all("read a job", &sql, [forge_id], job)?.pop())
    }

    /// Lists GitHub jobs that have not ended, oldest first.
    pub fn open_github_jobs(&self) -> Result<Vec<JobRecord>, LedgerError> {
        let sql = format!("{JOB} WHERE state IN (?1, ?2) AND source = ?3 ORDER BY id");
        let values = params![JobState::Queued, JobState::Running, JobSource::Github];
        self.all("list GitHub jobs", &sql, values, job)
    }

    /// Lists claimed and running jobs, oldest first, for a daemon that adopts their microVMs.
    pub fn unfinished_jobs(&self) -> Result<Vec<JobRecord>, LedgerError> {
        let sql = format!("{JOB} WHERE state IN (?1, ?2) ORDER BY id");
        self.all("list unfinished jobs", &sql, params![JobState::Claimed, JobState::Running], job)
    }

    /// Returns a microVM.
    pub fn microvm(&self, id: &str) -> Result<Option<MicrovmRecord>, LedgerError> {
        let sql = format!("{MICROVM} WHERE id = ?1");
        Ok(self.all("read a microVM", &sql, [id], microvm)?.pop())
    }

    /// Lists microVMs without a recorded end, oldest first.
    pub fn open_microvms(&self) -> Result<Vec<MicrovmRecord>, LedgerError> {
        let sql = format!("{MICROVM} WHERE ended_at IS NULL ORDER BY planned_at, id");
        self.all("list open microVMs", &sql, [], microvm)
    }

    /// Lists the phases of a microVM, in order.
    pub fn phases(&self, id: &str) -> Result<Vec<PhaseRecord>, LedgerError> {
        let sql = "SELECT event, phase, elapsed_ms, at FROM transitions
            WHERE microvm = ?1 ORDER BY event";
        self.all("list the phases of a microVM", sql, [id], |row| {
            Ok(PhaseRecord {
                event: row.get(0)?,
                phase: row.get(1)?,
                elapsed_ms: row.get(2)?,
                at: row.get(3)?,
            })
        })
    }

    /// Returns a registration, by runner name.
    pub fn registration(&self, name: &str) -> Result<Option<RegistrationRecord>, LedgerError> {
        let sql = format!("{REGISTRATION} WHERE name = ?1");
        Ok(self.all("read a registration", &sql, [name], registration)?.pop())
    }

    /// Lists registrations that may exist at GitHub, oldest first.
    pub fn open_registrations(&self) -> Result<Vec<RegistrationRecord>, LedgerError> {
        let sql = format!("{REGISTRATION} WHERE state <> ?1 ORDER BY intended_at, name");
        self.all("list registrations", &sql, [RegistrationState::Deleted], registration)
    }

    /// Checks the file's integrity. Returns the first error, if any.
    pub fn damage(&self) -> Result<Option<String>, LedgerError> {
        let found: Option<String> = self
            .connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .optional()
            .map_err(LedgerError::failed("check the integrity of the file"))?;
        Ok(found.filter(|found| found != "ok"))
    }

    /// Checks the file's integrity faster, without comparing indexes with their tables.
    pub(super) fn quick_damage(&self) -> rusqlite::Result<Option<String>> {
        let found: Option<String> =
            self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).optional()?;
        Ok(found.filter(|found| found != "ok"))
    }

    pub(super) fn all<T>(
        &self,
        action: &'static str,
        sql: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, LedgerError> {
        let run = || -> rusqlite::Result<Vec<T>> {
            let mut statement = self.connection.prepare_cached(sql)?;
            statement.query_map(values, read)?.collect()
        };
        run().map_err(LedgerError::failed(action))
    }
}

fn job(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    Ok(JobRecord {
        id: row.get(0)?,
        source: row.get(1)?,
        pool: row.get(2)?,
        state: row.get(3)?,
        command: json(row, 4)?,
        forge_id: row.get(5)?,
        attempt: row.get(6)?,
        repository: row.get(7)?,
        name: row.get(8)?,
        labels: json(row, 9)?.unwrap_or_default(),
        microvm: row.get(10)?,
        requeued: row.get(11)?,
        queued_at: row.get(12)?,
        claimed_at: row.get(13)?,
        started_at: row.get(14)?,
        ended_at: row.get(15)?,
        result: json(row, 16)?,
        exit_code: row.get(17)?,
        cause: row.get(18)?,
        run_id: row.get(19)?,
    })
}

fn microvm(row: &Row<'_>) -> rusqlite::Result<MicrovmRecord> {
    Ok(MicrovmRecord {
        id: row.get(0)?,
        pool: row.get(1)?,
        image: row.get(2)?,
        phase: row.get(3)?,
        planned_at: row.get(4)?,
        ended_at: row.get(5)?,
        outcome: row.get(6)?,
        cause: row.get(7)?,
        black_box: row.get(8)?,
    })
}

fn registration(row: &Row<'_>) -> rusqlite::Result<RegistrationRecord> {
    Ok(RegistrationRecord {
        name: row.get(0)?,
        pool: row.get(1)?,
        microvm: row.get(2)?,
        runner_id: row.get(3)?,
        state: row.get(4)?,
        job: row.get(5)?,
        intended_at: row.get(6)?,
        deleted_at: row.get(7)?,
    })
}

/// Reads a JSON column; `None` if it is NULL.
fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text)).transpose().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
    })
}
