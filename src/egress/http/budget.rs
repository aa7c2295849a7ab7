//! `max_bytes` of a rule, over all requests of one client connection.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::connection::ConnectionPlan;

/// The byte limit of the rule is exceeded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection exceeds the bytes that the rule allows")]
pub(super) struct TooManyBytes;

/// The bytes that a client connection may carry under one rule, and has carried.
#[derive(Debug, Clone)]
pub(super) struct ByteBudget {
    most: Option<u64>,
    carried: Arc<AtomicU64>,
}

impl ByteBudget {
    /// Counts bytes of either direction, before they are forwarded.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), TooManyBytes> {
        let bytes = bytes as u64;
        let carried = self.carried.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        match self.most {
            Some(most) if carried > most => Err(TooManyBytes),
            _ => Ok(()),
        }
    }

    /// Takes back the charge for bytes that were not sent.
    pub(super) fn refund(&self, bytes: usize) {
        self.carried.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

/// The budgets of one client connection. Requests to the proxy may be under different rules.
#[derive(Debug, Default)]
pub(super) struct ByteBudgets(Mutex<HashMap<Option<String>, Arc<AtomicU64>>>);

impl ByteBudgets {
    /// Returns the budget under the plan's rule.
    pub(super) fn under(&self, plan: &ConnectionPlan) -> ByteBudget {
        self.under_rule(plan.rule.as_deref(), plan.max_bytes)
    }

    fn under_rule(&self, rule: Option<&str>, most: Option<u64>) -> ByteBudget {
        // The map is consistent between any two statements that could panic.
        let mut carried = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let carried = Arc::clone(carried.entry(rule.map(str::to_owned)).or_default());
        ByteBudget { most, carried }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_have_separate_budgets_and_unsent_bytes_are_returned() {
        let budgets = ByteBudgets::default();
        let budget = |rule| budgets.under_rule(Some(rule), Some(10));
        assert_eq!(budget("a").charge(10), Ok(()));
        assert_eq!(budget("b").charge(10), Ok(()));
        budget("b").refund(10);
        assert_eq!(budget("b").charge(10), Ok(()));
        assert_eq!(budget("a").charge(1), Err(TooManyBytes));
        assert_eq!(budgets.under_rule(None, None).charge(1 << 30), Ok(()));
    }

    proptest! {
        /// However the bytes are spread over requests and bodies, no more pass than allowed.
        #[test]
        fn no_requests_together_exceed_the_limit(
            parts in prop::collection::vec(0_usize..5_000, 1..50), most in 0_u64..50_000,
        ) {
            let budgets = ByteBudgets::default();
            let budget = || budgets.under_rule(Some("a"), Some(most));
            let passed: Vec<_> =
                parts.iter().take_while(|part| budget().charge(**part).is_ok()).collect();
            let sum: usize = passed.iter().copied().sum();
            prop_assert!(sum as u64 <= most);
            if let Some(next) = parts.get(passed.len()) {
                prop_assert!((sum + next) as u64 > most);
            }
        }
    }
}
