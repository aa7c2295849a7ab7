//! The state and decisions of GitHub: jobs, runners, tokens, scale sets, webhooks to send.
//!
//! Pure: no clock, no socket, no thread. The time is an argument; random numbers are seeded.
//! Time-driven changes happen in [`State::tick`].

pub mod hooks;
pub mod jobs;
pub mod runners;
pub mod scale_sets;
pub mod settings;
pub mod tokens;

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;

use crate::faults::{Fault, Faults};
use crate::record::Recorder;
use crate::time::Millis;
use jobs::Job;
use runners::{RemovedRunner, Runner};
use scale_sets::ScaleSet;
use settings::Settings;
use tokens::Token;

/// The ID of the default runner group.
pub const DEFAULT_GROUP: u64 = 1;

/// A runner group of the organization.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its ID.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// The state of the simulated GitHub.
#[derive(Debug)]
pub struct State {
    /// The settings.
    pub settings: Settings,
    /// Its URL, e.g. `http://127.0.0.1:8080`.
    pub url: String,
    /// All jobs ever queued, by ID.
    pub jobs: BTreeMap<u64, Job>,
    /// Registered runners, by ID.
    pub runners: BTreeMap<u64, Runner>,
    /// Removed runners.
    pub removed_runners: Vec<RemovedRunner>,
    /// Issued tokens, and those of the settings.
    pub tokens: BTreeMap<String, Token>,
    /// Runner groups.
    pub groups: Vec<Group>,
    /// Scale sets, by ID.
    pub scale_sets: BTreeMap<u64, ScaleSet>,
    /// Webhook deliveries: sent, due or lost.
    pub deliveries: Vec<hooks::Delivery>,
    /// The fault rules.
    pub faults: Faults,
    /// The number of injected faults.
    pub fault_counts: BTreeMap<Fault, u64>,
    /// The recorded exchanges.
    pub recorder: Recorder,
    /// The IDs of received JWTs.
    pub seen_jwts: Vec<String>,
    random: fastrand::Rng,
    last_id: u64,
}

impl State {
    /// Creates a GitHub without jobs and runners.
    pub fn new(settings: Settings, url: String) -> Self {
        let tokens =
            settings.tokens.iter().map(|text| (text.clone(), Token::personal(settings.rate_limit)));
        Self {
            url,
            jobs: BTreeMap::new(),
            runners: BTreeMap::new(),
            removed_runners: Vec::new(),
            tokens: tokens.collect(),
            groups: vec![
                Group { id: DEFAULT_GROUP, name: "Default".to_owned() },
                Group { id: 3, name: "builders".to_owned() },
            ],
            scale_sets: BTreeMap::new(),
            deliveries: Vec::new(),
            faults: Faults::new(settings.faults.clone(), settings.seed),
            fault_counts: BTreeMap::new(),
            recorder: Recorder::default(),
            seen_jwts: Vec::new(),
            random: fastrand::Rng::with_seed(settings.seed.wrapping_add(1)),
            last_id: 1_000,
            settings,
        }
    }

    /// Applies time-driven changes: lost runners, expired sessions.
    pub fn tick(&mut self, now: Millis) {
        self.fail_lost_jobs(now);
        self.remove_marked_runners(now);
        self.expire_sessions(now);
        self.assign_jobs(now);
    }

    /// Returns an unused ID.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Returns 2 × `bytes` random hexadecimal digits.
    pub(crate) fn random_text(&mut self, bytes: usize) -> String {
        let bytes: Vec<u8> = (0..bytes).map(|_| self.random.u8(..)).collect();
        HEXLOWER.encode(&bytes)
    }

    /// Returns a random UUID, like GitHub's delivery and session IDs.
    pub(crate) fn random_uuid(&mut self) -> String {
        let text = self.random_text(16);
        let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
        parts.join("-")
    }

    /// Counts an injected fault.
    pub(crate) fn count_fault(&mut self, fault: Fault) {
        *self.fault_counts.entry(fault).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
