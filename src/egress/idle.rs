//! Detection of idle connections.

use std::time::Duration;

use tokio::time::sleep;

/// Checks per idle timeout.
const CHECKS: u32 = 4;

/// Waits until the count that `passed` returns has not changed for `idle`. It returns up to a
/// quarter late: a timer for each read would cost more than the reads.
///
/// Checks are counted, not time. While this process is stopped or its container paused, no bytes
/// can pass; that counts as one check, however long it was, and buffered data is read before the
/// next.
pub(super) async fn wait_until_idle(passed: impl Fn() -> u64, idle: Duration) {
    let (mut quiet, mut last) = (0, passed());
    while quiet < CHECKS {
        sleep(idle / CHECKS).await;
        let now = passed();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use tokio::time::{Instant, advance};

    use super::*;

    const IDLE: Duration = Duration::from_secs(40);

    async fn is_pending(future: &mut Pin<&mut impl Future<Output = ()>>) -> bool {
        poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    #[tokio::test(start_paused = true)]
    async fn traffic_postpones_the_timeout() {
        let (count, start) = (Cell::new(0), Instant::now());
        let idle = wait_until_idle(|| count.get(), IDLE);
        let passes = async {
            for _ in 0..10 {
                sleep(IDLE / 2).await;
                count.set(count.get() + 1);
            }
        };
        tokio::join!(idle, passes);
        let late = start.elapsed().checked_sub(IDLE * 5).unwrap();
        assert!(late >= IDLE && late <= IDLE + IDLE / CHECKS, "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stopped_process_does_not_time_out() {
        let count = Cell::new(0);
        let mut idle = pin!(wait_until_idle(|| count.get(), IDLE));
        assert!(is_pending(&mut idle).await);
        for _ in 0..100 {
            // The timer expires before the buffered data is read.
            advance(Duration::from_secs(3 * 86_400)).await;
            assert!(is_pending(&mut idle).await);
            count.set(count.get() + 1);
        }
        // Idle, and not stopped.
        let start = Instant::now();
        idle.await;
        let late = start.elapsed();
        assert!(late >= IDLE && late <= IDLE + IDLE / CHECKS, "{late:?}");
    }
}
