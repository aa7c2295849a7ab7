//! What is done about a panic: it is logged and counted.

use mayfly_failure::panic_message;

use crate::metrics;

/// Logs and counts a panic of a task if it panicked. A panic is a bug in Mayfly and ends that task
/// only.
pub fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    let Err(error) = ended else { return };
    if error.is_panic() {
        let cause = panic_message(&*error.into_panic());
        metrics::PANICS.add([], 1);
        tracing::error!(cause, "a task of the daemon panicked: this is a bug in Mayfly");
    }
}
