//! Reading secrets: written in the settings, in a file that they name, or in a systemd credential.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use secrecy::zeroize::Zeroizing;

use super::draft::SecretText;
use super::environment::Environment;
use super::error::{ConfigError, Problem};
use super::sources::{Sources, exposes};
use super::types::Secret;

/// The most bytes of a secret.
const MAX_SECRET: u64 = 64 << 10;

/// Where an administrator puts the credentials of services (systemd.exec(5)).
const STORE: &str = "/etc/credstore";

/// Where one secret may come from.
pub(super) struct Wanted<'a> {
    /// The key of the secret itself, e.g. `github.token`; with `_file` behind it that of the file.
    pub(super) key: &'a str,
    /// The secret, written out.
    pub(super) text: Option<&'a SecretText>,
    /// The file that it is in.
    pub(super) file: Option<&'a Path>,
    /// The name of its systemd credential.
    pub(super) credential: &'a str,
}

impl Wanted<'_> {
    /// The secret, if there is one anywhere.
    pub(super) fn find(
        &self,
        sources: &Sources,
        environment: &Environment,
    ) -> Result<Option<Secret>, ConfigError> {
        let file_key = format!("{}_file", self.key);
        match (self.text, self.file) {
            (Some(_), Some(file)) => {
                Err(sources.error(file_key, file.display(), Problem::Both("the secret itself")))
            }
            (Some(text), None) => {
                sources.may_hold_secret(self.key)?;
                Ok(Some(Secret { value: text.0.clone(), source: sources.origin(self.key) }))
            }
            (None, Some(file)) => {
                let failed = |problem| sources.error(file_key, file.display(), problem);
                absolute(file).and_then(|()| read(file, true)).map(Some).map_err(failed)
            }
            (None, None) => self.credential(sources.file.as_deref(), environment),
        }
    }

    /// What the service is handed over; for whoever looks at its settings outside of it, what it
    /// will be handed over.
    fn credential(
        &self,
        settings: Option<&Path>,
        environment: &Environment,
    ) -> Result<Option<Secret>, ConfigError> {
        // The manager made the one for this service alone; its mode depends on how.
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
        // What can't be looked for may be there.
        let found = match file.try_exists() {
            Ok(false) => return Ok(None),
            Ok(true) => read(&file, check_mode),
            Err(error) => Err(Problem::Unreadable(error)),
        };
        found.map(Some).map_err(|problem| ConfigError::Value {
            origin: origin.into(),
            key: self.credential.into(),
            value: file.display().to_string(),
            problem,
        })
    }
}

/// The name of the unit that reads a settings file, as its credentials begin (packaging/systemd).
fn unit(settings: &Path) -> Option<String> {
    let name = settings.strip_prefix("/etc/mayfly").ok()?.to_str()?.strip_suffix(".toml")?;
    Some(if name == "mayfly" { name.to_owned() } else { format!("mayfly-{name}") })
}

/// Refuses a relative path: a daemon's working directory is an accident.
pub(super) fn absolute(path: &Path) -> Result<(), Problem> {
    path.is_absolute().then_some(()).ok_or(Problem::Relative)
}

fn read(path: &Path, check_mode: bool) -> Result<Secret, Problem> {
    let file = File::open(path).map_err(Problem::Unreadable)?;
    let mode = file.metadata().map_err(Problem::Unreadable)?.permissions().mode() & 0o777;
    if check_mode && exposes(mode) {
        return Err(Problem::Exposed { mode });
    }
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(Problem::Unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Problem::NoText)?.trim();
    if bytes.len() as u64 > MAX_SECRET || text.contains('\0') {
        return Err(Problem::NoText);
    }
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    Ok(Secret { value: text.to_owned().into(), source: path.display().to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_in_their_place_belong_to_a_unit() {
        let unit = |path: &str| unit(Path::new(path));
        assert_eq!(unit("/etc/mayfly/mayfly.toml").as_deref(), Some("mayfly"));
        assert_eq!(unit("/etc/mayfly/gpu.toml").as_deref(), Some("mayfly-gpu"));
        assert_eq!(unit("/home/me/mayfly.toml"), None);
        assert_eq!(unit("mayfly.toml"), None);
    }
}
