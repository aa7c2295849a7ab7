//! Each hardening control of an image, looked at from inside.

use super::{Bench, TrialError};
use crate::image::hardening::audit::{self, Report};
use crate::image::{Image, Reference};

/// Boots the image and looks.
pub fn run(bench: &Bench<'_>, image: &Image) -> Result<Report, TrialError> {
    let reference = Reference::exactly(&image.name, &image.digest);
    let tried = bench.run(&reference, "root", &audit::script(&image.manifest))?;
    // A script that did not come to its end fails what it did not look at.
    Ok(audit::judge(&image.manifest, &tried.output))
}
