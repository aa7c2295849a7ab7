//! The progress of a build on stderr.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::print_stderr;
use mayfly_image::build::Progress;

/// Shows the steps of a build. On a terminal, a running step has a clock and a finished one its
/// duration. Otherwise each step is one line with the time since the start.
pub(super) struct Steps {
    bar: Option<ProgressBar>,
    started: Instant,
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
        Self { bar, started: Instant::now(), current: Mutex::new(None) }
    }

    /// Ends the current step on `bar` and starts `next`.
    fn switch(&self, bar: &ProgressBar, next: Option<&str>) {
        // The lock is poisoned only if another thread has panicked.
        let Ok(mut current) = self.current.lock() else { return };
        if let Some((step, started)) = current.take() {
            bar.println(format!("{step}: {:.1} s", started.elapsed().as_secs_f64()));
        }
        *current = next.map(|step| (step.to_owned(), Instant::now()));
    }

    pub(super) fn finish(&self, success: bool) {
        let line = format!("built in {:.1} s", self.started.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => {
                if success {
                    self.switch(bar, None);
                    bar.println(line);
                }
                bar.finish_and_clear();
            }
            None if success => print_stderr(line),
            None => {}
        }
    }
}

impl Progress for Steps {
    fn step(&self, step: &str) {
        match &self.bar {
            Some(bar) => {
                self.switch(bar, Some(step));
                bar.set_prefix(step.to_owned());
                bar.set_message("");
            }
            None => {
                print_stderr(format_args!(
                    "{:>6.1} s  {step}",
                    self.started.elapsed().as_secs_f64()
                ));
            }
        }
    }

    fn detail(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.to_owned());
        }
    }
}
