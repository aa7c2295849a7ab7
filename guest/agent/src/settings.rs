//! What the image tells its agent.

use std::fs;
use std::path::Path;

use mayfly_protocol::frame;
use mayfly_protocol::settings::Settings;

use crate::error::{During, StepError};

/// Reads the settings and removes their file: the initramfs lies in memory.
pub(crate) fn take(path: &Path) -> Result<Settings, StepError> {
    let bytes = fs::read(path).during(|| format!("read {}", path.display()))?;
    let settings = parse(&bytes)?;
    fs::remove_file(path).during(|| format!("remove {}", path.display()))?;
    Ok(settings)
}

/// One frame, and nothing behind it.
fn parse(bytes: &[u8]) -> Result<Settings, StepError> {
    let wrong = |reason: String| StepError::new("understand the image's settings", reason);
    let mut rest = bytes;
    let settings = frame::read(&mut rest).map_err(|error| wrong(error.to_string()))?;
    match (settings, rest.len()) {
        (Some(settings), 0) => Ok(settings),
        (Some(_), left) => Err(wrong(format!("{left} bytes are left over"))),
        (None, _) => Err(wrong("there are none".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_one_whole_frame() {
        let settings = Settings { lock_modules: true, umask: Some(0o27), ..Settings::default() };
        let mut bytes = frame::encode(&settings).unwrap();
        assert_eq!(parse(&bytes).unwrap(), settings);
        assert!(parse(&bytes[..bytes.len() - 1]).is_err());
        assert!(parse(&[]).is_err());
        bytes.push(0);
        assert!(parse(&bytes).is_err());
    }
}
