//! Every list in the settings has a maximum length. Errors name the list and its length.

use super::{Fixture, ORGANIZATION};

/// Returns a TOML list of strings.
fn list(count: usize, text: impl Fn(usize) -> String) -> String {
    let items: Vec<_> = (0..count).map(|number| format!("\"{}\"", text(number))).collect();
    format!("[{}]", items.join(", "))
}

fn pools(count: usize) -> String {
    let pools: Vec<_> =
        (0..count).map(|number| format!("[[pool]]\nname = \"p{number}\"\n")).collect();
    pools.concat()
}

fn labels(count: usize) -> String {
    let labels = list(count, |number| format!("l{number}"));
    format!("{ORGANIZATION}[[pool]]\nname = \"a\"\nlabels = {labels}\n")
}

fn variables(count: usize) -> String {
    let lines: Vec<_> = (0..count).map(|number| format!("V{number} = \"x\"\n")).collect();
    format!("[[pool]]\nname = \"a\"\n[pool.environment]\n{}", lines.concat())
}

fn repositories(count: usize) -> String {
    let repositories = list(count, |number| format!("acme/r{number}"));
    format!("{ORGANIZATION}repositories = {repositories}\n")
}

fn keys(count: usize) -> String {
    // A minisign public key.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    format!("[host]\nimage_keys = {}\n", list(count, |_| KEY.to_owned()))
}

#[test]
fn a_list_that_is_too_long_is_rejected_with_file_key_and_length() {
    type Case = (&'static str, usize, fn(usize) -> String);
    let cases: [Case; 5] = [
        ("pool", 64, pools),
        ("pool[0].labels", 100, labels),
        ("pool[0].environment", 256, variables),
        ("github.repositories", 500, repositories),
        ("host.image_keys", 64, keys),
    ];
    let fixture = Fixture::with(&[("GITHUB_TOKEN", "ghp_secret")]);
    for (key, most, text) in cases {
        if let Err(error) = fixture.load(&text(most)) {
            panic!("{key}: {most} are too many: {error}");
        }
        let refusal = fixture.refusal(&text(most + 1));
        let named = format!("mayfly.toml: {key} = \"{}\" can't be used", most + 1);
        assert!(refusal.starts_with(&named), "{refusal}");
        assert!(refusal.ends_with(&format!("at most {most} entries are allowed")), "{refusal}");
    }
}
