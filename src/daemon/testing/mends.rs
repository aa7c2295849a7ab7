//! What was mended once, each by itself.

use std::time::Duration;

use super::faults::{Call, Fault};
use super::stage::{FORGE, Stage};
use crate::ledger::JobState;
use crate::shepherd::event::Phase;

const PATIENCE: Duration = Duration::from_secs(3600);

fn stage() -> Stage {
    let mut stage = Stage::new(Duration::from_secs(30));
    stage.serve().unwrap();
    stage
}

#[tokio::test(start_paused = true)]
async fn an_order_that_was_not_acknowledged_is_given_again_once_there_is_a_connection() {
    let mut stage = stage();
    // The order to start is lost on its way, and a minute later the connection is.
    stage.faults.add(Call::Order, 1, 1, Fault::Never);
    stage.faults.add(Call::Attach, 1, 3, Fault::Error);
    stage.submit();
    let is_ready = |stage: &mut Stage| stage.host.phases() == [Phase::Ready];
    assert!(stage.run(PATIENCE, is_ready).await);
    stage.run(Duration::from_secs(60), |_| false).await;
    assert_eq!(stage.host.phases(), [Phase::Ready], "it has no order");
    stage.host.disconnect();
    assert!(stage.run(PATIENCE, Stage::is_done).await);
    assert_eq!(stage.jobs()[0].state, JobState::Finished);
    assert_eq!(stage.jobs()[0].requeued, 0);
    stage.assert_exactly_once("an order given again");
}

#[tokio::test(start_paused = true)]
async fn a_microvm_that_the_ledger_does_not_know_is_counted_and_ended() {
    let mut stage = stage();
    stage.submit();
    let runs = |stage: &mut Stage| stage.host.phases() == [Phase::Running];
    assert!(stage.run(PATIENCE, runs).await);
    stage.lose_the_ledger();
    assert_eq!(stage.daemon().fleet.len(), 1, "it counts");
    let gone = |stage: &mut Stage| stage.host.left().is_empty() && stage.daemon().fleet.len() == 0;
    assert!(stage.run(Duration::from_secs(60), gone).await);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_told_to_end_by_a_daemon_that_was_killed_is_no_failure() {
    let mut stage = stage();
    stage.submit();
    let runs = |stage: &mut Stage| stage.host.phases() == [Phase::Running];
    assert!(stage.run(PATIENCE, runs).await);
    let id = stage.host.left().remove(0);
    stage.lose_the_ledger();
    // Long enough to give the order, and not to hear of the end.
    stage.run(Duration::from_millis(1), |_| false).await;
    stage.kill();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!stage.host.lives(), "it has ended as it was told to");
    stage.serve().unwrap();
    let gone = |stage: &mut Stage| stage.host.left().is_empty() && stage.daemon().fleet.len() == 0;
    assert!(stage.run(Duration::from_secs(60), gone).await);
    let row = stage.reader().microvm(&id).unwrap().unwrap();
    assert_eq!((row.outcome.as_deref(), row.black_box), (Some("ended"), None), "{:?}", row.cause);
}

#[tokio::test(start_paused = true)]
async fn a_drain_wants_no_more_work_and_ends_though_a_runner_can_not_be_deleted() {
    let mut stage = stage();
    stage.forge.queue(FORGE);
    let listens = |stage: &mut Stage| !stage.forge.registered().is_empty();
    assert!(stage.run(PATIENCE, listens).await);
    assert!(stage.forge.wanted().iter().all(|most| *most > 0));
    stage.faults.add(Call::Deregister, 1, 1000, Fault::Error);
    stage.daemon().drain();
    let drained = |stage: &mut Stage| stage.daemon().is_drained();
    assert!(stage.run(Duration::from_secs(120), drained).await, "it sits the drain out");
    assert!(stage.forge.wanted().iter().all(|most| *most == 0));
    assert!(!stage.host.lives());
}

#[tokio::test(start_paused = true)]
async fn a_drain_under_way_has_the_time_that_a_reload_gives_it() {
    let mut stage = stage();
    let mut settings = stage.daemon().settings.clone();
    let before = stage.daemon().drain();
    settings.host.drain *= 2;
    stage.daemon().take_on(settings.clone()).unwrap();
    let now = stage.daemon().drain();
    assert_eq!((now.since, now.until), (before.since, before.since + settings.host.drain));
    // Not where the end is ordered.
    let soon = now.since + Duration::from_secs(20);
    stage.daemon().end_by(soon);
    stage.daemon().take_on(settings).unwrap();
    assert_eq!(stage.daemon().drain().until, soon);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_could_not_boot_is_tried_at_once_after_a_reload() {
    let mut stage = stage();
    stage.faults.add(Call::Start, 1, 9, Fault::Error);
    stage.submit();
    // The tenth try is minutes away.
    let tried = |stage: &mut Stage| stage.faults.injected() >= 9;
    assert!(stage.run(PATIENCE, tried).await);
    assert!(!stage.run(Duration::from_secs(60), Stage::is_done).await, "it waits");
    let settings = stage.daemon().settings.clone();
    stage.daemon().take_on(settings).unwrap();
    assert!(stage.run(Duration::from_secs(120), Stage::is_done).await, "it still waits");
    assert_eq!(stage.jobs()[0].state, JobState::Finished);
}

#[tokio::test(start_paused = true)]
async fn what_was_told_while_the_daemon_was_away_is_asked_for_again() {
    let mut stage = stage();
    let before = stage.forge.absences();
    // Nobody turns the loop.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    stage.run(Duration::from_secs(5), |_| false).await;
    assert_eq!(stage.forge.absences(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn a_shepherd_that_is_stopped_gives_up_its_place_within_the_deadline_of_its_phase() {
    let seconds = Duration::from_secs;
    for (phase, source, deadline) in [
        // Prepared and booted within 40 s.
        (Phase::Booting, "local", seconds(40)),
        // Claimed within ten minutes.
        (Phase::Claimed, "local", seconds(600)),
        // The job, and what comes after it.
        (Phase::Running, "local", seconds(20 * 60 + 130)),
        // A runner that does not come up, and does not end when it is told to.
        (Phase::Claimed, FORGE, seconds(300 + 60 + 130)),
    ] {
        let mut stage = stage();
        if source == FORGE {
            stage.forge.queue(FORGE);
        } else {
            stage.submit();
        }
        let there = |stage: &mut Stage| stage.host.phases() == [phase];
        assert!(stage.run(PATIENCE, there).await, "{phase} {source}");
        stage.host.stop(true);
        let free = |stage: &mut Stage| stage.host.stopped() == 0;
        let limit = deadline + seconds(5 + 1);
        assert!(stage.run(limit, free).await, "{phase} {source}: still there after {limit:?}");
        assert!(stage.run(PATIENCE * 4, Stage::is_done).await, "{phase} {source}");
        stage.assert_exactly_once(&format!("{phase} {source}"));
    }
}

/// Jobs that wait while GitHub does not serve runners, for 20 minutes, and then does.
async fn outage(after: Duration, status: Option<u8>, most: usize) {
    const JOBS: usize = 4;
    let mut stage = stage();
    stage.host.outage(Some((after, status)));
    for _ in 0..JOBS {
        stage.forge.queue(FORGE);
    }
    stage.run(Duration::from_secs(20 * 60), |_| false).await;
    let made = stage.forge.registrations();
    let about = format!("{made} registrations, {status:?} after {after:?}");
    assert!(made >= 2 * JOBS, "it is tried again: {about}");
    assert!(made <= most, "a storm: {about}");
    stage.host.outage(None);
    // What was made in the outage is still to come to its end.
    assert!(stage.run(PATIENCE, Stage::is_done).await, "{about}");
    stage.assert_exactly_once(&about);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_forges_costs_no_storm_of_registrations() {
    let seconds = Duration::from_secs;
    // Refused at once, again and again: the pause doubles.
    outage(seconds(1), Some(1), 48).await;
    // Messages fail for long.
    outage(seconds(670), Some(2), 16).await;
    // Never in touch at all: ended by the deadline, four in 20 minutes for each job.
    outage(seconds(1 << 20), None, 20).await;
}

#[tokio::test(start_paused = true)]
async fn new_names_of_the_forges_are_taken_in_their_known_forms_and_outlast_its_silence() {
    const ACCOUNT: &str = "productionresultssa20.blob.core.windows.net";
    const ATTACKER: &str = "attacker.blob.core.windows.net";
    let mut stage = Stage::new(Duration::from_secs(30));
    stage.forge.list(Some(&[ACCOUNT, ATTACKER]));
    stage.serve().unwrap();
    stage.run(Duration::from_secs(5), |_| false).await;
    // No list any more, and another daemon.
    stage.forge.list(None);
    stage.restart().await;
    stage.forge.queue(FORGE);
    let boots = |stage: &mut Stage| !stage.host.phases().is_empty();
    assert!(stage.run(PATIENCE, boots).await);
    assert_eq!(stage.host.lets_pass(ACCOUNT), [true]);
    assert_eq!(stage.host.lets_pass(ATTACKER), [false]);
    assert!(stage.run(PATIENCE, Stage::is_done).await);
    // A list without it takes it back.
    stage.forge.list(Some(&["github.com"]));
    stage.restart().await;
    stage.run(Duration::from_secs(5), |_| false).await;
    stage.forge.queue(FORGE);
    assert!(stage.run(PATIENCE, boots).await);
    assert_eq!(stage.host.lets_pass(ACCOUNT), [false]);
}
