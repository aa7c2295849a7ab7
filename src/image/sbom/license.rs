//! Licenses: converts the names in Debian's copyright files to SPDX expressions.
//!
//! Only machine-readable copyright files (DEP-5) are parsed, not prose. A name without an exact
//! SPDX counterpart becomes a custom reference (`LicenseRef-…`), never the most similar license.

use std::collections::BTreeSet;

use spdx::License;
use spdx::flags::IS_DEPRECATED;
use spdx::identifiers::LICENSES;

/// The prefix of licenses that are not in SPDX's list.
const REFERENCE: &str = "LicenseRef-";

/// The longest name of such a license; anything longer is prose.
const MAX_REFERENCE: usize = 100;

/// Debian's names of licenses in SPDX's list, where the two differ; lower case.
const ALIASES: [(&str, &str); 8] = [
    ("apache-2", "Apache-2.0"),
    ("artistic-2", "Artistic-2.0"),
    ("bsl-1", "BSL-1.0"),
    ("cc0", "CC0-1.0"),
    ("expat", "MIT"),
    ("mpl-2", "MPL-2.0"),
    ("openldap-2.8", "OLDAP-2.8"),
    ("psf-2", "PSF-2.0"),
];

/// Versions of GNU licenses: Debian's names, and SPDX's names without the suffix for later
/// versions.
const GNU: [(&str, &str); 13] = [
    ("agpl-3", "AGPL-3.0"),
    ("gfdl-1.1", "GFDL-1.1"),
    ("gfdl-1.2", "GFDL-1.2"),
    ("gfdl-1.3", "GFDL-1.3"),
    ("gfdl-niv-1.1", "GFDL-1.1-no-invariants"),
    ("gfdl-niv-1.2", "GFDL-1.2-no-invariants"),
    ("gfdl-niv-1.3", "GFDL-1.3-no-invariants"),
    ("gpl-1", "GPL-1.0"),
    ("gpl-2", "GPL-2.0"),
    ("gpl-3", "GPL-3.0"),
    ("lgpl-2", "LGPL-2.0"),
    ("lgpl-2.1", "LGPL-2.1"),
    ("lgpl-3", "LGPL-3.0"),
];

/// Returns every license that a machine-readable copyright file names, as one SPDX expression;
/// `None` if the file is not machine-readable or names no license.
pub(super) fn declared(copyright: &str) -> Option<String> {
    let mut paragraphs = copyright.split("\n\n").map(str::trim);
    let header = paragraphs.next()?;
    if !field(header, "Format").is_some_and(|format| format.contains("copyright-format")) {
        return None;
    }
    // The header's license applies to the whole; a paragraph without files only has a text.
    let of_files = paragraphs.filter(|paragraph| field(paragraph, "Files").is_some());
    let synopses = std::iter::once(header)
        .chain(of_files)
        .filter_map(|paragraph| field(paragraph, "License"))
        .filter(|synopsis| !synopsis.is_empty());
    let expressions: BTreeSet<String> =
        synopses.flat_map(|text| terms(&expression(text))).collect();
    let many = expressions.len() > 1;
    let terms: Vec<String> = expressions
        .into_iter()
        .map(|term| if many && term.contains(" OR ") { format!("({term})") } else { term })
        .collect();
    (!terms.is_empty()).then(|| terms.join(" AND "))
}

/// Splits an expression into the parts that must all be met.
fn terms(expression: &str) -> Vec<String> {
    if expression.contains(" OR ") {
        return vec![expression.to_owned()];
    }
    expression.split(" AND ").map(str::to_owned).collect()
}

/// Returns the names in an expression that are not in SPDX's list.
pub(super) fn references(expression: &str) -> impl Iterator<Item = &str> {
    expression.split([' ', '(', ')']).filter(|name| name.starts_with(REFERENCE))
}

/// Returns the first line of a field.
fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Converts a license synopsis to an expression. `and` binds tighter than `or`, and both bind
/// tighter than a comma: `A or B, and C` is `(A OR B) AND C`.
fn expression(synopsis: &str) -> String {
    let groups: Option<Vec<(&str, String)>> = synopsis.split(',').map(group).collect();
    let Some(groups) = groups else { return reference(synopsis) };
    let many = groups.len() > 1;
    let mut expression = String::new();
    for (connector, group) in groups {
        if !expression.is_empty() {
            expression.push_str(connector);
        }
        let bracketed = many && group.contains(" OR ");
        let group = if bracketed { format!("({group})") } else { group };
        expression.push_str(&group);
    }
    expression
}

/// Parses the licenses between two commas, and the connector to those before.
fn group(text: &str) -> Option<(&'static str, String)> {
    let mut words = text.split_whitespace().peekable();
    let connector = match *words.peek()? {
        "or" => " OR ",
        _ => " AND ",
    };
    words.next_if(|word| matches!(*word, "and" | "or"));
    let mut expression = String::new();
    let mut name: Vec<&str> = Vec::new();
    for word in words {
        let connector = match word {
            "and" => " AND ",
            "or" => " OR ",
            _ => {
                name.push(word);
                continue;
            }
        };
        expression.push_str(&identifier(&name)?);
        expression.push_str(connector);
        name.clear();
    }
    expression.push_str(&identifier(&name)?);
    Some((connector, expression))
}

/// Returns SPDX's name of a license, or a reference; `None` for an empty name.
fn identifier(words: &[&str]) -> Option<String> {
    let name = words.join(" ");
    if name.is_empty() {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let known = find(&ALIASES, &lower).or_else(|| of_spdx(&lower)).map(str::to_owned);
    Some(known.or_else(|| of_gnu(&lower)).unwrap_or_else(|| reference(&name)))
}

/// Finds a name of SPDX's list, ignoring case.
fn of_spdx(name: &str) -> Option<&'static str> {
    let current = |license: &&License| license.flags & IS_DEPRECATED == 0;
    let mut licenses = LICENSES.iter().filter(current).map(|license| license.name);
    licenses.find(|license| license.eq_ignore_ascii_case(name))
}

/// Returns SPDX's name of a GNU license: `gpl-2+`, or SPDX's former form `gpl-2.0+`.
fn of_gnu(name: &str) -> Option<String> {
    let (version, suffix) = match name.strip_suffix('+') {
        Some(version) => (version, "-or-later"),
        None => (name, "-only"),
    };
    let license = find(&GNU, version.strip_suffix(".0").unwrap_or(version))?;
    Some(format!("{license}{suffix}"))
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(debian, _)| *debian == name).map(|(_, spdx)| *spdx)
}

/// Returns a custom reference, in the allowed characters.
fn reference(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        match character {
            '+' => text.push_str("plus"),
            '.' => text.push('.'),
            _ if character.is_ascii_alphanumeric() => text.push(character),
            _ if text.ends_with('-') => {}
            _ => text.push('-'),
        }
    }
    text.truncate(MAX_REFERENCE);
    format!("{REFERENCE}{}", text.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_spdx_identifiers_or_references() {
        for (debian, spdx) in [
            ("GPL-2+", "GPL-2.0-or-later"),
            ("GPL-2.0", "GPL-2.0-only"),
            ("LGPL-2.1+", "LGPL-2.1-or-later"),
            ("GFDL-NIV-1.3+", "GFDL-1.3-no-invariants-or-later"),
            ("Expat", "MIT"),
            ("BSD-3-Clause", "BSD-3-Clause"),
            ("GPL-3.0-or-later", "GPL-3.0-or-later"),
            ("fsfap", "FSFAP"),
            ("GPL", "LicenseRef-GPL"),
            ("public-domain", "LicenseRef-public-domain"),
            ("GPL-2+ with OpenSSL exception", "LicenseRef-GPL-2plus-with-OpenSSL-exception"),
            ("GPL-2 or Artistic", "GPL-2.0-only OR LicenseRef-Artistic"),
            ("ISC and Expat or Zlib", "ISC AND MIT OR Zlib"),
            ("GPL-1+ or Expat, and BSD-2-clause", "(GPL-1.0-or-later OR MIT) AND BSD-2-Clause"),
            ("and Expat", "MIT"),
            ("Expat or", "LicenseRef-Expat-or"),
        ] {
            assert_eq!(expression(debian), spdx, "{debian}");
        }
    }

    #[test]
    fn each_license_of_a_file_counts_once() {
        let copyright = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: x

Files: *
Copyright: somebody
License: GPL-2+
 and its text

Files: debian/*
License: GPL-2+ and ISC

Files: lib/*
license: Expat or ISC

License: Apache-2.0
 A text that no file names.
";
        assert_eq!(
            declared(copyright).as_deref(),
            Some("GPL-2.0-or-later AND ISC AND (MIT OR ISC)")
        );
        let only_header = "Format: http://dep.debian.net/copyright-format/1.0\nLicense: Zlib\n";
        assert_eq!(declared(only_header).as_deref(), Some("Zlib"));
    }

    #[test]
    fn prose_declares_no_license() {
        assert_eq!(declared("This package was made by somebody.\n\nLicense: GPL\n"), None);
        assert_eq!(declared(""), None);
    }

    #[test]
    fn references_are_found_in_an_expression() {
        let found: Vec<_> = references("(LicenseRef-a OR MIT) AND LicenseRef-b.c").collect();
        assert_eq!(found, ["LicenseRef-a", "LicenseRef-b.c"]);
    }

    proptest! {
        #[test]
        fn any_synopsis_becomes_an_expression(synopsis in "([a-zA-Z0-9+.,é/()-]| and | or | ){1,60}") {
            let expression = expression(&synopsis);
            // Names and connectors alternate, ignoring brackets.
            let words: Vec<_> = expression.split_whitespace().collect();
            prop_assert_eq!(words.len() % 2, 1, "{}", expression);
            for (index, word) in words.iter().enumerate() {
                prop_assert_eq!(index % 2 == 1, matches!(*word, "AND" | "OR"), "{}", expression);
            }
            prop_assert_eq!(expression.matches('(').count(), expression.matches(')').count());
        }
    }
}
