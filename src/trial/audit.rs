//! Checks each hardening control of an image from inside.

use super::{TrialEnvironment, TrialError};
use mayfly_image::hardening::audit::{self, AuditReport};
use mayfly_image::{Image, Reference};

/// Boots the image and audits it.
pub fn run(environment: &TrialEnvironment<'_>, image: &Image) -> Result<AuditReport, TrialError> {
    let reference = Reference::exactly(&image.name, &image.digest);
    let result = environment.run(&reference, "root", &audit::script(&image.manifest))?;
    // Checks that an incomplete script did not reach count as failed.
    Ok(audit::evaluate(&image.manifest, &result.output))
}
