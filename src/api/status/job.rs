//! The page of one job: where its time went, why it failed, what it reached.

use maud::{Markup, html};

use super::Part;
use super::bar::legend;
use super::page::{frame, name, origin, outcome, reason, times};
use super::words::{self, LINE, PARAGRAPH, ago, text};
use crate::api::types::{
    DestinationView, EgressView, Explanation, JobSource, JobState, JobView, PhaseView, Time,
};

/// Destinations that are shown; the rest is told in numbers.
const DESTINATIONS: usize = 200;

pub(super) fn whole(story: &Explanation, now: Time) -> String {
    let (id, content) = part(story, now);
    let live = (!story.job.state.is_over()).then(|| format!("/events?job={}", story.job.id));
    let title = format!("Job {} · Mayfly", story.job.id);
    frame(&title, live.as_deref(), now, &html! { section id=(id) { (content) } })
}

pub(super) fn part(story: &Explanation, now: Time) -> Part {
    let job = &story.job;
    let content = html! {
        nav { a href="/" { "All jobs" } }
        h1 { span.id { "Job " (job.id) } " " (name(job)) }
        (facts(job, now))
        @if let Some(cause) = &job.cause {
            p.callout.bad[job.state == JobState::Failed] {
                strong { (cause_word(job.state)) } " " (text(cause, PARAGRAPH))
            }
        }
        @if let Some(warning) = &job.warning {
            p.callout.warn { strong { "Refused:" } " " (text(warning, PARAGRAPH)) }
        }
        @if story.blocker.is_some() {
            div.callout.warn { strong { "Waits:" } " " (reason(story.blocker.as_ref(), now)) }
        }
        h2 { "Time" }
        div.large { (times(story, now)) }
        (legend())
        (timeline(&story.phases, job, now))
        h2 { "Egress" }
        (egress(story.egress.as_ref(), job))
        h2 { "On the command line" }
        (commands(story))
    };
    ("job", content)
}

fn cause_word(state: JobState) -> &'static str {
    match state {
        JobState::Failed => "Failed:",
        JobState::Cancelled => "Cancelled:",
        // A job that waits again keeps the cause of its last try.
        _ => "Last try:",
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
    // That it is the job's own microVM goes without saying.
    let own = job.microvm.as_ref().map(|microvm| format!("microVM {microvm}"));
    let is_own = |detail: &String| own.as_ref() == Some(detail);
    html! {
        table aria-label="Timeline" {
            thead { tr { th.job { "What" } th.when { "When (UTC)" } th.when { "How long" } th { "Detail" } } }
            tbody {
                @for phase in phases {
                    tr {
                        td.job { (text(&phase.phase, LINE)) }
                        td.number data-label="When (UTC)" {
                            time datetime=(phase.at) title=(words::moment(phase.at)) { (words::clock(phase.at)) }
                        }
                        td.number data-label="How long" {
                            @match phase.lasted_ms {
                                Some(millis) => (words::millis(millis)),
                                None if job.state.is_over() => "",
                                None => (words::since(phase.at, now)),
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
        let said = if job.state.is_over() {
            "It tried to reach nothing."
        } else {
            "It has tried to reach nothing so far."
        };
        return html! { p.none { (said) } };
    };
    // What was refused is what people look for.
    let mut destinations: Vec<_> = egress.destinations.iter().collect();
    destinations.sort_by_key(|one| (one.verdict == "allowed", std::cmp::Reverse(one.connections)));
    let more = destinations.len().saturating_sub(DESTINATIONS);
    html! {
        p {
            span.refusals[egress.refused > 0] { (egress.refused) " refused" } ", "
            (egress.allowed) " allowed"
            @if egress.would_refuse > 0 { ", " (egress.would_refuse) " would be refused if the policy were enforced" }
            "; " (words::bytes(egress.up)) " sent, " (words::bytes(egress.down)) " received"
        }
        @if egress.omitted > 0 {
            p.none { (words::count(egress.omitted, "destination")) " too many for a row of their own: in the numbers, and under (others)" }
        }
        @if egress.unrecorded > 0 {
            p.none { (words::count(egress.unrecorded, "line")) " too many for the egress record" }
        }
        table aria-label="Egress" {
            thead { tr {
                th.wide { "Destination" } th.short { "Port" } th { "Verdict" } th.short { "Tries" } th.short { "Sent" } th.short { "Received" }
            } }
            tbody { @for one in destinations.into_iter().take(DESTINATIONS) { (destination(one)) } }
        }
        @if more > 0 { p.none { (words::count(more as u64, "destination")) " more: " code { "mayfly explain --json " (job.id) } } }
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
            td.number data-label="Tries" { (one.connections) }
            td.number data-label="Sent" { (words::bytes(one.up)) }
            td.number data-label="Received" { (words::bytes(one.down)) }
        }
    }
}

fn commands(story: &Explanation) -> Markup {
    let job = &story.job;
    let over = job.state.is_over();
    html! {
        dl.commands {
            @if job.source == JobSource::Local {
                dt { code { "mayfly logs " @if !over { "-f " } (job.id) } }
                dd { "what it wrote" }
            }
            dt { code { "mayfly explain " (job.id) } }
            dd { "this, in a terminal; " code { "--json" } " for programs" }
            @if job.source == JobSource::Local && !over {
                dt { code { "mayfly cancel " (job.id) } }
                dd { "end it" }
            }
            @if let Some(black_box) = &story.black_box {
                dt { code { "ls " (text(black_box, PARAGRAPH)) } }
                dd { "what is left of its microVM: console, events, egress" }
            }
        }
    }
}
