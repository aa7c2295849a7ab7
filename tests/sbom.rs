//! The bills of materials of a real image, checked by the validators of those who publish the
//! formats (`sbom.py`).
//!
//! `scripts/test` installs them into a virtual environment, names it in `MAYFLY_SBOM_VALIDATORS`,
//! and runs this; or says that it could not.
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
