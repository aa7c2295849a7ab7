//! Support for tests with microVMs: a test host, running commands, test images, and `/proc`.

pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod injector;
pub(crate) mod inventory;
pub(crate) mod processes;
pub(crate) mod running;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) use host::Host;
#[allow(unused_imports, reason = "the benchmarks use less")]
pub(crate) use running::{CommandOutput, Running};

/// The time limit of any step whose duration is not under test: generous, because guests are
/// emulated on a busy machine beside another microVM.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(90);

/// The delay between two polls.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Polls until the function returns a value. Fails, naming `what`, on a timeout.
pub(crate) fn until<T>(what: &str, within: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns whether the tests may take minutes.
pub(crate) fn is_long_run() -> bool {
    std::env::var_os("MAYFLY_TEST_LONG").is_some()
}

/// Returns the store with the images of the tests.
pub(crate) fn images() -> PathBuf {
    let store = std::env::var_os("MAYFLY_TEST_IMAGES").map(PathBuf::from);
    store.expect("MAYFLY_TEST_IMAGES is not set: run scripts/test")
}

/// Fails unless the test runs as root.
pub(crate) fn require_root() {
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "this test creates namespaces and changes its user: run it as root");
}
