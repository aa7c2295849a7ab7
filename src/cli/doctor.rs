//! `mayfly doctor`: what this host offers, and what to do about what it lacks.

use std::io;
use std::process::ExitCode;

use super::output::{self, Output, OutputError};
use super::report::{self, Problem};
use super::trust::TrustArguments;
use crate::failure::{self, Code, Failure};
use crate::host::capacity::{Capacity, disk_available};
use crate::host::check::{Check, Outcome};
use crate::host::programs::{Program, QEMU, QEMU_IMG, VHOST_DEVICE_VSOCK};
use crate::host::size::Size;
use crate::host::state::StateDirectory;
use crate::image::{Store, Trust};
use crate::ledger::{LedgerError, Reader};
use crate::machine::accelerator::Facts;
use crate::shepherd::plan::Id;
use crate::shepherd::{enclosure, record};

/// Memory below which a job has little to run in.
const LITTLE_MEMORY: Size = Size::gibibytes(2);
/// Disk below which images and overlays have little room.
const LITTLE_DISK: Size = Size::gibibytes(5);

/// Check accelerator, devices, namespaces, programs, memory, disk, images and microVMs.
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
    open_state: impl Fn() -> Result<StateDirectory, Problem>,
) -> Result<ExitCode, Problem> {
    let mut checks = vec![accelerator(), crate::network::check_tun(), enclosure::check()];
    checks.extend([QEMU, QEMU_IMG, VHOST_DEVICE_VSOCK].iter().map(program));
    checks.push(memory());
    match open_state() {
        Ok(state) => {
            checks.push(disk(&state));
            checks.push(images(&state, &arguments.trust.trust()));
            checks.push(microvms(&state));
        }
        Err(problem) => checks.push(problem.as_check("state directory")),
    }
    if arguments.json {
        let text = serde_json::to_string_pretty(&checks);
        let text = text.map_err(|error| Problem::file(error.to_string(), Code::Internal))?;
        output::stdout().line(text)?;
    } else {
        let mut out = output::stdout();
        checks.iter().try_for_each(|check| show(&mut out, check))?;
    }
    let bad = checks.iter().any(|check| check.outcome == Outcome::Bad);
    Ok(if bad { ExitCode::from(Code::Unavailable as u8) } else { ExitCode::SUCCESS })
}

fn show(out: &mut Output, check: &Check) -> Result<(), OutputError> {
    let word = match check.outcome {
        Outcome::Good => "  ok",
        Outcome::Warning => "warn",
        Outcome::Bad => "fail",
    };
    let word = report::coloured(check.outcome, word);
    out.line(format_args!("{word}  {:<20} {}", check.subject, check.found))?;
    if let Some(remedy) = &check.remedy {
        out.line(format_args!("      {:<20} → {remedy}", ""))?;
    }
    Ok(())
}

fn accelerator() -> Check {
    let subject = "accelerator";
    match Facts::gather().usable() {
        Ok(()) => Check::good(subject, "KVM"),
        Err(why) => Check::warning(
            subject,
            format!("software emulation (TCG): {why}"),
            "emulation is slow and no isolation boundary; use it to try Mayfly, and a host with \
             hardware KVM for work",
        ),
    }
}

fn program(program: &Program) -> Check {
    match program.check() {
        Ok((path, version)) => Check::good(program.name, format!("{version} ({})", path.display())),
        Err(error) => Check::bad(program.name, failure::chain(&error), program.remedy),
    }
}

fn memory() -> Check {
    match Capacity::read() {
        Ok(capacity) if capacity.memory < LITTLE_MEMORY => Check::warning(
            "memory",
            format!("{} free", capacity.memory),
            "a microVM takes --memory, 1 GiB by default",
        ),
        Ok(capacity) => Check::good(
            "memory",
            format!("{} free, {} processors", capacity.memory, capacity.processors),
        ),
        Err(error) => Check::bad("memory", error, "mount /proc"),
    }
}

fn disk(state: &StateDirectory) -> Check {
    let place = state.root().display();
    match disk_available(state.root()) {
        Ok(size) if size < LITTLE_DISK => Check::warning(
            "disk",
            format!("{size} free in {place}"),
            "make room, or choose another place with --state-dir",
        ),
        Ok(size) => Check::good("disk", format!("{size} free in {place}")),
        Err(error) => Check::bad("disk", error, "choose another place with --state-dir"),
    }
}

fn images(state: &StateDirectory, trust: &Trust) -> Check {
    let subject = "images";
    let store = Store::open(state.images());
    match store.list() {
        Ok(listing) if listing.images.is_empty() => Check::warning(
            subject,
            "there are none",
            "build one: mayfly image build images/base/image.toml",
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
                    Check::bad(subject, failure::chain(&error), &remedy)
                }
                None => Check::good(subject, format!("{} in the store", listing.images.len())),
            }
        }
        Err(error) => Check::bad(subject, failure::chain(&error), "run mayfly image list"),
    }
}

/// Whether the ledger knows the daemon's microVMs that are there.
fn microvms(state: &StateDirectory) -> Check {
    let subject = "microVMs";
    let found = match record::owned(&state.microvms()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Check::bad(subject, error, "run it as the user of the daemon"),
        Ok(found) => found,
    };
    if found.is_empty() {
        return Check::good(subject, "there is none of a daemon's");
    }
    let is_known = |reader: &Reader, id: &Id| {
        Ok::<_, LedgerError>(reader.microvm(id.as_str())?.is_some_and(|row| row.ended_at.is_none()))
    };
    let mut unknown = Vec::new();
    let looked = Reader::open(&state.ledger()).and_then(|reader| {
        for one in &found {
            if !is_known(&reader, &one.id)? {
                unknown.push(one.id.as_str());
            }
        }
        Ok(())
    });
    match looked {
        Err(error) => {
            let remedy = error.hint().unwrap_or_default();
            Check::bad(subject, failure::chain(&error), &remedy)
        }
        Ok(()) if unknown.is_empty() => {
            Check::good(subject, format!("{} of the daemon's, all in the ledger", found.len()))
        }
        Ok(()) => Check::warning(
            subject,
            format!("the ledger does not have, or has as ended: {}", unknown.join(", ")),
            "start `mayfly serve`, again if it runs: it ends and removes them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    #[test]
    fn microvms_that_the_ledger_does_not_know_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let check = || {
            let check = microvms(&state);
            (check.outcome, check.found)
        };
        assert_eq!(check().0, Outcome::Good);
        for id in ["m-0000000001", "m-0000000002"] {
            let own = state.microvms().join(id);
            std::fs::create_dir_all(&own).unwrap();
            std::fs::write(own.join("front-0123"), "").unwrap();
        }
        assert_eq!(check().0, Outcome::Bad, "there is no ledger");
        let mut ledger = Ledger::open(&state.ledger()).unwrap();
        ledger.planned("m-0000000001", "small", "base").unwrap();
        let named = "the ledger does not have, or has as ended: m-0000000002";
        assert_eq!(check(), (Outcome::Warning, named.to_owned()));
        ledger.planned("m-0000000002", "small", "base").unwrap();
        assert_eq!(check().0, Outcome::Good);
        ledger.ended("m-0000000002", "ended", None, None).unwrap();
        assert_eq!(check(), (Outcome::Warning, named.to_owned()));
    }
}
