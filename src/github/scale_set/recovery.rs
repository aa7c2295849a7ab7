//! Recovery from a session's errors. Pure.

use std::time::Duration;

use crate::error::CallError;
use mayfly_common::backoff::delay;

/// The wait after a conflict. Another owner's session lingers for about 50 s; retrying more often
/// does not help.
pub(crate) const CONFLICT_WAIT: Duration = Duration::from_secs(30);
/// The wait before a lost session is replaced.
const REOPEN_WAIT: Duration = Duration::from_secs(1);
/// The first and the longest pause between two polls that fail.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What an error means for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionFault {
    /// The session's token expired (about every hour).
    Expired,
    /// The session no longer exists.
    SessionGone,
    /// The scale set no longer exists.
    SetGone,
    /// Another session replaced it.
    Conflict,
    /// The error is not about the session: a network, a limit, a permission.
    Unrelated,
}

/// The next step after an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecoveryStep {
    /// Refresh the session and retry.
    Refresh,
    /// Open a new session after that long.
    Reopen(Duration),
    /// Create the set again, then open a session.
    RemakeSet,
    /// Return the error to the caller; the session stays open.
    Report,
}

/// Classifies an error.
pub(crate) fn classify_fault(error: &CallError) -> SessionFault {
    match error {
        CallError::Unauthorized { .. } => SessionFault::Expired,
        CallError::NotFound { message, .. } | CallError::Refused { message, .. } => {
            let (kind, _) = message.split_once(':').unwrap_or((message, ""));
            if kind.contains("RunnerScaleSetNotFoundException") {
                SessionFault::SetGone
            } else if kind.contains("SessionConflictException") {
                SessionFault::Conflict
            } else if kind.contains("SessionExpiredException")
                || kind.contains("SessionNotFoundException")
                || matches!(error, CallError::NotFound { .. })
            {
                SessionFault::SessionGone
            } else {
                SessionFault::Unrelated
            }
        }
        CallError::NameTaken { .. } => SessionFault::Conflict,
        CallError::NotSent { .. } | CallError::Ambiguous { .. } | CallError::RateLimited { .. } => {
            SessionFault::Unrelated
        }
    }
}

/// Returns the next step after an error of a call with the session's token; `refreshed` is whether
/// the session was already refreshed for this call.
pub(crate) fn next_step(fault: SessionFault, refreshed: bool) -> RecoveryStep {
    match fault {
        SessionFault::Expired if !refreshed => RecoveryStep::Refresh,
        SessionFault::Expired | SessionFault::SessionGone => RecoveryStep::Reopen(REOPEN_WAIT),
        SessionFault::Conflict => RecoveryStep::Reopen(CONFLICT_WAIT),
        SessionFault::SetGone => RecoveryStep::RemakeSet,
        SessionFault::Unrelated => RecoveryStep::Report,
    }
}

/// Returns the pause before the next poll, after `failures` consecutive polls that returned
/// nothing without waiting.
pub(crate) fn poll_pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        many => delay(many - 1, FIRST_PAUSE, MAX_PAUSE),
    }
}

/// Whether an error means that another session of the set is open.
pub(crate) fn is_session_conflict(error: &CallError) -> bool {
    classify_fault(error) == SessionFault::Conflict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, message: &str) -> CallError {
        let (call, message) = (String::new(), message.to_owned());
        match status {
            404 => CallError::NotFound { call, message, needs: None },
            401 => CallError::Unauthorized { call, message },
            status => CallError::Refused { call, status, message, needs: None },
        }
    }

    #[test]
    fn each_error_has_its_step() {
        let conflict = "GitHub.Actions.Runtime.WebApi.RunnerScaleSetSessionConflictException: x";
        let table = [
            (refused(401, ""), false, RecoveryStep::Refresh),
            (refused(401, ""), true, RecoveryStep::Reopen(REOPEN_WAIT)),
            (refused(404, "no reason given"), false, RecoveryStep::Reopen(REOPEN_WAIT)),
            (refused(404, "RunnerScaleSetNotFoundException: x"), false, RecoveryStep::RemakeSet),
            (refused(409, conflict), true, RecoveryStep::Reopen(CONFLICT_WAIT)),
            (
                refused(403, "AccessDeniedException: no session for you"),
                false,
                RecoveryStep::Report,
            ),
            (
                CallError::Ambiguous { call: String::new(), source: "cut".into() },
                true,
                RecoveryStep::Report,
            ),
        ];
        for (error, refreshed, expected) in table {
            assert_eq!(next_step(classify_fault(&error), refreshed), expected, "{error}");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let seconds: Vec<u64> = [0, 1, 2, 3, 7, u32::MAX].map(|n| poll_pause(n).as_secs()).into();
        assert_eq!(seconds, [0, 1, 2, 4, 60, 60]);
    }
}
