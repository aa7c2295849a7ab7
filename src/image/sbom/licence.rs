//! Licences: from the names in Debian's copyright files to SPDX expressions.
//!
//! Only machine-readable copyright files (DEP-5) are read; the prose of the others is for
//! people. A name that SPDX has no exact counterpart for becomes a reference of the document's
//! own (`LicenseRef-…`), never the nearest licence that there is.

use std::collections::BTreeSet;

use spdx::License;
use spdx::flags::IS_DEPRECATED;
use spdx::identifiers::LICENSES;

/// What begins the name of a licence that SPDX's list does not have.
const REFERENCE: &str = "LicenseRef-";

/// The longest name of such a licence: what is longer is prose.
const LONGEST_REFERENCE: usize = 100;

/// Names by which Debian calls licences of SPDX's list, where the two differ; lower case.
const OTHERWISE: [(&str, &str); 8] = [
    ("apache-2", "Apache-2.0"),
    ("artistic-2", "Artistic-2.0"),
    ("bsl-1", "BSL-1.0"),
    ("cc0", "CC0-1.0"),
    ("expat", "MIT"),
    ("mpl-2", "MPL-2.0"),
    ("openldap-2.8", "OLDAP-2.8"),
    ("psf-2", "PSF-2.0"),
];

/// The versions of GNU's licences, as Debian writes them, and SPDX's names without what says
/// whether later versions will do.
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

/// Every licence that a machine-readable copyright file names, as one SPDX expression; nothing
/// if it is not machine-readable or names none.
pub(super) fn declared(copyright: &str) -> Option<String> {
    let mut paragraphs = copyright.split("\n\n").map(str::trim);
    let header = paragraphs.next()?;
    if !field(header, "Format").is_some_and(|format| format.contains("copyright-format")) {
        return None;
    }
    // The header's own licence is that of the whole; a paragraph without files only has a text.
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

/// The parts of an expression that must all be met.
fn terms(expression: &str) -> Vec<String> {
    if expression.contains(" OR ") {
        return vec![expression.to_owned()];
    }
    expression.split(" AND ").map(str::to_owned).collect()
}

/// The names in an expression that SPDX's list does not have.
pub(super) fn references(expression: &str) -> impl Iterator<Item = &str> {
    expression.split([' ', '(', ')']).filter(|name| name.starts_with(REFERENCE))
}

/// The first line of a field.
fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A licence's synopsis as an expression. `and` binds before `or`, and a comma before neither:
/// `A or B, and C` is `(A OR B) AND C`.
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

/// What connects the licences between two commas with those before, and they themselves.
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

/// SPDX's name of a licence, or a reference; nothing for no name.
fn identifier(words: &[&str]) -> Option<String> {
    let name = words.join(" ");
    if name.is_empty() {
        return None;
    }
    let lower = name.to_ascii_lowercase();
    let known = find(&OTHERWISE, &lower).or_else(|| of_spdx(&lower)).map(str::to_owned);
    Some(known.or_else(|| of_gnu(&lower)).unwrap_or_else(|| reference(&name)))
}

/// A name of SPDX's list, however it is capitalized.
fn of_spdx(name: &str) -> Option<&'static str> {
    let current = |licence: &&License| licence.flags & IS_DEPRECATED == 0;
    let mut licences = LICENSES.iter().filter(current).map(|licence| licence.name);
    licences.find(|licence| licence.eq_ignore_ascii_case(name))
}

/// SPDX's name of one of GNU's licences: `gpl-2+`, or `gpl-2.0+` as SPDX itself once had it.
fn of_gnu(name: &str) -> Option<String> {
    let (version, suffix) = match name.strip_suffix('+') {
        Some(version) => (version, "-or-later"),
        None => (name, "-only"),
    };
    let licence = find(&GNU, version.strip_suffix(".0").unwrap_or(version))?;
    Some(format!("{licence}{suffix}"))
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(debian, _)| *debian == name).map(|(_, spdx)| *spdx)
}

/// A name that is none of SPDX's, in the characters that one may have.
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
    text.truncate(LONGEST_REFERENCE);
    format!("{REFERENCE}{}", text.trim_matches('-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_those_of_spdx_and_the_rest_references() {
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
    fn each_licence_of_a_file_counts_once() {
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
    fn prose_says_nothing() {
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
        fn whatever_a_synopsis_says_becomes_an_expression(synopsis in "([a-zA-Z0-9+.,é/()-]| and | or | ){1,60}") {
            let expression = expression(&synopsis);
            // Names and connectors alternate, brackets aside.
            let words: Vec<_> = expression.split_whitespace().collect();
            prop_assert_eq!(words.len() % 2, 1, "{}", expression);
            for (index, word) in words.iter().enumerate() {
                prop_assert_eq!(index % 2 == 1, matches!(*word, "AND" | "OR"), "{}", expression);
            }
            prop_assert_eq!(expression.matches('(').count(), expression.matches(')').count());
        }
    }
}
