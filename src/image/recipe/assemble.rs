//! Merges a recipe with its profiles and the settings of the command line (pure).
//!
//! Everything is merged as TOML: lists are concatenated, tables are merged, and any other value
//! replaces the earlier one. The result is the *effective* recipe. The manifest records it, so an
//! image can be rebuilt without the original files.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use toml::{Table, Value};

use crate::name::InvalidName;

/// The lists whose entries name a file relative to the file that contains them.
const LISTS_WITH_SOURCES: [&str; 2] = ["files", "hooks"];

/// A key of the recipe set on the command line: `KEY=VALUE` or, for lists, `KEY+=VALUE`. A dot
/// separates the keys of nested tables. A value that is not valid TOML is taken as a string.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    written: String,
    key: Vec<String>,
    appends: bool,
    value: Value,
}

impl Setting {
    /// Returns whether its key begins with this part.
    pub(super) fn begins_with(&self, key: &str) -> bool {
        self.key.first().is_some_and(|first| first == key)
    }

    /// Returns a recipe that contains only this setting.
    pub(super) fn alone(&self) -> Table {
        let mut value = self.value.clone();
        for key in self.key.iter().rev() {
            value = Value::Table(Table::from_iter([(key.clone(), value)]));
        }
        if let Value::Table(table) = value { table } else { Table::new() }
    }

    /// Applies the setting to a recipe.
    pub(super) fn apply(&self, recipe: &mut Table) {
        if !self.appends {
            let (last, above) = self.key.split_last().unwrap_or((&self.written, &[]));
            if let Some(table) = table_at(recipe, above) {
                table.remove(last);
            }
        }
        merge(recipe, self.alone());
    }
}

/// Returns the table at a path of keys, if it exists.
fn table_at<'t>(mut table: &'t mut Table, keys: &[String]) -> Option<&'t mut Table> {
    for key in keys {
        table = table.get_mut(key)?.as_table_mut()?;
    }
    Some(table)
}

impl FromStr for Setting {
    type Err = InvalidName;

    fn from_str(written: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            value: written.to_owned(),
            expected: "a setting (KEY=VALUE or KEY+=VALUE, e.g. `packages+=jq`)",
        };
        let (key, value) = written.split_once('=').ok_or_else(invalid)?;
        let (key, appends) = key.strip_suffix('+').map_or((key, false), |key| (key, true));
        let plain = |part: &str| {
            let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
            !part.is_empty() && part.bytes().all(fits)
        };
        if !key.split('.').all(plain) {
            return Err(invalid());
        }
        let value = match toml::from_str::<Table>(&format!("value = {value}")) {
            // A line break in the value would add a second key.
            Ok(mut table) if table.len() == 1 => table.remove("value").ok_or_else(invalid)?,
            _ => Value::String(value.to_owned()),
        };
        let value = match value {
            Value::Array(_) => value,
            one if appends => Value::Array(vec![one]),
            one => one,
        };
        let key = key.split('.').map(str::to_owned).collect();
        Ok(Self { written: written.to_owned(), key, appends, value })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.written)
    }
}

/// Merges `over` into `base`.
pub(super) fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (Some(Value::Array(base)), Value::Array(over)) => base.extend(over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Makes the file paths of a profile relative to the recipe. `directory` is the profile's
/// directory, relative to the recipe's.
pub(super) fn rebase(profile: &mut Table, directory: &Path) {
    let entries = LISTS_WITH_SOURCES
        .iter()
        .filter_map(|key| profile.get(*key)?.as_array().map(|_| *key))
        .collect::<Vec<_>>();
    for key in entries {
        let Some(Value::Array(entries)) = profile.get_mut(key) else { continue };
        for entry in entries {
            if let Some(Value::String(source)) = entry.get_mut("source") {
                *source = directory.join(&*source).to_string_lossy().into_owned();
            }
        }
    }
    if let Some(Value::String(archive)) =
        profile.get_mut("runner").and_then(|r| r.get_mut("archive"))
    {
        *archive = directory.join(&*archive).to_string_lossy().into_owned();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    fn set(recipe: &str, settings: &[&str]) -> Table {
        let mut recipe = table(recipe);
        for setting in settings {
            setting.parse::<Setting>().unwrap().apply(&mut recipe);
        }
        recipe
    }

    #[test]
    fn lists_are_concatenated_tables_merged_and_the_rest_replaced() {
        let mut base = table("size = '1G'\nlist = [1]\n[kernel]\npackage = 'a'\nlist = [1]");
        merge(&mut base, table("size = '2G'\nlist = [2]\n[kernel]\nlist = [2]\n[new]\nx = 1"));
        let expected = table(
            "size = '2G'\nlist = [1, 2]\n[kernel]\npackage = 'a'\nlist = [1, 2]\n[new]\nx = 1",
        );
        assert_eq!(base, expected);
    }

    #[test]
    fn a_setting_replaces_or_appends() {
        let recipe = "packages = ['git']\n[kernel]\npackage = 'a'";
        for (setting, expected) in [
            ("packages+=jq", "packages = ['git', 'jq']\n[kernel]\npackage = 'a'"),
            ("packages+=['jq']", "packages = ['git', 'jq']\n[kernel]\npackage = 'a'"),
            ("packages=[]", "packages = []\n[kernel]\npackage = 'a'"),
            ("kernel.package=b", "packages = ['git']\n[kernel]\npackage = 'b'"),
            ("hardening.sudo=true", &format!("{recipe}\n[hardening]\nsudo = true")),
            ("runner.sha256=0a", &format!("{recipe}\n[runner]\nsha256 = '0a'")),
            ("runner.version=2.335.1", &format!("{recipe}\n[runner]\nversion = '2.335.1'")),
        ] {
            assert_eq!(set(recipe, &[setting]), table(expected), "{setting}");
        }
        let text = set(recipe, &["size=2G\nname='x'"]);
        assert_eq!(text["size"].as_str(), Some("2G\nname='x'"), "a value can't add a second key");
    }

    #[test]
    fn invalid_settings_are_rejected() {
        for text in ["packages", "=x", "a..b=1", "Packages=1", "+=1", "a b=1", "a.=1"] {
            assert!(text.parse::<Setting>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_profiles_files_are_relative_to_the_profile() {
        let mut profile = table("[[files]]\npath = '/x'\nsource = 'x'\n[[files]]\npath = '/y'");
        rebase(&mut profile, Path::new("../profiles"));
        assert_eq!(profile["files"][0]["source"].as_str(), Some("../profiles/x"));
        assert!(profile["files"][1].get("source").is_none());
    }

    proptest! {
        /// Whatever a setting contains, the rest of the recipe is unchanged.
        #[test]
        fn a_setting_changes_nothing_else(
            key in "[a-z_]{1,5}(\\.[a-z_]{1,5}){0,2}", appends: bool, value in "\\PC{0,20}",
        ) {
            let before = table("untouched_key = 1\n[other_table]\nx = [1]");
            let mut after = before.clone();
            let text = format!("{key}{}={value}", if appends { "+" } else { "" });
            text.parse::<Setting>().unwrap().apply(&mut after);
            for (key, value) in &before {
                prop_assert_eq!(&after[key], value);
            }
            prop_assert_eq!(after.len(), before.len() + 1);
        }
    }
}
