//! Checks that the security page contains the program's table.

use std::process::Command;

/// `MAYFLY_WRITE_REFERENCE=1` rewrites that part of the page.
#[test]
fn the_security_page_has_the_table() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/security.md");
    let output = Command::new(env!("CARGO_BIN_EXE_mayfly-injector")).arg("table").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().count() > 50, "{table}");
    let page = std::fs::read_to_string(FILE).unwrap();
    let begin = "<!-- made: escaped -->\n";
    let (before, rest) = page.split_once(begin).unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    let made = format!("{before}{begin}\n{table}\n<!-- end -->{after}");
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        std::fs::write(FILE, &made).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(FILE).unwrap(),
        made,
        "docs/guide/security.md is out of date"
    );
}
