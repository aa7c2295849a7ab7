//! Treats any bytes as an uncompressed image archive: an accepted archive starts with the manifest
//! and has exactly one valid length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_image::check_archive;

fuzz_target!(|bytes: &[u8]| {
    if check_archive(bytes).is_ok() {
        assert!(bytes.starts_with(b"manifest.json\0") && bytes.len() % 512 == 0);
        // A shorter or longer archive is invalid.
        assert!(check_archive(&bytes[..bytes.len() - 1]).is_err());
        assert!(check_archive(&[bytes, b"\0"].concat()).is_err());
    }
});
