//! Reads the settings of the image.

use std::fs;
use std::path::Path;

use mayfly_protocol::frame;
use mayfly_protocol::settings::GuestSettings;

use crate::error::{Context, StepError};

/// Reads the settings and removes their file, because the initramfs is in memory.
pub(crate) fn load(path: &Path) -> Result<GuestSettings, StepError> {
    let bytes = fs::read(path).context(|| format!("read {}", path.display()))?;
    let settings = parse(&bytes)?;
    fs::remove_file(path).context(|| format!("remove {}", path.display()))?;
    Ok(settings)
}

/// Parses exactly one frame.
fn parse(bytes: &[u8]) -> Result<GuestSettings, StepError> {
    let wrong = |reason: String| StepError::new("read the image's settings", reason);
    let mut rest = bytes;
    let settings = frame::read(&mut rest).map_err(|error| wrong(error.to_string()))?;
    match (settings, rest.len()) {
        (Some(settings), 0) => Ok(settings),
        (Some(_), left) => Err(wrong(format!("{left} trailing bytes"))),
        (None, _) => Err(wrong("the file is empty".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_one_whole_frame() {
        let settings =
            GuestSettings { lock_modules: true, umask: Some(0o27), ..GuestSettings::default() };
        let mut bytes = frame::encode(&settings).unwrap();
        assert_eq!(parse(&bytes).unwrap(), settings);
        assert!(parse(&bytes[..bytes.len() - 1]).is_err());
        assert!(parse(&[]).is_err());
        bytes.push(0);
        assert!(parse(&bytes).is_err());
    }
}
