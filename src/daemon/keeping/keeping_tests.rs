//! What is forgotten, and by whom.

use super::*;
use crate::daemon::testing::settings;

/// A daemon's keeping, its ledger and its settings.
struct Bench {
    _directory: tempfile::TempDir,
    keeping: Keeping,
    ledger: Ledger,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        std::fs::create_dir_all(state.logs()).unwrap();
        let ledger = Ledger::open(&state.ledger()).unwrap();
        let keeping = Keeping::new(state);
        Self { _directory: directory, keeping, ledger, settings: settings() }
    }

    /// Looks for what is old and forgets it, until there is nothing more. How often that was.
    fn sweep(&mut self) -> u32 {
        let Self { keeping, ledger, settings, .. } = self;
        let host = &settings.host;
        let kept = closing::Kept { bytes: host.audit_bytes.0, age: host.audit_age };
        let bounds = Bounds { oldest: SystemTime::UNIX_EPOCH, jobs: LOGS, bytes: u64::MAX };
        for times in 1.. {
            keeping.next = Millis(0) + INTERVAL;
            let swept = sweep(&keeping.state, bounds, kept, 0);
            keeping.swept(&swept, ledger, Millis(0)).unwrap();
            if keeping.next > Millis(0) + MORE {
                return times;
            }
        }
        unreachable!("it ends")
    }
}

#[test]
fn the_audit_log_is_closed_segment_by_segment_and_old_ones_go_with_their_files() {
    let mut bench = Bench::new();
    // Two entries each: as many as three segments have.
    for number in 0..segments::SEGMENT * 3 / 2 {
        let name = format!("m-{number}");
        bench.ledger.planned(&name, "small", "base").unwrap();
        bench.ledger.ended(&name, "ended", None, None).unwrap();
    }
    assert_eq!(bench.sweep(), 3, "one stays, two are closed, and then there is nothing more");
    let audit = bench.keeping.state.audit();
    let files = || std::fs::read_dir(&audit).unwrap().count();
    assert_eq!(files(), 2);
    bench.ledger.reader().verify_audit(&audit, None).unwrap();

    bench.settings.host.audit_bytes.0 = 0;
    assert_eq!(bench.sweep(), 2);
    assert_eq!(files(), 0, "what the ledger forgot is gone");
    bench.ledger.reader().verify_audit(&audit, None).unwrap();
    assert_eq!(bench.sweep(), 1);
}
