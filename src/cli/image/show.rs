//! `mayfly image list` and `mayfly image inspect`.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::print_line;
use crate::output::print_stderr;
use crate::report;
use mayfly_host::size::Size;
use mayfly_image::{Image, ImageError, InstalledRunner, Manifest, Store};

pub(super) fn list(store: &Store, json: bool, output: &mut dyn Write) -> Result<(), ImageError> {
    let listing = store.list()?;
    for error in &listing.broken {
        print_stderr(format_args!("warning: {}", mayfly_failure::chain(error)));
    }
    let is_previous = |image: &Image| {
        store.previous(&image.name).is_ok_and(|previous| previous.as_ref() == Some(&image.digest))
    };
    if json {
        let images: Vec<_> = listing
            .images
            .iter()
            .map(|(image, newest)| {
                serde_json::json!({
                    "name": image.name,
                    "digest": image.digest,
                    "newest": newest,
                    "previous": is_previous(image),
                    "directory": image.directory,
                    "created": image.manifest.created,
                    "bytes": total(&image.manifest),
                })
            })
            .collect();
        return print_line(output, &serde_json::Value::from(images).to_string());
    }
    if listing.images.is_empty() {
        print_stderr(format_args!("no images in {}", store.path().display()));
        return Ok(());
    }
    print_line(
        output,
        &format!("{:<20} {:<12} {:<20} {:>10}", "NAME", "DIGEST", "PACKAGE DATE", "SIZE"),
    )?;
    for (image, newest) in &listing.images {
        let name = match newest {
            true => image.name.to_string(),
            false if is_previous(image) => format!("{} (previous)", image.name),
            false => format!("{} (old)", image.name),
        };
        let size = Size(total(&image.manifest)).to_string();
        let digest = image.digest.short();
        print_line(
            output,
            &format!("{name:<20} {digest:<12} {:<20} {size:>10}", date(&image.manifest)),
        )?;
    }
    Ok(())
}

pub(super) fn inspect(image: &Image, json: bool, output: &mut dyn Write) -> Result<(), ImageError> {
    let manifest = &image.manifest;
    if let Some(runner) = &manifest.runner {
        warn_of_age(runner);
    }
    if json {
        let text = serde_json::to_string_pretty(manifest).unwrap_or_default();
        return print_line(output, &text);
    }
    let mut line = |key: &str, value: &str| print_line(output, &format!("{key:<16}{value}"));
    line("name", image.name.as_str())?;
    line("digest", image.digest.as_str())?;
    line("directory", &image.directory.display().to_string())?;
    if let Some(key) = image.signature_key() {
        line("signed with", &format!("key {key}; check it with mayfly image verify --key"))?;
    }
    line("package date", &date(manifest))?;
    line("architecture", &manifest.architecture)?;
    line("protocol", &manifest.protocol.to_string())?;
    let kernel = &manifest.kernel;
    line("kernel", &format!("{} ({} {})", kernel.release, kernel.package, kernel.version))?;
    line("arguments", &kernel.command_line)?;
    line("modules", &kernel.modules.join(" "))?;
    for part in manifest.parts.all() {
        let size = Size(part.bytes);
        line(part.file.as_str(), &format!("{size:>10}  sha256:{}", part.sha256))?;
    }
    print_contents(manifest, &mut line)?;
    line("suite", &manifest.inputs.suite)?;
    let agent = &manifest.inputs.agent;
    line("agent", &format!("{}  sha256:{}", agent.version, agent.sha256))?;
    for (tool, version) in &manifest.inputs.tools {
        line("built with", &format!("{tool}: {version}"))?;
    }
    line("packages", &manifest.packages.len().to_string())?;
    for package in &manifest.packages {
        line("", &format!("{} {}", package.name, package.version))?;
    }
    Ok(())
}

/// Prints the contents of an image besides its packages, and the guest settings of its agent.
fn print_contents(
    manifest: &Manifest,
    line: &mut impl FnMut(&str, &str) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    if let Some(runner) = &manifest.runner {
        let released = time(runner.released);
        line("runner", &format!("{} of {released} in {}", runner.version, runner.directory))?;
    }
    for download in &manifest.downloads {
        line("download", &format!("{} {} as {}", download.name, download.version, download.path))?;
    }
    let settings = &manifest.settings;
    for (parameter, value) in &settings.parameters {
        line("parameter", &format!("{parameter} = {value}"))?;
    }
    if !settings.modules.is_empty() {
        let names: Vec<&str> =
            settings.modules.iter().filter_map(|path| path.rsplit('/').next()).collect();
        line("loaded modules", &names.join(" "))?;
    }
    for service in &settings.services {
        line("service", &format!("{} at {}", service.name, service.socket))?;
    }
    for (control, on) in &manifest.hardening {
        line("hardening", &format!("{} {control}", if *on { "on " } else { "off" }))?;
    }
    Ok(())
}

fn warn_of_age(runner: &InstalledRunner) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if let Some(days) = runner.days_if_outdated(now) {
        report::warning(&format!(
            "runner {} in the image is {days} days old: GitHub sends it no jobs from 30 days after \
             the next release on; rebuild the image",
            runner.version
        ));
    }
}

fn total(manifest: &Manifest) -> u64 {
    manifest.parts.all().iter().map(|part| part.bytes).sum()
}

fn date(manifest: &Manifest) -> String {
    time(manifest.created)
}

fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
