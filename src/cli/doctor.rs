//! `mayfly doctor`: checks this host and shows how to fix what is missing.

use std::io;
use std::process::ExitCode;

use super::output::{self, Output, OutputError};
use super::report::{self, CliError};
use super::trust::TrustArguments;
use mayfly_failure::{Code, Failure};
use mayfly_host::capacity::{Capacity, disk_available};
use mayfly_host::check::{CheckOutcome, HostCheck};
use mayfly_host::programs::{QEMU, QEMU_IMG, RequiredProgram, VHOST_DEVICE_VSOCK};
use mayfly_host::size::Size;
use mayfly_host::state::StateDirectory;
use mayfly_image::{Store, Trust};
use mayfly_ledger::{LedgerError, LedgerReader};
use mayfly_machine::accelerator::KvmStatus;
use mayfly_shepherd::plan::MicrovmId;
use mayfly_shepherd::{enclosure, record};

/// Free memory below this size causes a warning.
const LOW_MEMORY: Size = Size::gibibytes(2);
/// Free disk space below this size causes a warning.
const LOW_DISK: Size = Size::gibibytes(5);

/// Check this host's accelerator, devices, namespaces, programs, memory, disk, images and microVMs.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArguments {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trust: TrustArguments,
}

pub(super) fn run(
    arguments: &DoctorArguments,
    open_state: impl Fn() -> Result<StateDirectory, CliError>,
) -> Result<ExitCode, CliError> {
    let mut checks = vec![accelerator(), mayfly_network::check_tun(), enclosure::check()];
    checks.extend([QEMU, QEMU_IMG, VHOST_DEVICE_VSOCK].iter().map(program));
    checks.push(memory());
    match open_state() {
        Ok(state) => {
            checks.push(disk(&state));
            checks.push(images(&state, &arguments.trust.trust()));
            checks.push(microvms(&state));
        }
        Err(error) => checks.push(error.as_check("state directory")),
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&checks);
        let text = text.map_err(|error| CliError::file(error.to_string(), Code::Internal))?;
        output::stdout().line(text)?;
    } else {
        let mut out = output::stdout();
        checks.iter().try_for_each(|check| show(&mut out, check))?;
    }
    let bad = checks.iter().any(|check| check.outcome == CheckOutcome::Bad);
    Ok(if bad { ExitCode::from(Code::Unavailable as u8) } else { ExitCode::SUCCESS })
}

fn show(out: &mut Output, check: &HostCheck) -> Result<(), OutputError> {
    let word = match check.outcome {
        CheckOutcome::Good => "  ok",
        CheckOutcome::Warning => "warn",
        CheckOutcome::Bad => "fail",
    };
    let word = report::colored(check.outcome, word);
    out.line(format_args!("{word}  {:<20} {}", check.subject, check.found))?;
    if let Some(remedy) = &check.remedy {
        out.line(format_args!("      {:<20} → {remedy}", ""))?;
    }
    Ok(())
}

fn accelerator() -> HostCheck {
    let subject = "accelerator";
    match KvmStatus::read().check_usable() {
        Ok(()) => HostCheck::good(subject, "KVM"),
        Err(why) => HostCheck::warning(
            subject,
            format!("software emulation (TCG): {why}"),
            "use a host with KVM; emulation is slow and not an isolation boundary, so it is for \
             trials only",
        ),
    }
}

fn program(program: &RequiredProgram) -> HostCheck {
    match program.check() {
        Ok((path, version)) => {
            HostCheck::good(program.name, format!("{version} ({})", path.display()))
        }
        Err(error) => HostCheck::bad(program.name, mayfly_failure::chain(&error), program.remedy),
    }
}

fn memory() -> HostCheck {
    match Capacity::read() {
        Ok(capacity) if capacity.memory < LOW_MEMORY => HostCheck::warning(
            "memory",
            format!("{} free", capacity.memory),
            "a microVM needs 1 GiB by default (--memory)",
        ),
        Ok(capacity) => HostCheck::good(
            "memory",
            format!("{} free, {} processors", capacity.memory, capacity.processors),
        ),
        Err(error) => HostCheck::bad("memory", error, "mount /proc"),
    }
}

fn disk(state: &StateDirectory) -> HostCheck {
    let path = state.root().display();
    match disk_available(state.root()) {
        Ok(size) if size < LOW_DISK => HostCheck::warning(
            "disk",
            format!("{size} free in {path}"),
            "free disk space, or choose another directory with --state-dir",
        ),
        Ok(size) => HostCheck::good("disk", format!("{size} free in {path}")),
        Err(error) => HostCheck::bad("disk", error, "choose another directory with --state-dir"),
    }
}

fn images(state: &StateDirectory, trust: &Trust) -> HostCheck {
    let subject = "images";
    let store = Store::open(state.images());
    match store.list() {
        Ok(listing) if listing.images.is_empty() => HostCheck::warning(
            subject,
            "no images in the store",
            "build an image: mayfly image build images/base/image.toml",
        ),
        Ok(listing) => {
            let refused = listing.images.iter().find_map(|(image, newest)| {
                match store.check_signature(image, trust) {
                    Err(error) if *newest => Some(error),
                    _ => None,
                }
            });
            match refused {
                Some(error) => {
                    let remedy = error.hint().unwrap_or_default();
                    HostCheck::bad(subject, mayfly_failure::chain(&error), &remedy)
                }
                None => HostCheck::good(subject, format!("{} in the store", listing.images.len())),
            }
        }
        Err(error) => {
            HostCheck::bad(subject, mayfly_failure::chain(&error), "run mayfly image list")
        }
    }
}

/// Checks that the ledger contains the daemon's microVMs that exist on this host.
fn microvms(state: &StateDirectory) -> HostCheck {
    let subject = "microVMs";
    let found = match record::uncollected(&state.microvms()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return HostCheck::bad(subject, error, "run mayfly doctor as the user of the daemon");
        }
        Ok(found) => found,
    };
    if found.is_empty() {
        return HostCheck::good(subject, "the daemon has no microVMs");
    }
    let is_known = |reader: &LedgerReader, id: &MicrovmId| {
        Ok::<_, LedgerError>(reader.microvm(id.as_str())?.is_some_and(|row| row.ended_at.is_none()))
    };
    let mut unknown = Vec::new();
    let result = LedgerReader::open(&state.ledger()).and_then(|reader| {
        for one in &found {
            if !is_known(&reader, &one.id)? {
                unknown.push(one.id.as_str());
            }
        }
        Ok(())
    });
    match result {
        Err(error) => {
            let remedy = error.hint().unwrap_or_default();
            HostCheck::bad(subject, mayfly_failure::chain(&error), &remedy)
        }
        Ok(()) if unknown.is_empty() => {
            HostCheck::good(subject, format!("{} of the daemon, all in the ledger", found.len()))
        }
        Ok(()) => HostCheck::warning(
            subject,
            format!("not running in the ledger: {}", unknown.join(", ")),
            "start or restart `mayfly serve`: it ends and removes them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_ledger::Ledger;

    #[test]
    fn microvms_that_are_not_in_the_ledger_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let check = || {
            let check = microvms(&state);
            (check.outcome, check.found)
        };
        assert_eq!(check().0, CheckOutcome::Good);
        for id in ["m-0000000001", "m-0000000002"] {
            let own = state.microvms().join(id);
            std::fs::create_dir_all(&own).unwrap();
            std::fs::write(own.join("front-0123"), "").unwrap();
        }
        assert_eq!(check().0, CheckOutcome::Bad, "the ledger is missing");
        let mut ledger = Ledger::open(&state.ledger()).unwrap();
        ledger.record_planned("m-0000000001", "small", "base").unwrap();
        let named = "not running in the ledger: m-0000000002";
        assert_eq!(check(), (CheckOutcome::Warning, named.to_owned()));
        ledger.record_planned("m-0000000002", "small", "base").unwrap();
        assert_eq!(check().0, CheckOutcome::Good);
        ledger.record_ended("m-0000000002", "ended", None, None).unwrap();
        assert_eq!(check(), (CheckOutcome::Warning, named.to_owned()));
    }
}
