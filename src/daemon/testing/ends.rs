//! Tests of how jobs and runners are ended, and of what users see of it.

use std::time::Duration;

use tokio::sync::oneshot;

use super::faults::{DriverCall, Fault};
use super::harness::{FORGE, Harness};
use crate::decide::Stage;
use crate::event_loop::Daemon;
use mayfly_api::types::{BlockerView, DrainRequest};
use mayfly_api::{Call, JobLog, Responder};
use mayfly_config::Trigger;
use mayfly_ledger::{JobState, LedgerError};
use mayfly_shepherd::event::Phase;

const TIME_LIMIT: Duration = Duration::from_secs(3600);

/// Starts a daemon whose pool of the forge has a farewell of its own.
fn harness(farewell: Duration) -> Harness {
    let mut harness = Harness::new(Duration::from_secs(30));
    harness.settings.pools[1].deadlines.farewell = farewell;
    harness.start_daemon().unwrap();
    harness
}

/// Starts a daemon and a job of the forge.
async fn running_job() -> Harness {
    let mut harness = harness(Duration::from_secs(7));
    harness.forge.queue(FORGE);
    assert!(harness.run(TIME_LIMIT, |harness| has_state(harness, JobState::Running)).await);
    harness
}

fn has_state(harness: &Harness, state: JobState) -> bool {
    harness.jobs().iter().any(|job| job.state == state)
}

/// Makes a call that the loop answers at once.
fn call<T>(harness: &mut Harness, call: impl FnOnce(Responder<T>) -> Call) -> T {
    let (responder, mut response) = oneshot::channel();
    harness.daemon().handle_call(call(responder)).unwrap();
    response.try_recv().unwrap().unwrap()
}

fn cancel(harness: &mut Harness, user: u32) {
    let job = harness.jobs()[0].id.0;
    call(harness, |responder| Call::Cancel { job, user: Some(user), responder });
}

fn log(harness: &mut Harness) -> JobLog {
    let job = harness.jobs()[0].id.0;
    call(harness, |responder| Call::Log { job, responder })
}

/// Returns what the jobs of the forge's pool wait for.
fn blocker(harness: &mut Harness) -> BlockerView {
    let pools = harness.daemon().view().pools();
    pools.into_iter().find(|pool| pool.name == FORGE).unwrap().blocker.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_log_of_a_github_job_grows_until_its_microvm_is_gone() {
    let mut harness = harness(Duration::from_secs(60));
    harness.faults.add(DriverCall::SaveOutput, 1, 1, Fault::Late(Duration::from_secs(10)));
    harness.forge.queue(FORGE);
    for state in [JobState::Queued, JobState::Running, JobState::Finished] {
        assert!(harness.run(TIME_LIMIT, |harness| has_state(harness, state)).await, "{state:?}");
        assert!(log(&mut harness).growing, "{state:?}");
    }
    // The job is over, but its output is still being saved.
    assert_eq!(harness.daemon().fleet.len(), 1);
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await);
    assert!(!log(&mut harness).growing);
}

#[tokio::test(start_paused = true)]
async fn an_adopted_runner_has_the_farewell_that_it_was_planned_with() {
    let mut harness = running_job().await;
    // The settings may have changed since.
    harness.settings.pools[1].deadlines.farewell = Duration::from_secs(99);
    harness.restart().await;
    cancel(&mut harness, 1);
    let is_told = |harness: &mut Harness| !harness.host.interrupts().is_empty();
    assert!(harness.run(TIME_LIMIT, is_told).await);
    assert_eq!(harness.host.interrupts()[0].grace, Duration::from_secs(7));
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await);
}

#[tokio::test(start_paused = true)]
async fn a_drain_reports_the_jobs_that_it_ends() {
    let mut harness = running_job().await;
    let request = DrainRequest { end_jobs: true, within_ms: None };
    let report = call(&mut harness, |responder| Call::Drain { request, user: Some(1), responder });
    assert_eq!(report.running, 1);
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await);
    assert_eq!(harness.daemon().fleet.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_microvms_record_has_the_first_reason_for_its_end() {
    let mut harness = running_job().await;
    let id = harness.host.remaining().remove(0);
    let lines = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false);
    let subscriber = subscriber.with_writer(lines.reopen().unwrap()).finish();
    tracing::subscriber::with_default(subscriber, || {
        cancel(&mut harness, 1);
        cancel(&mut harness, 2);
    });
    let lines = std::fs::read_to_string(lines.path()).unwrap();
    let again: Vec<_> = lines.lines().filter(|line| line.contains("already ending")).collect();
    assert_eq!(again.len(), 1, "{lines}");
    assert!(again[0].contains("canceled by user 2"), "{lines}");
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await);
    let row = harness.reader().microvm(&id).unwrap().unwrap();
    assert_eq!(row.cause.as_deref(), Some("canceled by user 1"));
}

#[tokio::test(start_paused = true)]
async fn a_busy_runner_that_was_commanded_to_end_is_not_kept() {
    let mut harness = running_job().await;
    let Daemon { fleet, clock, .. } = harness.daemon();
    let (now, key) = (clock.now(), fleet.iter().next().unwrap().key());
    fleet.end(key, "drained", now);
    // GitHub calls it busy when its registration is deleted.
    fleet.keep_busy(key, now);
    let microvm = fleet.get(key).unwrap();
    assert_eq!((microvm.stage(), microvm.end_reason()), (Stage::Ending, Some("drained")));
}

#[tokio::test(start_paused = true)]
async fn a_blocker_tells_how_far_a_runner_is() {
    let mut harness = harness(Duration::from_secs(60));
    harness.faults.add(DriverCall::Register, 1, 1, Fault::Late(Duration::from_secs(20)));
    harness.forge.queue(FORGE);
    let is_ready = |harness: &mut Harness| harness.host.phases() == [Phase::Ready];
    assert!(harness.run(TIME_LIMIT, is_ready).await);
    // The second round decides with the registration on its way.
    for _ in 0..2 {
        harness.run(Duration::from_secs(5), |_| false).await;
    }
    let registering = blocker(&mut harness);
    assert_eq!(registering.code, "registering");
    assert!(registering.message.contains("is being registered"), "{}", registering.message);
    let is_claimed = |harness: &mut Harness| harness.host.phases() == [Phase::Claimed];
    assert!(harness.run(TIME_LIMIT, is_claimed).await);
    // Its runner prints nothing.
    harness.host.set_stopped(true);
    harness.run(Duration::from_secs(60), |_| false).await;
    let registered = blocker(&mut harness);
    assert_eq!(registered.code, "registering");
    let message = registered.message;
    assert!(message.contains("is registered but has not reached GitHub for 1m"), "{message}");
    assert!(registered.until.is_some());
}

/// Returns whether the audit log says that a job ended with this cause.
fn is_audited(harness: &Harness, cause: &str) -> bool {
    let mut found = false;
    let entries = harness.reader().audit_entries(0, |entry| {
        found |= entry.detail.contains(cause);
        Ok::<_, LedgerError>(())
    });
    entries.unwrap();
    found
}

#[tokio::test(start_paused = true)]
async fn the_requester_of_an_end_is_named_with_every_trigger() {
    let triggers =
        [Trigger::Webhook, Trigger::Poll, Trigger::ScaleSet, Trigger::Auto, Trigger::Always];
    for (trigger, is_drain) in triggers.into_iter().flat_map(|one| [(one, false), (one, true)]) {
        let mut harness = Harness::new(Duration::from_secs(30));
        harness.settings.pools[1].trigger = trigger;
        harness.start_daemon().unwrap();
        harness.forge.queue(FORGE);
        let is_running = |harness: &mut Harness| has_state(harness, JobState::Running);
        assert!(harness.run(TIME_LIMIT, is_running).await, "{trigger:?}");
        if is_drain {
            let request = DrainRequest { end_jobs: true, within_ms: None };
            let user = Some(1);
            call(&mut harness, |responder| Call::Drain { request, user, responder });
        } else {
            cancel(&mut harness, 1);
        }
        let is_over = |harness: &mut Harness| harness.jobs().iter().all(|job| job.state.is_over());
        assert!(harness.run(TIME_LIMIT, is_over).await, "{trigger:?}");
        let job = harness.jobs().remove(0);
        let cause = job.cause.unwrap_or_default();
        let who = if is_drain { "drained by user 1" } else { "canceled by user 1" };
        assert_eq!((job.state, cause.as_str()), (JobState::Cancelled, who), "{trigger:?}");
        assert!(is_audited(&harness, who), "{trigger:?}");
    }
}
