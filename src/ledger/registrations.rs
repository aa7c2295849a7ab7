//! Changes of registrations at GitHub.
//!
//! GitHub may have carried out a call whose answer never came. So the name is here before the
//! call, and what is here and not deleted is what may be left at GitHub.

use rusqlite::params;
use serde_json::json;

use super::open::Change;
use super::{Ledger, LedgerError, RegistrationState};

impl Ledger {
    /// GitHub is about to be asked for a runner of this name.
    pub fn intend(&mut self, name: &str, pool: &str, microvm: &str) -> Result<(), LedgerError> {
        self.change("intend a registration", |change| {
            change.execute(
                "INSERT INTO registrations (name, pool, microvm, state, intended_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![name, pool, microvm, RegistrationState::Intended, change.now],
            )?;
            let detail = json!({ "pool": pool, "microvm": microvm });
            change.audit("registration.intended", name, &detail)
        })
    }

    /// GitHub has the runner.
    pub fn registered(&mut self, name: &str, runner_id: u64) -> Result<(), LedgerError> {
        self.change("note a registration", |change| {
            step(change, name, RegistrationState::Registered, "registered")?;
            change.execute(
                "UPDATE registrations SET runner_id = ?2 WHERE name = ?1",
                params![name, runner_id],
            )?;
            change.audit("registration.made", name, &json!({ "runner_id": runner_id }))
        })
    }

    /// The runner took a job, which GitHub calls so.
    pub fn job_taken(&mut self, name: &str, job: &str) -> Result<(), LedgerError> {
        self.change("note a runner's job", |change| {
            let job = super::cut(job);
            step(change, name, RegistrationState::Taken, "given a job")?;
            change
                .execute("UPDATE registrations SET job = ?2 WHERE name = ?1", params![name, job])?;
            change.audit("registration.taken", name, &json!({ "job": job }))
        })
    }

    /// GitHub no longer knows the runner, or never did. Returns whether that is news.
    pub fn deleted(&mut self, name: &str) -> Result<bool, LedgerError> {
        self.change("note the end of a registration", |change| {
            if state(change, name)? == RegistrationState::Deleted {
                return Ok(false);
            }
            change.execute(
                "UPDATE registrations SET state = ?2, deleted_at = ?3 WHERE name = ?1",
                params![name, RegistrationState::Deleted, change.now],
            )?;
            change.audit("registration.deleted", name, &json!({}))?;
            Ok(true)
        })
    }
}

fn state(change: &Change<'_>, name: &str) -> Result<RegistrationState, LedgerError> {
    change
        .first("SELECT state FROM registrations WHERE name = ?1", [name], |row| row.get(0))?
        .ok_or_else(|| LedgerError::Unknown { what: "registration", name: name.to_owned() })
}

/// Takes a registration forward; what is deleted stays so.
fn step(
    change: &Change<'_>,
    name: &str,
    to: RegistrationState,
    wanted: &'static str,
) -> Result<(), LedgerError> {
    let before = state(change, name)?;
    let forward = match to {
        RegistrationState::Registered => before == RegistrationState::Intended,
        _ => matches!(before, RegistrationState::Intended | RegistrationState::Registered),
    };
    if !forward {
        return Err(LedgerError::WrongState {
            what: "registration",
            name: name.to_owned(),
            state: before.to_string(),
            wanted,
        });
    }
    change.execute("UPDATE registrations SET state = ?2 WHERE name = ?1", params![name, to])?;
    Ok(())
}
