//! Which changed settings a running daemon applies.

use super::*;

#[test]
fn a_reload_names_each_changed_key_and_keeps_what_needs_a_restart() {
    let mut fixture = Fixture::with(&[("GITHUB_TOKEN", "one")]);
    let pool = "[[pool]]\nname='a'\nlabels=['a']\n";
    let old = fixture.load(&format!("{ORGANIZATION}{pool}max = 2")).unwrap();
    fixture.set(&[("GITHUB_TOKEN", "two")]);
    let new = fixture
        .load(&format!(
            "[github]\nurl='https://github.com/other'\n[host]\nsocket='/run/x'\ncpus=4\n{pool}\
             max = 3\n[egress.policy.unused]\nmode='none'"
        ))
        .unwrap();
    assert_eq!(diff(&old, &old), SettingsChanges::default());
    let (applied, changes) = new.apply_reload(&old);
    assert_eq!(changes.applied, ["host.cpus", "pool.a.max"]);
    assert_eq!(changes.needs_restart, ["github.token", "github.url", "host.socket"]);
    assert_eq!(applied.github.as_ref().unwrap().url(), "https://github.com/acme");
    assert_eq!((applied.host.api.socket.as_ref(), applied.host.cpus), (None, 4));
    assert_eq!((token(&applied).0, applied.pools[0].max), ("one", 3));
}

#[test]
fn applied_settings_differ_only_in_keys_that_need_a_restart() {
    let fixture = Fixture::new();
    let old = fixture.load("[host]\ncpus = 2\nsocket = '/run/a'").unwrap();
    let new = fixture.load("[host]\ncpus = 3\nsocket = '/run/b'").unwrap();
    let (applied, changes) = new.clone().apply_reload(&old);
    assert_eq!(diff(&applied, &new).needs_restart, changes.needs_restart);
    assert_eq!(diff(&applied, &new).applied, Vec::<String>::new());
}

#[test]
fn a_trigger_without_a_listener_needs_a_restart() {
    let fixture = Fixture::with(&[("GITHUB_TOKEN", "one")]);
    let github = format!("{ORGANIZATION}repositories = ['acme/site']\n");
    let pool = |name: &str, trigger: &str| {
        format!("[[pool]]\nname='{name}'\nlabels=['{name}']\ntrigger='{trigger}'\n")
    };
    let old = fixture.load(&format!("{github}{}", pool("a", "poll"))).unwrap();
    for (pools, expected) in [
        (pool("a", "always"), vec!["pool.a.trigger"]),
        (pool("a", "poll") + &pool("b", "poll"), vec![]),
        (pool("a", "poll") + &pool("b", "none"), vec![]),
        (pool("a", "poll") + &pool("b", "scale-set"), vec![]),
        (pool("a", "poll") + &pool("b", "always"), vec![]),
        (pool("b", "poll"), vec![]),
        (pool("b", "scale-set"), vec![]),
    ] {
        let new = fixture.load(&format!("{github}{pools}")).unwrap();
        let (applied, changes) = new.apply_reload(&old);
        assert_eq!(changes.needs_restart, expected, "{pools}");
        assert!(applied.pool("a").is_none_or(|pool| pool.trigger == Trigger::Poll), "{pools}");
    }
}

#[test]
fn a_changed_policy_counts_if_a_pool_uses_it() {
    let fixture = Fixture::new();
    let text = "[[pool]]\nname='a'\negress='ci'\n[egress.policy.ci]\n";
    let old = fixture.load(text).unwrap();
    let new = fixture.load(&format!("{text}allow=[{{host='a.example'}}]")).unwrap();
    assert_eq!(diff(&old, &new).applied, ["egress.policy.ci"]);
}

#[test]
fn a_changed_job_log_needs_no_restart() {
    let fixture = Fixture::new();
    let old = fixture.load("[[pool]]\nname='a'\n").unwrap();
    assert!(!old.pools[0].job_log);
    let new = fixture.load("[[pool]]\nname='a'\njob_log=true\n").unwrap();
    let (applied, changes) = new.apply_reload(&old);
    assert_eq!(
        (changes.applied, changes.needs_restart),
        (vec!["pool.a.job_log".to_owned()], vec![])
    );
    assert!(applied.pools[0].job_log);
}
