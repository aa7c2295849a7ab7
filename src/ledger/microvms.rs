//! Changes of microVMs.

use std::time::Duration;

use rusqlite::params;
use serde_json::json;

use super::open::Change;
use super::{JobSource, JobState, Ledger, LedgerError, PhaseRecord};

/// Inserts a phase of a microVM. Returns whether it is new.
fn insert_phase(change: &Change<'_>, id: &str, phase: &PhaseRecord) -> Result<bool, LedgerError> {
    let known = change.first("SELECT 1 FROM microvms WHERE id = ?1", [id], |_| Ok(()))?;
    known.ok_or_else(|| LedgerError::Unknown { what: "microVM", name: id.to_owned() })?;
    let is_new = change.execute(
        "INSERT OR IGNORE INTO transitions (microvm, event, phase, elapsed_ms, at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, phase.event, phase.phase, phase.elapsed_ms, phase.at],
    )? > 0;
    if is_new {
        change.execute(
            "UPDATE microvms SET phase = (SELECT phase FROM transitions
                 WHERE microvm = ?1 ORDER BY event DESC LIMIT 1)
             WHERE id = ?1",
            [id],
        )?;
    }
    Ok(is_new)
}

impl Ledger {
    /// Records that a microVM is about to be created.
    pub fn record_planned(&mut self, id: &str, pool: &str, image: &str) -> Result<(), LedgerError> {
        self.change("record a planned microVM", |change| {
            change.execute(
                "INSERT INTO microvms (id, pool, image, phase, planned_at)
                 VALUES (?1, ?2, ?3, 'planned', ?4)",
                params![id, pool, image, change.now],
            )?;
            change.audit("microvm.planned", id, &json!({ "pool": pool, "image": image }))
        })
    }

    /// Records that a microVM entered a phase. Returns whether it is new: events are replayed after
    /// the daemon was away, and each counts once, by its number in the microVM's record.
    pub fn record_phase(&mut self, id: &str, phase: &PhaseRecord) -> Result<bool, LedgerError> {
        self.change("record a phase of a microVM", |change| {
            let is_new = insert_phase(change, id, phase)?;
            if is_new {
                let detail = json!({ "phase": phase.phase, "elapsed_ms": phase.elapsed_ms });
                change.audit("microvm.phase", id, &detail)?;
            }
            Ok(is_new)
        })
    }

    /// Records that the job of a microVM was interrupted, and why. For a GitHub job, `why` becomes
    /// the cause of its end.
    pub fn record_interrupt(
        &mut self,
        id: &str,
        phase: &PhaseRecord,
        why: &str,
        within: Duration,
    ) -> Result<(), LedgerError> {
        self.change("record the interruption of a job", |change| {
            if !insert_phase(change, id, phase)? {
                return Ok(());
            }
            let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
            let detail = json!({ "why": why, "within_ms": within });
            change.audit("microvm.interrupted", id, &detail)?;
            change.execute(
                "UPDATE jobs SET cause = ?2 WHERE microvm = ?1 AND source = ?3 AND state = ?4",
                params![id, why, JobSource::Github, JobState::Running],
            )?;
            Ok(())
        })
    }

    /// Records the end of a microVM. Returns whether it is new.
    pub fn record_ended(
        &mut self,
        id: &str,
        outcome: &str,
        cause: Option<&str>,
        black_box: Option<&str>,
    ) -> Result<bool, LedgerError> {
        self.change("record the end of a microVM", |change| {
            let is_new = change.execute(
                "UPDATE microvms SET ended_at = ?2, outcome = ?3, cause = ?4, black_box = ?5
                 WHERE id = ?1 AND ended_at IS NULL",
                params![id, change.now, outcome, cause, black_box],
            )? > 0;
            if is_new {
                let detail = json!({ "outcome": outcome, "cause": cause, "black_box": black_box });
                change.audit("microvm.ended", id, &detail)?;
            } else {
                let known =
                    change.first("SELECT 1 FROM microvms WHERE id = ?1", [id], |_| Ok(()))?;
                known.ok_or(LedgerError::Unknown { what: "microVM", name: id.to_owned() })?;
            }
            Ok(is_new)
        })
    }
}
