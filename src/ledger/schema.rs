//! The database schema and its migrations.

use rusqlite_migration::{M, Migrations};

/// The schema version of this program: `SQLite`'s `user_version`.
pub(super) const VERSION: i64 = 6;

/// Returns the migrations, one per version. Released ones never change.
pub(super) fn migrations() -> Migrations<'static> {
    Migrations::new(vec![
        M::up(FIRST),
        M::up(EGRESS),
        M::up(RUN),
        M::up(EGRESS_TOTALS),
        M::up(GUESSED),
        M::up(SEGMENTS),
    ])
}

const FIRST: &str = "
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL CHECK (source IN ('local', 'github')),
    pool TEXT,
    state TEXT NOT NULL
        CHECK (state IN ('queued', 'claimed', 'running', 'finished', 'failed', 'cancelled')),
    command TEXT,
    github_id INTEGER,
    attempt INTEGER,
    repository TEXT,
    name TEXT,
    labels TEXT NOT NULL DEFAULT '[]',
    microvm TEXT,
    requeued INTEGER NOT NULL DEFAULT 0,
    queued_at INTEGER NOT NULL,
    claimed_at INTEGER,
    started_at INTEGER,
    ended_at INTEGER,
    result TEXT,
    exit_code INTEGER,
    cause TEXT,
    UNIQUE (github_id, attempt),
    CHECK ((source = 'github') = (github_id IS NOT NULL)),
    CHECK ((ended_at IS NOT NULL) = (state IN ('finished', 'failed', 'cancelled')))
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_by_microvm ON jobs (microvm) WHERE microvm IS NOT NULL;
CREATE INDEX jobs_by_end ON jobs (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE microvms (
    id TEXT PRIMARY KEY,
    pool TEXT NOT NULL,
    image TEXT NOT NULL,
    phase TEXT NOT NULL,
    planned_at INTEGER NOT NULL,
    ended_at INTEGER,
    outcome TEXT,
    cause TEXT,
    black_box TEXT
) STRICT;
CREATE INDEX microvms_living ON microvms (planned_at) WHERE ended_at IS NULL;
CREATE INDEX microvms_by_end ON microvms (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE transitions (
    microvm TEXT NOT NULL REFERENCES microvms (id) ON DELETE CASCADE,
    event INTEGER NOT NULL,
    phase TEXT NOT NULL,
    elapsed_ms REAL NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (microvm, event)
) STRICT, WITHOUT ROWID;

CREATE TABLE registrations (
    name TEXT PRIMARY KEY,
    pool TEXT NOT NULL,
    microvm TEXT NOT NULL,
    runner_id INTEGER,
    state TEXT NOT NULL CHECK (state IN ('intended', 'registered', 'taken', 'deleted')),
    job TEXT,
    intended_at INTEGER NOT NULL,
    deleted_at INTEGER
) STRICT;
CREATE INDEX registrations_open ON registrations (intended_at) WHERE state <> 'deleted';

CREATE TABLE deliveries (
    guid TEXT PRIMARY KEY,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_by_time ON deliveries (at);

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL,
    previous BLOB NOT NULL CHECK (length(previous) = 32),
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- Against mistakes; the chain is against intent.
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

const EGRESS: &str = "
CREATE TABLE egress (
    microvm TEXT NOT NULL REFERENCES microvms (id) ON DELETE CASCADE,
    row INTEGER NOT NULL,
    host TEXT NOT NULL,
    port INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    cause TEXT,
    connections INTEGER NOT NULL,
    up INTEGER NOT NULL,
    down INTEGER NOT NULL,
    PRIMARY KEY (microvm, row)
) STRICT, WITHOUT ROWID;
";

const RUN: &str = "ALTER TABLE jobs ADD COLUMN run_id INTEGER;";

const EGRESS_TOTALS: &str = "
CREATE TABLE egress_totals (
    microvm TEXT PRIMARY KEY REFERENCES microvms (id) ON DELETE CASCADE,
    allowed INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    would_refuse INTEGER NOT NULL,
    up INTEGER NOT NULL,
    down INTEGER NOT NULL,
    omitted INTEGER NOT NULL,
    unrecorded INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

// Whether a job's microVM is only a guess from its runner's output. GitHub's information replaces
// it.
const GUESSED: &str = "ALTER TABLE jobs ADD COLUMN guessed INTEGER NOT NULL DEFAULT 0;";

// Entries of a closed segment may be deleted. Before the mark is set, none may.
const SEGMENTS: &str = "
DROP TRIGGER audit_is_not_cut;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
WHEN OLD.sequence > coalesce(
    (SELECT CAST(substr(value, 1, instr(value, ':') - 1) AS INTEGER) FROM meta WHERE key = 'audit_base'),
    0
)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_end_at_the_current_version() {
        let mut connection = rusqlite::Connection::open_in_memory().unwrap();
        migrations().to_latest(&mut connection).unwrap();
        let version: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, VERSION);
    }
}
