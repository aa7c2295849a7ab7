//! The sources of settings: the file, variables, and the plain variables of a container. Later
//! sources override earlier ones, key by key.

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
use super::error::{ConfigError, Key, ValueError};

/// The maximum number of bytes in a settings file.
const MAX_FILE: u64 = 4 << 20;

/// The plain variable of a container for the source of its jobs: `OWNER/NAME`, or a URL.
const REPOSITORY: &str = "GITHUB_REPOSITORY";

/// Variables of Mayfly that start like a table but are not settings.
const NOT_SETTINGS: [&str; 1] = ["MAYFLY_GITHUB_CONTRACT"];

/// Values from one origin: a file or a variable.
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

/// All written settings and their origins.
pub(super) struct Sources {
    figment: Figment,
    pub(super) file: Option<PathBuf>,
    /// The mode of the settings file if other users may read it.
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
            // A secret may look like a number, and its leading zeros matter.
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
            ConfigError::Malformed {
                origin: self.origin(&key.to_string()),
                key: key.to_string(),
                message: match &error.kind {
                    Kind::UnknownField(_, known) => {
                        format!("unknown key; known keys: {}", known.join(", "))
                    }
                    other => other.to_string(),
                },
            }
        })
    }

    /// Returns the origin of a key, or of the nearest table around it.
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

    /// Creates the error for a key.
    pub(super) fn error(
        &self,
        key: impl Into<String>,
        value: impl std::fmt::Display,
        reason: ValueError,
    ) -> ConfigError {
        let key = key.into();
        ConfigError::Value { origin: self.origin(&key), key, value: value.to_string(), reason }
    }

    /// Rejects a secret in a settings file that other users may read.
    pub(super) fn may_hold_secret(&self, key: &str) -> Result<(), ConfigError> {
        let Some((file, mode)) = self.file.as_ref().zip(self.exposed) else { return Ok(()) };
        if self.origin(key) != file.display().to_string() {
            return Ok(());
        }
        Err(self.error(key, "…", ValueError::Exposed { mode }))
    }
}

/// Returns whether a file mode lets other users read a secret or change trusted settings.
pub(super) fn exposes(mode: u32) -> bool {
    mode & 0o027 != 0
}

fn read_file(file: &Path) -> Result<(Dict, u32), ConfigError> {
    let failed = |source| ConfigError::Read { file: file.to_owned(), source };
    let opened = File::open(file).map_err(failed)?;
    let mode = opened.metadata().map_err(failed)?.permissions().mode() & 0o777;
    let mut text = String::new();
    opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    let values = toml::from_str(&text).map_err(|source| ConfigError::Syntax {
        file: file.to_owned(),
        // The invalid line may contain a secret, so the error has only its number.
        line: source.span().map(|span| line_of(&text, span.start)),
        message: source.message().to_owned(),
    })?;
    Ok((values, mode))
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// Parses the value of a variable: as TOML if it is valid TOML, else as a string.
fn interpret(text: &str) -> Value {
    text.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
}

fn settings(variables: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    variables
        .iter()
        // Programs that pass variables on, such as Compose, can't omit one.
        .filter(|(_, value)| !value.is_empty())
        .filter(|(name, _)| name.starts_with("MAYFLY_") && name.contains("__"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
}

/// Returns warnings about variables that look like settings but are not.
pub(super) fn misspelled_variables(environment: &Environment) -> Vec<String> {
    let tables = ["GITHUB_", "POOL_", "HOST_", "EGRESS_", "TELEMETRY_"];
    let looks_like_setting = |name: &&String| {
        let rest = name.strip_prefix("MAYFLY_");
        rest.is_some_and(|rest| tables.iter().any(|table| rest.starts_with(table)))
            && !name.contains("__")
            && !NOT_SETTINGS.contains(&name.as_str())
    };
    let warning =
        |name| format!("{name} is ignored: put two underscores between the table and the key");
    environment.variables.keys().filter(looks_like_setting).map(warning).collect()
}
