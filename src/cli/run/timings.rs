//! `--timings`: the duration of each phase of a microVM.

use std::fmt::Write;

use mayfly_shepherd::event::{Event, EventKind, Phase};

/// The start of each phase, in milliseconds since the microVM was requested.
#[derive(Debug, Default)]
pub(super) struct Timings(Vec<(Phase, f64)>);

impl Timings {
    /// Records the start of a phase if the event is one.
    pub(super) fn note(&mut self, event: &Event) {
        if let EventKind::Phase(phase) = event.kind {
            self.0.push((phase, event.elapsed_ms));
        }
    }

    /// Returns a table with the start and the duration of each phase.
    pub(super) fn table(&self) -> String {
        let mut table = format!("{:<10} {:>11} {:>11}\n", "PHASE", "AT", "TOOK");
        let ends = self.0.iter().skip(1).map(|(_, at)| Some(*at)).chain([None]);
        for ((phase, at), end) in self.0.iter().zip(ends) {
            let took = end.map_or_else(String::new, |end| format!("{:.1} ms", end - at));
            // Writing to a string does not fail.
            let _ = writeln!(table, "{:<10} {at:>8.1} ms {took:>11}", phase.to_string());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_lasts_until_the_next_starts() {
        let timings =
            Timings(vec![(Phase::Planned, 1.0), (Phase::Booting, 31.5), (Phase::Ready, 40.0)]);
        let table = timings.table();
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["planned", "1.0", "ms", "30.5", "ms"]);
        assert_eq!(lines[3], ["ready", "40.0", "ms"]);
    }
}
