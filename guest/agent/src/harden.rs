//! What the image's settings ask of the kernel: its parameters, the image's modules, and that no
//! other module is ever loaded.
//!
//! It is done in the background, because a machine that waits for its job need not wait for this;
//! a job does ([`Hardening::finish`]).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::thread::{Builder, JoinHandle};

use mayfly_protocol::settings::Settings;

use crate::error::{During, StepError};
use crate::{modules, power};

/// The kernel's parameters.
const PARAMETERS: &str = "/proc/sys";

/// The work under way.
#[derive(Debug)]
pub struct Hardening(JoinHandle<Result<(), StepError>>);

impl Hardening {
    /// Begins.
    pub fn begin(settings: &Settings) -> Result<Self, StepError> {
        let settings = settings.clone();
        let work = move || {
            set_parameters(&settings.parameters, Path::new(PARAMETERS))?;
            settings.modules.iter().try_for_each(|path| modules::load(path))?;
            if settings.lock_modules { lock_modules() } else { Ok(()) }
        };
        let thread = Builder::new().name("harden".into());
        thread.spawn(work).during(|| "start the thread that hardens the guest").map(Self)
    }

    /// Waits until it is done.
    pub fn finish(self) -> Result<(), StepError> {
        // A panic has ended the whole process.
        self.0.join().unwrap_or_else(|_| Err(StepError::new("harden the guest", "it panicked")))
    }
}

/// Sets parameters, in order. One that this kernel does not have is said on the console: a recipe
/// may choose an older kernel, and the image's audit tells.
fn set_parameters(parameters: &[(String, String)], root: &Path) -> Result<(), StepError> {
    for (name, value) in parameters {
        let path = root.join(name);
        match fs::OpenOptions::new().write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                power::say(&StepError { step: format!("set {name}").into(), source: error });
            }
            Err(error) => return Err(error).during(|| format!("open {}", path.display())),
            Ok(mut file) => std::io::Write::write_all(&mut file, value.as_bytes())
                .during(|| format!("set {name} to {value}"))?,
        }
    }
    Ok(())
}

/// A way of no return: only another boot takes it back.
fn lock_modules() -> Result<(), StepError> {
    fs::write("/proc/sys/kernel/modules_disabled", "1").during(|| "lock the kernel's modules")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_set_and_those_that_are_not_there_passed_over() {
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
