//! Collects the programs of the next message. Pure.

use std::time::{Duration, Instant};

use mayfly_protocol::message::{GuestMessage, MAX_PROGRAMS, Program};

/// The shortest time between two messages.
const INTERVAL: Duration = Duration::from_millis(200);

/// The programs of the next message, at most [`MAX_PROGRAMS`] per [`INTERVAL`]. More are only
/// counted.
#[derive(Debug, Default)]
pub(super) struct Batch {
    programs: Vec<Program>,
    left_out: u32,
    sent: Option<Instant>,
    ended: bool,
}

impl Batch {
    pub(super) fn has_space(&self) -> bool {
        self.programs.len() < MAX_PROGRAMS
    }

    pub(super) fn add(&mut self, program: Program) {
        if self.has_space() {
            self.programs.push(program);
        } else {
            self.count_omitted();
        }
    }

    pub(super) fn count_omitted(&mut self) {
        self.left_out = self.left_out.saturating_add(1);
    }

    /// Returns the time until the next message is due; `None` if the batch is empty.
    pub(super) fn due_in(&self, now: Instant) -> Option<Duration> {
        if self.ended || (self.programs.is_empty() && self.left_out == 0) {
            return None;
        }
        let next = self.sent.map_or(now, |sent| sent + INTERVAL);
        Some(next.saturating_duration_since(now))
    }

    /// Takes the message, if it is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<GuestMessage> {
        if self.due_in(now) != Some(Duration::ZERO) {
            return None;
        }
        self.sent = Some(now);
        Some(self.message())
    }

    /// Takes the last message, due or not. Nothing is sent after it.
    pub(super) fn end(&mut self) -> Option<GuestMessage> {
        let something = !self.ended && (!self.programs.is_empty() || self.left_out > 0);
        self.ended = true;
        something.then(|| self.message())
    }

    fn message(&mut self) -> GuestMessage {
        let programs = std::mem::take(&mut self.programs);
        GuestMessage::Programs { programs, left_out: std::mem::take(&mut self.left_out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(process: u32) -> Program {
        Program { time: 0, process, parent: 1, user: 0, path: b"/bin/true".to_vec().into() }
    }

    fn counts(message: Option<GuestMessage>) -> Option<(usize, u32)> {
        match message {
            Some(GuestMessage::Programs { programs, left_out }) => Some((programs.len(), left_out)),
            _ => None,
        }
    }

    #[test]
    fn the_first_is_told_at_once_and_what_follows_together() {
        let (mut batch, now) = (Batch::default(), Instant::now());
        assert_eq!(batch.due_in(now), None);
        batch.add(program(1));
        assert_eq!(counts(batch.take(now)), Some((1, 0)));
        batch.add(program(2));
        batch.add(program(3));
        assert_eq!(counts(batch.take(now + INTERVAL / 2)), None);
        assert_eq!(batch.due_in(now + INTERVAL / 2), Some(INTERVAL / 2));
        assert_eq!(counts(batch.take(now + INTERVAL)), Some((2, 0)));
        assert_eq!(batch.due_in(now + 2 * INTERVAL), None);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut batch = Batch::default();
        for number in 0..u32::try_from(MAX_PROGRAMS).unwrap() + 7 {
            batch.add(program(number));
        }
        batch.count_omitted();
        assert_eq!(counts(batch.take(Instant::now())), Some((MAX_PROGRAMS, 8)));
    }

    #[test]
    fn nothing_comes_after_the_last() {
        let mut batch = Batch::default();
        batch.add(program(1));
        assert_eq!(counts(batch.end()), Some((1, 0)));
        batch.add(program(2));
        assert_eq!(counts(batch.take(Instant::now())), None);
        assert_eq!(counts(batch.end()), None);
    }
}
