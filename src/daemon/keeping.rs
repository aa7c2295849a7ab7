//! What is kept, and for how long: the ledger's rows, logs of jobs, black boxes.
//!
//! A host that runs jobs for years must not fill up with what they leave.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::error::DaemonError;
use super::millis::Millis;
use super::world::World;
use crate::ledger::Retention;
use crate::shepherd::record;

/// Between two times of forgetting.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long the log of a job is kept.
const LOG_AGE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How many logs are kept.
const LOGS: usize = 10_000;

impl World {
    /// Forgets what is old, where it is time.
    pub(super) fn forget_due(&mut self, now: Millis) -> Result<(), DaemonError> {
        if self.next_forgetting > now {
            return Ok(());
        }
        self.next_forgetting = now + INTERVAL;
        self.ledger.prune(&Retention::default())?;
        let oldest = SystemTime::now().checked_sub(LOG_AGE).unwrap_or(SystemTime::UNIX_EPOCH);
        // Files that can't be removed now are tried again in an hour.
        if let Err(error) = prune_logs(&self.state.logs(), oldest, LOGS) {
            tracing::warn!("can't remove old logs: {error}");
        }
        if let Err(error) = record::prune(&self.state.microvms()) {
            tracing::warn!("can't remove old black boxes: {error}");
        }
        Ok(())
    }
}

/// Removes the logs that were last written before `oldest`, and the oldest beyond `most`.
fn prune_logs(directory: &Path, oldest: SystemTime, most: usize) -> io::Result<()> {
    let mut logs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        logs.push((entry.metadata()?.modified()?, entry.path()));
    }
    logs.sort_by(|one, other| other.cmp(one));
    for (rank, (modified, path)) in logs.into_iter().enumerate() {
        if rank >= most || modified < oldest {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_logs_are_kept_up_to_a_number_and_an_age() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for number in 1..=5_u64 {
            let path = directory.path().join(format!("{number}.log"));
            let file = fs::File::create(&path).unwrap();
            file.set_modified(now - Duration::from_secs(number * 100)).unwrap();
        }
        let left = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        prune_logs(directory.path(), SystemTime::UNIX_EPOCH, 4).unwrap();
        assert_eq!(left(), ["1.log", "2.log", "3.log", "4.log"]);
        prune_logs(directory.path(), now - Duration::from_secs(250), 4).unwrap();
        assert_eq!(left(), ["1.log", "2.log"]);
    }
}
