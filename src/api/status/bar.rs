//! The timeline bar of a job: from the moment it was queued to its end, or to now.

use maud::{Markup, html};

use super::format;
use crate::present;
use crate::types::{Explanation, JobState, Time};

/// The length of a bar, in units of its drawing.
const LENGTH: u64 = 1000;
/// The minimum length of a segment with any duration: as little as can be seen.
const MIN_LENGTH: u64 = 14;
/// The gap between two segments.
const GAP: u64 = 4;

/// A segment of the bar: one phase of a job or its microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// The phase, as the explanation names it.
    pub(super) phase: String,
    /// The kind, which decides how it is drawn.
    pub(super) kind: SegmentKind,
    /// The duration in milliseconds.
    pub(super) millis: u64,
}

/// The kinds of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentKind {
    Waiting,
    Booting,
    Ready,
    Running,
    Ending,
}

impl SegmentKind {
    pub(super) const ALL: [Self; 5] =
        [Self::Waiting, Self::Booting, Self::Ready, Self::Running, Self::Ending];

    /// Returns the kind of a phase. The daemon names the phases; unknown ones are shown as well.
    pub(super) fn of_phase(phase: &str) -> Self {
        match phase {
            "queued" => Self::Waiting,
            "planned" | "prepared" | "booting" => Self::Booting,
            "running" | "started" => Self::Running,
            "finished" | "failed" | "cancelled" | "destroyed" => Self::Ending,
            _ => Self::Ready,
        }
    }

    /// Returns the class in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Waiting => "k-waiting",
            Self::Booting => "k-booting",
            Self::Ready => "k-ready",
            Self::Running => "k-running",
            Self::Ending => "k-ending",
        }
    }

    /// Returns the label in the legend.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Waiting => "wait",
            Self::Booting => "boot",
            Self::Ready => "start",
            Self::Running => "run",
            Self::Ending => "end",
        }
    }
}

/// Returns the segments of a job. What its microVM did before the job was queued, e.g. its boot, is
/// not the job's time; a boot still in progress then is what the job waits for.
pub(super) fn segments(explanation: &Explanation, now: Time) -> Vec<Segment> {
    let queued = explanation.phases.iter().position(|phase| phase.phase == "queued");
    let (before, own) = explanation.phases.split_at(queued.unwrap_or_default());
    let boot =
        before.last().filter(|phase| SegmentKind::of_phase(&phase.phase) == SegmentKind::Booting);
    let mut segments = Vec::new();
    for (index, phase) in own.iter().enumerate() {
        let until = match own.get(index + 1) {
            Some(next) => next.at,
            None if explanation.job.state.is_over() => phase.at,
            None => now,
        };
        let millis = u64::try_from(until.since(phase.at).as_millis()).unwrap_or(u64::MAX);
        let shown = boot.filter(|_| index == 0).unwrap_or(phase);
        let kind = SegmentKind::of_phase(&shown.phase);
        segments.push(Segment { phase: shown.phase.clone(), kind, millis });
    }
    segments
}

/// Returns the total of each kind; omits totals below a hundredth of the whole.
pub(super) fn sums(segments: &[Segment]) -> Vec<(SegmentKind, u64)> {
    let sum = |kind| {
        let matching = segments.iter().filter(|segment| segment.kind == kind);
        matching.fold(0_u64, |sum, segment| sum.saturating_add(segment.millis))
    };
    let sums = SegmentKind::ALL.map(|kind| (kind, sum(kind)));
    let all = sums.iter().fold(0_u64, |all, (_, millis)| all.saturating_add(*millis));
    sums.into_iter().filter(|(_, millis)| *millis > all / 100).collect()
}

/// Returns the lengths in the drawing: proportional, visible if not zero, and none beyond the end.
fn lengths(segments: &[Segment]) -> Vec<u64> {
    let visible = segments.iter().filter(|segment| segment.millis > 0).count() as u64;
    let total: u128 = segments.iter().map(|segment| u128::from(segment.millis)).sum();
    let shared = u128::from(LENGTH.saturating_sub(visible * MIN_LENGTH));
    let length = |segment: &Segment| match segment.millis {
        0 => 0,
        // A share of the remainder never exceeds the remainder.
        millis => {
            MIN_LENGTH + u64::try_from(u128::from(millis) * shared / total.max(1)).unwrap_or(0)
        }
    };
    segments.iter().map(length).collect()
}

/// Merges adjacent segments of the same kind.
fn merged(segments: &[Segment]) -> Vec<Segment> {
    let mut merged: Vec<Segment> = Vec::new();
    for segment in segments.iter().filter(|segment| segment.millis > 0) {
        match merged.last_mut().filter(|last| last.kind == segment.kind) {
            Some(last) => last.millis = last.millis.saturating_add(segment.millis),
            None => merged.push(segment.clone()),
        }
    }
    merged
}

/// Renders the bar, with a text alternative.
pub(super) fn bar(explanation: &Explanation, now: Time) -> Markup {
    let segments = segments(explanation, now);
    let label: Vec<_> = segments
        .iter()
        .filter(|segment| segment.millis > 0)
        .map(|segment| format!("{} {}", segment.phase, present::millis(segment.millis)))
        .collect();
    let label = if label.is_empty() { "nothing yet".to_owned() } else { label.join(", ") };
    let merged = merged(&segments);
    let lengths = lengths(&merged);
    let mut at = 0;
    let drawn = merged.iter().zip(lengths).enumerate().map(|(index, (segment, length))| {
        let from = at;
        at += length;
        // The last segment takes what rounding leaves.
        let is_last = index + 1 == merged.len();
        (segment, from, if is_last { LENGTH - from } else { length - GAP })
    });
    let drawn: Vec<_> = drawn.collect();
    let failed = matches!(explanation.job.state, JobState::Failed);
    html! {
        svg.bar role="img" aria-label=(format::text(&label, format::PARAGRAPH))
            viewBox={ "0 0 " (LENGTH) " 10" } preserveAspectRatio="none" {
            title { (format::text(&label, format::PARAGRAPH)) }
            @for (segment, from, width) in drawn {
                rect.(segment.kind.class()) x=(from) y="0" width=(width) height="10" {}
            }
            @if failed { rect.k-failed x=(LENGTH - 12) y="0" width="12" height="10" {} }
        }
    }
}

/// Renders the legend of the colors.
pub(super) fn legend() -> Markup {
    html! {
        p.legend aria-hidden="true" {
            @for kind in SegmentKind::ALL {
                span { svg.swatch viewBox="0 0 10 10" { rect.(kind.class()) width="10" height="10" {} } (kind.label()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{JobView, PhaseView};
    use proptest::prelude::*;

    fn segment(millis: u64) -> Segment {
        Segment { phase: "running".to_owned(), kind: SegmentKind::Running, millis }
    }

    #[test]
    fn a_boot_that_goes_on_is_the_jobs_and_one_that_is_over_is_not() {
        let phase = |phase: &str, at| PhaseView {
            phase: phase.to_owned(),
            at: Time(at),
            lasted_ms: None,
            detail: None,
        };
        let of = |phases: Vec<PhaseView>| {
            let job = JobView { state: JobState::Running, ..super::super::tests::some_job() };
            let explanation =
                Explanation { job, phases, blocker: None, black_box: None, egress: None };
            let segments = segments(&explanation, Time(100));
            segments.into_iter().map(|one| (one.kind, one.millis)).collect::<Vec<_>>()
        };
        let warm = of(vec![
            phase("booting", 1),
            phase("ready", 5),
            phase("queued", 20),
            phase("running", 30),
        ]);
        assert_eq!(warm, [(SegmentKind::Waiting, 10), (SegmentKind::Running, 70)]);
        let late = of(vec![
            phase("booting", 1),
            phase("queued", 20),
            phase("ready", 30),
            phase("running", 40),
        ]);
        assert_eq!(
            late,
            [(SegmentKind::Booting, 10), (SegmentKind::Ready, 10), (SegmentKind::Running, 60)]
        );
    }

    proptest! {
        #[test]
        fn a_bar_shows_each_time_and_ends_where_it_ends(
            times in prop::collection::vec(prop_oneof![Just(0), 0..5000_u64, any::<u64>()], 0..20)
        ) {
            let segments: Vec<_> = times.iter().map(|millis| segment(*millis)).collect();
            let lengths = lengths(&segments);
            prop_assert!(lengths.iter().sum::<u64>() <= LENGTH);
            for (segment, length) in segments.iter().zip(&lengths) {
                prop_assert_eq!(*length == 0, segment.millis == 0);
            }
            for (one, other) in segments.iter().zip(&lengths).zip(segments.iter().zip(&lengths).skip(1)) {
                prop_assert!((one.0.millis >= other.0.millis) == (one.1 >= other.1) || one.1 == other.1);
            }
        }
    }
}
