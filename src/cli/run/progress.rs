//! A line on a person's terminal while a microVM is on its way.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::shepherd::event::{Event, Happened, Phase};

/// Says which phase a microVM is in until its job runs; nothing where stderr is no terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Begins, unless events are printed anyway.
    pub(super) fn begin(events_are_printed: bool) -> Self {
        if events_are_printed || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        let bar = ProgressBar::new_spinner();
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Shows the phase; the line is gone before the job can write.
    pub(super) fn note(&self, event: &Event) {
        match event.happened {
            Happened::Phase(Phase::Claimed) | Happened::Ended(_) => self.0.finish_and_clear(),
            Happened::Phase(phase) => self.0.set_message(phase.to_string()),
            Happened::Greeted { .. }
            | Happened::Runner(_)
            | Happened::Egress(_)
            | Happened::Reached(_)
            | Happened::Interrupted(_)
            | Happened::Unknown(_) => {}
        }
    }
}
