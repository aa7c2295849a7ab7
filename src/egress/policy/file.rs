//! All policies of a settings file and the built-in ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::draft::check_sets;
use super::{Policy, PolicyDraft, PolicyError, PolicyMode, PolicyValueError, SetDrafts};
use mayfly_failure::{Code, Failure};

/// The built-in policies: name, mode and included sets.
const BUILT_IN: [(&str, PolicyMode, &[&str]); 3] = [
    ("open", PolicyMode::Open, &[]),
    ("none", PolicyMode::None, &[]),
    ("github", PolicyMode::Enforce, &["github"]),
];

/// An error in reading policies.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// The file can't be read.
    #[error("can't read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The I/O error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not valid TOML, or has an unknown key or a wrong type under `[egress]`.
    #[error("can't parse the settings in {}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// The parse error with its location.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A policy is invalid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy does not exist.
    #[error("unknown egress policy {name:?}")]
    Unknown {
        /// The requested name.
        name: String,
        /// The known names.
        known: Vec<String>,
    },
}

impl Failure for PolicyFileError {
    fn code(&self) -> Code {
        match self {
            Self::Read { .. } => Code::NotFound,
            Self::Toml { .. } => Code::BadConfiguration,
            Self::Policy(error) => error.code(),
            Self::Unknown { .. } => Code::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Policy(error) => error.hint(),
            Self::Unknown { known, .. } => Some(format!("Use one of: {}.", known.join(", "))),
            Self::Read { .. } | Self::Toml { .. } => None,
        }
    }
}

/// The part of a settings file that configures egress; other tables are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SettingsFile {
    egress: EgressTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EgressTable {
    policy: BTreeMap<String, PolicyDraft>,
    set: SetDrafts,
}

/// Policies by name.
#[derive(Debug, Clone)]
pub struct Policies(BTreeMap<String, Policy>);

impl Policies {
    /// Validates the policies of `file` and adds the built-in ones.
    pub fn check(
        file: &Path,
        drafts: &BTreeMap<String, PolicyDraft>,
        sets: &SetDrafts,
    ) -> Result<Self, PolicyError> {
        check_sets(file, sets)?;
        let mut policies = BTreeMap::new();
        for (name, mode, include) in BUILT_IN {
            let include = include.iter().map(ToString::to_string).collect();
            let draft = PolicyDraft { mode, include, ..PolicyDraft::default() };
            policies.insert(name.to_owned(), Policy::check(file, name, &draft)?);
        }
        for (name, draft) in drafts {
            let policy = Policy::check_with(file, name, draft, sets)?;
            if policies.insert(name.clone(), policy).is_some() {
                return Err(PolicyError {
                    file: file.to_path_buf(),
                    key: "egress.policy".into(),
                    value: name.clone(),
                    source: PolicyValueError::BuiltIn,
                });
            }
        }
        Ok(Self(policies))
    }

    /// Reads the policies of a settings file, if given, and adds the built-in ones.
    pub fn read(file: Option<&Path>) -> Result<Self, PolicyFileError> {
        let Some(file) = file else {
            return Ok(Self::check(Path::new("built-in"), &BTreeMap::new(), &SetDrafts::new())?);
        };
        let text = std::fs::read_to_string(file)
            .map_err(|source| PolicyFileError::Read { file: file.to_path_buf(), source })?;
        let settings: SettingsFile = toml::from_str(&text).map_err(|source| {
            PolicyFileError::Toml { file: file.to_path_buf(), source: Box::new(source) }
        })?;
        Ok(Self::check(file, &settings.egress.policy, &settings.egress.set)?)
    }

    /// Returns the policy with the given name.
    pub fn get(&self, name: &str) -> Result<&Policy, PolicyFileError> {
        self.0.get(name).ok_or_else(|| PolicyFileError::Unknown {
            name: name.to_owned(),
            known: self.0.keys().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_failure::chain;

    fn read(text: &str) -> Result<Policies, PolicyFileError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mayfly.toml");
        std::fs::write(&file, text).unwrap();
        Policies::read(Some(&file))
    }

    #[test]
    fn the_built_in_policies_need_no_file() {
        let policies = Policies::read(None).unwrap();
        assert_eq!(policies.get("open").unwrap().mode, PolicyMode::Open);
        assert_eq!(policies.get("none").unwrap().mode, PolicyMode::None);
        assert_eq!(policies.get("github").unwrap().ports(), [443].into());
    }

    #[test]
    fn a_file_adds_policies_and_its_other_tables_are_ignored() {
        let policies = read(
            "[github]\nurl = \"x\"\n[egress.policy.ci]\nmode = \"audit\"\n\
             allow = [{ host = \"a.example\" }]",
        )
        .unwrap();
        assert_eq!(policies.get("ci").unwrap().mode, PolicyMode::Audit);
        assert_eq!(policies.get("open").unwrap().mode, PolicyMode::Open);
    }

    #[test]
    fn an_unknown_policy_error_lists_the_known_ones() {
        let error = read("").unwrap().get("cı").unwrap_err().hint();
        assert_eq!(error.as_deref(), Some("Use one of: github, none, open."));
    }

    #[test]
    fn a_built_in_policy_can_not_be_redefined() {
        let error = read("[egress.policy.open]\nmode = \"none\"").unwrap_err();
        assert!(chain(&error).contains("egress.policy = \"open\""), "{}", chain(&error));
    }

    #[test]
    fn a_wrong_type_is_reported_with_its_line() {
        let error = chain(&read("[egress.policy.ci]\nallow = [{ host = 1 }]").unwrap_err());
        assert!(error.contains("mayfly.toml"), "{error}");
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_set_of_the_settings_file_is_included_by_name() {
        let policies = read(
            "[egress.set.packages]\nallow = [{ host = \"*.packages.example.com\" }]\n\
             [egress.policy.ci]\ninclude = [\"github-core\", \"packages\"]\n",
        );
        let policies = policies.unwrap();
        let shown = crate::policy::show(policies.get("ci").unwrap());
        assert!(shown.contains("include packages *.packages.example.com ports 80,443"), "{shown}");
        for (text, says) in [
            ("[egress.set.github]\nallow = []", "egress.set.github = \"github\""),
            ("[egress.set.\"a b\"]\nallow = []", "a set name must be letters"),
            ("[egress.set.a]\nallow = [{ host = \"a.*.b\" }]", "egress.set.a.allow[0].host"),
            ("[egress.policy.ci]\ninclude = [\"a\"]", "unknown set"),
        ] {
            let error = chain(&read(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
