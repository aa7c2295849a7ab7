//! `mayfly image diff`, and how differences are shown.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use super::{reference, say};
use crate::cli::output::tell;
use crate::cli::table::plain;
use crate::host::size::Size;
use crate::image::diff::{self, Change};
use crate::image::{ImageError, Reference, Store};

/// Two images.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mayfly image diff base runner             two images
  mayfly image diff base@0a1b2c base        an older build and the newest
  mayfly image diff base@0a1b2c base --json | jq '.changes[] | select(.section == \"packages\")'")]
pub(super) struct DiffArguments {
    /// NAME, the newest build, or NAME@DIGEST-PREFIX
    #[arg(value_parser = reference)]
    from: Reference,
    /// The image to compare with
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
        let answer = serde_json::json!({
            "from": from.digest, "to": to.digest, "changes": changes,
        });
        return say(output, &answer.to_string());
    }
    if changes.is_empty() {
        tell("no difference");
    }
    show(&changes, output)
}

/// Prints changes, each section under its name: `+` what came, `-` what went, `~` what changed.
pub(super) fn show(changes: &[Change], output: &mut dyn Write) -> Result<(), ImageError> {
    let mut section = "";
    for change in changes {
        if change.section != section {
            section = &change.section;
            say(output, section)?;
        }
        say(output, &line(change))?;
    }
    Ok(())
}

fn line(change: &Change) -> String {
    let value = |value: &Option<Value>| value.as_ref().map(|value| shown(&change.key, value));
    let key = &change.key;
    let space = if key.is_empty() { "" } else { " " };
    match (value(&change.from), value(&change.to)) {
        (Some(from), Some(to)) => format!("  ~ {key}{space}{from} -> {to}"),
        (Some(from), None) => format!("  - {key}{space}{from}"),
        (None, to) => format!("  + {key}{space}{}", to.unwrap_or_default()),
    }
}

/// A value without quotes, in a line; numbers of bytes as people write them.
fn shown(key: &str, value: &Value) -> String {
    let is_length = key.rsplit('.').next() == Some("bytes");
    let bytes = is_length.then(|| value.as_u64()).flatten();
    match (bytes, value) {
        (Some(bytes), _) => Size(bytes).to_string(),
        (None, Value::String(text)) => plain(text),
        (None, value) => plain(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_section_has_its_name_once() {
        let change = |section: &str, key: &str, from: Option<Value>, to: Option<Value>| Change {
            section: section.to_owned(),
            key: key.to_owned(),
            from,
            to,
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
