//! Compares the manifests of two images.
//!
//! It works on JSON values, so new manifest fields are compared without changes here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::manifest::Manifest;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ManifestChange {
    /// The section of the manifest, e.g. `packages`.
    pub section: String,
    /// The key within the section, e.g. a package's name; empty if the section is a single value.
    pub key: String,
    /// The value in the first image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The value in the second image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// Returns all differences, in the order of the manifest's keys.
pub fn between(from: &Manifest, to: &Manifest) -> Vec<ManifestChange> {
    let (from, to) = (comparable(from), comparable(to));
    let mut changes = Vec::new();
    for section in union(&from, &to) {
        let location = Location { section, key: String::new() };
        compare(&location, from.get(section), to.get(section), &mut changes);
    }
    changes
}

/// Converts a manifest to a JSON object with packages keyed by name.
fn comparable(manifest: &Manifest) -> Map<String, Value> {
    let value = serde_json::to_value(manifest).unwrap_or_default();
    let Value::Object(mut object) = value else { return Map::new() };
    let mut packages: BTreeMap<String, String> = BTreeMap::new();
    for package in &manifest.packages {
        let name = match packages.get(&package.name) {
            None => package.name.clone(),
            Some(_) => format!("{}:{}", package.name, package.architecture),
        };
        packages.insert(name, package.version.clone());
    }
    let packages = packages.into_iter().map(|(name, version)| (name, version.into())).collect();
    object.insert("packages".to_owned(), Value::Object(packages));
    object
}

/// The position of a value in a manifest.
#[derive(Clone)]
struct Location<'a> {
    section: &'a str,
    key: String,
}

impl Location<'_> {
    fn child(&self, key: &str) -> Self {
        let key = if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) };
        Self { section: self.section, key }
    }

    fn change(&self, from: Option<&Value>, to: Option<&Value>) -> ManifestChange {
        ManifestChange {
            section: self.section.to_owned(),
            key: self.key.clone(),
            from: from.cloned(),
            to: to.cloned(),
        }
    }
}

/// Compares objects key by key, lists as sets, and lists of named objects as objects. A missing
/// value equals null.
fn compare(
    location: &Location<'_>,
    from: Option<&Value>,
    to: Option<&Value>,
    changes: &mut Vec<ManifestChange>,
) {
    let (from, to) = (present(from), present(to));
    if from == to {
        return;
    }
    match (from.and_then(keyed), to.and_then(keyed)) {
        (Some(old), Some(new)) => {
            for key in union(&old, &new) {
                compare(&location.child(key), old.get(key), new.get(key), changes);
            }
        }
        _ => match (from, to) {
            (Some(Value::Array(old)), Some(Value::Array(new))) => {
                compare_lists(location, old, new, changes);
            }
            _ => changes.push(location.change(from, to)),
        },
    }
}

fn compare_lists(
    location: &Location<'_>,
    old: &[Value],
    new: &[Value],
    changes: &mut Vec<ManifestChange>,
) {
    let before = changes.len();
    let removed = old.iter().filter(|element| !new.contains(element));
    changes.extend(removed.map(|element| location.change(Some(element), None)));
    let added = new.iter().filter(|element| !old.contains(element));
    changes.extend(added.map(|element| location.change(None, Some(element))));
    if changes.len() == before {
        // Same elements, different order or count.
        changes.push(location.change(Some(&old.into()), Some(&new.into())));
    }
}

fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

/// Returns an object, or a list of named objects keyed by name.
fn keyed(value: &Value) -> Option<Map<String, Value>> {
    let list = match value {
        Value::Object(object) => return Some(object.clone()),
        Value::Array(list) if !list.is_empty() => list,
        _ => return None,
    };
    let name = |element: &Value| {
        let name = element.get("name").or_else(|| element.get("path"))?;
        Some((name.as_str()?.to_owned(), element.clone()))
    };
    let named: Option<Map<String, Value>> = list.iter().map(name).collect();
    named.filter(|named| named.len() == list.len())
}

/// Returns the keys of both, sorted and without duplicates.
fn union<'a>(from: &'a Map<String, Value>, to: &'a Map<String, Value>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = from.keys().chain(to.keys()).map(String::as_str).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn changes(from: &Value, to: &Value) -> Vec<(String, Option<Value>, Option<Value>)> {
        let mut changes = Vec::new();
        let location = Location { section: "x", key: String::new() };
        compare(&location, Some(from), Some(to), &mut changes);
        changes.into_iter().map(|change| (change.key, change.from, change.to)).collect()
    }

    #[test]
    fn a_change_is_reported_with_its_location() {
        let from = json!({ "a": 1, "b": { "c": 2, "d": 3 }, "gone": "x" });
        let to = json!({ "a": 1, "b": { "c": 2, "d": 4 }, "new": null });
        let expected = [
            ("b.d".to_owned(), Some(json!(3)), Some(json!(4))),
            ("gone".to_owned(), Some(json!("x")), None),
        ];
        assert_eq!(changes(&from, &to), expected);
    }

    #[test]
    fn list_changes_report_added_and_removed_elements() {
        let expected =
            [(String::new(), Some(json!("b")), None), (String::new(), None, Some(json!("c")))];
        assert_eq!(changes(&json!(["a", "b"]), &json!(["c", "a"])), expected);
        let other_order = changes(&json!(["a", "b"]), &json!(["b", "a"]));
        let expected = [(String::new(), Some(json!(["a", "b"])), Some(json!(["b", "a"])))];
        assert_eq!(other_order, expected);
    }

    #[test]
    fn objects_in_a_list_are_matched_by_name() {
        let from = json!([{ "name": "a", "uid": 1 }, { "name": "b", "uid": 2 }]);
        let to = json!([{ "name": "b", "uid": 3 }, { "name": "a", "uid": 1 }]);
        assert_eq!(changes(&from, &to), [("b.uid".to_owned(), Some(json!(2)), Some(json!(3)))]);
        let added = changes(&json!([]), &json!([{ "name": "a" }]));
        assert_eq!(added, [(String::new(), None, Some(json!({ "name": "a" })))]);
    }

    /// Generates values without null, which equals a missing value, and without names.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            "[ab]".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            let object = prop::collection::btree_map("[abc]", inner.clone(), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                object.prop_map(|map| map.into_iter().collect::<Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_difference_is_reported_in_both_directions(from in value(), to in value()) {
            prop_assert_eq!(changes(&from, &to).is_empty(), from == to);
            prop_assert_eq!(changes(&from, &to).len(), changes(&to, &from).len());
        }
    }
}
