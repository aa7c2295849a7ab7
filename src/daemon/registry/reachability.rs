//! The reachability of the forge.

use std::time::Duration;

use crate::time::Millis;
use mayfly_api::types::ReadinessCheck;
use mayfly_forge::ForgeError;

/// How long the forge may fail before it counts as unreachable: one lost call is not enough.
const FAILING: Duration = Duration::from_secs(60);
/// How late a response may be.
const LATE: Duration = Duration::from_secs(60);

/// The times of the forge's last response and last failure.
#[derive(Debug, Default)]
pub(super) struct Reachability {
    last_response_at: Option<Millis>,
    last_failure: Option<(Millis, String)>,
}

impl Reachability {
    /// Records the result of a call.
    pub(super) fn record(&mut self, error: Option<&ForgeError>, now: Millis) {
        match error {
            // It is unreachable, or rejects the credentials.
            Some(error) if !error.is_response() => {
                self.last_failure = Some((now, error.to_string()));
            }
            // Any other error is a response.
            _ => (self.last_response_at, self.last_failure) = (Some(now), None),
        }
    }

    /// Returns whether it is reachable. It is called every `interval` at least.
    pub(super) fn check(&self, interval: Duration, now: Millis) -> ReadinessCheck {
        let lately = if self.last_failure.is_some() { FAILING } else { interval * 2 + LATE };
        let ago = self.last_response_at.map(|answered| now.since(answered));
        let ok = ago.is_some_and(|ago| ago <= lately);
        let ago = ago
            .map(|ago| humantime::format_duration(Duration::from_secs(ago.as_secs())).to_string());
        let message = match (&self.last_failure, ago) {
            (None, Some(ago)) => format!("last response from GitHub {ago} ago"),
            (None, None) => "no response from GitHub yet".to_owned(),
            (Some((_, why)), Some(ago)) => {
                format!("last response from GitHub {ago} ago; last error: {why}")
            }
            (Some((_, why)), None) => format!("no response from GitHub yet; last error: {why}"),
        };
        ReadinessCheck { name: "github".to_owned(), ok, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reachability(answered: Option<u64>, failed: Option<u64>) -> Reachability {
        let failed = failed.map(|at| (Millis(at * 1000), "no route".to_owned()));
        Reachability {
            last_response_at: answered.map(|at| Millis(at * 1000)),
            last_failure: failed,
        }
    }

    #[test]
    fn the_forge_is_reachable_while_its_responses_come() {
        let every = Duration::from_secs(300);
        for (answered, failed, now, ok, says) in [
            (None, None, 5, false, "no response from GitHub yet"),
            (None, Some(1), 5, false, "yet; last error: no route"),
            (Some(1), None, 600, true, "last response from"),
            (Some(1), None, 700, false, "last response from"),
            (Some(100), Some(130), 150, true, "50s ago; last error: no route"),
            (Some(100), Some(130), 170, false, "1m 10s ago; last error: no route"),
        ] {
            let check = reachability(answered, failed).check(every, Millis(now * 1000));
            assert_eq!(check.ok, ok, "{answered:?} {failed:?} at {now}: {check:?}");
            assert!(check.message.contains(says), "{check:?}");
        }
    }

    #[test]
    fn any_response_ends_a_failure() {
        let mut reachability = reachability(Some(1), Some(2));
        let away = ForgeError::Ambiguous("no response".to_owned());
        reachability.record(Some(&away), Millis(2500));
        assert!(reachability.last_failure.is_some());
        reachability.record(Some(&ForgeError::Refused("no".to_owned())), Millis(3000));
        assert_eq!(
            (reachability.last_response_at, reachability.last_failure.is_none()),
            (Some(Millis(3000)), true)
        );
    }
}
