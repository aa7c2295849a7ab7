//! The page of one job: timeline, cause of a failure, egress.

use maud::{Markup, html};

use super::Part;
use super::bar::legend;
use super::format::{LINE, PARAGRAPH, ago, class, since, text};
use super::page::{frame, outcome, times, verdicts};
use crate::present::{self, DESTINATION_HEADINGS, Fact, STEP_HEADINGS};
use crate::types::{Explanation, JobSource, JobView, Time};

/// The maximum number of destinations shown.
const MAX_DESTINATIONS: usize = 200;

pub(super) fn render(explanation: &Explanation, now: Time) -> String {
    let (id, content) = part(explanation, now);
    let live =
        (!explanation.job.state.is_over()).then(|| format!("/events?job={}", explanation.job.id));
    let title = format!("Job {} · Mayfly", explanation.job.id);
    frame(&title, live.as_deref(), now, &html! { section id=(id) { (content) } })
}

pub(super) fn part(explanation: &Explanation, now: Time) -> Part {
    let job = &explanation.job;
    let content = html! {
        nav { a href="/" { "All jobs" } }
        h1 { span.id { "Job " (job.id) } " " (text(present::name(job), LINE)) }
        (facts(explanation, now))
        @for (label, note) in present::notes(explanation, now) {
            p.callout.(class(note.tone)) { strong { (label) ":" } " " (text(&note.text, PARAGRAPH)) }
        }
        h2 { "Time" }
        div.large { (times(explanation, now)) }
        (legend())
        (timeline(explanation, now))
        h2 { "Egress" }
        (egress(explanation))
        h2 { "On the command line" }
        (commands(job))
    };
    ("job", content)
}

fn facts(explanation: &Explanation, now: Time) -> Markup {
    html! {
        dl.facts {
            @for (name, fact) in present::facts(explanation) {
                div { dt { (name) } dd { (value(fact, now)) } }
            }
        }
    }
}

fn value(fact: Fact<'_>, now: Time) -> Markup {
    html! {
        @match fact {
            Fact::Outcome(word) => (outcome(&word)),
            Fact::Text(value) => (text(&value, PARAGRAPH)),
            Fact::Time(at) => (ago(at, now)),
            Fact::Page(id, Some(url)) => a href=(url) rel="noreferrer" { (id) },
            Fact::Page(id, None) => (id),
        }
    }
}

fn timeline(explanation: &Explanation, now: Time) -> Markup {
    let [phase, start, duration, detail] = STEP_HEADINGS;
    let steps = present::steps(explanation, now);
    let is_over = explanation.job.state.is_over();
    html! {
        table aria-label="Timeline" {
            thead { tr { th.job { (phase) } th.when { (start) } th.when { (duration) } th { (detail) } } }
            tbody {
                @for (step, phase) in steps.iter().zip(&explanation.phases) {
                    tr {
                        td.job { (text(&step[0], LINE)) }
                        td.number data-label=(start) {
                            time datetime=(phase.at) title=(present::moment(phase.at)) { (step[1]) }
                        }
                        td.number data-label=(duration) {
                            @if is_over || phase.lasted_ms.is_some() { (step[2]) } @else { (since(phase.at, now)) }
                        }
                        td.full data-label=(detail) { (text(&step[3], PARAGRAPH)) }
                    }
                }
            }
        }
    }
}

fn egress(explanation: &Explanation) -> Markup {
    let (rows, more) = present::destinations(explanation, MAX_DESTINATIONS);
    let [place, verdict, cause, counts @ ..] = DESTINATION_HEADINGS;
    html! {
        (verdicts(explanation))
        @for line in present::traffic(explanation) { p.none { (line) } }
        @if !rows.is_empty() {
            table aria-label="Egress" {
                thead { tr {
                    th.wide { (place) } th.short { (verdict) } th { (cause) }
                    @for name in counts { th.short { (name) } }
                } }
                tbody { @for row in &rows { (destination(row)) } }
            }
        }
        @if let Some(more) = more { p.none { (more) } }
    }
}

fn destination(row: &[String; 6]) -> Markup {
    let [place, verdict, cause, counts @ ..] = row;
    html! {
        tr {
            td.job { code { (text(place, 300)) } }
            td data-label=(DESTINATION_HEADINGS[1]) {
                span.badge.(class(present::verdict_tone(verdict))) { (text(verdict, LINE)) }
            }
            td data-label=(DESTINATION_HEADINGS[2]) { (text(cause, LINE)) }
            @for (name, count) in DESTINATION_HEADINGS[3..].iter().zip(counts) {
                td.number data-label=(name) { (count) }
            }
        }
    }
}

fn commands(job: &JobView) -> Markup {
    let over = job.state.is_over();
    html! {
        dl.commands {
            @if job.source == JobSource::Local {
                dt { code { "mayfly logs " @if !over { "-f " } (job.id) } }
                dd { "show its output" }
            }
            dt { code { "mayfly explain " (job.id) } }
            dd { "show this in a terminal; " code { "--json" } " for programs" }
            @if job.source == JobSource::Local && !over {
                dt { code { "mayfly cancel " (job.id) } }
                dd { "cancel it" }
            }
        }
    }
}
