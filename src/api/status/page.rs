//! The overview page: health, waiting, running and ended jobs, pools, microVMs.

use maud::{DOCTYPE, Markup, html};

use super::Part;
use super::bar::{bar, legend, segments, sums};
use super::format::{self, LINE, PARAGRAPH, ago, since, text};
use crate::types::{
    ApiError, Blocker, Budget, DaemonStatus, Explanation, JobSource, JobState, JobView,
    MicrovmView, Overview, PoolView, Time,
};

/// The reload interval in seconds without JavaScript.
const RELOAD_SECONDS: u32 = 10;

/// Renders the frame of a page. `live` is the URL of its event stream.
pub(super) fn frame(title: &str, live: Option<&str>, at: Time, content: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (text(title, LINE)) }
                link rel="icon" type="image/svg+xml" href="/icon.svg";
                link rel="stylesheet" href="/style.css";
                @if live.is_some() {
                    noscript { meta http-equiv="refresh" content=(RELOAD_SECONDS); }
                    script src="/live.js" defer {}
                }
            }
            body data-events=[live] {
                header {
                    a.brand href="/" { img src="/icon.svg" alt="" width="28" height="28"; "Mayfly" }
                    p #live role="status" { "as of " time datetime=(at) { (format::moment(at)) } }
                }
                main { (content) }
            }
        }
    };
    page.into_string()
}

pub(super) fn render(overview: &Overview, metrics: bool) -> String {
    let content = html! {
        @for (name, part) in parts(overview) { section id=(name) { (part) } }
        (footer(&overview.status, metrics))
    };
    frame("Mayfly", Some("/events"), overview.at, &content)
}

/// Returns the parts, by the IDs of their sections.
pub(super) fn parts(overview: &Overview) -> Vec<Part> {
    let now = overview.at;
    vec![
        ("summary", summary(overview)),
        ("waiting", waiting(overview, now)),
        ("active", active(&overview.active, now)),
        ("pools", pools(&overview.pools, now)),
        ("microvms", microvms(overview, now)),
        ("ended", ended(&overview.ended, now)),
    ]
}

/// Renders an error page.
pub(super) fn error_page(error: &ApiError) -> String {
    let content = html! {
        section {
            h1 { "Cannot show this page" }
            p.callout.bad { (text(&error.message, PARAGRAPH)) }
            @if let Some(hint) = &error.hint { p { (text(hint, PARAGRAPH)) } }
            p { a href="/" { "All jobs" } }
        }
    };
    frame("Mayfly", None, Time::now(), &content)
}

fn summary(overview: &Overview) -> Markup {
    let Overview { status, readiness, budget, .. } = overview;
    let (class, word) = match (readiness.ready, status.draining) {
        (_, true) => ("warn", "Draining"),
        (true, _) => ("good", "Ready"),
        (false, _) => ("bad", "Not ready"),
    };
    // Jobs without a pool are listed, but not counted in the status.
    let waiting = overview.waiting.len().max(status.waiting as usize);
    html! {
        h1.hidden { "Status" }
        div.health.(class) {
            strong { (word) }
            ul {
                @for check in &readiness.checks {
                    li.failing[!check.ok] { (text(&check.message, PARAGRAPH)) }
                }
            }
        }
        dl.tiles {
            (tile("running", &status.running.to_string(), status.running > 0, None))
            (tile("waiting", &waiting.to_string(), waiting > 0, None))
            (tile("microVMs", &status.microvms.to_string(), status.microvms > 0, None))
            (budgets(budget))
        }
    }
}

fn budgets(budget: &Budget) -> Markup {
    let cpus = format!("{} of {}", budget.cpus_used, budget.cpus);
    let memory =
        format!("{} of {}", format::bytes(budget.memory_used), format::bytes(budget.memory));
    html! {
        (tile("processors", &cpus, budget.cpus_used > 0,
            Some((budget.cpus_used.into(), budget.cpus.into()))))
        (tile("memory", &memory, budget.memory_used > 0, Some((budget.memory_used, budget.memory))))
    }
}

fn tile(name: &str, value: &str, is_used: bool, gauge: Option<(u64, u64)>) -> Markup {
    html! {
        div.tile.gauged[gauge.is_some()].used[is_used] {
            dt { (name) }
            dd {
                (value)
                @if let Some((used, all)) = gauge { (meter(used, all)) }
            }
        }
    }
}

/// Draws a used share; the text beside it says the same.
fn meter(used: u64, all: u64) -> Markup {
    let width = u128::from(used.min(all)) * 1000 / u128::from(all.max(1));
    html! {
        svg.meter.full[used >= all] viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true" {
            rect width=(width) height="10" {}
        }
    }
}

fn waiting(overview: &Overview, now: Time) -> Markup {
    let shown = overview.waiting.len();
    let more = usize::try_from(overview.status.waiting).unwrap_or(usize::MAX);
    html! {
        h2 #waiting-h { "Waiting" }
        @if overview.waiting.is_empty() {
            p.none { "No jobs are waiting." }
        } @else {
            table aria-labelledby="waiting-h" {
                thead { tr {
                    th.job { "Job" } th.short { "Pool" } th.when { "Waited" } th { "Reason" }
                } }
                tbody {
                    @for explanation in &overview.waiting {
                        tr {
                            td.job { (job(&explanation.job)) }
                            td data-label="Pool" { (pool(&explanation.job)) }
                            td.number data-label="Waited" { (since(explanation.job.queued, now)) }
                            td.full data-label="Reason" {
                                (reason(explanation.blocker.as_ref(), now))
                            }
                        }
                    }
                }
            }
            @if more > shown { p.none { "More: " code { "mayfly jobs --state queued" } } }
        }
    }
}

fn active(explanations: &[Explanation], now: Time) -> Markup {
    html! {
        h2 #active-h { "Running" }
        @if explanations.is_empty() {
            p.none { "No jobs are running." }
        } @else {
            table aria-labelledby="active-h" {
                thead { tr { th.job { "Job" } th.short { "Pool" } th.short { "State" } th.wide { "Time" } th.egress { "Egress" } th.when { "Since queued" } } }
                tbody {
                    @for explanation in explanations {
                        tr {
                            td.job { (job(&explanation.job)) }
                            td data-label="Pool" { (pool(&explanation.job)) }
                            td data-label="State" { (outcome(&explanation.job)) }
                            td.wide data-label="Time" { (times(explanation, now)) }
                            td data-label="Egress" { (egress(explanation)) }
                            td.number data-label="Since queued" {
                                (since(explanation.job.queued, now))
                            }
                        }
                    }
                }
            }
            (legend())
        }
    }
}

fn ended(explanations: &[Explanation], now: Time) -> Markup {
    html! {
        h2 #ended-h { "Ended" }
        @if explanations.is_empty() {
            p.none {
                "No jobs have ended yet. Run one: "
                code { "mayfly submit --pool NAME --wait -- true" }
            }
        } @else {
            table aria-labelledby="ended-h" {
                thead { tr { th.job { "Job" } th.short { "Pool" } th { "Result" } th.wide { "Time" } th.egress { "Egress" } th.when { "Ended" } } }
                tbody {
                    @for explanation in explanations {
                        tr {
                            td.job { (job(&explanation.job)) }
                            td data-label="Pool" { (pool(&explanation.job)) }
                            td data-label="Result" {
                                (outcome(&explanation.job))
                                @if let Some(cause) = &explanation.job.cause {
                                    p.cause { (text(cause, LINE)) }
                                }
                                @if let Some(warning) = &explanation.job.warning {
                                    p.cause { (text(warning, PARAGRAPH)) }
                                }
                            }
                            td.wide data-label="Time" { (times(explanation, now)) }
                            td data-label="Egress" { (egress(explanation)) }
                            td.number data-label="Ended" {
                                @if let Some(at) = explanation.job.ended { (ago(at, now)) }
                            }
                        }
                    }
                }
            }
            (legend())
        }
    }
}

fn pools(pools: &[PoolView], now: Time) -> Markup {
    html! {
        h2 #pools-h { "Pools" }
        @if pools.is_empty() {
            p.none { "No pools are configured, so no job can run." }
        } @else {
            table aria-labelledby="pools-h" {
                thead { tr {
                    th.pool { "Pool" } th.slots { "microVMs" } th.short { "Min idle" }
                    th.short { "Waiting" } th { "Blocked by" }
                } }
                tbody { @for pool in pools { (pool_row(pool, now)) } }
            }
        }
    }
}

fn pool_row(pool: &PoolView, now: Time) -> Markup {
    let kinds = [
        ("busy", pool.busy, "k-running"),
        ("registered", pool.registered, "k-ready"),
        ("warm", pool.warm, "k-warm"),
        ("booting", pool.booting, "k-booting"),
        ("ending", pool.ending, "k-ending"),
    ];
    let used: u32 = kinds.iter().map(|(_, count, _)| *count).sum();
    let usage: Vec<_> = kinds
        .iter()
        .filter(|(_, count, _)| *count > 0)
        .map(|(name, count, _)| format!("{count} {name}"))
        .collect();
    let usage = match used {
        0 => format!("none of {}", pool.max),
        used => format!("{used} of {}: {}", pool.max, usage.join(", ")),
    };
    // A pool whose maximum was lowered exceeds it for a while.
    let all = u64::from(pool.max.max(used).max(1));
    let mut at = 0;
    let drawn = kinds.map(|(_, count, class)| {
        let from = at;
        at += u64::from(count);
        (class, from * 1000 / all, u64::from(count) * 1000 / all)
    });
    html! {
        tr {
            td.job {
                strong { (text(&pool.name, LINE)) }
                p.below {
                    (text(&pool.image, LINE)) ", trigger " (text(&pool.trigger, LINE))
                    @for label in &pool.labels { " " span.label { (text(label, LINE)) } }
                }
            }
            td.wide data-label="microVMs" {
                svg.bar role="img" aria-label=(&usage) viewBox="0 0 1000 10" preserveAspectRatio="none" {
                    @for (class, from, width) in drawn {
                        @if width > 0 { rect.(class) x=(from) y="0" width=(width) height="10" {} }
                    }
                }
                p.below { (usage) }
            }
            td.number data-label="Min idle" { (pool.min_idle) }
            td.number data-label="Waiting" { (pool.waiting) }
            td.full data-label="Blocked by" {
                @match &pool.blocker {
                    Some(blocker) => (reason(Some(blocker), now)),
                    None => span.none { "nothing" },
                }
            }
        }
    }
}

fn microvms(overview: &Overview, now: Time) -> Markup {
    let Overview { microvms, active, .. } = overview;
    let job_of = |microvm: &MicrovmView| {
        let found =
            active.iter().find(|explanation| explanation.job.microvm.as_ref() == Some(&microvm.id));
        microvm.job.or(found.map(|explanation| explanation.job.id))
    };
    html! {
        h2 #microvms-h { "microVMs" }
        @if microvms.is_empty() {
            p.none { "No microVMs are running." }
        } @else {
            table aria-labelledby="microvms-h" {
                thead { tr { th.job { "microVM" } th.short { "Pool" } th.when { "Stage" } th.when { "In stage" } th { "Job" } } }
                tbody {
                    @for microvm in microvms {
                        tr {
                            td.job { code { (text(&microvm.id, LINE)) } }
                            td data-label="Pool" { (text(&microvm.pool, LINE)) }
                            td data-label="Stage" {
                                span.badge.(stage_class(&microvm.stage)) { (text(&microvm.stage, LINE)) }
                            }
                            td.number data-label="In stage" { (since(microvm.since, now)) }
                            td data-label="Job" {
                                @if let Some(job) = job_of(microvm) {
                                    a href={ "/jobs/" (job) } { "job " (job) }
                                } @else if let Some(runner) = &microvm.runner {
                                    "runner " code { (text(runner, LINE)) }
                                } @else {
                                    span.none { "none" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn stage_class(stage: &str) -> &'static str {
    match stage {
        "busy" | "assigned" => "active",
        "warm" | "registered" => "good",
        _ => "",
    }
}

fn footer(status: &DaemonStatus, metrics: bool) -> Markup {
    html! {
        footer {
            p {
                "Mayfly " (text(&status.version, LINE)) ", process " (status.pid)
                ", started " (ago(status.started, Time::now()))
                @if let Some(github) = &status.github { ", " (text(github, LINE)) }
            }
            p {
                a href="/healthz" { "healthz" } " " a href="/readyz" { "readyz" } " "
                @if metrics { a href="/metrics" { "metrics" } }
            }
        }
    }
}

/// Renders a job's number, name and origin.
fn job(job: &JobView) -> Markup {
    html! {
        a.name href={ "/jobs/" (job.id) } title=(name(job)) { span.id { (job.id) } " " (name(job)) }
        p.below { (origin(job)) }
    }
}

/// Returns the display name of a job.
pub(super) fn name(job: &JobView) -> String {
    let name = text(&job.name, LINE);
    if name.trim().is_empty() { "(no name)".to_owned() } else { name }
}

/// Returns the origin of a job.
pub(super) fn origin(job: &JobView) -> String {
    match (&job.repository, job.source) {
        (Some(repository), _) => text(repository, LINE),
        (None, JobSource::Local) => "submitted locally".to_owned(),
        (None, JobSource::Github) => "GitHub".to_owned(),
    }
}

fn pool(job: &JobView) -> Markup {
    html! {
        @match &job.pool {
            Some(pool) => (text(pool, LINE)),
            None => span.none { "none" },
        }
    }
}

/// Renders the state of a job, or its result.
pub(super) fn outcome(job: &JobView) -> Markup {
    let success = job.exit_code == Some(0) || job.result.as_deref() == Some("success");
    let class = match job.state {
        JobState::Queued => "",
        JobState::Claimed | JobState::Running => "active",
        JobState::Finished if success => "good",
        JobState::Finished | JobState::Failed => "bad",
        JobState::Cancelled => "warn",
    };
    let word = match (job.state, &job.result) {
        (JobState::Finished, Some(result)) => text(result, LINE),
        (state, _) => state.to_string(),
    };
    html! { span.badge.(class) { (word) } }
}

/// Renders the reason why something waits.
pub(super) fn reason(blocker: Option<&Blocker>, now: Time) -> Markup {
    html! {
        @if let Some(blocker) = blocker {
            (text(&blocker.message, PARAGRAPH))
            @if let Some(until) = blocker.until && until > now {
                p.below { "next attempt in " (format::brief(until.since(now))) }
            }
        }
    }
}

/// Renders the bar, and its sums as text.
pub(super) fn times(explanation: &Explanation, now: Time) -> Markup {
    let sums = sums(&segments(explanation, now));
    html! {
        (bar(explanation, now))
        p.below {
            @for (index, (kind, millis)) in sums.iter().enumerate() {
                @if index > 0 { " · " }
                (kind.label()) " " (format::millis(*millis))
            }
        }
    }
}

fn egress(explanation: &Explanation) -> Markup {
    html! {
        @match &explanation.egress {
            Some(egress) => {
                @if egress.refused > 0 { p.refusals { (egress.refused) " refused" } }
                @if egress.would_refuse > 0 { p { (egress.would_refuse) " would be refused" } }
                p { (egress.allowed) " allowed" }
            }
            None => span.none { "none" },
        }
    }
}
