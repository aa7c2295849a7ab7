//! Single values of the ledger by key.

use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::LedgerError;
use super::open::Change;

/// Reads a value.
pub(super) fn read(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    let mut statement = connection.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    statement.query_row([key], |row| row.get(0)).optional()
}

/// Writes a value, replacing the previous one.
pub(super) fn write(connection: &Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
    connection.prepare_cached(sql)?.execute(params![key, value]).map(drop)
}

impl Change<'_> {
    /// Reads a value.
    pub(super) fn meta(&self, key: &str) -> Result<Option<String>, LedgerError> {
        self.run(|connection| read(connection, key))
    }

    /// Writes a value, replacing the previous one.
    pub(super) fn set_meta(&self, key: &str, value: &str) -> Result<(), LedgerError> {
        self.run(|connection| write(connection, key, value))
    }

    /// Reads a value stored as JSON, or the default if there is none.
    pub(super) fn meta_json<T: DeserializeOwned + Default>(
        &self,
        key: &'static str,
    ) -> Result<T, LedgerError> {
        let Some(text) = self.meta(key)? else { return Ok(T::default()) };
        serde_json::from_str(&text).map_err(|error| LedgerError::Json(key, error))
    }

    /// Writes a value as JSON.
    pub(super) fn set_meta_json(
        &self,
        key: &'static str,
        value: &impl Serialize,
    ) -> Result<(), LedgerError> {
        let text = serde_json::to_string(value).map_err(|error| LedgerError::Json(key, error))?;
        self.set_meta(key, &text)
    }
}
