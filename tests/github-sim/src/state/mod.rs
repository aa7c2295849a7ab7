//! What GitHub knows and decides: jobs, runners, tokens, scale sets, webhooks to send.
//!
//! Pure: no clock, no socket, no thread. The time is an argument; what is random comes from seeded
//! dice. What waits for time alone happens in [`State::tick`].

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
use runners::{Departed, Runner};
use scale_sets::ScaleSet;
use settings::Settings;
use tokens::Token;

/// The group that GitHub makes by itself.
pub const DEFAULT_GROUP: u64 = 1;

/// A runner group of the organisation.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
}

/// Everything that this GitHub knows.
#[derive(Debug)]
pub struct State {
    /// How it is.
    pub settings: Settings,
    /// Where it is reached, e.g. `http://127.0.0.1:8080`.
    pub url: String,
    /// All jobs ever queued, by id.
    pub jobs: BTreeMap<u64, Job>,
    /// Runners that are registered now, by id.
    pub runners: BTreeMap<u64, Runner>,
    /// Runners that were.
    pub departed: Vec<Departed>,
    /// Tokens that were handed out, and those of the settings.
    pub tokens: BTreeMap<String, Token>,
    /// Runner groups.
    pub groups: Vec<Group>,
    /// Scale sets, by id.
    pub scale_sets: BTreeMap<u64, ScaleSet>,
    /// Webhooks: sent, to be sent, lost.
    pub deliveries: Vec<hooks::Delivery>,
    /// What goes wrong.
    pub faults: Faults,
    /// What happened how often.
    pub suffered: BTreeMap<Fault, u64>,
    /// What was asked.
    pub recorder: Recorder,
    /// The ids of JWTs that were shown.
    pub seen_jwts: Vec<String>,
    dice: fastrand::Rng,
    last_id: u64,
}

impl State {
    /// A GitHub without jobs and runners.
    pub fn new(settings: Settings, url: String) -> Self {
        let tokens =
            settings.tokens.iter().map(|text| (text.clone(), Token::personal(settings.rate_limit)));
        Self {
            url,
            jobs: BTreeMap::new(),
            runners: BTreeMap::new(),
            departed: Vec::new(),
            tokens: tokens.collect(),
            groups: vec![
                Group { id: DEFAULT_GROUP, name: "Default".to_owned() },
                Group { id: 3, name: "builders".to_owned() },
            ],
            scale_sets: BTreeMap::new(),
            deliveries: Vec::new(),
            faults: Faults::new(settings.faults.clone(), settings.seed),
            suffered: BTreeMap::new(),
            recorder: Recorder::default(),
            seen_jwts: Vec::new(),
            dice: fastrand::Rng::with_seed(settings.seed.wrapping_add(1)),
            last_id: 1_000,
            settings,
        }
    }

    /// What happens by itself as time passes: silent runners are given up, sessions end.
    pub fn tick(&mut self, now: Millis) {
        self.give_up_silent_runners(now);
        self.remove_unwanted_runners(now);
        self.end_silent_sessions(now);
        self.assign_jobs(now);
    }

    /// A number that was not used for anything yet.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Random text of 2 × `bytes` hexadecimal digits.
    pub(crate) fn random_text(&mut self, bytes: usize) -> String {
        let bytes: Vec<u8> = (0..bytes).map(|_| self.dice.u8(..)).collect();
        HEXLOWER.encode(&bytes)
    }

    /// A random UUID, as GitHub's delivery and session ids are.
    pub(crate) fn random_uuid(&mut self) -> String {
        let text = self.random_text(16);
        let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
        parts.join("-")
    }

    /// Counts a fault that happened.
    pub(crate) fn suffer(&mut self, fault: Fault) {
        *self.suffered.entry(fault).or_default() += 1;
    }
}

#[cfg(test)]
mod tests;
