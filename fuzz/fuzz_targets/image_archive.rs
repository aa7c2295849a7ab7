//! Any bytes as an archive of an image, without its compression: what is taken for one has the
//! manifest that its digest stands for, first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly::image::check_archive;

fuzz_target!(|bytes: &[u8]| {
    if check_archive(bytes).is_ok() {
        assert!(bytes.starts_with(b"manifest.json\0") && bytes.len() % 512 == 0);
        // It ends where it ends, and nowhere else.
        assert!(check_archive(&bytes[..bytes.len() - 1]).is_err());
        assert!(check_archive(&[bytes, b"\0"].concat()).is_err());
    }
});
