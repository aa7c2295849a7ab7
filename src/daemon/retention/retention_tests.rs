//! Tests of what is pruned.

use super::*;
use crate::testing::settings;

/// A pruner with a ledger and settings.
struct Bench {
    _directory: tempfile::TempDir,
    pruner: Pruner,
    ledger: Ledger,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        std::fs::create_dir_all(state.logs()).unwrap();
        let ledger = Ledger::open(&state.ledger()).unwrap();
        let pruner = Pruner::new(state);
        Self { _directory: directory, pruner, ledger, settings: settings() }
    }

    /// Prunes until nothing more is found. Returns the number of runs.
    fn prune_all(&mut self) -> u32 {
        let Self { pruner, ledger, settings, .. } = self;
        let host = &settings.host;
        let kept =
            segment_lifecycle::SegmentRetention { bytes: host.audit_bytes.0, age: host.audit_age };
        let bounds = Bounds { oldest: SystemTime::UNIX_EPOCH, jobs: MAX_LOGS, bytes: u64::MAX };
        for times in 1.. {
            pruner.next_at = Millis(0) + INTERVAL;
            let result = prune(&pruner.state, bounds, kept, 0);
            pruner.apply(&result, ledger, Millis(0)).unwrap();
            if pruner.next_at > Millis(0) + RESUME_INTERVAL {
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
        bench.ledger.record_planned(&name, "small", "base").unwrap();
        bench.ledger.record_ended(&name, "ended", None, None).unwrap();
    }
    assert_eq!(bench.prune_all(), 3, "one stays, two are closed, and then there is nothing more");
    let audit = bench.pruner.state.audit();
    let files = || std::fs::read_dir(&audit).unwrap().count();
    assert_eq!(files(), 2);
    bench.ledger.reader().verify_audit(&audit, None).unwrap();

    bench.settings.host.audit_bytes.0 = 0;
    assert_eq!(bench.prune_all(), 2);
    assert_eq!(files(), 0, "files of deleted segments are gone");
    bench.ledger.reader().verify_audit(&audit, None).unwrap();
    assert_eq!(bench.prune_all(), 1);
}
