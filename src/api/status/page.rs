//! The overview page: health, waiting, running and ended jobs, pools, microVMs.

use maud::{DOCTYPE, Markup, html};

use super::Part;
use super::bar::{bar, legend, segments, sums};
use super::format::{LINE, PARAGRAPH, ago, class, since, text};
use crate::present::{self, Tone, Toned};
use crate::types::{
    ApiError, BudgetView, DaemonStatus, Explanation, JobView, MicrovmView, Overview, PoolView, Time,
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
                    p #live role="status" { "as of " time datetime=(at) { (present::moment(at)) } }
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

fn budgets(budget: &BudgetView) -> Markup {
    let cpus = format!("{} of {}", budget.cpus_used, budget.cpus);
    let memory =
        format!("{} of {}", present::bytes(budget.memory_used), present::bytes(budget.memory));
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
                                @if let Some(blocker) = &explanation.blocker {
                                    (text(&present::reason(blocker, now), PARAGRAPH))
                                }
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
            (jobs("active-h", ["State", "Since queued"], explanations, now))
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
            (jobs("ended-h", ["Result", "Ended"], explanations, now))
        }
    }
}

/// Renders a table of jobs that have started, and the legend of their bars.
fn jobs(label: &str, [state, when]: [&str; 2], explanations: &[Explanation], now: Time) -> Markup {
    html! {
        table aria-labelledby=(label) {
            thead { tr { th.job { "Job" } th.short { "Pool" } th { (state) } th.wide { "Time" } th.egress { "Egress" } th.when { (when) } } }
            tbody {
                @for explanation in explanations {
                    tr {
                        td.job { (job(&explanation.job)) }
                        td data-label="Pool" { (pool(&explanation.job)) }
                        td data-label=(state) {
                            (outcome(&present::outcome(&explanation.job)))
                            @for (_, note) in present::notes(explanation, now) {
                                p.cause { (text(&note.text, PARAGRAPH)) }
                            }
                        }
                        td.wide data-label="Time" { (times(explanation, now)) }
                        td data-label="Egress" { (verdicts(explanation)) }
                        td.number data-label=(when) {
                            @match explanation.job.ended {
                                Some(at) => (ago(at, now)),
                                None => (since(explanation.job.queued, now)),
                            }
                        }
                    }
                }
            }
        }
        (legend())
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
    let usage = present::usage(pool);
    let stages = present::stages(pool);
    let used = stages.iter().map(|(_, count)| count).sum();
    // A pool whose maximum was lowered exceeds it for a while.
    let all = u64::from(pool.max.max(used).max(1));
    let mut at = 0;
    let classes = ["k-running", "k-ready", "k-warm", "k-booting", "k-ending"].into_iter();
    let drawn = classes.zip(stages).map(|(class, (_, count))| {
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
                    Some(blocker) => (text(&present::reason(blocker, now), PARAGRAPH)),
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
                                span.badge.(class(stage_tone(&microvm.stage))) { (text(&microvm.stage, LINE)) }
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

fn stage_tone(stage: &str) -> Tone {
    match stage {
        "busy" | "assigned" => Tone::Active,
        "warm" | "registered" => Tone::Good,
        _ => Tone::Plain,
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
    let name = text(present::name(job), LINE);
    html! {
        a.name href={ "/jobs/" (job.id) } title=(name) { span.id { (job.id) } " " (name) }
        p.below { (text(present::origin(job), LINE)) }
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
pub(super) fn outcome(outcome: &Toned) -> Markup {
    html! { span.badge.(class(outcome.tone)) { (text(&outcome.text, LINE)) } }
}

/// Renders the bar, and its sums as text.
pub(super) fn times(explanation: &Explanation, now: Time) -> Markup {
    let sums = sums(&segments(explanation, now));
    html! {
        (bar(explanation, now))
        p.below {
            @for (index, (kind, millis)) in sums.iter().enumerate() {
                @if index > 0 { " · " }
                (kind.label()) " " (present::millis(*millis))
            }
        }
    }
}

/// Renders how many connections had which verdict.
pub(super) fn verdicts(explanation: &Explanation) -> Markup {
    html! {
        @for Toned { text, tone } in present::verdicts(explanation) {
            p.refusals[tone == Tone::Bad].none[tone == Tone::Plain] { (text) }
        }
    }
}
