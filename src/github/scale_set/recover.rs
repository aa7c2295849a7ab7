//! What to do about a session's errors. Pure.

use std::time::Duration;

use crate::github::error::CallError;

/// How long another's session lingers is about 50 s; asking more often does not help.
pub const CONFLICT_WAIT: Duration = Duration::from_secs(30);
/// Before a lost session is replaced.
const REOPEN_WAIT: Duration = Duration::from_secs(1);
/// The longest pause between two polls that fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What an error says of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its token is over (about every hour).
    Expired,
    /// It is not there any more.
    SessionGone,
    /// The scale set is not there any more.
    SetGone,
    /// Another session has taken its place.
    Conflict,
    /// Nothing about the session: a network, a limit, a right.
    Elsewhere,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Refresh the session, and do it again.
    Refresh,
    /// Open a new session after that long.
    Reopen(Duration),
    /// Make the set again, then open a session.
    RemakeSet,
    /// Tell the caller; the session stays.
    Report,
}

/// Reads an error.
pub fn fault(error: &CallError) -> Fault {
    match error {
        CallError::Unauthorized { .. } => Fault::Expired,
        CallError::NotFound { message, .. } | CallError::Refused { message, .. } => {
            let (kind, _) = message.split_once(':').unwrap_or((message, ""));
            if kind.contains("RunnerScaleSetNotFoundException") {
                Fault::SetGone
            } else if kind.contains("SessionConflictException") {
                Fault::Conflict
            } else if kind.contains("SessionExpiredException")
                || kind.contains("SessionNotFoundException")
                || matches!(error, CallError::NotFound { .. })
            {
                Fault::SessionGone
            } else {
                Fault::Elsewhere
            }
        }
        CallError::NameTaken { .. } => Fault::Conflict,
        CallError::NotSent { .. } | CallError::Ambiguous { .. } | CallError::RateLimited { .. } => {
            Fault::Elsewhere
        }
    }
}

/// What follows from an error of a call with the session's token; `refreshed` is whether the
/// session was refreshed on behalf of this call already.
pub fn step(fault: Fault, refreshed: bool) -> Step {
    match fault {
        Fault::Expired if !refreshed => Step::Refresh,
        Fault::Expired | Fault::SessionGone => Step::Reopen(REOPEN_WAIT),
        Fault::Conflict => Step::Reopen(CONFLICT_WAIT),
        Fault::SetGone => Step::RemakeSet,
        Fault::Elsewhere => Step::Report,
    }
}

/// The pause before the next poll after that many that brought nothing and did not wait either.
pub fn pause(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        many => Duration::from_secs(1 << (many - 1).min(6)).min(LONGEST_PAUSE),
    }
}

/// Whether an error says that another session of the set lives.
pub fn is_session_conflict(error: &CallError) -> bool {
    fault(error) == Fault::Conflict
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
            (refused(401, ""), false, Step::Refresh),
            (refused(401, ""), true, Step::Reopen(REOPEN_WAIT)),
            (refused(404, "no reason given"), false, Step::Reopen(REOPEN_WAIT)),
            (refused(404, "RunnerScaleSetNotFoundException: x"), false, Step::RemakeSet),
            (refused(409, conflict), true, Step::Reopen(CONFLICT_WAIT)),
            (refused(403, "AccessDeniedException: no session for you"), false, Step::Report),
            (
                CallError::Ambiguous { call: String::new(), source: "cut".into() },
                true,
                Step::Report,
            ),
        ];
        for (error, refreshed, expected) in table {
            assert_eq!(step(fault(&error), refreshed), expected, "{error}");
        }
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        let seconds: Vec<u64> = [0, 1, 2, 3, 7, u32::MAX].map(|n| pause(n).as_secs()).into();
        assert_eq!(seconds, [0, 1, 2, 4, 60, 60]);
    }
}
