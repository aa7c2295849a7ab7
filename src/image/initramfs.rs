//! Writes the initramfs: the agent and the modules that it needs to mount the root file system.
//!
//! The contract with the agent's stage one:
//!
//! - `/init` is the agent;
//! - `/modules` lists the absolute paths of modules, one per line, in load order;
//! - the modules are uncompressed, for `finit_module(2)` without flags;
//! - `/settings` is one frame with the [`GuestSettings`] of the image;
//! - `/dev/console` exists, because the kernel opens it before it starts `/init`.
//!
//! The archive is not compressed: unpacking so little data costs less than decompressing it.

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};
use mayfly_protocol::frame;
use mayfly_protocol::settings::GuestSettings;

/// A module to load in stage one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name in the kernel.
    pub(super) name: String,
    /// The uncompressed `.ko` file.
    pub(super) bytes: Vec<u8>,
}

impl Module {
    fn path(&self) -> String {
        format!("lib/modules/{}.ko", self.name)
    }
}

/// Writes the archive with `agent` as `/init` and `modules` in load order.
///
/// All entries have the time 0 and belong to root, so that the same input gives the same bytes.
pub(super) fn write<W: Write>(
    output: W,
    agent: &[u8],
    settings: &GuestSettings,
    modules: &[Module],
) -> io::Result<()> {
    let mut archive = Archive { output, inode: 0 };
    for directory in ["dev", "lib", "lib/modules"] {
        archive.add(directory, ModeFileType::Directory, 0o755, &[])?;
    }
    archive.console()?;
    for module in modules {
        archive.add(&module.path(), ModeFileType::Regular, 0o644, &module.bytes)?;
    }
    let mut list = Vec::new();
    for module in modules {
        writeln!(list, "/{}", module.path())?;
    }
    archive.add("modules", ModeFileType::Regular, 0o644, &list)?;
    let settings = frame::encode(settings).map_err(io::Error::other)?;
    archive.add("settings", ModeFileType::Regular, 0o600, &settings)?;
    archive.add("init", ModeFileType::Regular, 0o755, agent)?;
    trailer(archive.output)?.flush()
}

struct Archive<W> {
    output: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, kind: ModeFileType, mode: u32) -> Builder {
        self.inode += 1;
        // Setting the type replaces only the type bits of the mode, so the permissions come first.
        Builder::new(name).ino(self.inode).mode(mode).set_mode_file_type(kind)
    }

    fn add(&mut self, name: &str, kind: ModeFileType, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len())
            .map_err(|_| io::Error::other(format!("{name} is too large for the archive")))?;
        let entry = self.entry(name, kind, mode);
        let mut writer = entry.write(&mut self.output, length);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }

    /// The system console, device 5:1 (`Documentation/admin-guide/devices.txt`).
    fn console(&mut self) -> io::Result<()> {
        let entry = self.entry("dev/console", ModeFileType::Char, 0o600);
        entry.rdev_major(5).rdev_minor(1).write(&mut self.output, 0).finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::newc::Reader;
    use proptest::prelude::*;

    use super::*;

    /// Name, mode and content of every entry.
    fn entries(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            let mut reader = Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            entries.push((name, mode, bytes));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn directories_come_before_their_content() {
        let modules = [Module { name: "a".to_owned(), bytes: vec![1] }];
        let mut archive = Vec::new();
        write(&mut archive, b"agent", &GuestSettings::default(), &modules).unwrap();
        let names: Vec<_> =
            entries(&archive).into_iter().map(|(name, mode, _)| (name, mode)).collect();
        let expected = [
            ("dev", 0o040_755),
            ("lib", 0o040_755),
            ("lib/modules", 0o040_755),
            ("dev/console", 0o020_600),
            ("lib/modules/a.ko", 0o100_644),
            ("modules", 0o100_644),
            ("settings", 0o100_600),
            ("init", 0o100_755),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    proptest! {
        #[test]
        fn the_listed_modules_are_there_in_order(
            agent in prop::collection::vec(any::<u8>(), 0..500),
            modules in prop::collection::btree_map("[a-z_]{1,12}", prop::collection::vec(any::<u8>(), 0..300), 0..8),
        ) {
            let modules: Vec<Module> = modules.into_iter()
                .map(|(name, bytes)| Module { name, bytes }).collect();
            let mut archive = Vec::new();
            write(&mut archive, &agent, &GuestSettings::default(), &modules).unwrap();
            let entries = entries(&archive);
            let content = |path: &str| {
                entries.iter().find(|(name, ..)| name == path).map(|(.., bytes)| bytes.clone())
            };

            prop_assert_eq!(content("init"), Some(agent));
            let list = String::from_utf8(content("modules").unwrap()).unwrap();
            prop_assert_eq!(list.lines().count(), modules.len());
            for (line, module) in list.lines().zip(&modules) {
                prop_assert_eq!(content(&line[1..]), Some(module.bytes.clone()));
            }
        }
    }
}
