//! What is different between two images, as far as their manifests tell.
//!
//! Works on the manifests as values, not field by field: what a manifest comes to hold is
//! compared without a word here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::manifest::Manifest;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The part of the manifest that it is in, e.g. `packages`.
    pub section: String,
    /// Where in that part, e.g. a package's name; empty where the part is but one value.
    pub key: String,
    /// What the first image has there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What the second image has there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// Everything that is different in `to`, in the order of the manifest's keys.
pub fn between(from: &Manifest, to: &Manifest) -> Vec<Change> {
    let (from, to) = (comparable(from), comparable(to));
    let mut changes = Vec::new();
    for section in union(&from, &to) {
        let place = Place { section, key: String::new() };
        compare(&place, from.get(section), to.get(section), &mut changes);
    }
    changes
}

/// A manifest as a value whose packages are told from each other by name.
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

/// Where in a manifest a value is.
#[derive(Clone)]
struct Place<'a> {
    section: &'a str,
    key: String,
}

impl Place<'_> {
    fn below(&self, key: &str) -> Self {
        let key = if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) };
        Self { section: self.section, key }
    }

    fn change(&self, from: Option<&Value>, to: Option<&Value>) -> Change {
        Change {
            section: self.section.to_owned(),
            key: self.key.clone(),
            from: from.cloned(),
            to: to.cloned(),
        }
    }
}

/// Objects are compared key by key, lists as sets, and a list of objects that have names as an
/// object. What is not there is as good as null.
fn compare(place: &Place<'_>, from: Option<&Value>, to: Option<&Value>, changes: &mut Vec<Change>) {
    let (from, to) = (present(from), present(to));
    if from == to {
        return;
    }
    match (from.and_then(keyed), to.and_then(keyed)) {
        (Some(old), Some(new)) => {
            for key in union(&old, &new) {
                compare(&place.below(key), old.get(key), new.get(key), changes);
            }
        }
        _ => match (from, to) {
            (Some(Value::Array(old)), Some(Value::Array(new))) => {
                compare_lists(place, old, new, changes);
            }
            _ => changes.push(place.change(from, to)),
        },
    }
}

fn compare_lists(place: &Place<'_>, old: &[Value], new: &[Value], changes: &mut Vec<Change>) {
    let before = changes.len();
    let gone = old.iter().filter(|element| !new.contains(element));
    changes.extend(gone.map(|element| place.change(Some(element), None)));
    let come = new.iter().filter(|element| !old.contains(element));
    changes.extend(come.map(|element| place.change(None, Some(element))));
    if changes.len() == before {
        // The same elements, in another order or number.
        changes.push(place.change(Some(&old.into()), Some(&new.into())));
    }
}

fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

/// An object, or a list of objects by their names.
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

/// The keys of both, sorted, each once.
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
        let place = Place { section: "x", key: String::new() };
        compare(&place, Some(from), Some(to), &mut changes);
        changes.into_iter().map(|change| (change.key, change.from, change.to)).collect()
    }

    #[test]
    fn a_change_is_told_where_it_is() {
        let from = json!({ "a": 1, "b": { "c": 2, "d": 3 }, "gone": "x" });
        let to = json!({ "a": 1, "b": { "c": 2, "d": 4 }, "new": null });
        let expected = [
            ("b.d".to_owned(), Some(json!(3)), Some(json!(4))),
            ("gone".to_owned(), Some(json!("x")), None),
        ];
        assert_eq!(changes(&from, &to), expected);
    }

    #[test]
    fn lists_tell_what_came_and_went() {
        let expected =
            [(String::new(), Some(json!("b")), None), (String::new(), None, Some(json!("c")))];
        assert_eq!(changes(&json!(["a", "b"]), &json!(["c", "a"])), expected);
        let other_order = changes(&json!(["a", "b"]), &json!(["b", "a"]));
        let expected = [(String::new(), Some(json!(["a", "b"])), Some(json!(["b", "a"])))];
        assert_eq!(other_order, expected);
    }

    #[test]
    fn objects_in_a_list_are_known_by_their_names() {
        let from = json!([{ "name": "a", "uid": 1 }, { "name": "b", "uid": 2 }]);
        let to = json!([{ "name": "b", "uid": 3 }, { "name": "a", "uid": 1 }]);
        assert_eq!(changes(&from, &to), [("b.uid".to_owned(), Some(json!(2)), Some(json!(3)))]);
        let added = changes(&json!([]), &json!([{ "name": "a" }]));
        assert_eq!(added, [(String::new(), None, Some(json!({ "name": "a" })))]);
    }

    /// Values without null, which is as good as nothing, and without names.
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
        fn whatever_differs_is_told_in_both_directions(from in value(), to in value()) {
            prop_assert_eq!(changes(&from, &to).is_empty(), from == to);
            prop_assert_eq!(changes(&from, &to).len(), changes(&to, &from).len());
        }
    }
}
