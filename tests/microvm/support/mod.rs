//! What the tests stand on: a host to run Mayfly on, runs under way, and looks into `/proc`.

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
pub(crate) use running::{Ending, Running};

/// How long anything may take that is not the matter of the test: in emulation, beside another
/// microVM, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at something that is about to change.
const LOOK: Duration = Duration::from_millis(2);

/// Waits until there is an answer; fails, naming it, if there is none in time.
pub(crate) fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(start.elapsed() < within, "{what}: not within {within:?}");
        std::thread::sleep(LOOK);
    }
}

/// Whether the tests may take minutes.
pub(crate) fn long() -> bool {
    std::env::var_os("MAYFLY_TEST_LONG").is_some()
}

/// The store with the images of the tests.
pub(crate) fn images() -> PathBuf {
    let store = std::env::var_os("MAYFLY_TEST_IMAGES").map(PathBuf::from);
    store.expect("MAYFLY_TEST_IMAGES names no image store: run scripts/test")
}

/// Fails where the test can't do what it has to.
pub(crate) fn require_root() {
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "this test makes namespaces and becomes another user: run it as root");
}
