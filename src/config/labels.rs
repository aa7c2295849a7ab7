//! Labels, by which GitHub chooses runners: a job goes to any runner that has all of its labels.

use super::types::Pool;

/// The most labels of one runner.
pub(super) const MAX_LABELS: usize = 100;

/// Whether a text can be a label.
pub(super) fn is_label(text: &str) -> bool {
    let fits = (1..=256).contains(&text.chars().count());
    fits && !text
        .contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == ',')
}

/// Whether GitHub's own runners answer to a label (`ubuntu-latest`, `macos-15-xlarge`): a runner
/// that has it takes jobs that were not meant for it.
pub(super) fn is_hosted(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    ["ubuntu-", "windows-", "macos-"].iter().filter_map(|system| label.strip_prefix(system)).any(
        |version| {
            version.starts_with("latest")
                || version.starts_with(|first: char| first.is_ascii_digit())
        },
    )
}

/// Warnings about pools that answer to the same labels: which of them gets a job that asks for
/// these alone is not settled.
pub(super) fn overlaps(pools: &[Pool]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, one) in pools.iter().enumerate() {
        for other in &pools[index + 1..] {
            let common: Vec<_> =
                one.labels.iter().filter(|label| other.labels.contains(label)).cloned().collect();
            if !common.is_empty() {
                warnings.push(format!(
                    "the pools {} and {} share the labels {}: either may take a job that asks for \
                     these alone",
                    one.name,
                    other.name,
                    common.join(", ")
                ));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_hosted_runners_are_known() {
        for label in ["ubuntu-latest", "Ubuntu-24.04-arm", "macos-15-xlarge", "windows-2025"] {
            assert!(is_hosted(label), "{label}");
        }
        for label in ["ubuntu", "ubuntu-big", "linux", "self-hosted", "my-ubuntu-latest"] {
            assert!(!is_hosted(label), "{label}");
        }
    }

    #[test]
    fn a_label_is_one_word() {
        assert!(is_label("gpu:large") && is_label("größe"));
        for text in ["", "a b", "a,b", "a\tb", "a\0"] {
            assert!(!is_label(text), "{text:?}");
        }
        assert!(!is_label(&"x".repeat(257)));
    }
}
