//! Compares the pages of docs/ with the code.

use super::*;
use mayfly_reference::{read, rows};

/// Returns the keys of a table, taken from the error about an unknown key.
fn keys_of(table: &str) -> Vec<String> {
    let error = Fixture::new().refusal(&format!("{table}no_such_key = 1"));
    let known = error.split_once("known keys: ").expect(&error).1;
    known.split(", ").map(str::to_owned).collect()
}

/// Each table of settings, the TOML that opens it, and the heading of its rows in the page.
const TABLES: [(&str, &str, &str); 9] = [
    ("github", "[github]\n", "## `[github]`"),
    ("github.app", "[github.app]\n", "| key of `app`"),
    ("github.webhook", "[github.webhook]\n", "| key of `webhook`"),
    ("pool", "[[pool]]\n", "## `[[pool]]`"),
    ("pool.deadlines", "[[pool]]\nname='a'\n[pool.deadlines]\n", "| key of `deadlines`"),
    ("pool.hooks", "[[pool]]\nname='a'\n[pool.hooks]\n", "| key of `hooks`"),
    ("host", "[host]\n", "## `[host]`"),
    ("status", "[status]\n", "## `[status]`"),
    ("telemetry", "[telemetry]\n", "## `[telemetry]`"),
];

fn page() -> String {
    read("reference/settings.md")
}

/// Returns the rows of the first table at or below a heading.
fn rows_below<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let below = &page[page.find(heading).expect(heading)..];
    let start = below.find("\n|--").expect(heading);
    // Skips the heading row.
    let table = below[start + 1..].split("\n\n").next().unwrap();
    rows(table)
}

fn word(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn the_reference_has_exactly_the_existing_keys() {
    let page = page();
    for (table, text, heading) in TABLES {
        let documented =
            rows_below(&page, heading).iter().map(|row| word(row[0]).to_owned()).collect();
        let mut known: Vec<String> = keys_of(text);
        let mut documented: Vec<String> = documented;
        known.sort();
        documented.sort();
        assert_eq!(documented, known, "[{table}]");
    }
    assert_eq!(keys_of(""), ["github", "pool", "host", "status", "egress", "telemetry"]);
}

/// Settings that leave every fixed default in effect.
const SPARSE: &str = "[github]\nurl = 'https://github.com/acme'\ntoken = 'ghp_secret'\n\
    [[pool]]\nname = 'p'\nlabels = ['l']\n\
    [status]\nlisten = '127.0.0.1:9180'\n";

#[test]
fn the_reference_has_the_actual_defaults() {
    let fixture = Fixture::new();
    let file = fixture.file("mayfly.toml", SPARSE, 0o600);
    let settings = Settings::load(Some(&file), &fixture.environment).unwrap();
    let shown = settings.show();
    let page = page();
    let mut compared = Vec::new();
    // Hooks have no defaults.
    for (table, _, heading) in TABLES.into_iter().filter(|table| table.0 != "pool.hooks") {
        let pointer = format!("/{}", table.replace('.', "/")).replace("/pool", "/pool/p");
        let values = shown.pointer(&pointer).cloned().unwrap_or_default();
        let has_types = table != "pool.deadlines";
        for row in rows_below(&page, heading) {
            let (key, default) = (word(row[0]), row[1 + usize::from(has_types)]);
            let Some(value) = values.get(key) else { continue };
            if is_same(value, default) {
                compared.push(format!("{table}.{key}"));
            }
        }
    }
    let fixed = [
        "github.reconcile",
        "pool.runner_group",
        "pool.image",
        "pool.cpus",
        "pool.memory",
        "pool.disk",
        "pool.min_idle",
        "pool.trigger",
        "pool.egress",
        "pool.runner_directory",
        "pool.job_log",
        "pool.deadlines.idle",
        "pool.deadlines.claim",
        "pool.deadlines.farewell",
        "pool.deadlines.job",
        "host.socket_mode",
        "host.accel",
        "host.allow_emulation",
        "host.drain",
        "host.log_bytes",
        "host.audit_bytes",
        "host.audit_age",
    ];
    for key in fixed {
        assert!(compared.iter().any(|other| other == key), "{key} has another default");
    }
}

/// Returns whether a default of the page is the value in effect, compared by meaning.
fn is_same(value: &serde_json::Value, default: &str) -> bool {
    let first = default.split(", ").next().unwrap_or_default();
    let text = word(first).trim_matches('"');
    match value {
        serde_json::Value::String(value) => {
            let duration = |text: &str| humantime::parse_duration(text).ok();
            let size = |text: &str| text.parse::<Size>().ok().map(|size| size.to_string());
            value == text
                || duration(value).is_some_and(|value| Some(value) == duration(text))
                || size(text).as_ref() == Some(value)
        }
        // Null has no literal: the page describes the default in words.
        serde_json::Value::Null => !default.starts_with('`'),
        serde_json::Value::Bool(value) => text.parse() == Ok(*value),
        serde_json::Value::Number(number) => text == number.to_string(),
        _ => false,
    }
}

#[test]
fn the_reference_has_the_bounds_of_deadlines() {
    let page = page();
    let deadline = |key: &str, value: Duration| {
        let value = humantime::format_duration(value);
        let text = format!("[[pool]]\nname = 'p'\ndeadlines = {{ {key} = '{value}' }}");
        Fixture::new().load(&text).is_ok()
    };
    let rows = rows_below(&page, "| key of `deadlines`");
    assert_eq!(rows.len(), 5);
    let step = Duration::from_secs(1);
    for row in rows {
        let (least, most) = row[2].split_once(" … ").unwrap();
        let [least, most] = [least, most].map(|text| humantime::parse_duration(text).unwrap());
        let key = word(row[0]);
        assert!(deadline(key, least) && deadline(key, most), "{key}: {}", row[2]);
        assert!(!deadline(key, most + step), "{key} may be longer than {}", row[2]);
        assert!(
            least.checked_sub(step).is_none_or(|less| !deadline(key, less)),
            "{key} may be shorter"
        );
    }
}

#[test]
fn the_example_is_valid() {
    let fixture = Fixture::new();
    let key = fixture.file("key.pem", "-----BEGIN RSA PRIVATE KEY-----", 0o600);
    let secret = fixture.file("secret", "0123456789abcdef", 0o600);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/mayfly.toml");
    let text = fs::read_to_string(example).unwrap();
    // The test replaces the example's paths of secrets by its own.
    for name in ["webhook-secret", "api-token"] {
        assert!(text.contains(&format!("/etc/mayfly/{name}")), "{name}");
    }
    let text = text
        .replace("/etc/mayfly/github-app.pem", key.to_str().unwrap())
        .replace("/etc/mayfly/webhook-secret", secret.to_str().unwrap())
        .replace("/etc/mayfly/api-token", secret.to_str().unwrap());
    let settings = fixture.load(&text).unwrap();
    assert_eq!(settings.pools.len(), 2);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}
