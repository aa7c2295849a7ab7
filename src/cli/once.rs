//! `mayfly once`: runs one runner with one just-in-time configuration in one microVM, for
//! schedulers that start a process per runner.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use secrecy::SecretString;

use super::microvm::MicrovmArguments;
use super::report::CliError;
use super::run::{CopyOut, MicrovmTask, run_task};
use mayfly_failure::Code;
use mayfly_host::state::StateDirectory;
use mayfly_shepherd::runner;

/// Run one GitHub Actions runner for one job in a throwaway microVM.
///
/// Reads the just-in-time configuration from `ACTIONS_RUNNER_INPUT_JITCONFIG`, a file or standard
/// input. Exits with the status of the runner. SIGTERM or SIGINT interrupts the runner, which then
/// has `--farewell` to end its job and report to GitHub. A second signal ends the microVM.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct OnceArguments {
    #[command(flatten)]
    microvm: MicrovmArguments,
    /// Read the just-in-time configuration from this file; - is standard input
    #[arg(long, value_name = "FILE")]
    jitconfig_file: Option<PathBuf>,
    /// Directory of the runner in the image
    #[arg(long, value_name = "DIR", default_value = runner::DIRECTORY, value_parser = directory)]
    runner_dir: String,
    /// Time limit for the runner to end after an interrupt by a signal or by --timeout
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    farewell: Duration,
    /// Copy the runner's logs (`_diag`) into this directory at the end
    #[arg(long, value_name = "DIR")]
    diag: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  mayfly once --image runner --jitconfig-file jit.txt
  create-jit-config | mayfly once --image runner --jitconfig-file - --diag logs

The variable stays visible in the environment of the process that started Mayfly. A file or
standard input does not.";

/// The maximum size of a configuration. Usual ones have about 4,000 bytes.
const MAX_BYTES: u64 = 256 * 1024;

pub(super) fn run(
    arguments: &OnceArguments,
    state: &StateDirectory,
    requested_at: u64,
) -> Result<ExitCode, CliError> {
    // Removed even if it is not used, so that no other process can read it here.
    let variable = take_variable();
    let secret = match &arguments.jitconfig_file {
        Some(path) => read(path)?,
        None => variable.ok_or_else(|| {
            let name = runner::JIT_CONFIG;
            CliError::usage(format!(
                "no just-in-time configuration: set {name} or use --jitconfig-file"
            ))
        })?,
    };
    let secret = check(&secret)?;
    let MicrovmArguments { copy_in, .. } = &arguments.microvm;
    let mut plan = arguments.microvm.plan("github", state, requested_at)?;
    plan.deadlines.farewell = arguments.farewell;
    let environment = arguments.microvm.environment();
    let mut job = runner::job(&secret, environment, &arguments.runner_dir);
    job.copy_in = copy_in.iter().map(|copy| copy.guest.clone().into()).collect();
    let copy = |host: &PathBuf| {
        let guest = job.copy_out.first().map(|path| path.to_vec()).unwrap_or_default();
        CopyOut { guest, host: host.clone() }
    };
    let copy_out: Vec<CopyOut> = arguments.diag.iter().map(copy).collect();
    job.copy_out.truncate(copy_out.len());
    let task = MicrovmTask {
        plan,
        job,
        program: runner::PROGRAM.to_owned(),
        microvm: &arguments.microvm,
        copy_out: &copy_out,
        // A runner that never started has no logs.
        must_copy: false,
        runner: Some(arguments.farewell),
        // A scheduler may pass a configuration that only its own runner understands.
        github: runner::github_url(&secret).or_else(|| Some("https://github.com".to_owned())),
    };
    run_task(&task, state)
}

fn directory(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("the path in the microVM must be absolute".to_owned())
    }
}

fn read(path: &Path) -> Result<String, CliError> {
    let unreadable = |error: io::Error| {
        let path = path.display();
        CliError::file(format!("--jitconfig-file {path}: {error}"), Code::NotFound)
    };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(MAX_BYTES + 1).read_to_string(&mut text)
    } else {
        let file = File::open(path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text)
    };
    read.map_err(unreadable)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(text)
}

/// Returns the configuration without surrounding whitespace. The error does not contain it.
fn check(text: &str) -> Result<SecretString, CliError> {
    let text = text.trim();
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    if text.is_empty() || !text.bytes().all(base64) {
        let message = "the just-in-time configuration is empty or not the base64 text that GitHub \
                       returns (`encoded_jit_config`)";
        return Err(CliError::file(message, Code::BadData));
    }
    Ok(text.into())
}

/// Returns the variable's value and erases it from `/proc/PID/environ` of this process.
fn take_variable() -> Option<String> {
    let value = std::env::var_os(runner::JIT_CONFIG)?;
    let name = CString::new(runner::JIT_CONFIG).ok()?;
    // SAFETY: the name is terminated, and this process has one thread yet.
    let found = unsafe { libc::getenv(name.as_ptr()) };
    if !found.is_null() {
        // SAFETY: nothing has changed a variable, so this is the value as the kernel put it on the
        // stack, writable and as long as the copy; there is no other thread to read it.
        unsafe { std::ptr::write_bytes(found, 0, value.len()) };
    }
    value.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_configuration_is_trimmed_and_an_invalid_one_is_not_shown() {
        assert_eq!(check(" c2VjcmV0Cg==\n").unwrap().expose_secret(), "c2VjcmV0Cg==");
        for wrong in ["", "  \n", "{\"not\": \"encoded\"}", "two words"] {
            let shown = format!("{:?}", check(wrong).unwrap_err());
            assert!(wrong.trim().is_empty() || !shown.contains(wrong), "{shown}");
        }
    }
}
