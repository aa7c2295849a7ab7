//! Where settings are written: the file, variables, and what a plain container is given. Later
//! ones go over earlier ones, key by key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::draft::Draft;
use super::environment::Environment;
use super::error::{ConfigError, Key, Problem};

/// The most bytes of a settings file.
const MAX_FILE: u64 = 4 << 20;

/// What a plain container is told about where its jobs come from: `OWNER/NAME`, or a web address.
const REPOSITORY: &str = "GITHUB_REPOSITORY";

/// The variables of Mayfly's that are no settings and yet look as if they began with a table.
const NO_SETTINGS: [&str; 1] = ["MAYFLY_GITHUB_CONTRACT"];

/// Values with one origin: a file or a variable.
struct Source {
    origin: String,
    values: Dict,
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// All that is written, and where.
pub(super) struct Sources {
    figment: Figment,
    pub(super) file: Option<PathBuf>,
    /// Whether others may read the settings file.
    exposed: Option<u32>,
}

impl Sources {
    pub(super) fn read(
        file: Option<&Path>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let mut figment = Figment::new();
        let mut exposed = None;
        if let Some(file) = file {
            let (values, mode) = read_file(file)?;
            exposed = exposes(mode).then_some(mode);
            figment = figment.merge(Source { origin: file.display().to_string(), values });
        }
        for (name, value) in settings(&environment.variables) {
            let Some(key) = name.strip_prefix("MAYFLY_") else { continue };
            let key = key.to_ascii_lowercase().replace("__", ".");
            // What looks like a number may still be a secret, and zeros in front matter there.
            let is_secret =
                ["token", "secret"].contains(&key.rsplit('.').next().unwrap_or_default());
            let value = if is_secret { Value::from(value) } else { interpret(value) };
            let Value::Dict(_, values) = figment::util::nest(&key, value) else { continue };
            figment = figment.merge(Source { origin: name.to_owned(), values });
        }
        if let Some(repository) = environment.variable(REPOSITORY)
            && !figment.contains("github.url")
        {
            let is_url = repository.contains("://");
            let url =
                if is_url { repository.into() } else { format!("https://github.com/{repository}") };
            if let Value::Dict(_, values) = figment::util::nest("github.url", url.into()) {
                figment = figment.merge(Source { origin: REPOSITORY.to_owned(), values });
            }
        }
        Ok(Self { figment, file: file.map(Path::to_owned), exposed })
    }

    pub(super) fn draft(&self) -> Result<Draft, ConfigError> {
        self.figment.extract().map_err(|error| {
            let key = Key::of_path(&error.path);
            ConfigError::NotUnderstood {
                origin: self.origin(&key.to_string()),
                key: key.to_string(),
                message: match &error.kind {
                    Kind::UnknownField(_, known) => {
                        format!("there is no such key; there are {}", known.join(", "))
                    }
                    other => other.to_string(),
                },
            }
        })
    }

    /// Where a key is written, or the nearest table around it.
    pub(super) fn origin(&self, key: &str) -> String {
        let mut key = key.split('[').next().unwrap_or(key);
        loop {
            if let Some(metadata) = self.figment.find_metadata(key) {
                return metadata.name.to_string();
            }
            match key.rsplit_once('.') {
                Some((table, _)) => key = table,
                None => break,
            }
        }
        self.file.as_ref().map_or_else(|| "settings".to_owned(), |file| file.display().to_string())
    }

    /// Makes the error for a key.
    pub(super) fn error(
        &self,
        key: impl Into<String>,
        value: impl std::fmt::Display,
        problem: Problem,
    ) -> ConfigError {
        let key = key.into();
        ConfigError::Value { origin: self.origin(&key), key, value: value.to_string(), problem }
    }

    /// Refuses a secret that is written in a file that others may read.
    pub(super) fn may_hold_secret(&self, key: &str) -> Result<(), ConfigError> {
        let Some((file, mode)) = self.file.as_ref().zip(self.exposed) else { return Ok(()) };
        if self.origin(key) != file.display().to_string() {
            return Ok(());
        }
        Err(self.error(key, "…", Problem::Exposed { mode }))
    }
}

/// Whether a mode lets others read a secret or change what is trusted.
pub(super) fn exposes(mode: u32) -> bool {
    mode & 0o027 != 0
}

fn read_file(file: &Path) -> Result<(Dict, u32), ConfigError> {
    let failed = |source| ConfigError::Read { file: file.to_owned(), source };
    let opened = File::open(file).map_err(failed)?;
    let mode = opened.metadata().map_err(failed)?.permissions().mode() & 0o777;
    let mut text = String::new();
    opened.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    let values = toml::from_str(&text).map_err(|source| ConfigError::Syntax {
        file: file.to_owned(),
        // The line that is wrong may hold a secret: only its number is told.
        line: source.span().map(|span| line_of(&text, span.start)),
        message: source.message().to_owned(),
    })?;
    Ok((values, mode))
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// A variable's value: TOML where it is that, else a text.
fn interpret(text: &str) -> Value {
    text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn settings(variables: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    variables
        .iter()
        // Whoever passes variables on, as Compose does, can't leave one out.
        .filter(|(_, value)| !value.is_empty())
        .filter(|(name, _)| name.starts_with("MAYFLY_") && name.contains("__"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
}

/// What looks like a setting and is none.
pub(super) fn strays(environment: &Environment) -> Vec<String> {
    let tables = ["GITHUB_", "POOL_", "HOST_", "EGRESS_", "TELEMETRY_"];
    let looks = |name: &&String| {
        let rest = name.strip_prefix("MAYFLY_");
        rest.is_some_and(|rest| tables.iter().any(|table| rest.starts_with(table)))
            && !name.contains("__")
            && !NO_SETTINGS.contains(&name.as_str())
    };
    let told = |name| format!("{name} is no setting: below a table it takes two underscores");
    environment.variables.keys().filter(looks).map(told).collect()
}
