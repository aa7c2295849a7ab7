//! The load order of kernel modules (pure).
//!
//! `depmod(8)` writes the dependencies of modules to `modules.dep`; `modules.builtin` lists the
//! built-in ones. The order is computed, because dependencies differ between kernels.

use std::collections::{BTreeMap, BTreeSet};

/// The reason why a module can't be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The module does not exist.
    #[error("unknown kernel module `{0}`, neither loadable nor built in")]
    Missing(String),
    /// The module depends on itself.
    #[error("module `{0}` depends on itself")]
    Circular(String),
}

/// The modules of a kernel, from the files that `depmod` writes.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// Path and dependencies' names, by name.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl Catalog {
    /// Parses `modules.dep` and `modules.builtin`.
    pub(super) fn parse(dependencies: &str, builtin: &str) -> Self {
        let loadable = dependencies
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(path, needs)| {
                let needs = needs.split_whitespace().map(name_of).collect();
                (name_of(path), (path.to_owned(), needs))
            })
            .collect();
        Self { loadable, built_in: builtin.lines().map(name_of).collect() }
    }

    /// Returns the modules to load for `requested`: paths below the kernel's module directory, each
    /// after its dependencies, without duplicates. Built-in modules are omitted.
    pub(super) fn load_order<'a>(
        &self,
        requested: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<&str>, ModuleError> {
        let mut order = LoadOrder { catalog: self, paths: Vec::new(), states: BTreeMap::new() };
        for name in requested {
            order.visit(&name.replace('-', "_"))?;
        }
        Ok(order.paths)
    }
}

/// A depth-first walk over the dependencies.
struct LoadOrder<'c> {
    catalog: &'c Catalog,
    paths: Vec<&'c str>,
    /// The visited modules, and whether each is done.
    states: BTreeMap<String, bool>,
}

impl LoadOrder<'_> {
    fn visit(&mut self, name: &str) -> Result<(), ModuleError> {
        match self.states.get(name) {
            Some(true) => return Ok(()),
            Some(false) => return Err(ModuleError::Circular(name.to_owned())),
            None => {}
        }
        let Some((path, needs)) = self.catalog.loadable.get(name) else {
            return if self.catalog.built_in.contains(name) {
                Ok(())
            } else {
                Err(ModuleError::Missing(name.to_owned()))
            };
        };
        self.states.insert(name.to_owned(), false);
        for need in needs {
            self.visit(need)?;
        }
        self.states.insert(name.to_owned(), true);
        self.paths.push(path);
        Ok(())
    }
}

/// Returns a module's name from its path: without directory and suffix, `_` for `-` as in the
/// kernel.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEP: &str = "\
kernel/drivers/block/virtio_blk.ko.xz:
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/crypto/crc32c-generic.ko.xz:
";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\n";

    #[test]
    fn each_module_appears_once_after_its_dependencies() {
        let catalog = Catalog::parse(DEP, BUILTIN);
        let order = catalog.load_order(["virtio_net", "ext4", "failover", "virtio-blk"]);
        let expected = [
            "kernel/net/core/failover.ko.xz",
            "kernel/drivers/net/net_failover.ko.xz",
            "kernel/drivers/net/virtio_net.ko.xz",
            "kernel/drivers/block/virtio_blk.ko.xz",
        ];
        assert_eq!(order.unwrap(), expected);
    }

    #[test]
    fn hyphens_and_underscores_are_the_same() {
        let catalog = Catalog::parse(DEP, BUILTIN);
        assert_eq!(catalog.load_order(["crc32c_generic"]).unwrap().len(), 1);
        assert_eq!(name_of("kernel/crypto/crc32c-generic.ko.xz"), "crc32c_generic");
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        let catalog = Catalog::parse(DEP, BUILTIN);
        let error = catalog.load_order(["floppy"]).unwrap_err();
        assert_eq!(error, ModuleError::Missing("floppy".to_owned()));
    }

    #[test]
    fn modules_that_need_each_other_are_refused() {
        let catalog = Catalog::parse("a.ko: b.ko\nb.ko: a.ko\n", "");
        let error = catalog.load_order(["a"]).unwrap_err();
        assert_eq!(error, ModuleError::Circular("a".to_owned()));
    }

    proptest! {
        /// Module `i` depends on earlier modules only, so there are no cycles.
        #[test]
        fn in_any_order_needs_come_first(
            edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..30),
            requested in prop::collection::vec(any::<prop::sample::Index>(), 1..5),
        ) {
            let needs: Vec<Vec<usize>> = edges.iter().enumerate()
                .map(|(module, needs)| match module {
                    0 => Vec::new(),
                    _ => needs.iter().map(|need| need.index(module)).collect(),
                })
                .collect();
            let dep: Vec<String> = needs.iter().enumerate().map(|(module, needs)| {
                let needs: Vec<String> = needs.iter().map(|need| format!("k/m{need}.ko")).collect();
                format!("k/m{module}.ko: {}", needs.join(" "))
            }).collect();
            let dep = dep.join("\n");
            let requested: Vec<String> = requested.iter()
                .map(|index| format!("m{}", index.index(needs.len()))).collect();

            let catalog = Catalog::parse(&dep, "");
            let order: Vec<String> = catalog
                .load_order(requested.iter().map(String::as_str)).unwrap()
                .into_iter().map(name_of).collect();

            for name in &requested {
                prop_assert!(order.contains(name));
            }
            for (position, name) in order.iter().enumerate() {
                prop_assert!(!order[..position].contains(name), "{name} twice");
                let module: usize = name[1..].parse().unwrap();
                for need in &needs[module] {
                    let need = format!("m{need}");
                    prop_assert!(order[..position].contains(&need));
                }
            }
        }
    }
}
