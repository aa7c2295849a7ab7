//! Settings of every key, as anybody may write them: what is taken is shown and taken on, what is
//! not is refused; nothing panics.

use proptest::prelude::*;

use super::*;

/// A key with a few values that are right and some that may not be.
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
    fn whatever_is_written_is_taken_or_refused_by_check_show_and_reload(
        one in settings(),
        other in settings(),
    ) {
        let mut place = Place::with(&[("GITHUB_TOKEN", "one")]);
        let read = |place: &Place, text: &str| {
            let path = place.file("mayfly.toml", text, 0o600);
            Settings::load(Some(&path), &place.environment)
        };
        let (one, other) = (read(&place, &one), read(&place, &other));
        for settings in [&one, &other] {
            match settings {
                Ok(settings) => {
                    let shown = serde_json::to_string(&settings.show()).unwrap();
                    prop_assert!(!shown.contains("a-long-secret"), "{shown}");
                    prop_assert!(!settings.lines().is_empty());
                    prop_assert_eq!(diff(settings, settings), Changes::default());
                }
                Err(error) => prop_assert_eq!(error.code(), Code::BadConfiguration, "{}", error),
            }
        }
        // What is taken on differs from what was read in what needs a restart, and in no more.
        let plain = read(&place, "").unwrap();
        let running = one.unwrap_or_else(|_| plain.clone());
        let wanted = other.unwrap_or(plain);
        let (taken, changes) = wanted.clone().take_on(&running);
        prop_assert_eq!(diff(&taken, &wanted).applied, Vec::<String>::new());
        prop_assert_eq!(diff(&running, &wanted), changes);
        place.set(&[]);
    }
}

#[test]
fn a_policy_with_names_of_its_own_is_reloaded() {
    let place = Place::new();
    let pool = "[[pool]]\nname='a'\negress='ci'\n[egress.policy.ci]\n";
    let resolve = |address: &str| format!("{pool}resolve = {{ 'git.internal:443' = '{address}' }}");
    let old = place.load(&resolve("10.0.0.1")).unwrap();
    let new = place.load(&resolve("10.0.0.2")).unwrap();
    assert_eq!(diff(&old, &old), Changes::default());
    assert_eq!(diff(&old, &new).applied, ["egress.policy.ci"]);
    // What goes to a microVM is what was written.
    let policy = &new.pools[0].egress;
    let text = serde_json::to_string(policy).unwrap();
    let back: crate::egress::policy::Policy = serde_json::from_str(&text).unwrap();
    assert_eq!(&back, policy);
    assert!(text.contains("10.0.0.2"), "{text}");
}
