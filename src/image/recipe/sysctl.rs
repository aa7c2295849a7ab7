//! `[sysctl]`: kernel parameters of a recipe, by their dotted names.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Table, Value};

use crate::name::InvalidName;

/// The longest value, in bytes. The kernel accepts at most a page; no parameter needs more than a
/// few numbers.
const MAX_VALUE: usize = 256;

/// Kernel parameters, by path below `/proc/sys`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Table")]
pub struct KernelParameters(BTreeMap<String, String>);

impl KernelParameters {
    /// Returns each path, e.g. `vm/max_map_count`, with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, value)| (path.as_str(), value.as_str()))
    }
}

impl TryFrom<Table> for KernelParameters {
    type Error = InvalidName;

    /// TOML parses `vm.max_map_count = 1` as nested tables.
    fn try_from(table: Table) -> Result<Self, InvalidName> {
        let mut parameters = Self::default();
        parameters.add("", table)?;
        Ok(parameters)
    }
}

impl KernelParameters {
    fn add(&mut self, parent: &str, table: Table) -> Result<(), InvalidName> {
        for (name, value) in table {
            if !is_part(&name) {
                let expected = "a kernel parameter's name without quotes (e.g. vm.max_map_count)";
                return Err(InvalidName { value: name, expected });
            }
            let path = if parent.is_empty() { name } else { format!("{parent}/{name}") };
            let value = match value {
                Value::Table(below) => {
                    self.add(&path, below)?;
                    continue;
                }
                Value::Integer(number) => number.to_string(),
                Value::String(text) if is_value(&text) => text,
                other => {
                    let expected = "a kernel parameter's value (a number or one line of text)";
                    let text = other.as_str().unwrap_or_else(|| other.type_str());
                    let value = format!("{} = {text}", path.replace('/', "."));
                    return Err(InvalidName { value, expected });
                }
            };
            self.0.insert(path, value);
        }
        Ok(())
    }
}

fn is_part(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !name.is_empty() && name.bytes().all(fits)
}

fn is_value(text: &str) -> bool {
    let fits = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    !text.is_empty() && text.len() <= MAX_VALUE && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<KernelParameters, String> {
        let table: Table = toml::from_str(text).unwrap();
        KernelParameters::try_from(table).map_err(|error| error.to_string())
    }

    #[test]
    fn dotted_names_become_paths() {
        let text = "vm.max_map_count = 262144\nnet.ipv4.ip_local_port_range = '1024 65535'\n\
                    [fs.inotify]\nmax_user_watches = 655360";
        let parameters = parse(text).unwrap();
        let all: Vec<_> = parameters.iter().collect();
        let expected = [
            ("fs/inotify/max_user_watches", "655360"),
            ("net/ipv4/ip_local_port_range", "1024 65535"),
            ("vm/max_map_count", "262144"),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn invalid_names_and_values_are_rejected() {
        let long = format!("a = '{}'", "1".repeat(MAX_VALUE + 1));
        let rows = [
            ("'vm.max_map_count' = 1", "vm.max_map_count"),
            ("'..'.a = 1", ".."),
            ("'a/b' = 1", "a/b"),
            ("a = true", "a = boolean"),
            ("a.b = [1]", "a.b = array"),
            ("a = 1.5", "a = float"),
            ("a = ''", "a = "),
            ("a = \"1\\n2\"", "a = "),
            (&long, "a = "),
        ];
        for (text, named) in rows {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
