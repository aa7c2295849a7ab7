//! Generated settings of every key: valid ones can be shown and reloaded, invalid ones are
//! rejected, and nothing panics.

use proptest::prelude::*;

use super::*;

/// A key with a few valid values and some that may be invalid.
fn key(name: &'static str, values: &'static [&'static str]) -> BoxedStrategy<String> {
    let wild = "[-a-z0-9./:_*\"' ,\u{e4}]{0,12}".prop_map(|text| format!("{text:?}"));
    let value = prop_oneof![
        12 => prop::sample::select(values).prop_map(str::to_owned),
        1 => wild,
        1 => any::<i64>().prop_map(|number| number.to_string()),
    ];
    prop_oneof![1 => Just(String::new()), 2 => value.prop_map(move |value| format!("{name} = {value}\n"))]
        .boxed()
}

/// A table with any of its keys.
fn table(
    head: &'static str,
    keys: &'static [(&'static str, &'static [&'static str])],
) -> BoxedStrategy<String> {
    let keys: Vec<_> = keys.iter().map(|(name, values)| key(name, values)).collect();
    keys.prop_map(move |keys| format!("{head}\n{}", keys.concat())).boxed()
}

const GITHUB: &[(&str, &[&str])] = &[
    (
        "url",
        &[
            "'https://github.com/acme'",
            "'https://github.com/acme/site'",
            "'https://ghe.example.com/acme'",
        ],
    ),
    ("api_url", &["'https://api.example.com'"]),
    ("repositories", &["['acme/site']", "[]", "['acme/a', 'acme/b']"]),
    ("poll", &["'30s'", "'1h'"]),
    ("reconcile", &["'1m'"]),
    ("webhook", &["{ listen = '127.0.0.1:9000', secret = 'a-long-secret' }", "{ listen = 'x' }"]),
];

const HOST: &[(&str, &[&str])] = &[
    ("cpus", &["1", "8", "0"]),
    ("memory", &["'4G'", "'64G'", "'1'"]),
    ("state_directory", &["'/var/lib/x'", "'relative'"]),
    ("socket", &["'/run/x.sock'", "''"]),
    ("socket_mode", &["'0600'", "'0666'"]),
    ("accel", &["'auto'", "'kvm'", "'tcg'"]),
    ("allow_emulation", &["true", "false"]),
    ("drain", &["'1h'", "'0s'"]),
    ("listen", &["'127.0.0.1:1'"]),
    ("token", &["'a-long-secret-token'"]),
    ("image_keys", &["[]", "['x']"]),
];

const POOL: &[(&str, &[&str])] = &[
    ("name", &["'a'", "'b'", "'c-1'"]),
    ("labels", &["['x']", "[]", "['x', 'X', 'y,z']", "['self-hosted', 'gpu']"]),
    ("runner_group", &["'Default'", "''"]),
    ("image", &["'base'", "'base@sha256:0123456789ab'"]),
    ("cpus", &["1", "2"]),
    ("memory", &["'512M'", "'2G'"]),
    ("disk", &["'20G'"]),
    ("min_idle", &["0", "1"]),
    ("max", &["1", "5", "0"]),
    ("trigger", &["'auto'", "'none'", "'webhook'", "'poll'", "'scale-set'", "'always'"]),
    ("egress", &["'ci'", "'none'", "'github'", "'open'"]),
    (
        "deadlines",
        &[
            "{ boot = '1m', idle = '5m', claim = '1m', job = '1h', farewell = '9s' }",
            "{ job = '0s' }",
        ],
    ),
    ("environment", &["{ A = 'b' }", "{ '' = 'x' }", "{ 'A=B' = '' }"]),
    ("hooks", &["{ job_started = '/a', job_completed = '/b' }", "{ job_started = 'a' }"]),
    ("runner_directory", &["'/opt/runner'", "'..'"]),
    ("job_log", &["true", "false"]),
];

const POLICY: &[(&str, &[&str])] = &[
    ("mode", &["'enforce'", "'audit'", "'open'", "'none'"]),
    (
        "allow",
        &["[{ host = 'a.example' }]", "[{ host = '*.b.example', ports = [443, 8443] }]", "[]"],
    ),
    ("deny", &["[{ host = 'c.example' }]"]),
    ("allow_private", &["true", "false"]),
    (
        "resolve",
        &[
            "{ 'git.internal' = '10.0.0.1' }",
            "{ 'git.internal' = '10.0.0.1', 'git.internal:443' = '127.0.0.1:8443' }",
            "{ 'x:y' = 'z' }",
            "{ 'six.internal' = '[::1]:1' }",
        ],
    ),
    ("parent", &["'http://proxy.example.com:3128'"]),
];

const STATUS: &[(&str, &[&str])] = &[
    ("listen", &["'127.0.0.1:2'", "'0.0.0.0:2'"]),
    ("token", &["'another-long-token'"]),
    ("allow_unauthenticated", &["true", "false"]),
];

const TELEMETRY: &[(&str, &[&str])] =
    &[("otlp_endpoint", &["'http://127.0.0.1:4318'", "'x'"]), ("otlp_headers", &["'a=b'"])];

fn settings() -> impl Strategy<Value = String> {
    let maybe = |table: BoxedStrategy<String>| prop_oneof![Just(String::new()), table];
    (
        maybe(table("[github]", GITHUB)),
        maybe(table("[host]", HOST)),
        prop::collection::vec(table("[[pool]]", POOL), 0..4),
        table("[egress.policy.ci]", POLICY),
        maybe(table("[status]", STATUS)),
        maybe(table("[telemetry]", TELEMETRY)),
    )
        .prop_map(|(github, host, pools, policy, status, telemetry)| {
            format!("{github}{host}{}{policy}{status}{telemetry}", pools.concat())
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn generated_settings_are_accepted_or_rejected_by_check_show_and_reload(
        one in settings(),
        other in settings(),
    ) {
        let mut fixture = Fixture::with(&[("GITHUB_TOKEN", "one")]);
        let read = |fixture: &Fixture, text: &str| {
            let path = fixture.file("mayfly.toml", text, 0o600);
            Settings::load(Some(&path), &fixture.environment)
        };
        let (one, other) = (read(&fixture, &one), read(&fixture, &other));
        for settings in [&one, &other] {
            match settings {
                Ok(settings) => {
                    let shown = serde_json::to_string(&settings.show()).unwrap();
                    prop_assert!(!shown.contains("a-long-secret"), "{shown}");
                    prop_assert!(!settings.lines().is_empty());
                    prop_assert_eq!(diff(settings, settings), SettingsChanges::default());
                }
                Err(error) => prop_assert_eq!(error.code(), Code::BadConfiguration, "{}", error),
            }
        }
        // The applied settings differ from the read ones only in keys that need a restart.
        let plain = read(&fixture, "").unwrap();
        let running = one.unwrap_or_else(|_| plain.clone());
        let new = other.unwrap_or(plain);
        let (applied, changes) = new.clone().apply_reload(&running);
        prop_assert_eq!(diff(&applied, &new).applied, Vec::<String>::new());
        prop_assert_eq!(diff(&running, &new), changes);
        fixture.set(&[]);
    }
}

#[test]
fn a_policy_with_resolve_entries_is_reloaded() {
    let fixture = Fixture::new();
    let pool = "[[pool]]\nname='a'\negress='ci'\n[egress.policy.ci]\n";
    let resolve = |address: &str| format!("{pool}resolve = {{ 'git.internal:443' = '{address}' }}");
    let old = fixture.load(&resolve("10.0.0.1")).unwrap();
    let new = fixture.load(&resolve("10.0.0.2")).unwrap();
    assert_eq!(diff(&old, &old), SettingsChanges::default());
    assert_eq!(diff(&old, &new).applied, ["egress.policy.ci"]);
    // A microVM gets the policy as written.
    let policy = &new.pools[0].egress;
    let text = serde_json::to_string(policy).unwrap();
    let back: mayfly_egress::policy::Policy = serde_json::from_str(&text).unwrap();
    assert_eq!(&back, policy);
    assert!(text.contains("10.0.0.2"), "{text}");
}
