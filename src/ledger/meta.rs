//! What the daemon keeps beside jobs and microVMs: single values by their names.

use rusqlite::params;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::LedgerError;
use super::open::Change;

impl Change<'_> {
    /// A value as text.
    pub(super) fn meta(&self, key: &str) -> Result<Option<String>, LedgerError> {
        self.first("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0))
    }

    /// A value that is kept as JSON; the default one where there is none.
    pub(super) fn meta_json<T: DeserializeOwned + Default>(
        &self,
        key: &'static str,
    ) -> Result<T, LedgerError> {
        let Some(text) = self.meta(key)? else { return Ok(T::default()) };
        serde_json::from_str(&text).map_err(|error| LedgerError::Json(key, error))
    }

    /// Keeps a value as text, in place of the one before.
    pub(super) fn set_meta(&self, key: &str, value: &str) -> Result<(), LedgerError> {
        let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2)
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.execute(sql, params![key, value]).map(drop)
    }

    /// Keeps a value as JSON.
    pub(super) fn set_meta_json(
        &self,
        key: &'static str,
        value: &impl Serialize,
    ) -> Result<(), LedgerError> {
        let text = serde_json::to_string(value).map_err(|error| LedgerError::Json(key, error))?;
        self.set_meta(key, &text)
    }
}
