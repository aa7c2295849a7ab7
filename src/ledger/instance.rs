//! The name of the ledger's daemon, which distinguishes its runners from those of other daemons.

use serde_json::json;

use super::{Ledger, LedgerError};

const INSTANCE: &str = "instance";

impl Ledger {
    /// Returns six random characters, generated once. Runners registered under them belong to this
    /// daemon, even if others register in the same scope.
    pub fn instance(&mut self) -> Result<String, LedgerError> {
        let random = mayfly_host::random::<4>().map_err(LedgerError::Random)?;
        let new = data_encoding::BASE32_DNSSEC.encode(&random)[..6].to_owned();
        self.change("record the daemon's name", |change| {
            if let Some(known) = change.meta(INSTANCE)? {
                return Ok(known);
            }
            change.set_meta(INSTANCE, &new)?;
            change.audit("ledger.named", &new, &json!({}))?;
            Ok(new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_stable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        let name = Ledger::open(&path).unwrap().instance().unwrap();
        assert_eq!(name.len(), 6);
        assert_eq!(Ledger::open(&path).unwrap().instance().unwrap(), name);
    }
}
