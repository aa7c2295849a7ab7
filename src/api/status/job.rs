//! The page of one job: timeline, cause of a failure, egress.

use maud::{Markup, html};

use super::Part;
use super::bar::legend;
use super::format::{self, LINE, PARAGRAPH, ago, text};
use super::page::{frame, name, origin, outcome, reason, times};
use crate::types::{
    DestinationView, EgressView, Explanation, JobSource, JobState, JobView, PhaseView, Time,
};

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
        h1 { span.id { "Job " (job.id) } " " (name(job)) }
        (facts(job, now))
        @if let Some(cause) = &job.cause {
            p.callout.bad[job.state == JobState::Failed] {
                strong { (cause_label(job.state)) } " " (text(cause, PARAGRAPH))
            }
        }
        @if let Some(warning) = &job.warning {
            p.callout.warn { strong { "Refused:" } " " (text(warning, PARAGRAPH)) }
        }
        @if explanation.blocker.is_some() {
            div.callout.warn { strong { "Waiting:" } " " (reason(explanation.blocker.as_ref(), now)) }
        }
        h2 { "Time" }
        div.large { (times(explanation, now)) }
        (legend())
        (timeline(&explanation.phases, job, now))
        h2 { "Egress" }
        (egress(explanation.egress.as_ref(), job))
        h2 { "On the command line" }
        (commands(explanation))
    };
    ("job", content)
}

fn cause_label(state: JobState) -> &'static str {
    match state {
        JobState::Failed => "Failed:",
        JobState::Cancelled => "Cancelled:",
        // A requeued job keeps the cause of its last attempt.
        _ => "Last attempt:",
    }
}

fn facts(job: &JobView, now: Time) -> Markup {
    html! {
        dl.facts {
            div { dt { "state" } dd { (outcome(job)) } }
            div { dt { "from" } dd { (origin(job)) } }
            div { dt { "pool" } dd { (job.pool.as_deref().map_or("none".to_owned(), |pool| text(pool, LINE))) } }
            div { dt { "queued" } dd { (ago(job.queued, now)) } }
            @if let Some(at) = job.ended { div { dt { "ended" } dd { (ago(at, now)) } } }
            @if let Some(microvm) = &job.microvm {
                div { dt { "microVM" } dd { code { (text(microvm, LINE)) } } }
            }
            @if let Some(code) = job.exit_code { div { dt { "exit code" } dd { (code) } } }
            @if let Some(id) = job.github_id {
                div { dt { "at GitHub" } dd { @if let Some(url) = &job.url { a href=(url) rel="noreferrer" { (id) } } @else { (id) } } }
            }
        }
    }
}

fn timeline(phases: &[PhaseView], job: &JobView, now: Time) -> Markup {
    // The job's own microVM is shown above already.
    let own = job.microvm.as_ref().map(|microvm| format!("microVM {microvm}"));
    let is_own = |detail: &String| own.as_ref() == Some(detail);
    html! {
        table aria-label="Timeline" {
            thead { tr { th.job { "Phase" } th.when { "Start (UTC)" } th.when { "Duration" } th { "Detail" } } }
            tbody {
                @for phase in phases {
                    tr {
                        td.job { (text(&phase.phase, LINE)) }
                        td.number data-label="Start (UTC)" {
                            time datetime=(phase.at) title=(format::moment(phase.at)) { (format::clock(phase.at)) }
                        }
                        td.number data-label="Duration" {
                            @match phase.lasted_ms {
                                Some(millis) => (format::millis(millis)),
                                None if job.state.is_over() => "",
                                None => (format::since(phase.at, now)),
                            }
                        }
                        td.full data-label="Detail" {
                            @if let Some(detail) = phase.detail.as_ref().filter(|detail| !is_own(detail)) { (text(detail, PARAGRAPH)) }
                        }
                    }
                }
            }
        }
    }
}

fn egress(egress: Option<&EgressView>, job: &JobView) -> Markup {
    let Some(egress) = egress else {
        let text = if job.state.is_over() {
            "No connection attempts."
        } else {
            "No connection attempts so far."
        };
        return html! { p.none { (text) } };
    };
    // Refusals first: people look for them.
    let mut destinations: Vec<_> = egress.destinations.iter().collect();
    destinations.sort_by_key(|one| (one.verdict == "allowed", std::cmp::Reverse(one.connections)));
    let more = destinations.len().saturating_sub(MAX_DESTINATIONS);
    html! {
        p {
            span.refusals[egress.refused > 0] { (egress.refused) " refused" } ", "
            (egress.allowed) " allowed"
            @if egress.would_refuse > 0 { ", " (egress.would_refuse) " would be refused if the policy were enforced" }
            "; " (format::bytes(egress.up)) " sent, " (format::bytes(egress.down)) " received"
        }
        @if egress.omitted > 0 {
            p.none { (format::count(egress.omitted, "destination")) " without a row, because there are too many: counted in the totals and in (others)" }
        }
        @if egress.unrecorded > 0 {
            p.none { (format::count(egress.unrecorded, "line")) " missing from the egress record, because there were too many" }
        }
        table aria-label="Egress" {
            thead { tr {
                th.wide { "Destination" } th.short { "Port" } th { "Verdict" } th.short { "Attempts" } th.short { "Sent" } th.short { "Received" }
            } }
            tbody { @for one in destinations.into_iter().take(MAX_DESTINATIONS) { (destination(one)) } }
        }
        @if more > 0 { p.none { (format::count(more as u64, "destination")) " more: " code { "mayfly explain --json " (job.id) } } }
    }
}

fn destination(one: &DestinationView) -> Markup {
    let class = match one.verdict.as_str() {
        "allowed" => "good",
        "refused" => "bad",
        _ => "warn",
    };
    html! {
        tr {
            td.job { code { (text(&one.host, 300)) } }
            td.number data-label="Port" { @if one.port != 0 { (one.port) } }
            td data-label="Verdict" {
                span.badge.(class) { (text(&one.verdict, LINE)) }
                @if let Some(cause) = &one.cause { " " span.below { (text(cause, LINE)) } }
            }
            td.number data-label="Attempts" { (one.connections) }
            td.number data-label="Sent" { (format::bytes(one.up)) }
            td.number data-label="Received" { (format::bytes(one.down)) }
        }
    }
}

fn commands(explanation: &Explanation) -> Markup {
    let job = &explanation.job;
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
            @if let Some(black_box) = &explanation.black_box {
                dt { code { "ls " (text(black_box, PARAGRAPH)) } }
                dd { "list the files of its microVM: console, events, egress" }
            }
        }
    }
}
