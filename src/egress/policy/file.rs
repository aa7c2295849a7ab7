//! All policies of a settings file, with the built-in ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::draft::check_sets;
use super::{Mode, Policy, PolicyDraft, PolicyError, Problem, SetDrafts};
use crate::failure::{Code, Failure};

/// The policies that there are without any settings: what each is called and says.
const BUILT_IN: [(&str, Mode, &[&str]); 3] =
    [("open", Mode::Open, &[]), ("none", Mode::None, &[]), ("github", Mode::Enforce, &["github"])];

/// Why policies can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file can't be read.
    #[error("can't read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or has a key or a type of value under `[egress]` that there isn't.
    #[error("{}: the settings can't be understood", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A policy can't be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No policy has that name.
    #[error("there is no egress policy {name:?}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
}

impl Failure for FileError {
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
            Self::Unknown { known, .. } => Some(format!("There are {}.", known.join(", "))),
            Self::Read { .. } | Self::Toml { .. } => None,
        }
    }
}

/// The part of a settings file that is about egress; the rest is not this module's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    egress: Egress,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Egress {
    policy: BTreeMap<String, PolicyDraft>,
    set: SetDrafts,
}

/// Policies by name.
#[derive(Debug, Clone)]
pub struct Policies(BTreeMap<String, Policy>);

impl Policies {
    /// Checks what `file` says about policies, and adds the built-in ones.
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
                    problem: Problem::BuiltIn,
                });
            }
        }
        Ok(Self(policies))
    }

    /// The built-in policies and, where a settings file is given, its own.
    pub fn read(file: Option<&Path>) -> Result<Self, FileError> {
        let Some(file) = file else {
            return Ok(Self::check(Path::new("built-in"), &BTreeMap::new(), &SetDrafts::new())?);
        };
        let text = std::fs::read_to_string(file)
            .map_err(|source| FileError::Read { file: file.to_path_buf(), source })?;
        let settings: Settings = toml::from_str(&text).map_err(|source| FileError::Toml {
            file: file.to_path_buf(),
            source: Box::new(source),
        })?;
        Ok(Self::check(file, &settings.egress.policy, &settings.egress.set)?)
    }

    /// The policy of that name.
    pub fn get(&self, name: &str) -> Result<&Policy, FileError> {
        self.0.get(name).ok_or_else(|| FileError::Unknown {
            name: name.to_owned(),
            known: self.0.keys().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::chain;

    fn read(text: &str) -> Result<Policies, FileError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mayfly.toml");
        std::fs::write(&file, text).unwrap();
        Policies::read(Some(&file))
    }

    #[test]
    fn the_built_in_policies_are_there_without_a_file() {
        let policies = Policies::read(None).unwrap();
        assert_eq!(policies.get("open").unwrap().mode, Mode::Open);
        assert_eq!(policies.get("none").unwrap().mode, Mode::None);
        assert_eq!(policies.get("github").unwrap().ports(), [443].into());
    }

    #[test]
    fn a_file_adds_policies_and_its_other_tables_do_not_matter() {
        let policies = read(
            "[github]\nurl = \"x\"\n[egress.policy.ci]\nmode = \"audit\"\n\
             allow = [{ host = \"a.example\" }]",
        )
        .unwrap();
        assert_eq!(policies.get("ci").unwrap().mode, Mode::Audit);
        assert_eq!(policies.get("open").unwrap().mode, Mode::Open);
    }

    #[test]
    fn an_unknown_policy_is_told_with_those_there_are() {
        let error = read("").unwrap().get("cı").unwrap_err().hint();
        assert_eq!(error.as_deref(), Some("There are github, none, open."));
    }

    #[test]
    fn a_built_in_policy_can_not_be_redefined() {
        let error = read("[egress.policy.open]\nmode = \"none\"").unwrap_err();
        assert!(chain(&error).contains("egress.policy = \"open\""), "{}", chain(&error));
    }

    #[test]
    fn a_wrong_type_is_told_with_its_place() {
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
        let shown = crate::egress::policy::show(policies.get("ci").unwrap());
        assert!(shown.contains("include packages *.packages.example.com ports 80,443"), "{shown}");
        for (text, says) in [
            ("[egress.set.github]\nallow = []", "egress.set.github = \"github\""),
            ("[egress.set.\"a b\"]\nallow = []", "a set's name has letters"),
            ("[egress.set.a]\nallow = [{ host = \"a.*.b\" }]", "egress.set.a.allow[0].host"),
            ("[egress.policy.ci]\ninclude = [\"a\"]", "there is no such set"),
        ] {
            let error = chain(&read(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
