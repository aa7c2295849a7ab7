//! Secrets: where they are found, which are rejected, and that none is shown.

use super::*;

#[test]
fn a_secret_of_digits_is_kept_as_written() {
    let fixture = Fixture::with(&[("MAYFLY_GITHUB__TOKEN", "00123")]);
    let settings =
        fixture.load(&format!("{ORGANIZATION}[[pool]]\nname='a'\nlabels=['a']")).unwrap();
    assert_eq!(token(&settings), ("00123", "MAYFLY_GITHUB__TOKEN"));
}

#[test]
fn a_secret_that_others_can_read_is_rejected() {
    let fixture = Fixture::new();
    let error = fixture.refusal(&format!("{ORGANIZATION}token = 'ghp_visible'"));
    assert!(error.contains("github.token = \"…\"") && error.contains("0644"), "{error}");
    assert!(!error.contains("ghp_visible"));

    let path = fixture.file("own.toml", &format!("{ORGANIZATION}token = 'ghp_own'"), 0o600);
    let settings = Settings::load(Some(&path), &fixture.environment);
    assert_eq!(token(&settings.unwrap()).0, "ghp_own");

    for (mode, accepted) in [(0o600, true), (0o640, true), (0o644, false), (0o660, false)] {
        let file = fixture.file("token", " ghp_file\n", mode);
        let result = fixture.load(&format!("{ORGANIZATION}token_file = {:?}", file.display()));
        match result {
            Ok(settings) => assert!(accepted && token(&settings).0 == "ghp_file"),
            Err(error) => {
                assert!(!accepted, "{}", chain(&error));
                assert!(error.hint().unwrap().contains("chmod"), "{error:?}");
            }
        }
    }
}

#[test]
fn a_secret_of_another_type_is_not_repeated() {
    let error = Fixture::new().refusal(&format!("{ORGANIZATION}token = 424242"));
    assert!(
        error.contains("github.token: a secret must be a quoted string") && !error.contains("4242")
    );
}

#[test]
fn credentials_are_found_in_the_directory_of_the_service() {
    let mut fixture = Fixture::new();
    fixture.file("github-token", "ghp_service", 0o440);
    let directory = fixture.directory.path().display().to_string();
    fixture.set(&[("CREDENTIALS_DIRECTORY", directory.as_str())]);
    assert_eq!(token(&fixture.load(ORGANIZATION).unwrap()).0, "ghp_service");

    fixture.file("github-app-key", "-----BEGIN RSA PRIVATE KEY-----\n…", 0o400);
    let app = format!("{ORGANIZATION}app = {{ client_id = 'Iv1.x', installation = 7 }}");
    let GitHubCredentials::App(app) = fixture.load(&app).unwrap().github.unwrap().credentials
    else {
        panic!("a token");
    };
    assert_eq!((app.issuer.as_str(), app.installation), ("Iv1.x", Some(7)));
}

#[test]
fn incomplete_or_conflicting_credentials_are_rejected() {
    let fixture = Fixture::new();
    for (text, expected) in [
        ("", "github.token_file is missing"),
        ("app = { }", "github.app.client_id is missing"),
        ("app = { id = 1 }", "github.app.private_key_file is missing"),
        ("app = { id = 1, client_id = 'x' }", "github.app.id is set too"),
        ("token_file = '/a'\napp = { id = 1 }", "github.app is set too"),
        ("token_file = 'a'", "must be an absolute path"),
        ("token_file = '/nowhere/x'", "can't read the file"),
        ("repositories = ['other/x']", "github.repositories[0] = \"other/x\""),
        ("webhook = { listen = '127.0.0.1:1' }", "github.webhook.secret_file is missing"),
    ] {
        let needs_token = text.starts_with("rep") || text.starts_with("webhook");
        let mut fixture = Fixture { environment: fixture.environment.clone(), ..Fixture::new() };
        fixture.set(if needs_token { &[("GITHUB_TOKEN", "x")] } else { &[] });
        let error = fixture.refusal(&format!("{ORGANIZATION}{text}"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn shown_settings_have_every_default_and_no_secret() {
    let fixture = Fixture::with(&[("GITHUB_TOKEN", "ghp_never_shown")]);
    let settings =
        fixture.load(&format!("{ORGANIZATION}[[pool]]\nname='a'\nlabels=['a']")).unwrap();
    let lines = settings.lines();
    for expected in [
        "github.token = \"(hidden, from GITHUB_TOKEN)\"",
        "github.api = \"https://api.github.com\"",
        "host.socket_mode = \"0600\"",
        "pool.a.deadlines.job = \"6h\"",
        "pool.a.egress = \"github\"",
        "pool.a.trigger = \"auto\"",
    ] {
        assert!(lines.contains(&expected.to_owned()), "{expected} in {lines:#?}");
    }
    let all = format!("{lines:?}{settings:?}{:?}", settings.fingerprint());
    assert!(!all.contains("never_shown"));
}
