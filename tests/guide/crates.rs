//! Draws the crates of the workspace and their dependencies in CONTRIBUTING.md, from Cargo's metadata.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use mayfly_reference::assert_generated_parts;
use serde_json::Value;

use crate::blocks::project;

type Dependencies = BTreeMap<String, BTreeSet<String>>;

/// Returns the crates of the product, and for each the other ones that it uses. Those of its tests do
/// not count.
fn dependencies() -> Dependencies {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline", "--locked"])
        .current_dir(project())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let is_product = |package: &&Value| {
        let manifest = package["manifest_path"].as_str().unwrap();
        let path = manifest.strip_prefix(project().to_str().unwrap()).unwrap();
        path.starts_with("/src/") || path.starts_with("/guest/") || path == "/Cargo.toml"
    };
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let product: BTreeSet<_> = packages.iter().filter(is_product).map(name).collect();
    let uses = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|one| one["kind"].is_null())
            .map(name)
            .filter(|one| product.contains(one))
            .collect()
    };
    packages.iter().filter(is_product).map(|package| (name(package), uses(package))).collect()
}

/// Returns whether `from` uses `to` through other crates.
fn reaches_indirectly(all: &Dependencies, from: &str, to: &str) -> bool {
    let reaches = |via: &str| all[via].contains(to) || reaches_indirectly(all, via, to);
    all[from].iter().any(|via| via != to && reaches(via))
}

fn short(name: &str) -> &str {
    name.strip_prefix("mayfly-").unwrap_or(name)
}

/// Returns the graph without arrows that others imply, so that it stays legible.
fn graph(all: &Dependencies) -> String {
    let mut text = String::from("```mermaid\nflowchart LR\n");
    for (from, used) in all {
        for to in used.iter().filter(|to| !reaches_indirectly(all, from, to)) {
            writeln!(text, "    {} --> {}", short(from), short(to)).unwrap();
        }
    }
    text + "```\n"
}

#[test]
fn contributing_shows_the_crates_and_what_they_use() {
    let all = dependencies();
    assert!(all.len() > 20, "{all:?}");
    let mut table = String::from("| crate | uses |\n|---|---|\n");
    for (name, used) in &all {
        let used: Vec<_> = used.iter().map(|name| short(name)).collect();
        writeln!(table, "| {} | {} |", short(name), used.join(", ")).unwrap();
    }
    assert_generated_parts("../CONTRIBUTING.md", &[("crates", graph(&all) + "\n" + &table)]);
}

#[test]
fn contributing_says_what_each_crate_is_for() {
    let page = fs::read_to_string(project().join("CONTRIBUTING.md")).unwrap();
    let rows: Vec<_> = page.lines().filter(|line| line.starts_with("| `")).collect();
    for entry in fs::read_dir(project().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let row = format!("| `src/{name}/` |");
        assert_eq!(rows.iter().filter(|line| line.starts_with(&row)).count(), 1, "{row}");
    }
}

#[test]
fn implied_arrows_are_found() {
    let uses = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let all = Dependencies::from([
        ("a".to_owned(), uses(&["b", "c"])),
        ("b".to_owned(), uses(&["c"])),
        ("c".to_owned(), uses(&[])),
    ]);
    assert!(reaches_indirectly(&all, "a", "c") && !reaches_indirectly(&all, "a", "b"));
    assert_eq!(graph(&all), "```mermaid\nflowchart LR\n    a --> b\n    b --> c\n```\n");
}
