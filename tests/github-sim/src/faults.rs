//! What goes wrong on request: which calls, in which way, how often.
//!
//! A [`Rule`] names a class of calls and a fault, with a probability and at most a number of times.
//! The dice are the state's, seeded, so that a run repeats as far as its requests come in the same
//! order.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// A class of calls, by what they are for.
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
    /// Webhook deliveries, as they are sent and as they are listed.
    Webhook,
    /// The scale-set service beside messages: registration, sets, sessions, acquiring.
    ScaleSet,
    /// The message queue of a scale set.
    Messages,
    /// What the runner in the guest asks.
    Job,
    /// Everything else.
    Other,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// 502, and nothing was done.
    ServerError,
    /// It was done; the answer's body ends in the middle.
    CutBody,
    /// It was done; no answer comes until GitHub's own limit, then the connection is cut.
    LostAnswer,
    /// It was done; the answer is 502.
    ServerErrorAfterEffect,
    /// 409, and nothing was done.
    Conflict,
    /// 403 of the secondary rate limit, with `Retry-After` in seconds.
    Forbidden {
        /// Seconds.
        retry_after: u32,
    },
    /// 429, with `Retry-After` in seconds.
    TooManyRequests {
        /// Seconds.
        retry_after: u32,
    },
    /// The token that was shown is revoked, and the answer is 401.
    RevokedToken,
    /// The JIT configuration that was minted is dead on arrival. Of [`Class::Mint`].
    ExpiredJit,
    /// The runner is removed once it has listened for a while. Of [`Class::Mint`].
    RemovedIdle {
        /// Milliseconds after it connected.
        after: Millis,
    },
    /// A webhook is sent twice. Of [`Class::Webhook`], like the next two.
    DuplicateWebhook,
    /// A webhook comes late.
    LateWebhook {
        /// Milliseconds.
        by: Millis,
    },
    /// A webhook is never sent, and shows as failed in the list of deliveries.
    LostWebhook,
    /// The queue token has expired: 401 until the session is refreshed. Of [`Class::Messages`].
    ExpiredQueueToken,
}

/// A fault with how often it happens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The calls that it befalls.
    pub class: Class,
    /// What happens.
    pub fault: Fault,
    /// 0 to 1.
    pub probability: f64,
    /// How often at most; `None` is without end.
    pub times: Option<u32>,
}

impl Rule {
    /// A fault that happens to the next call of a class, once.
    pub fn once(class: Class, fault: Fault) -> Self {
        Self { class, fault, probability: 1.0, times: Some(1) }
    }

    /// A fault that happens to a share of the calls of a class.
    pub fn share(class: Class, fault: Fault, probability: f64) -> Self {
        Self { class, fault, probability, times: None }
    }
}

/// The rules with their dice.
#[derive(Debug)]
pub struct Faults {
    rules: Vec<Rule>,
    dice: fastrand::Rng,
}

impl Faults {
    /// Dice that fall the same for the same seed.
    pub fn new(rules: Vec<Rule>, seed: u64) -> Self {
        Self { rules, dice: fastrand::Rng::with_seed(seed) }
    }

    /// Another rule.
    pub fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    /// No rule any more.
    pub fn clear(&mut self) {
        self.rules.clear();
    }

    /// The fault that befalls this call, if any: of the rules for its class that `fits` accepts,
    /// the first whose die falls.
    pub fn draw(&mut self, class: Class, fits: impl Fn(Fault) -> bool) -> Option<Fault> {
        for rule in &mut self.rules {
            if rule.class != class || rule.times == Some(0) || !fits(rule.fault) {
                continue;
            }
            if self.dice.f64() < rule.probability {
                rule.times = rule.times.map(|times| times - 1);
                return Some(rule.fault);
            }
        }
        None
    }
}

impl Fault {
    /// Whether it befalls the call itself, rather than what comes of it later.
    pub fn is_of_the_answer(self) -> bool {
        !self.is_of_the_runner() && !self.is_of_the_webhook()
    }

    /// Whether it befalls a runner that is being registered.
    pub fn is_of_the_runner(self) -> bool {
        matches!(self, Self::ExpiredJit | Self::RemovedIdle { .. })
    }

    /// Whether it befalls a webhook on its way.
    pub fn is_of_the_webhook(self) -> bool {
        matches!(self, Self::DuplicateWebhook | Self::LateWebhook { .. } | Self::LostWebhook)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_happens_once_happens_once() {
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
        let share = drawn(7).iter().filter(|happened| **happened).count();
        assert!((30..90).contains(&share), "{share} of 200");
    }
}
