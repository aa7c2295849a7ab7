//! Changes of registrations at GitHub.
//!
//! GitHub may carry out a call whose response never arrives. So the name is recorded before the
//! call, and every recorded name that is not deleted may exist at GitHub.

use rusqlite::params;
use serde_json::json;

use super::open::Change;
use super::{Ledger, LedgerError, RegistrationState};

impl Ledger {
    /// Records that a runner of this name is about to be registered.
    pub fn intend_registration(
        &mut self,
        name: &str,
        pool: &str,
        microvm: &str,
    ) -> Result<(), LedgerError> {
        self.change("record an intended registration", |change| {
            change.execute(
                "INSERT INTO registrations (name, pool, microvm, state, intended_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![name, pool, microvm, RegistrationState::Intended, change.now],
            )?;
            let detail = json!({ "pool": pool, "microvm": microvm });
            change.audit("registration.intended", name, &detail)
        })
    }

    /// Records that the runner exists at GitHub.
    pub fn record_registered(&mut self, name: &str, runner_id: u64) -> Result<(), LedgerError> {
        self.change("record a registration", |change| {
            advance(change, name, RegistrationState::Registered, "registered")?;
            change.execute(
                "UPDATE registrations SET runner_id = ?2 WHERE name = ?1",
                params![name, runner_id],
            )?;
            change.audit("registration.made", name, &json!({ "runner_id": runner_id }))
        })
    }

    /// Records that the runner took the job with this name at GitHub.
    pub fn record_taken(&mut self, name: &str, job: &str) -> Result<(), LedgerError> {
        self.change("record a runner's job", |change| {
            let job = super::truncate(job);
            advance(change, name, RegistrationState::Taken, "given a job")?;
            change
                .execute("UPDATE registrations SET job = ?2 WHERE name = ?1", params![name, job])?;
            change.audit("registration.taken", name, &json!({ "job": job }))
        })
    }

    /// Records that the runner does not exist at GitHub. Returns whether that is new.
    pub fn record_deleted(&mut self, name: &str) -> Result<bool, LedgerError> {
        self.change("record the end of a registration", |change| {
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

/// Moves a registration forward. A deleted one stays deleted.
fn advance(
    change: &Change<'_>,
    name: &str,
    to: RegistrationState,
    requested: &'static str,
) -> Result<(), LedgerError> {
    let before = state(change, name)?;
    let is_forward = match to {
        RegistrationState::Registered => before == RegistrationState::Intended,
        _ => matches!(before, RegistrationState::Intended | RegistrationState::Registered),
    };
    if !is_forward {
        return Err(LedgerError::WrongState {
            what: "registration",
            name: name.to_owned(),
            state: before.to_string(),
            requested,
        });
    }
    change.execute("UPDATE registrations SET state = ?2 WHERE name = ?1", params![name, to])?;
    Ok(())
}
