//! `mayfly ps`: the microVMs that live, whoever started them.

use std::process::ExitCode;
use std::time::SystemTime;

use super::report::Problem;
use crate::failure::Code;
use crate::host::state::StateDirectory;
use crate::shepherd::record::{self, Entry};

/// List the microVMs of this state directory that live.
#[derive(Debug, clap::Args)]
pub(super) struct PsArguments {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &PsArguments, state: &StateDirectory) -> Result<ExitCode, Problem> {
    let unreadable = |error: std::io::Error| {
        Problem::file(format!("can't read {}: {error}", state.microvms().display()), Code::NotFound)
    };
    let entries = record::living(&state.microvms()).map_err(unreadable)?;
    if arguments.json {
        let text = serde_json::to_string_pretty(&entries).map_err(std::io::Error::from);
        println!("{}", text.map_err(unreadable)?);
    } else {
        println!("ID            PHASE       CPUS    MEMORY  AGE      IMAGE");
        for Entry { summary, phase } in &entries {
            println!(
                "{:<14}{:<11}{:>5} {:>9}  {:<9}{}",
                summary.id.to_string(),
                phase.to_string(),
                summary.processors,
                summary.memory.to_string(),
                age(&summary.since),
                summary.image
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// How long ago a time was, in its two largest units.
fn age(since: &str) -> String {
    let elapsed = humantime::parse_rfc3339(since)
        .ok()
        .and_then(|since| SystemTime::now().duration_since(since).ok())
        .unwrap_or_default();
    let seconds = std::time::Duration::from_secs(elapsed.as_secs());
    let text = humantime::format_duration(seconds).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
