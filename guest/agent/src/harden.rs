//! Applies the kernel settings of the image: sets parameters, loads modules, and disables further
//! module loading.
//!
//! This runs in the background: a machine that waits for its job need not wait for it, but the job
//! does ([`Hardening::finish`]).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread::{Builder, JoinHandle};

use mayfly_protocol::settings::GuestSettings;

use crate::error::{Context, StepError};
use crate::{modules, power};

/// The directory of the kernel's parameters.
const PARAMETERS: &str = "/proc/sys";

/// Hardening in progress, on its own thread.
#[derive(Debug)]
pub struct Hardening(JoinHandle<Result<(), StepError>>);

impl Hardening {
    /// Starts hardening in the background.
    pub fn start(settings: &GuestSettings) -> Result<Self, StepError> {
        let settings = settings.clone();
        let work = move || {
            set_parameters(&settings.parameters, Path::new(PARAMETERS))?;
            settings.modules.iter().try_for_each(|path| modules::load(path))?;
            if settings.lock_modules { lock_modules() } else { Ok(()) }
        };
        let thread = Builder::new().name("harden".into());
        thread.spawn(work).context(|| "start the thread that hardens the guest").map(Self)
    }

    /// Waits until hardening has finished.
    pub fn finish(self) -> Result<(), StepError> {
        self.0
            .join()
            .unwrap_or_else(|_| Err(StepError::new("harden the guest", "the thread panicked")))
    }
}

/// Sets parameters, in order. Logs a parameter that this kernel does not have to the console: a
/// recipe may choose an older kernel, and the image's audit reports it.
fn set_parameters(parameters: &[(String, String)], root: &Path) -> Result<(), StepError> {
    for (name, value) in parameters {
        let path = root.join(name);
        match fs::OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                power::log_error(&StepError { step: format!("set {name}").into(), source: error });
            }
            Err(error) => return Err(error).context(|| format!("open {}", path.display())),
            Ok(mut file) => std::io::Write::write_all(&mut file, value.as_bytes())
                .context(|| format!("set {name} to {value}"))?,
        }
    }
    Ok(())
}

/// Disables module loading until the next boot.
fn lock_modules() -> Result<(), StepError> {
    fs::write("/proc/sys/kernel/modules_disabled", "1").context(|| "disable kernel module loading")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_and_unknown_ones_skipped() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("kernel")).unwrap();
        fs::write(root.path().join("kernel/one"), "").unwrap();
        let parameter = |name: &str| (name.to_owned(), "1".to_owned());
        let all = [parameter("kernel/none"), parameter("kernel/one")];
        set_parameters(&all, root.path()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("kernel/one")).unwrap(), "1");
        assert!(!root.path().join("kernel/none").exists());
        // A directory can't be written.
        let error = set_parameters(&[parameter("kernel")], root.path()).unwrap_err();
        assert!(error.to_string().starts_with("open "), "{error}");
    }
}
