//! Extracts the uncompressed kernel from a distribution's bzImage (pure).
//!
//! The layout is described in `Documentation/arch/x86/boot.rst` of the kernel's source. QEMU enters
//! an uncompressed kernel at its PVH entry, which avoids decompression at every boot.

use std::io::{self, Read};

use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, elf};

/// The largest decompressed kernel, in bytes; Debian's cloud kernel has 58 MB.
const MAX_BYTES: usize = 512 << 20;

/// The setup header's offset of the number of 512-byte sectors of real-mode code.
const SETUP_SECTORS: usize = 0x1f1;
/// The setup header's offset of its magic.
const MAGIC: usize = 0x202;
/// The setup header's offset of the boot protocol version.
const PROTOCOL: usize = 0x206;
/// The setup header's offset of the payload's offset in the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;
/// The setup header's offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;

/// The reason why a kernel can't be extracted.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file is not a bzImage or ends too early.
    #[error("not a bzImage with boot protocol 2.08 or later")]
    NotBzImage,
    /// The compression format is unknown.
    #[error("unknown compression (it begins with {0:02x?}); supported: zstd, LZ4 and xz")]
    Compression(Vec<u8>),
    /// The compressed kernel is damaged.
    #[error("the compressed data is damaged")]
    Damaged(#[source] io::Error),
    /// The length of the kernel does not match the header.
    #[error("the uncompressed length is {found} bytes, expected {expected}")]
    Length {
        /// The length in the header, in bytes.
        expected: usize,
        /// The actual length.
        found: usize,
    },
    /// The content is not a kernel for this machine.
    #[error("the content is not an x86-64 ELF kernel")]
    NotElf,
    /// The package does not contain exactly one of something.
    #[error("expected exactly one {0} in the package")]
    NotExactlyOne(&'static str),
}

/// Extracts the uncompressed kernel of a bzImage.
pub(super) fn vmlinux(bz_image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let payload = payload(bz_image).ok_or(KernelError::NotBzImage)?;
    let (compressed, length) = payload.split_last_chunk::<4>().ok_or(KernelError::NotBzImage)?;
    let expected = u32::from_le_bytes(*length) as usize;
    if expected > MAX_BYTES {
        return Err(KernelError::Length { expected, found: 0 });
    }
    let mut kernel = Vec::with_capacity(expected);
    // One byte more than expected is enough to know that it is too long.
    decompressor(compressed)?
        .take(expected as u64 + 1)
        .read_to_end(&mut kernel)
        .map_err(KernelError::Damaged)?;
    if kernel.len() != expected {
        return Err(KernelError::Length { expected, found: kernel.len() });
    }
    if is_kernel(&kernel) { Ok(kernel) } else { Err(KernelError::NotElf) }
}

/// Returns the compressed kernel, followed by the four bytes of its uncompressed length.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| {
        let bytes = image.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let protocol = u16::from_le_bytes(image.get(PROTOCOL..PROTOCOL + 2)?.try_into().ok()?);
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" || protocol < 0x208 {
        return None;
    }
    // 0 stands for 4, "for backwards compatibility".
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let protected_mode = (sectors + 1) * 512;
    let start = protected_mode.checked_add(number(PAYLOAD_OFFSET)?)?;
    image.get(start..start.checked_add(number(PAYLOAD_LENGTH)?)?)
}

/// Returns a decompressor for `compressed`, chosen by its magic.
pub(super) fn decompressor(compressed: &[u8]) -> Result<Box<dyn Read + '_>, KernelError> {
    let damaged = |error: String| KernelError::Damaged(io::Error::other(error));
    match compressed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(
            ruzstd::decoding::StreamingDecoder::new(compressed)
                .map_err(|error| damaged(error.to_string()))?,
        )),
        // The legacy frame format, which `lz4 -l` writes.
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            Ok(Box::new(lz4_flex::frame::FrameDecoder::new(compressed)))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Ok(Box::new(lzma_rust2::XzReader::new(compressed, true)))
        }
        _ => Err(KernelError::Compression(compressed.iter().copied().take(6).collect())),
    }
}

fn is_kernel(bytes: &[u8]) -> bool {
    ElfFile64::<Endianness>::parse(bytes).is_ok_and(|file| {
        let header = file.elf_header();
        let endian = file.endian();
        header.e_machine(endian) == elf::EM_X86_64 && header.e_type(endian) == elf::ET_EXEC
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest data that passes as a kernel: an ELF header.
    fn elf_header() -> Vec<u8> {
        let mut header = vec![0; 64];
        header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
        header[16] = 2; // ET_EXEC
        header[18] = 62; // EM_X86_64
        header[20] = 1; // EV_CURRENT
        header[52] = 64; // e_ehsize
        header
    }

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        const OFFSET: u32 = 96;
        let mut image = vec![0; 2 * 512 + OFFSET as usize];
        let length = u32::try_from(payload.len()).unwrap();
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL..PROTOCOL + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..][..4].copy_from_slice(&OFFSET.to_le_bytes());
        image[PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn compressed(kernel: &[u8], length: u32) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let mut payload = ruzstd::encoding::compress_to_vec(kernel, level);
        payload.extend_from_slice(&length.to_le_bytes());
        payload
    }

    #[test]
    fn the_kernel_is_extracted_unchanged() {
        let kernel = elf_header();
        assert_eq!(vmlinux(&bz_image(&compressed(&kernel, 64))).unwrap(), kernel);
    }

    #[test]
    fn a_kernel_with_the_wrong_length_is_rejected() {
        for length in [63, 65] {
            let image = bz_image(&compressed(&elf_header(), length));
            assert!(matches!(vmlinux(&image), Err(KernelError::Length { .. })), "{length}");
        }
    }

    #[test]
    fn a_payload_that_is_not_elf_is_rejected() {
        let image = bz_image(&compressed(&[1; 64], 64));
        assert!(matches!(vmlinux(&image), Err(KernelError::NotElf)));
    }

    #[test]
    fn an_unknown_compression_is_named() {
        let error = vmlinux(&bz_image(b"\x1f\x8b\x08\0\0\0\0\0")).unwrap_err();
        assert!(error.to_string().contains("[1f, 8b, 08, 00]"), "{error}");
    }

    proptest! {
        #[test]
        fn random_bytes_are_rejected(
            mut header in prop::collection::vec(any::<u8>(), 0x250..0x1000),
            marked in any::<bool>(),
        ) {
            if marked {
                header[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
            }
            prop_assert!(vmlinux(&header).is_err());
        }

        #[test]
        fn a_cut_kernel_is_refused(cut in 0_usize..1000) {
            let whole = bz_image(&compressed(&elf_header(), 64));
            let cut = cut % whole.len();
            prop_assert!(vmlinux(&whole[..cut]).is_err());
        }
    }
}
