//! SHA-256 of bytes and files.

use std::fs::File;
use std::io::{self, Read};

use sha2::{Digest as _, Sha256};

use super::name::Digest;

/// The size of one read: large enough to amortize system calls, small enough for the processor's
/// cache.
const CHUNK: usize = 1 << 20;

pub(super) fn of_bytes(bytes: &[u8]) -> Digest {
    Digest::from_bytes(&Sha256::digest(bytes))
}

/// Returns the digest of everything from the file's position to its end, and the number of bytes.
pub(super) fn of_file(file: &mut File) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((Digest::from_bytes(&hasher.finalize()), total)),
            Ok(read) => {
                hasher.update(&chunk[..read]);
                total += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    #[test]
    fn the_digest_is_sha256() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_bytes(b"abc").as_str(), expected);
    }

    #[test]
    fn a_file_longer_than_a_chunk_has_the_digest_of_its_bytes() {
        let bytes: Vec<u8> = (0..=250).cycle().take(CHUNK + 17).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        assert_eq!(of_file(&mut file).unwrap(), (of_bytes(&bytes), bytes.len() as u64));
    }
}
