//! Changes of microVMs.

use std::time::Duration;

use rusqlite::params;
use serde_json::json;

use super::open::Change;
use super::{JobState, Ledger, LedgerError, Phase, Source};

/// Takes down what began in a microVM. Whether that is news.
fn transition(change: &Change<'_>, id: &str, phase: &Phase) -> Result<bool, LedgerError> {
    let there = change.first("SELECT 1 FROM microvms WHERE id = ?1", [id], |_| Ok(()))?;
    there.ok_or_else(|| LedgerError::Unknown { what: "microVM", name: id.to_owned() })?;
    let news = change.execute(
        "INSERT OR IGNORE INTO transitions (microvm, event, phase, elapsed_ms, at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![id, phase.event, phase.phase, phase.elapsed_ms, phase.at],
    )? > 0;
    if news {
        change.execute(
            "UPDATE microvms SET phase = (SELECT phase FROM transitions
                 WHERE microvm = ?1 ORDER BY event DESC LIMIT 1)
             WHERE id = ?1",
            [id],
        )?;
    }
    Ok(news)
}

impl Ledger {
    /// A microVM is about to be made.
    pub fn planned(&mut self, id: &str, pool: &str, image: &str) -> Result<(), LedgerError> {
        self.change("plan a microVM", |change| {
            change.execute(
                "INSERT INTO microvms (id, pool, image, phase, planned_at)
                 VALUES (?1, ?2, ?3, 'planned', ?4)",
                params![id, pool, image, change.now],
            )?;
            change.audit("microvm.planned", id, &json!({ "pool": pool, "image": image }))
        })
    }

    /// A microVM came into a phase. Returns whether that is news: events are told again after the
    /// daemon was away, and each counts once, by its place in the microVM's record.
    pub fn transition(&mut self, id: &str, phase: &Phase) -> Result<bool, LedgerError> {
        self.change("note a phase of a microVM", |change| {
            let news = transition(change, id, phase)?;
            if news {
                let detail = json!({ "phase": phase.phase, "elapsed_ms": phase.elapsed_ms });
                change.audit("microvm.phase", id, &detail)?;
            }
            Ok(news)
        })
    }

    /// The job of a microVM was told to end, for that reason; of a job of GitHub's it is the cause
    /// of how it ends.
    pub fn interrupted(
        &mut self,
        id: &str,
        phase: &Phase,
        why: &str,
        within: Duration,
    ) -> Result<(), LedgerError> {
        self.change("note that a job is told to end", |change| {
            if !transition(change, id, phase)? {
                return Ok(());
            }
            let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
            let detail = json!({ "why": why, "within_ms": within });
            change.audit("microvm.interrupted", id, &detail)?;
            change.execute(
                "UPDATE jobs SET cause = ?2 WHERE microvm = ?1 AND source = ?3 AND state = ?4",
                params![id, why, Source::Github, JobState::Running],
            )?;
            Ok(())
        })
    }

    /// A microVM is no more. Returns whether that is news.
    pub fn ended(
        &mut self,
        id: &str,
        outcome: &str,
        cause: Option<&str>,
        black_box: Option<&str>,
    ) -> Result<bool, LedgerError> {
        self.change("end a microVM", |change| {
            let news = change.execute(
                "UPDATE microvms SET ended_at = ?2, outcome = ?3, cause = ?4, black_box = ?5
                 WHERE id = ?1 AND ended_at IS NULL",
                params![id, change.now, outcome, cause, black_box],
            )? > 0;
            if news {
                let detail = json!({ "outcome": outcome, "cause": cause, "black_box": black_box });
                change.audit("microvm.ended", id, &detail)?;
            } else {
                let there =
                    change.first("SELECT 1 FROM microvms WHERE id = ?1", [id], |_| Ok(()))?;
                there.ok_or(LedgerError::Unknown { what: "microVM", name: id.to_owned() })?;
            }
            Ok(news)
        })
    }
}
