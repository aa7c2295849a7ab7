use super::*;
use mayfly_failure::chain;

const SMALL: &str = r#"
    name = "small"
    suite = "trixie"
    size = "512M"
    [kernel]
    package = "linux-image-cloud-amd64"
"#;

/// Loads a recipe from its own directory, with settings.
fn load(text: &str, settings: &[&str]) -> Result<Recipe, ImageError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("small.toml");
    fs::write(&path, text).unwrap();
    fs::create_dir(directory.path().join("profiles")).unwrap();
    fs::write(directory.path().join("profiles/tools.toml"), TOOLS).unwrap();
    fs::write(directory.path().join("profiles/nested.toml"), "profiles = ['x']").unwrap();
    fs::write(directory.path().join("profiles/wrong.toml"), "\nsize = 'big'").unwrap();
    let settings: Vec<Setting> = settings.iter().map(|text| text.parse().unwrap()).collect();
    Recipe::load(&path, &settings)
}

fn parse(text: &str) -> Result<Recipe, ImageError> {
    load(text, &[])
}

fn refusal(addition: &str) -> String {
    chain(&parse(&format!("{SMALL}\n{addition}")).unwrap_err())
}

const TOOLS: &str = r#"
    size = "1G"
    packages = ["jq"]
    [[files]]
    path = "/etc/tool"
    source = "tool"
"#;

#[test]
fn missing_keys_have_empty_defaults() {
    let recipe = parse(SMALL).unwrap();
    assert!(recipe.content.packages.is_empty() && recipe.content.mirror.is_none());
    assert_eq!(recipe.resolve(Path::new("a")), recipe.path.parent().unwrap().join("a"));
}

#[test]
fn the_recipes_of_the_project_are_valid() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
    let recipe = Recipe::load(&images.join("base/image.toml"), &[]).unwrap();
    assert_eq!(recipe.name.as_str(), "base");
    let without = ["docker=false".parse().unwrap()];
    let recipe = Recipe::load(&images.join("runner/image.toml"), &without).unwrap();
    assert_eq!(recipe.content.runner.unwrap().version, Some(RunnerVersion::Latest));
}

#[test]
fn a_profile_comes_before_the_recipe_and_a_setting_after_it() {
    let text = format!("profiles = ['profiles/tools.toml']\npackages = ['git']\n{SMALL}");
    let recipe = load(&text, &["packages+=curl", "suite=sid"]).unwrap();
    let packages: Vec<_> = recipe.content.packages.iter().map(PackageName::as_str).collect();
    assert_eq!(packages, ["jq", "git", "curl"]);
    assert_eq!(recipe.size, Size::mebibytes(512), "the recipe's own value");
    assert_eq!(recipe.suite.as_str(), "sid");
    assert_eq!(recipe.content.files[0].source.as_deref(), Some(Path::new("profiles/tool")));
    assert_eq!(recipe.settings, ["packages+=curl", "suite=sid"]);
    let digest = hash::of_bytes(TOOLS.as_bytes());
    assert_eq!(recipe.profiles, [("profiles/tools.toml".to_owned(), digest)].into());
    assert_eq!(recipe.effective["packages"], serde_json::json!(["jq", "git", "curl"]));
    assert!(recipe.effective.get("profiles").is_none());
}

#[test]
fn a_setting_can_add_a_profile() {
    let recipe = load(SMALL, &["profiles+=profiles/tools.toml"]).unwrap();
    assert_eq!(recipe.content.packages[0].as_str(), "jq");
}

#[test]
fn errors_name_their_source() {
    let message = chain(&load(SMALL, &["packages+=No Package"]).unwrap_err());
    assert!(message.contains("--set packages+=No Package"), "{message}");
    let message = chain(&load(SMALL, &["sweet=trixie"]).unwrap_err());
    assert!(message.contains("--set sweet=trixie") && message.contains("unknown field"));
    for (profile, parts) in [
        ("nested", ["profiles/nested.toml", "a profile can't include profiles"]),
        ("wrong", ["profiles/wrong.toml", "line 2"]),
        ("absent", ["profiles/absent.toml", "No such file"]),
    ] {
        let setting = format!("profiles+=profiles/{profile}.toml");
        let message = chain(&load(SMALL, &[&setting]).unwrap_err());
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn missing_required_keys_are_reported() {
    for key in ["name", "suite", "size", "package"] {
        let text: Vec<_> = SMALL.lines().filter(|line| !line.contains(key)).collect();
        let message = chain(&parse(&text.join("\n")).unwrap_err());
        assert!(message.contains(key) && message.contains("lack the required key"), "{message}");
    }
}

#[test]
fn an_unknown_key_is_named_with_file_and_line() {
    let message = refusal("argument = []");
    assert!(message.contains("small.toml"), "{message}");
    assert!(message.contains("line 8") && message.contains("`argument`"), "{message}");
}

#[test]
fn a_wrong_value_is_shown_with_its_line() {
    let message = chain(&parse(&SMALL.replace("512M", "big")).unwrap_err());
    assert!(message.contains("line 4") && message.contains("\"big\""), "{message}");
}

#[test]
fn contradictions_name_key_and_value() {
    let user = "[[users]]\nname='a'\nuid=7\nhome='/home/a'\nshell='/bin/sh'\n";
    let file = "[[files]]\npath='/etc/x'\n";
    for (addition, key, value) in [
        (user.replace('7', "0"), "users.uid", "0"),
        (format!("{user}{}", user.replace("'a'", "'b'")), "users.uid", "7"),
        (format!("{user}{}", user.replace('7', "8")), "users.name", "a"),
        (file.to_owned(), "files.path", "/etc/x"),
        (format!("{file}content=''\nsource='y'"), "files.path", "/etc/x"),
        (format!("{file}content=''\n{file}content=''"), "files.path", "/etc/x"),
        (format!("{file}content=''\nowner='b'"), "files.owner", "b"),
        ("[hardening]\noff=['no.such']".to_owned(), "hardening.off", "no.such"),
    ] {
        let message = refusal(&addition);
        assert!(message.contains(&format!("{key} = {value:?}")), "{message}");
    }
    let message = chain(&parse(&SMALL.replace("512M", "1M")).unwrap_err());
    assert!(message.contains("size = \"1 MiB\""), "{message}");
}

#[test]
fn a_recipe_sets_kernel_parameters_beside_those_of_the_hardening() {
    let recipe = parse(&format!("{SMALL}\n[sysctl]\nvm.max_map_count = 262144")).unwrap();
    let parameters = crate::hardening::plan(&recipe.content).settings.parameters;
    assert!(parameters.contains(&("vm/max_map_count".into(), "262144".into())));

    let ptrace = "[sysctl]\nkernel.yama.ptrace_scope = 0";
    let refused = refusal(ptrace);
    assert!(
        refused.contains("sysctl") && refused.contains("kernel.yama.ptrace_scope"),
        "{refused}"
    );
    assert!(refused.contains("hardening.off"), "{refused}");
    let off = format!("{SMALL}\n{ptrace}\n[hardening]\noff = ['kernel.tracing']");
    assert!(parse(&off).is_ok());
}

#[test]
fn inodes_are_limited_to_valid_sizes() {
    for (wrong, right) in [("3K", "4K"), ("5M", "4M")] {
        let text = |inodes: &str| format!("inodes = '{inodes}'\n{SMALL}");
        let refused = chain(&parse(&text(wrong)).unwrap_err());
        assert!(refused.contains("inodes") && refused.contains("disk for each inode"), "{refused}");
        assert!(parse(&text(right)).is_ok());
    }
}
