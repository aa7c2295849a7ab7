//! `mayfly image diff`, and the display of differences.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use super::{print_line, reference};
use crate::output::print_stderr;
use crate::table::sanitize;
use mayfly_host::size::Size;
use mayfly_image::diff::{self, ManifestChange};
use mayfly_image::{ImageError, Reference, Store};

/// The arguments of `mayfly image diff`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image diff base runner             two images
  mayfly image diff base@0a1b2c base        an older build and the newest
  mayfly image diff base@0a1b2c base --json | jq '.changes[] | select(.section == \"packages\")'")]
pub(super) struct DiffArguments {
    /// NAME (its current build) or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    from: Reference,
    /// Image to compare with
    #[arg(value_parser = reference)]
    to: Reference,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    arguments: &DiffArguments,
    store: &Store,
    output: &mut dyn Write,
) -> Result<(), ImageError> {
    let (from, to) = (store.find(&arguments.from)?, store.find(&arguments.to)?);
    let changes = diff::between(&from.manifest, &to.manifest);
    if arguments.json {
        let output_json = serde_json::json!({
            "from": from.digest, "to": to.digest, "changes": changes,
        });
        return print_line(output, &output_json.to_string());
    }
    if changes.is_empty() {
        print_stderr("no differences");
    }
    show(&changes, output)
}

/// Prints changes by section: `+` added, `-` removed, `~` changed.
pub(super) fn show(changes: &[ManifestChange], output: &mut dyn Write) -> Result<(), ImageError> {
    let mut section = "";
    for change in changes {
        if change.section != section {
            section = &change.section;
            print_line(output, section)?;
        }
        print_line(output, &line(change))?;
    }
    Ok(())
}

fn line(change: &ManifestChange) -> String {
    let value = |value: &Option<Value>| value.as_ref().map(|value| shown(&change.key, value));
    let key = &change.key;
    let space = if key.is_empty() { "" } else { " " };
    match (value(&change.from), value(&change.to)) {
        (Some(from), Some(to)) => format!("  ~ {key}{space}{from} -> {to}"),
        (Some(from), None) => format!("  - {key}{space}{from}"),
        (None, to) => format!("  + {key}{space}{}", to.unwrap_or_default()),
    }
}

/// Formats a value in one line, without quotes. Numbers of bytes get a unit.
fn shown(key: &str, value: &Value) -> String {
    let is_length = key.rsplit('.').next() == Some("bytes");
    let bytes = is_length.then(|| value.as_u64()).flatten();
    match (bytes, value) {
        (Some(bytes), _) => Size(bytes).to_string(),
        (None, Value::String(text)) => sanitize(text),
        (None, value) => sanitize(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_section_has_its_name_once() {
        let change = |section: &str, key: &str, from: Option<Value>, to: Option<Value>| {
            ManifestChange { section: section.to_owned(), key: key.to_owned(), from, to }
        };
        let changes = [
            change("packages", "curl", Some(json!("8.0")), Some(json!("8.1"))),
            change("packages", "jq", None, Some(json!("1.7"))),
            change("packages", "git", Some(json!("2\u{1b}")), None),
            change("parts", "rootfs.bytes", Some(json!(1 << 30)), Some(json!(2_u64 << 30))),
            change("protocol", "", Some(json!(1)), Some(json!(2))),
        ];
        let mut output = Vec::new();
        show(&changes, &mut output).unwrap();
        let expected = "packages\n  ~ curl 8.0 -> 8.1\n  + jq 1.7\n  - git 2?\n\
                        parts\n  ~ rootfs.bytes 1 GiB -> 2 GiB\nprotocol\n  ~ 1 -> 2\n";
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }
}
