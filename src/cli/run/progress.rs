//! The progress line on a terminal while a microVM starts.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use mayfly_shepherd::event::{Event, EventKind, Phase};

/// Shows the phase of a microVM until its job runs. Shows nothing if stderr is not a terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Starts the line, unless events are printed anyway.
    pub(super) fn start(events_are_printed: bool) -> Self {
        if events_are_printed || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner();
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Shows the phase of an event. Clears the line before the job can write.
    pub(super) fn note(&self, event: &Event) {
        match event.kind {
            EventKind::Phase(Phase::Claimed) | EventKind::Ended(_) => self.0.finish_and_clear(),
            EventKind::Phase(phase) => self.0.set_message(phase.to_string()),
            EventKind::Greeted { .. }
            | EventKind::Runner(_)
            | EventKind::Egress(_)
            | EventKind::Reached(_)
            | EventKind::Interrupted(_)
            | EventKind::Unknown(_) => {}
        }
    }
}
