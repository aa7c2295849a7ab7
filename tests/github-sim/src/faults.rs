//! Fault injection: which calls fail, how, and how often.
//!
//! A [`Rule`] names a class of calls and a fault, with a probability and a maximum count. The
//! random numbers are seeded, so that a run is reproducible if its requests arrive in the same
//! order.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// A class of calls, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The App's own calls: its installation, tokens.
    Authentication,
    /// Registering a runner: `generate-jitconfig`, by REST or by scale set.
    Mint,
    /// Reading runners and runner groups.
    Runners,
    /// Deleting a runner.
    Delete,
    /// Reading runs and jobs.
    Runs,
    /// Sending and listing webhook deliveries.
    Webhook,
    /// The scale set service except messages: registration, sets, sessions, acquiring jobs.
    ScaleSet,
    /// The message queue of a scale set.
    Messages,
    /// Calls of the runner in the guest.
    Job,
    /// Everything else.
    Other,
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 502, without an effect.
    ServerError,
    /// The call takes effect; the response's body is truncated.
    CutBody,
    /// The call takes effect; the connection closes without a response after GitHub's own limit.
    LostAnswer,
    /// The call takes effect; the response is 502.
    ServerErrorAfterEffect,
    /// 409, without an effect.
    Conflict,
    /// 403 of the secondary rate limit, with `Retry-After`.
    Forbidden {
        /// Seconds.
        retry_after: u32,
    },
    /// 429, with `Retry-After`.
    TooManyRequests {
        /// Seconds.
        retry_after: u32,
    },
    /// The request's token is revoked, and the response is 401.
    RevokedToken,
    /// The issued JIT configuration has already expired. Of [`Class::Mint`].
    ExpiredJit,
    /// The runner is removed after it has listened for a while. Of [`Class::Mint`].
    RemovedIdle {
        /// Milliseconds after it connected.
        after: Millis,
    },
    /// A webhook is sent twice. Of [`Class::Webhook`], like the next two.
    DuplicateWebhook,
    /// A webhook is sent late.
    LateWebhook {
        /// Milliseconds.
        by: Millis,
    },
    /// A webhook is never sent, and is listed as a failed delivery.
    LostWebhook,
    /// The queue token has expired: 401 until the session is refreshed. Of [`Class::Messages`].
    ExpiredQueueToken,
}

/// A rule for injecting a fault.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The class of calls that it affects.
    pub class: Class,
    /// The fault.
    pub fault: Fault,
    /// The probability per call, 0 to 1.
    pub probability: f64,
    /// The maximum count; `None` is unlimited.
    pub times: Option<u32>,
}

impl Rule {
    /// Creates a rule for the next call of a class.
    pub fn once(class: Class, fault: Fault) -> Self {
        Self { class, fault, probability: 1.0, times: Some(1) }
    }

    /// Creates a rule for a share of the calls of a class.
    pub fn share(class: Class, fault: Fault, probability: f64) -> Self {
        Self { class, fault, probability, times: None }
    }
}

/// The rules and their random numbers.
#[derive(Debug)]
pub struct Faults {
    rules: Vec<Rule>,
    random: fastrand::Rng,
}

impl Faults {
    /// Creates the rules with a seed.
    pub fn new(rules: Vec<Rule>, seed: u64) -> Self {
        Self { rules, random: fastrand::Rng::with_seed(seed) }
    }

    /// Adds a rule.
    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// Removes all rules.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// Draws the fault of this call, if any: the first hit among the rules for its class that
    /// `fits` accepts.
    pub fn draw(&mut self, class: Class, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        for rule in &mut self.rules {
            if rule.class != class || rule.times == Some(0) || !fits(rule.fault) {
                continue;
            }
            if self.random.f64() < rule.probability {
                rule.times = rule.times.map(|times| times - 1);
                return Some(rule.fault);
            }
        }
        None
    }
}

impl Fault {
    /// Whether it affects the call itself, not a later effect of it.
    pub fn affects_response(self) -> bool {
        !self.affects_runner() && !self.affects_webhook()
    }

    /// Whether it affects a runner that is being registered.
    pub fn affects_runner(self) -> bool {
        matches!(self, Self::ExpiredJit | Self::RemovedIdle { .. })
    }

    /// Whether it affects the sending of a webhook.
    pub fn affects_webhook(self) -> bool {
        matches!(self, Self::DuplicateWebhook | Self::LateWebhook { .. } | Self::LostWebhook)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_once_rule_applies_once() {
        let mut faults = Faults::new(vec![Rule::once(Class::Mint, Fault::ServerError)], 1);
        assert_eq!(faults.draw(Class::Delete, |_| true), None);
        assert_eq!(faults.draw(Class::Mint, |_| true), Some(Fault::ServerError));
        assert_eq!(faults.draw(Class::Mint, |_| true), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_faults() {
        let drawn = |seed| -> Vec<bool> {
            let rule = Rule::share(Class::Runs, Fault::CutBody, 0.3);
            let mut faults = Faults::new(vec![rule], seed);
            (0..200).map(|_| faults.draw(Class::Runs, |_| true).is_some()).collect()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let share = drawn(7).iter().filter(|is_fault| **is_fault).count();
        assert!((30..90).contains(&share), "{share} of 200");
    }
}
