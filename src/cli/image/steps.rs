//! How a build goes on, for a person.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::tell;
use crate::image::build::Progress;

/// Shows the steps of a build: on a terminal each with a clock while it lasts and its duration
/// afterwards, else a line with the time since the start when a step begins.
pub(super) struct Steps {
    bar: Option<ProgressBar>,
    begun: Instant,
    current: Mutex<Option<(String, Instant)>>,
}

impl Steps {
    pub(super) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let template = "{spinner} {prefix} {elapsed} {wide_msg:.dim}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, begun: Instant::now(), current: Mutex::new(None) }
    }

    /// Ends the step that lasts on `bar` and begins `next`.
    fn turn(&self, bar: &ProgressBar, next: Option<&str>) {
        // A poisoned lock only means that a panic is already on its way.
        let Ok(mut current) = self.current.lock() else { return };
        if let Some((step, begun)) = current.take() {
            bar.println(format!("{step}: {:.1} s", begun.elapsed().as_secs_f64()));
        }
        *current = next.map(|step| (step.to_owned(), Instant::now()));
    }

    pub(super) fn finish(&self, success: bool) {
        let line = format!("built in {:.1} s", self.begun.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => {
                if success {
                    self.turn(bar, None);
                    bar.println(line);
                }
                bar.finish_and_clear();
            }
            None if success => tell(line),
            None => {}
        }
    }
}

impl Progress for Steps {
    fn step(&self, step: &str) {
        match &self.bar {
            Some(bar) => {
                self.turn(bar, Some(step));
                bar.set_prefix(step.to_owned());
                bar.set_message("");
            }
            None => {
                tell(format_args!("{:>6.1} s  {step}", self.begun.elapsed().as_secs_f64()));
            }
        }
    }

    fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.to_owned());
        }
    }
}
