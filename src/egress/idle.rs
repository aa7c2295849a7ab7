//! How long nothing has passed.

use std::time::Duration;

use tokio::time::sleep;

/// Looks within the time that nothing may pass.
const LOOKS: u32 = 4;

/// Waits until nothing has passed for `idle`, by a count that `passed` gives. The end comes up to a
/// quarter late: a timer for each read would cost more than the reads.
///
/// Looks are counted, not time. While this process is stopped or its container paused, nothing can
/// pass; that counts as one look, however long it was, and what waits is read before the next.
pub(super) async fn nothing_passes(passed: impl Fn() -> u64, idle: Duration) {
    let (mut quiet, mut last) = (0, passed());
    while quiet < LOOKS {
        sleep(idle / LOOKS).await;
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
    async fn what_passes_puts_the_end_off() {
        let (count, begun) = (Cell::new(0), Instant::now());
        let idle = nothing_passes(|| count.get(), IDLE);
        let passes = async {
            for _ in 0..10 {
                sleep(IDLE / 2).await;
                count.set(count.get() + 1);
            }
        };
        tokio::join!(idle, passes);
        let late = begun.elapsed().checked_sub(IDLE * 5).unwrap();
        assert!(late >= IDLE && late <= IDLE + IDLE / LOOKS, "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_absence_of_days_ends_nothing() {
        let count = Cell::new(0);
        let mut idle = pin!(nothing_passes(|| count.get(), IDLE));
        assert!(is_pending(&mut idle).await);
        for _ in 0..100 {
            // The timer is overdue before what waited is read.
            advance(Duration::from_secs(3 * 86_400)).await;
            assert!(is_pending(&mut idle).await);
            count.set(count.get() + 1);
        }
        // It is quiet again, and not absent.
        let begun = Instant::now();
        idle.await;
        let late = begun.elapsed();
        assert!(late >= IDLE && late <= IDLE + IDLE / LOOKS, "{late:?}");
    }
}
