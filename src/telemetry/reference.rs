//! Tests that the documentation of metrics matches the table.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::metrics::{Metric, MetricKind, TABLE};
use mayfly_reference::{assert_generated, read};

fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         Use this page to write dashboards and alerts: it lists every metric of `/metrics`, in \
         Prometheus' text format. [The guide](../guide/operating.md) says where `/metrics` is and how \
         to use it. Labels have few values: a pool's name, or a word from a short list.\n\n\
         | metric | type | labels | description |\n|---|---|---|---|\n",
    );
    for row in TABLE {
        let kind = match row.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram(_) => "histogram",
        };
        let labels: Vec<_> = row.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ =
            writeln!(page, "| `{}` | {kind} | {} | {} |", row.name, labels.join(", "), row.help);
    }
    page.push_str("\n## Buckets\n\nIn seconds.\n\n| metric | upper bounds |\n|---|---|\n");
    for row in TABLE {
        if let MetricKind::Histogram(buckets) = row.kind {
            let buckets: Vec<_> = buckets.iter().map(ToString::to_string).collect();
            let _ = writeln!(page, "| `{}` | {} |", row.name, buckets.join(", "));
        }
    }
    page
}

#[test]
fn the_page_is_generated_from_the_table() {
    assert_generated("reference/metrics.md", &page());
}

/// Returns every name in a text that looks like one of our metrics.
fn names(text: &str) -> BTreeSet<&str> {
    let part = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    text.split(|byte| !part(byte)).filter(|word| word.starts_with("mayfly_")).collect()
}

/// Returns the metric of a series.
fn row_of(name: &str) -> Option<&'static Metric> {
    let is = |row: &&&Metric| match row.kind {
        MetricKind::Histogram(_) => {
            ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(row.name))
        }
        _ => row.name == name,
    };
    TABLE.iter().find(is).copied()
}

#[test]
fn every_metric_of_the_examples_is_in_the_table() {
    let mut used = BTreeSet::new();
    for example in
        ["examples/grafana-dashboard.json", "examples/alerts.yml", "examples/alerts-test.yml"]
    {
        let text = read(example);
        let found = names(&text);
        assert!(found.len() > 3, "{example} names {found:?}");
        for name in found {
            let row = row_of(name);
            used.insert(row.unwrap_or_else(|| panic!("{example}: unknown metric {name}")).name);
        }
    }
    assert!(used.len() > 15, "the examples use {used:?} only");
}

#[test]
fn every_label_of_the_examples_is_one_of_its_metrics() {
    for example in ["examples/grafana-dashboard.json", "examples/alerts.yml"] {
        let text = read(example).replace("\\\"", "\"");
        for (at, _) in text.match_indices("mayfly_") {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
            let (name, rest) = rest.split_at(end);
            let Some(selector) = rest.strip_prefix('{') else { continue };
            let row = row_of(name).unwrap();
            for matcher in selector.split('}').next().unwrap().split(',') {
                let label = matcher.split(['=', '!']).next().unwrap().trim();
                let known = row.labels.contains(&label) || label == "le" || label == "instance";
                assert!(known, "{example}: {name} has no label {label:?}");
            }
        }
    }
}

#[test]
fn the_dashboard_is_valid_for_grafana() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("examples/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 8);
    let mut numbers = BTreeSet::new();
    for panel in panels {
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{} is there twice", panel["id"]);
        let position = &panel["gridPos"];
        assert!(
            position["x"].as_u64().unwrap() + position["w"].as_u64().unwrap() <= 24,
            "{position}"
        );
        if panel["type"] == "row" {
            continue;
        }
        assert!(!panel["title"].as_str().unwrap().is_empty());
        let targets = panel["targets"].as_array().unwrap();
        assert!(targets.iter().all(|target| target["expr"].is_string()), "{panel:#}");
    }
}
