//! The table as a page of the reference, which must be as this makes it.

use std::fmt::Write;

use super::{CONTROLS, Control, Measure, Unless};

const TOP: &str = "\
# Hardening
";

fn page() -> String {
    let mut page = TOP.to_owned();
    for control in CONTROLS.iter().copied().flatten() {
        let _ = writeln!(page, "## {}", control.name);
        let _ = control;
    }
    page
}
