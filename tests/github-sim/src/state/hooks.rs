//! Webhooks: what is to be sent, when, and what came of it.

use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use super::State;
use crate::faults::{Class, Fault};
use crate::http::bodies;
use crate::time::Millis;

/// A webhook.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The number of this attempt.
    pub id: u64,
    /// The id of the event, the same for each attempt.
    pub guid: String,
    /// `queued`, `in_progress` …
    pub action: String,
    /// The job that it is about.
    pub job: u64,
    /// What is sent.
    pub body: String,
    /// When it is to be sent; `None` once it was, or never will be.
    pub due: Option<Millis>,
    /// When it was sent, or would have been.
    pub delivered_at: Millis,
    /// Whether it is another attempt.
    pub redelivery: bool,
    /// What the receiver answered; 0 while nothing did.
    pub status: u16,
}

impl State {
    /// Tells the hook, if there is one, about a job.
    pub(crate) fn announce(&mut self, job: u64, action: &str, now: Millis) {
        if self.settings.hook.is_none() {
            return;
        }
        let Some(body) = self.jobs.get(&job).map(|job| bodies::event(self, job, action)) else {
            return;
        };
        let fault = self.faults.draw(Class::Webhook, Fault::is_of_the_webhook);
        if let Some(fault) = fault {
            self.suffer(fault);
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
            let twice = Delivery { id: self.next_id(), ..delivery.clone() };
            self.deliveries.push(twice);
        }
        self.deliveries.push(delivery);
    }

    /// Sends an event again, with the id that it had.
    ///
    /// Returns whether there is such a delivery.
    pub fn redeliver(&mut self, id: u64, now: Millis) -> bool {
        let Some(old) = self.deliveries.iter().find(|delivery| delivery.id == id).cloned() else {
            return false;
        };
        let id = self.next_id();
        let again =
            Delivery { id, due: Some(now), delivered_at: now, redelivery: true, status: 0, ..old };
        self.deliveries.push(again);
        true
    }

    /// Takes what is to be sent now.
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

    /// What came of a delivery.
    pub fn delivered(&mut self, id: u64, status: u16) {
        if let Some(delivery) = self.deliveries.iter_mut().find(|delivery| delivery.id == id) {
            delivery.status = status;
        }
    }
}

/// The value of `X-Hub-Signature-256`.
pub fn signature(secret: &str, body: &[u8]) -> String {
    // A key of any length is taken; the other arm is never reached.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(body);
    format!("sha256={}", data_encoding::HEXLOWER.encode(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of GitHub's documentation.
    #[test]
    fn the_published_signature_is_made() {
        assert_eq!(
            signature("It's a Secret to Everybody", b"Hello, World!"),
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        );
    }
}
