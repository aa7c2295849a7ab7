//! Webhooks: whether GitHub sent one, and what it says.
//!
//! A webhook is a hint: it may come twice, late, out of order or never. Nothing here is trusted
//! before [`verify`] has seen the raw body.

use data_encoding::HEXLOWER_PERMISSIVE;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sha2::Sha256;

use super::job::{Job, RawJob, lenient};

/// The header with the event's kind, for [`parse`].
pub const EVENT_HEADER: &str = "X-GitHub-Event";
/// The header with the delivery's GUID; a redelivery has the same one.
pub const DELIVERY_HEADER: &str = "X-GitHub-Delivery";
/// The header with the signature, for [`verify`].
pub const SIGNATURE_HEADER: &str = "X-Hub-Signature-256";
/// The most bytes that a body has (GitHub's cap: 25 MB).
pub const BODY_LIMIT: usize = 25 * 1024 * 1024;

/// What a webhook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A workflow job changed.
    WorkflowJob(Box<WorkflowJob>),
    /// The hook was made, or a person tries it.
    Ping,
    /// Something that was not asked for: its kind.
    Other(String),
}

/// A change of a workflow job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowJob {
    /// What happened.
    pub action: Action,
    /// The job as it was then. Samples show a `queued` action with status `waiting`: both count.
    pub job: Job,
    /// The App's installation, where the hook is an App's.
    pub installation: Option<u64>,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It waits for a runner.
    Queued,
    /// It waits for a deployment gate: start nothing.
    Waiting,
    /// A runner has it.
    InProgress,
    /// It is over.
    Completed,
    /// Something that this version does not know.
    Other(String),
}

/// Why a body is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// No JSON, or without what every event of that kind has.
    #[error("a {event} event can't be understood")]
    Malformed {
        /// The event's kind.
        event: String,
        /// Where and what.
        #[source]
        source: serde_json::Error,
    },
}

/// Whether `signature` (the header's value) is that of the raw `body`, compared in constant time.
pub fn verify(secret: &SecretString, body: &[u8], signature: &str) -> bool {
    let Some(hexadecimal) = signature.strip_prefix("sha256=") else { return false };
    let Ok(claimed) = HEXLOWER_PERMISSIVE.decode(hexadecimal.as_bytes()) else { return false };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()) else {
        return false;
    };
    mac.update(body);
    // An empty secret would let anybody sign.
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

/// Reads a body whose signature was right; `event` is the header's value.
pub fn parse(event: &str, body: &[u8]) -> Result<Event, ParseError> {
    match event {
        "workflow_job" => {}
        "ping" => return Ok(Event::Ping),
        other => return Ok(Event::Other(other.chars().take(64).collect())),
    }
    let raw: Raw = serde_json::from_slice(body)
        .map_err(|source| ParseError::Malformed { event: event.to_owned(), source })?;
    let repository = raw.repository.map(|repository| repository.full_name).unwrap_or_default();
    Ok(Event::WorkflowJob(Box::new(WorkflowJob {
        action: raw.action.as_str().into(),
        job: raw.workflow_job.of(&repository),
        installation: raw.installation.map(|installation| installation.id),
    })))
}

impl From<&str> for Action {
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
    use crate::github::Status;

    // The vector that GitHub publishes.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    #[test]
    fn the_published_signature_is_right_and_any_other_is_not() {
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
    fn a_change_of_a_job_is_read() {
        let body = br#"{"action":"queued","workflow_job":{"id":7,"run_id":8,"run_attempt":3,
            "labels":["Mayfly"],"status":"queued","runner_id":0,"conclusion":null},
            "repository":{"full_name":"octo/hello"},"installation":{"id":5}}"#;
        let Event::WorkflowJob(event) = parse("workflow_job", body).unwrap() else {
            panic!("it is one")
        };
        assert_eq!((event.action, event.installation), (Action::Queued, Some(5)));
        assert_eq!((event.job.id, event.job.attempt, event.job.runner_id), (7, 3, None));
        assert_eq!(event.job.repository, "octo/hello");
        assert_eq!(event.job.status, Status::Queued);
    }

    #[test]
    fn what_is_not_asked_for_is_named_and_rubbish_is_an_error() {
        assert_eq!(parse("push", b"{").unwrap(), Event::Other("push".into()));
        assert_eq!(parse("ping", b"{}").unwrap(), Event::Ping);
        for body in [&b"{"[..], b"{}", b"[]", br#"{"action":"queued","workflow_job":{}}"#] {
            assert!(parse("workflow_job", body).is_err());
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(event in ".*", body in proptest::collection::vec(any::<u8>(), 0..200)) {
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
                Event::Ping => assert_eq!(event, "ping"),
                Event::WorkflowJob(parsed) => {
                    jobs += 1;
                    let action = rest.split('-').next().unwrap();
                    assert_eq!(parsed.action, Action::from(action), "{name}");
                    assert!(!matches!(parsed.action, Action::Other(_)), "{name}");
                    assert!(!matches!(parsed.job.status, Status::Other(_)), "{name}");
                    assert!(parsed.job.repository.contains('/'), "{name}");
                    assert!(parsed.job.started_at.is_some(), "{name}");
                }
                Event::Other(kind) => panic!("{name}: {kind}"),
            }
        }
        assert!(jobs > 0, "there is no sample of a job");
    }
}
