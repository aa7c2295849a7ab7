//! Webhooks: signature verification and parsing.
//!
//! A webhook is a hint: it may be repeated, late, out of order or lost. Nothing here is trusted
//! before [`verify`] has checked the raw body.

use data_encoding::HEXLOWER_PERMISSIVE;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;

use super::job::{RawJob, WorkflowJob, lenient};

/// A webhook event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WebhookEvent {
    /// A workflow job changed.
    WorkflowJob(Box<WorkflowJobEvent>),
    /// A ping: the webhook was created, or a person tests it.
    Ping,
    /// An event that Mayfly does not use: its type.
    Other(String),
}

/// A change of a workflow job, with the job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkflowJobEvent {
    /// The change.
    pub action: JobAction,
    /// The job at that time. Samples show a `queued` action with status `waiting`: both matter.
    pub job: WorkflowJob,
    /// The App's installation ID, if the webhook is an App's.
    pub installation: Option<u64>,
}

/// The change of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JobAction {
    /// The job waits for a runner.
    Queued,
    /// The job waits for a deployment gate: start nothing.
    Waiting,
    /// A runner has the job.
    InProgress,
    /// The job ended.
    Completed,
    /// A change that this version does not know.
    Other(String),
}

/// An error of parsing a webhook's body.
#[derive(Debug, thiserror::Error)]
pub(super) enum WebhookParseError {
    /// The body is not JSON, or lacks a required field.
    #[error("can't parse a {event} event")]
    Malformed {
        /// The event's type.
        event: String,
        /// The JSON error.
        #[source]
        source: serde_json::Error,
    },
}

/// Whether `signature` (the header's value) matches the raw `body`; compares in constant time.
pub(super) fn verify(secret: &SecretString, body: &[u8], signature: &str) -> bool {
    let Some(hexadecimal) = signature.strip_prefix("sha256=") else { return false };
    let Ok(claimed) = HEXLOWER_PERMISSIVE.decode(hexadecimal.as_bytes()) else { return false };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else {
        return false;
    };
    mac.update(body);
    // With an empty secret anybody could sign.
    !secret.expose_secret().is_empty() && mac.verify_slice(&claimed).is_ok()
}

#[derive(Deserialize)]
struct Raw {
    action: String,
    workflow_job: RawJob,
    #[serde(default, deserialize_with = "lenient")]
    repository: Option<Named>,
    #[serde(default, deserialize_with = "lenient")]
    installation: Option<Numbered>,
}

#[derive(Deserialize)]
struct Named {
    full_name: String,
}

#[derive(Deserialize)]
struct Numbered {
    id: u64,
}

/// Parses a body whose signature was verified; `event` is the header's value.
pub(super) fn parse(event: &str, body: &[u8]) -> Result<WebhookEvent, WebhookParseError> {
    match event {
        "workflow_job" => {}
        "ping" => return Ok(WebhookEvent::Ping),
        other => return Ok(WebhookEvent::Other(other.chars().take(64).collect())),
    }
    let raw: Raw = serde_json::from_slice(body)
        .map_err(|source| WebhookParseError::Malformed { event: event.to_owned(), source })?;
    let repository = raw.repository.map(|repository| repository.full_name).unwrap_or_default();
    Ok(WebhookEvent::WorkflowJob(Box::new(WorkflowJobEvent {
        action: raw.action.as_str().into(),
        job: raw.workflow_job.into_job(&repository),
        installation: raw.installation.map(|installation| installation.id),
    })))
}

impl From<&str> for JobAction {
    fn from(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "waiting" => Self::Waiting,
            "in_progress" => Self::InProgress,
            "completed" => Self::Completed,
            other => Self::Other(other.chars().take(64).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::WorkflowJobStatus;

    // The test vector that GitHub publishes.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn only_the_published_signature_is_valid() {
        let secret = SECRET.into();
        assert!(verify(&secret, BODY, SIGNATURE));
        assert!(!verify(&secret, b"Hello, World?", SIGNATURE));
        assert!(!verify(&"other".into(), BODY, SIGNATURE));
        for signature in ["", "sha256=", &SIGNATURE[7..], &SIGNATURE[..70], "sha1=00", "sha256=zz"]
        {
            assert!(!verify(&secret, BODY, signature), "{signature}");
        }
    }

    #[test]
    fn an_empty_secret_verifies_nothing() {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"").unwrap();
        mac.update(BODY);
        let hexadecimal = data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes());
        assert!(!verify(&"".into(), BODY, &format!("sha256={hexadecimal}")));
    }

    #[test]
    fn a_job_event_is_parsed() {
        let body = br#"{"action":"queued","workflow_job":{"id":7,"run_id":8,"run_attempt":3,
            "labels":["Mayfly"],"status":"queued","runner_id":0,"conclusion":null},
            "repository":{"full_name":"octo/hello"},"installation":{"id":5}}"#;
        let WebhookEvent::WorkflowJob(event) = parse("workflow_job", body).unwrap() else {
            panic!("not a workflow_job event")
        };
        assert_eq!((event.action, event.installation), (JobAction::Queued, Some(5)));
        assert_eq!((event.job.id, event.job.attempt, event.job.runner_id), (7, 3, None));
        assert_eq!(event.job.repository, "octo/hello");
        assert_eq!(event.job.status, WorkflowJobStatus::Queued);
    }

    #[test]
    fn unused_events_are_named_and_malformed_bodies_are_errors() {
        assert_eq!(parse("push", b"{").unwrap(), WebhookEvent::Other("push".into()));
        assert_eq!(parse("ping", b"{}").unwrap(), WebhookEvent::Ping);
        for body in [&b"{"[..], b"{}", b"[]", br#"{"action":"queued","workflow_job":{}}"#] {
            assert!(parse("workflow_job", body).is_err());
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(event in ".*", body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&event, &body);
            let _ = parse("workflow_job", &body);
            prop_assert!(!verify(&SECRET.into(), &body, &event));
        }
    }

    /// Parses GitHub's own samples, `$MAYFLY_GITHUB_CONTRACT/webhooks/EVENT-ACTION-N.json`.
    #[test]
    #[ignore = "needs MAYFLY_GITHUB_CONTRACT, the directory with GitHub's samples"]
    fn each_sample_of_githubs_is_understood() {
        let contract = std::env::var_os("MAYFLY_GITHUB_CONTRACT")
            .expect("MAYFLY_GITHUB_CONTRACT names the directory with GitHub's samples");
        let mut jobs = 0;
        for entry in std::path::Path::new(&contract).join("webhooks").read_dir().unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let (event, rest) = name.split_once('-').unwrap();
            let body = std::fs::read(&path).unwrap();
            let parsed = parse(event, &body).unwrap_or_else(|error| panic!("{name}: {error:?}"));
            match parsed {
                WebhookEvent::Ping => assert_eq!(event, "ping"),
                WebhookEvent::WorkflowJob(parsed) => {
                    jobs += 1;
                    let action = rest.split('-').next().unwrap();
                    assert_eq!(parsed.action, JobAction::from(action), "{name}");
                    assert!(!matches!(parsed.action, JobAction::Other(_)), "{name}");
                    assert!(!matches!(parsed.job.status, WorkflowJobStatus::Other(_)), "{name}");
                    assert!(parsed.job.repository.contains('/'), "{name}");
                    assert!(parsed.job.started_at.is_some(), "{name}");
                }
                WebhookEvent::Other(kind) => panic!("{name}: {kind}"),
            }
        }
        assert!(jobs > 0, "no sample of a workflow_job event");
    }
}
