//! Reads secrets from the settings, from a file that they name, or from a systemd credential.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use secrecy::zeroize::Zeroizing;

use super::draft::SecretText;
use super::environment::Environment;
use super::error::{ConfigError, ValueError};
use super::sources::{Sources, exposes};
use super::types::Secret;

/// The maximum number of bytes in a secret.
const MAX_SECRET: u64 = 64 << 10;

/// Where administrators put the credentials of services (systemd.exec(5)).
const STORE: &str = "/etc/credstore";

/// The places that one secret may come from.
pub(super) struct SecretSources<'a> {
    /// The key of the secret itself, for example `github.token`. The key of its file has the suffix
    /// `_file`.
    pub(super) key: &'a str,
    /// The secret if it is written in the settings.
    pub(super) text: Option<&'a SecretText>,
    /// The file that contains the secret.
    pub(super) file: Option<&'a Path>,
    /// The name of its systemd credential.
    pub(super) credential: &'a str,
}

impl SecretSources<'_> {
    /// Returns the secret if one of the places has it.
    pub(super) fn find(
        &self,
        sources: &Sources,
        environment: &Environment,
    ) -> Result<Option<Secret>, ConfigError> {
        let file_key = format!("{}_file", self.key);
        match (self.text, self.file) {
            (Some(_), Some(file)) => Err(sources.error(
                file_key,
                file.display(),
                ValueError::Conflict(self.key.to_owned()),
            )),
            (Some(text), None) => {
                sources.may_hold_secret(self.key)?;
                Ok(Some(Secret { value: text.0.clone(), source: sources.origin(self.key) }))
            }
            (None, Some(file)) => {
                let failed = |reason| sources.error(file_key, file.display(), reason);
                absolute(file).and_then(|()| read(file, true)).map(Some).map_err(failed)
            }
            (None, None) => self.credential(sources.file.as_deref(), environment),
        }
    }

    /// Reads the systemd credential of the service. Outside of the service, for example in `mayfly
    /// config check`, reads the file that systemd will pass to it.
    fn credential(
        &self,
        settings: Option<&Path>,
        environment: &Environment,
    ) -> Result<Option<Secret>, ConfigError> {
        // systemd creates the directory for this service only. The mode depends on how it does so.
        let (origin, file, check_mode) = match environment.credentials() {
            Some(directory) => ("CREDENTIALS_DIRECTORY", directory.join(self.credential), false),
            None => match settings.and_then(unit) {
                Some(unit) => {
                    let name = format!("{unit}.{}", self.credential);
                    (STORE, Path::new(STORE).join(name), true)
                }
                None => return Ok(None),
            },
        };
        // If the check fails, the file may exist.
        let found = match file.try_exists() {
            Ok(false) => return Ok(None),
            Ok(true) => read(&file, check_mode),
            Err(error) => Err(ValueError::Unreadable(error)),
        };
        found.map(Some).map_err(|reason| ConfigError::Value {
            origin: origin.into(),
            key: self.credential.into(),
            value: file.display().to_string(),
            reason,
        })
    }
}

/// Returns the name of the unit that reads a settings file, which is the prefix of the names of its
/// credentials (packaging/systemd).
fn unit(settings: &Path) -> Option<String> {
    let name = settings.strip_prefix("/etc/mayfly").ok()?.to_str()?.strip_suffix(".toml")?;
    Some(if name == "mayfly" { name.to_owned() } else { format!("mayfly-{name}") })
}

/// Rejects a relative path. The working directory of a daemon is arbitrary.
pub(super) fn absolute(path: &Path) -> Result<(), ValueError> {
    path.is_absolute().then_some(()).ok_or(ValueError::RelativePath)
}

fn read(path: &Path, check_mode: bool) -> Result<Secret, ValueError> {
    let file = File::open(path).map_err(ValueError::Unreadable)?;
    let mode = file.metadata().map_err(ValueError::Unreadable)?.permissions().mode() & 0o777;
    if check_mode && exposes(mode) {
        return Err(ValueError::Exposed { mode });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(ValueError::Unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| ValueError::NotText)?.trim();
    if bytes.len() as u64 > MAX_SECRET || text.contains('\0') {
        return Err(ValueError::NotText);
    }
    if text.is_empty() {
        return Err(ValueError::Empty);
    }
    Ok(Secret { value: text.to_owned().into(), source: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_in_etc_mayfly_belong_to_a_unit() {
        let unit = |path: &str| unit(Path::new(path));
        assert_eq!(unit("/etc/mayfly/mayfly.toml").as_deref(), Some("mayfly"));
        assert_eq!(unit("/etc/mayfly/gpu.toml").as_deref(), Some("mayfly-gpu"));
        assert_eq!(unit("/home/me/mayfly.toml"), None);
        assert_eq!(unit("mayfly.toml"), None);
    }
}
