//! Whether the forge is in reach.

use std::time::Duration;

use crate::api::types::Check;
use crate::daemon::millis::Millis;
use crate::forge::ForgeError;

/// How long the forge may fail before it counts as out of reach: one lost call is no news.
const FAILING: Duration = Duration::from_secs(60);
/// How much later than due an answer may come.
const LATE: Duration = Duration::from_secs(60);

/// When the forge last answered, and last did not.
#[derive(Debug, Default)]
pub(super) struct Reach {
    answered: Option<Millis>,
    failed: Option<(Millis, String)>,
}

impl Reach {
    /// It answered, or did not.
    pub(super) fn take(&mut self, error: Option<&ForgeError>, now: Millis) {
        match error {
            // It can't be spoken to, or doesn't know who speaks.
            Some(error) if !error.is_answer() => self.failed = Some((now, error.to_string())),
            // Whatever else it says, it answers.
            _ => (self.answered, self.failed) = (Some(now), None),
        }
    }

    /// Whether it is in reach; it is asked every `interval` at least.
    pub(super) fn check(&self, interval: Duration, now: Millis) -> Check {
        let lately = if self.failed.is_some() { FAILING } else { interval * 2 + LATE };
        let ago = self.answered.map(|answered| now.since(answered));
        let ok = ago.is_some_and(|ago| ago <= lately);
        let ago = ago
            .map(|ago| humantime::format_duration(Duration::from_secs(ago.as_secs())).to_string());
        let message = match (&self.failed, ago) {
            (None, Some(ago)) => format!("GitHub last answered {ago} ago"),
            (None, None) => "GitHub has not been heard of yet".to_owned(),
            (Some((_, why)), Some(ago)) => format!("GitHub last answered {ago} ago: {why}"),
            (Some((_, why)), None) => format!("GitHub has never answered: {why}"),
        };
        Check { name: "github".to_owned(), ok, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(answered: Option<u64>, failed: Option<u64>) -> Reach {
        let failed = failed.map(|at| (Millis(at * 1000), "no route".to_owned()));
        Reach { answered: answered.map(|at| Millis(at * 1000)), failed }
    }

    #[test]
    fn the_forge_is_in_reach_as_long_as_its_answers_come() {
        let every = Duration::from_secs(300);
        for (answered, failed, now, ok, says) in [
            (None, None, 5, false, "has not been heard"),
            (None, Some(1), 5, false, "never answered: no route"),
            (Some(1), None, 600, true, "last answered"),
            (Some(1), None, 700, false, "last answered"),
            (Some(100), Some(130), 150, true, "50s ago: no route"),
            (Some(100), Some(130), 170, false, "1m 10s ago: no route"),
        ] {
            let check = reach(answered, failed).check(every, Millis(now * 1000));
            assert_eq!(check.ok, ok, "{answered:?} {failed:?} at {now}: {check:?}");
            assert!(check.message.contains(says), "{check:?}");
        }
    }

    #[test]
    fn an_answer_ends_a_failure_whatever_it_says() {
        let mut reach = reach(Some(1), Some(2));
        let away = ForgeError::Ambiguous("no answer".to_owned());
        reach.take(Some(&away), Millis(2500));
        assert!(reach.failed.is_some());
        reach.take(Some(&ForgeError::Refused("no".to_owned())), Millis(3000));
        assert_eq!((reach.answered, reach.failed.is_none()), (Some(Millis(3000)), true));
    }
}
