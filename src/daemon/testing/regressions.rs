//! Regression tests, one for each fixed bug.

use std::time::Duration;

use super::faults::{DriverCall, Fault};
use super::harness::{FORGE, Harness};
use mayfly_ledger::JobState;
use mayfly_shepherd::event::Phase;

const TIME_LIMIT: Duration = Duration::from_secs(3600);

fn harness() -> Harness {
    let mut harness = Harness::new(Duration::from_secs(30));
    harness.start_daemon().unwrap();
    harness
}

#[tokio::test(start_paused = true)]
async fn an_unacknowledged_command_is_sent_again_after_a_reconnect() {
    let mut harness = harness();
    // The command to start is lost, and a minute later the connection.
    harness.faults.add(DriverCall::SendCommand, 1, 1, Fault::Never);
    harness.faults.add(DriverCall::Attach, 1, 3, Fault::Error);
    harness.submit();
    let is_ready = |harness: &mut Harness| harness.host.phases() == [Phase::Ready];
    assert!(harness.run(TIME_LIMIT, is_ready).await);
    harness.run(Duration::from_secs(60), |_| false).await;
    assert_eq!(harness.host.phases(), [Phase::Ready], "it has no command");
    harness.host.disconnect();
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await);
    assert_eq!(harness.jobs()[0].state, JobState::Finished);
    assert_eq!(harness.jobs()[0].requeued, 0);
    harness.assert_exactly_once("a command sent again");
}

#[tokio::test(start_paused = true)]
async fn a_microvm_missing_in_the_ledger_is_counted_and_ended() {
    let mut harness = harness();
    harness.submit();
    let runs = |harness: &mut Harness| harness.host.phases() == [Phase::Running];
    assert!(harness.run(TIME_LIMIT, runs).await);
    harness.restart_without_ledger();
    assert_eq!(harness.daemon().fleet.len(), 1, "it counts");
    let gone = |harness: &mut Harness| {
        harness.host.remaining().is_empty() && harness.daemon().fleet.len() == 0
    };
    assert!(harness.run(Duration::from_secs(60), gone).await);
}

#[tokio::test(start_paused = true)]
async fn a_microvm_that_a_killed_daemon_ended_is_no_failure() {
    let mut harness = harness();
    harness.submit();
    let runs = |harness: &mut Harness| harness.host.phases() == [Phase::Running];
    assert!(harness.run(TIME_LIMIT, runs).await);
    let id = harness.host.remaining().remove(0);
    harness.restart_without_ledger();
    // Long enough to send the command, too short to receive the end.
    harness.run(Duration::from_millis(1), |_| false).await;
    harness.kill();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!harness.host.has_running(), "it ended on command");
    harness.start_daemon().unwrap();
    let gone = |harness: &mut Harness| {
        harness.host.remaining().is_empty() && harness.daemon().fleet.len() == 0
    };
    assert!(harness.run(Duration::from_secs(60), gone).await);
    let row = harness.reader().microvm(&id).unwrap().unwrap();
    assert_eq!((row.outcome.as_deref(), row.black_box), (Some("ended"), None), "{:?}", row.cause);
}

#[tokio::test(start_paused = true)]
async fn a_drain_requests_no_work_and_ends_even_if_a_runner_can_not_be_deleted() {
    let mut harness = harness();
    harness.forge.queue(FORGE);
    let listens = |harness: &mut Harness| !harness.forge.registered().is_empty();
    assert!(harness.run(TIME_LIMIT, listens).await);
    assert!(harness.forge.max_runners().iter().all(|most| *most > 0));
    harness.faults.add(DriverCall::Deregister, 1, 1000, Fault::Error);
    harness.daemon().start_drain();
    let drained = |harness: &mut Harness| harness.daemon().is_drained();
    assert!(
        harness.run(Duration::from_secs(120), drained).await,
        "it waits for the end of the drain"
    );
    assert!(harness.forge.max_runners().iter().all(|most| *most == 0));
    assert!(!harness.host.has_running());
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_the_time_of_a_running_drain() {
    let mut harness = harness();
    let mut settings = harness.daemon().settings.clone();
    let before = harness.daemon().start_drain();
    settings.host.drain *= 2;
    harness.daemon().apply_settings(settings.clone()).unwrap();
    let now = harness.daemon().start_drain();
    assert_eq!((now.since, now.until), (before.since, before.since + settings.host.drain));
    // Not if jobs are being ended.
    let soon = now.since + Duration::from_secs(20);
    harness.daemon().limit_drain(soon);
    harness.daemon().apply_settings(settings).unwrap();
    assert_eq!(harness.daemon().start_drain().until, soon);
}

#[tokio::test(start_paused = true)]
async fn a_reload_retries_a_pool_that_could_not_boot_at_once() {
    let mut harness = harness();
    harness.faults.add(DriverCall::Start, 1, 9, Fault::Error);
    harness.submit();
    // The tenth try is minutes away.
    let tried = |harness: &mut Harness| harness.faults.injected() >= 9;
    assert!(harness.run(TIME_LIMIT, tried).await);
    assert!(!harness.run(Duration::from_secs(60), Harness::is_done).await, "it waits");
    let settings = harness.daemon().settings.clone();
    harness.daemon().apply_settings(settings).unwrap();
    assert!(harness.run(Duration::from_secs(120), Harness::is_done).await, "it still waits");
    assert_eq!(harness.jobs()[0].state, JobState::Finished);
}

#[tokio::test(start_paused = true)]
async fn events_missed_during_a_suspension_are_requested_again() {
    let mut harness = harness();
    let before = harness.forge.absences();
    // The loop does not run.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    harness.run(Duration::from_secs(5), |_| false).await;
    assert_eq!(harness.forge.absences(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_shepherd_is_removed_within_the_deadline_of_its_phase() {
    let seconds = Duration::from_secs;
    for (phase, source, deadline) in [
        // Prepared and booted within 40 s.
        (Phase::Booting, "local", seconds(40)),
        // Claimed within ten minutes.
        (Phase::Claimed, "local", seconds(600)),
        // The job, and the steps after it.
        (Phase::Running, "local", seconds(20 * 60 + 130)),
        // A runner that does not start to listen, and does not end on command.
        (Phase::Claimed, FORGE, seconds(300 + 60 + 130)),
    ] {
        let mut harness = harness();
        if source == FORGE {
            harness.forge.queue(FORGE);
        } else {
            harness.submit();
        }
        let there = |harness: &mut Harness| harness.host.phases() == [phase];
        assert!(harness.run(TIME_LIMIT, there).await, "{phase} {source}");
        harness.host.set_stopped(true);
        let free = |harness: &mut Harness| harness.host.stopped_count() == 0;
        let limit = deadline + seconds(5 + 1);
        assert!(harness.run(limit, free).await, "{phase} {source}: still there after {limit:?}");
        assert!(harness.run(TIME_LIMIT * 4, Harness::is_done).await, "{phase} {source}");
        harness.assert_exactly_once(&format!("{phase} {source}"));
    }
}

/// Jobs wait while GitHub does not serve runners for 20 minutes, and then run.
async fn outage(after: Duration, status: Option<u8>, most: usize) {
    const JOBS: usize = 4;
    let mut harness = harness();
    harness.host.set_outage(Some((after, status)));
    for _ in 0..JOBS {
        harness.forge.queue(FORGE);
    }
    harness.run(Duration::from_secs(20 * 60), |_| false).await;
    let made = harness.forge.registrations();
    let about = format!("{made} registrations, {status:?} after {after:?}");
    assert!(made >= 2 * JOBS, "it is tried again: {about}");
    assert!(made <= most, "a storm: {about}");
    harness.host.set_outage(None);
    // Runners of the outage still have to end.
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await, "{about}");
    harness.assert_exactly_once(&about);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_forge_causes_no_storm_of_registrations() {
    let seconds = Duration::from_secs;
    // Refused at once, repeatedly: the wait doubles.
    outage(seconds(1), Some(1), 48).await;
    // Messages fail for a long time.
    outage(seconds(670), Some(2), 16).await;
    // Never connected: ended by the deadline, four in 20 minutes for each job.
    outage(seconds(1 << 20), None, 20).await;
}

#[tokio::test(start_paused = true)]
async fn new_domains_of_the_forge_are_accepted_in_known_forms_and_survive_failed_requests() {
    const ACCOUNT: &str = "productionresultssa20.blob.core.windows.net";
    const ATTACKER: &str = "attacker.blob.core.windows.net";
    let mut harness = Harness::new(Duration::from_secs(30));
    harness.forge.set_domains(Some(&[ACCOUNT, ATTACKER]));
    harness.start_daemon().unwrap();
    harness.run(Duration::from_secs(5), |_| false).await;
    // The list fails now, and a new daemon starts.
    harness.forge.set_domains(None);
    harness.restart().await;
    harness.forge.queue(FORGE);
    let boots = |harness: &mut Harness| !harness.host.phases().is_empty();
    assert!(harness.run(TIME_LIMIT, boots).await);
    assert_eq!(harness.host.policy_allows(ACCOUNT), [true]);
    assert_eq!(harness.host.policy_allows(ATTACKER), [false]);
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await);
    // A list without the domain removes it.
    harness.forge.set_domains(Some(&["github.com"]));
    harness.restart().await;
    harness.run(Duration::from_secs(5), |_| false).await;
    harness.forge.queue(FORGE);
    assert!(harness.run(TIME_LIMIT, boots).await);
    assert_eq!(harness.host.policy_allows(ACCOUNT), [false]);
}
