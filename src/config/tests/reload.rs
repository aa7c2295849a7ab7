//! What a daemon takes on of settings that have changed.

use super::*;

#[test]
fn a_reload_names_each_changed_key_and_keeps_what_needs_a_restart() {
    let mut place = Place::with(&[("GITHUB_TOKEN", "one")]);
    let pool = "[[pool]]\nname='a'\nlabels=['a']\n";
    let old = place.load(&format!("{ORGANIZATION}{pool}max = 2")).unwrap();
    place.set(&[("GITHUB_TOKEN", "two")]);
    let new = place
        .load(&format!(
            "[github]\nurl='https://github.com/other'\n[host]\nsocket='/run/x'\ncpus=4\n{pool}\
             max = 3\n[egress.policy.unused]\nmode='none'"
        ))
        .unwrap();
    assert_eq!(diff(&old, &old), Changes::default());
    let (taken, changes) = new.take_on(&old);
    assert_eq!(changes.applied, ["host.cpus", "pool.a.max"]);
    assert_eq!(changes.needs_restart, ["github.token", "github.url", "host.socket"]);
    assert_eq!(taken.github.as_ref().unwrap().url(), "https://github.com/acme");
    assert_eq!((taken.host.api.socket.as_ref(), taken.host.cpus), (None, 4));
    assert_eq!((token(&taken).0, taken.pools[0].max), ("one", 3));
}

#[test]
fn what_was_taken_on_differs_only_in_what_needed_a_restart() {
    let place = Place::new();
    let old = place.load("[host]\ncpus = 2\nsocket = '/run/a'").unwrap();
    let new = place.load("[host]\ncpus = 3\nsocket = '/run/b'").unwrap();
    let (taken, changes) = new.clone().take_on(&old);
    assert_eq!(diff(&taken, &new).needs_restart, changes.needs_restart);
    assert_eq!(diff(&taken, &new).applied, Vec::<String>::new());
}

#[test]
fn a_trigger_that_nothing_listens_to_takes_a_restart() {
    let place = Place::with(&[("GITHUB_TOKEN", "one")]);
    let github = format!("{ORGANIZATION}repositories = ['acme/site']\n");
    let pool = |name: &str, trigger: &str| {
        format!("[[pool]]\nname='{name}'\nlabels=['{name}']\ntrigger='{trigger}'\n")
    };
    let old = place.load(&format!("{github}{}", pool("a", "poll"))).unwrap();
    for (pools, expected) in [
        (pool("a", "always"), vec!["pool.a.trigger"]),
        (pool("a", "poll") + &pool("b", "poll"), vec![]),
        (pool("a", "poll") + &pool("b", "none"), vec![]),
        (pool("a", "poll") + &pool("b", "scale-set"), vec![]),
        (pool("a", "poll") + &pool("b", "always"), vec![]),
        (pool("b", "poll"), vec![]),
        (pool("b", "scale-set"), vec![]),
    ] {
        let new = place.load(&format!("{github}{pools}")).unwrap();
        let (taken, changes) = new.take_on(&old);
        assert_eq!(changes.needs_restart, expected, "{pools}");
        assert!(taken.pool("a").is_none_or(|pool| pool.trigger == Trigger::Poll), "{pools}");
    }
}

#[test]
fn a_changed_policy_counts_where_a_pool_has_it() {
    let place = Place::new();
    let text = "[[pool]]\nname='a'\negress='ci'\n[egress.policy.ci]\n";
    let old = place.load(text).unwrap();
    let new = place.load(&format!("{text}allow=[{{host='a.example'}}]")).unwrap();
    assert_eq!(diff(&old, &new).applied, ["egress.policy.ci"]);
}

#[test]
fn a_changed_job_log_takes_no_restart() {
    let place = Place::new();
    let old = place.load("[[pool]]\nname='a'\n").unwrap();
    assert!(!old.pools[0].job_log);
    let new = place.load("[[pool]]\nname='a'\njob_log=true\n").unwrap();
    let (taken, changes) = new.take_on(&old);
    assert_eq!(
        (changes.applied, changes.needs_restart),
        (vec!["pool.a.job_log".to_owned()], vec![])
    );
    assert!(taken.pools[0].job_log);
}
