//! The pages of docs/ say what the code does.

use super::*;

/// The keys of a table, by what is said about one that isn't there.
fn keys_of(table: &str) -> Vec<String> {
    let error = Place::new().refusal(&format!("{table}no_such_key = 1"));
    let known = error.split_once("there are ").expect(&error).1;
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn every_key_is_in_the_reference() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/settings.md");
    let page = fs::read_to_string(page).unwrap();
    let sections: Vec<_> = page.split("\n## ").collect();
    for (table, section) in [
        ("[github]\n", "`[github]`"),
        ("[github.app]\n", "`[github]`"),
        ("[github.webhook]\n", "`[github]`"),
        ("[[pool]]\n", "`[[pool]]`"),
        ("[[pool]]\nname='a'\n[pool.deadlines]\n", "`[[pool]]`"),
        ("[[pool]]\nname='a'\n[pool.hooks]\n", "`[[pool]]`"),
        ("[host]\n", "`[host]`"),
        ("[status]\n", "`[status]`"),
        ("[telemetry]\n", "`[telemetry]`"),
    ] {
        let text = sections.iter().find(|text| text.starts_with(section)).unwrap();
        let keys = keys_of(table);
        assert!(!keys.is_empty(), "{table}: {keys:?}");
        for key in keys {
            assert!(text.contains(&format!("\n| `{key}` |")), "{key} of {table} is missing");
        }
    }
    assert_eq!(keys_of(""), ["github", "pool", "host", "status", "egress", "telemetry"]);
}

#[test]
fn the_example_is_good() {
    let place = Place::new();
    let key = place.file("key.pem", "-----BEGIN RSA PRIVATE KEY-----", 0o600);
    let secret = place.file("secret", "0123456789abcdef", 0o600);
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/mayfly.toml");
    let text = fs::read_to_string(example).unwrap();
    // The secrets of the example are where this test has them.
    for name in ["webhook-secret", "api-token"] {
        assert!(text.contains(&format!("/etc/mayfly/{name}")), "{name}");
    }
    let text = text
        .replace("/etc/mayfly/github-app.pem", key.to_str().unwrap())
        .replace("/etc/mayfly/webhook-secret", secret.to_str().unwrap())
        .replace("/etc/mayfly/api-token", secret.to_str().unwrap());
    let settings = place.load(&text).unwrap();
    assert_eq!(settings.pools.len(), 2);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn the_settings_of_the_readme_are_good() {
    let place = Place::new();
    let token = place.file("token", "ghp_secret", 0o600);
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let text = readme.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```"));
    let text = text.expect("README.md has settings").0;
    assert!(text.contains("/etc/mayfly/github-token"), "{text}");
    let text = text.replace("/etc/mayfly/github-token", token.to_str().unwrap());
    let settings = place.load(&text).unwrap();
    assert_eq!(settings.pools.len(), 1);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}
