//! Validates the SBOMs of a real image with the official validators of both formats (`sbom.py`).
//!
//! `scripts/test` installs the validators into a virtual environment, sets `MAYFLY_SBOM_VALIDATORS`
//! to it, and runs this test; or reports that it could not.
//!
//! `MAYFLY_TEST_IMAGES` names an image store that has `base`.

use std::path::PathBuf;
use std::process::Command;

#[test]
#[ignore = "needs MAYFLY_SBOM_VALIDATORS; run scripts/test"]
fn the_bills_are_valid_by_those_who_publish_the_formats() {
    let variable = |name: &str| {
        PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")))
    };
    let image = variable("MAYFLY_TEST_IMAGES").join("base/latest");
    let output = Command::new(variable("MAYFLY_SBOM_VALIDATORS").join("bin/python"))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sbom.py"))
        .args(["sbom.spdx.json", "sbom.cdx.json"].map(|bill| image.join(bill)))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
