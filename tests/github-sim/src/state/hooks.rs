//! Webhook deliveries: due, sent and failed.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use super::State;
use crate::faults::{Class, Fault};
use crate::http::bodies;
use crate::time::Millis;

/// One attempt to deliver a webhook.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The attempt's ID.
    pub id: u64,
    /// The event's GUID, the same for each attempt.
    pub guid: String,
    /// `queued`, `in_progress` …
    pub action: String,
    /// The job's ID.
    pub job: u64,
    /// The body.
    pub body: String,
    /// When it is due; `None` if it was sent or never will be.
    pub due: Option<Millis>,
    /// When it was sent or should have been.
    pub delivered_at: Millis,
    /// Whether it is a redelivery.
    pub redelivery: bool,
    /// The receiver's response status; 0 without a response.
    pub status: u16,
}

impl State {
    /// Queues a webhook about a job, if a hook is configured.
    pub(crate) fn queue_webhook(&mut self, job: u64, action: &str, now: Millis) {
        if self.settings.hook.is_none() {
            return;
        }
        let Some(body) = self.jobs.get(&job).map(|job| bodies::event(self, job, action)) else {
            return;
        };
        let fault = self.faults.draw(Class::Webhook, Fault::affects_webhook);
        if let Some(fault) = fault {
            self.count_fault(fault);
        }
        let guid = self.random_uuid();
        let due = match fault {
            Some(Fault::LostWebhook) => None,
            Some(Fault::LateWebhook { by }) => Some(now + by),
            _ => Some(now),
        };
        let delivery = Delivery {
            id: self.next_id(),
            guid,
            action: action.to_owned(),
            job,
            body: Value::to_string(&body),
            due,
            delivered_at: now,
            redelivery: false,
            status: 0,
        };
        if fault == Some(Fault::DuplicateWebhook) {
            let duplicate = Delivery { id: self.next_id(), ..delivery.clone() };
            self.deliveries.push(duplicate);
        }
        self.deliveries.push(delivery);
    }

    /// Queues an event again, with the same GUID.
    ///
    /// Returns whether the delivery exists.
    pub fn redeliver(&mut self, id: u64, now: Millis) -> bool {
        let Some(old) = self.deliveries.iter().find(|delivery| delivery.id == id).cloned() else {
            return false;
        };
        let id = self.next_id();
        let redelivery =
            Delivery { id, due: Some(now), delivered_at: now, redelivery: true, status: 0, ..old };
        self.deliveries.push(redelivery);
        true
    }

    /// Takes the deliveries that are due.
    pub fn take_due(&mut self, now: Millis) -> Vec<Delivery> {
        let due = self
            .deliveries
            .iter_mut()
            .filter(|delivery| delivery.due.is_some_and(|due| due <= now));
        let take = |delivery: &mut Delivery| {
            delivery.due = None;
            delivery.delivered_at = now;
            delivery.clone()
        };
        due.map(take).collect()
    }

    /// Records the status of a delivery.
    pub fn delivered(&mut self, id: u64, status: u16) {
        if let Some(delivery) = self.deliveries.iter_mut().find(|delivery| delivery.id == id) {
            delivery.status = status;
        }
    }
}

/// Returns the value of `X-Hub-Signature-256`.
pub fn signature(secret: &str, body: &[u8]) -> String {
    // HMAC accepts keys of any length; the else branch is never reached.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(body);
    format!("sha256={}", data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vector of GitHub's documentation.
    #[test]
    fn the_signature_matches_the_published_one() {
        assert_eq!(
            signature("It's a Secret to Everybody", b"Hello, World!"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }
}
