//! Runner labels. GitHub sends a job to any runner that has all of the job's labels.

use super::types::PoolConfig;

/// The maximum number of labels of one runner.
pub(super) const MAX_LABELS: usize = 100;

/// Labels of GitHub-hosted runners that name no version of a system.
const HOSTED: [&str; 2] = ["ubuntu-slim", "github-hosted"];

/// Returns whether a text can be a label: 1 to 256 characters.
pub(super) fn is_label(text: &str) -> bool {
    let fits = (1..=256).contains(&text.chars().count());
    fits && !text
        .contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == ',')
}

/// Returns whether GitHub-hosted runners have a label (`ubuntu-latest`, `macos-15-xlarge`). A
/// self-hosted runner with such a label takes jobs that are not meant for it.
pub(super) fn is_hosted(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    let is_version = |version: &str| {
        version.starts_with("latest") || version.starts_with(|first: char| first.is_ascii_digit())
    };
    let mut systems = ["ubuntu-", "windows-", "macos-"].iter();
    HOSTED.contains(&label.as_str())
        || systems.any(|system| label.strip_prefix(system).is_some_and(is_version))
}

/// Returns warnings about pools that share labels. A job that requests only shared labels can go to
/// any of these pools.
pub(super) fn overlaps(pools: &[PoolConfig]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, one) in pools.iter().enumerate() {
        for other in &pools[index + 1..] {
            let common: Vec<_> =
                one.labels.iter().filter(|label| other.labels.contains(label)).cloned().collect();
            if !common.is_empty() {
                warnings.push(format!(
                    "pools {} and {} share the labels {}: either may take a job that requests \
                     only these",
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
        for label in ["ubuntu-slim", "Ubuntu-Slim", "github-hosted", "windows-11-arm"] {
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
        // The limit is in bytes.
        assert!(is_label(&"x".repeat(256)) && is_label(&"ö".repeat(256)));
        assert!(!is_label(&"x".repeat(257)) && !is_label(&"ö".repeat(257)));
    }
}
