//! In which order kernel modules must be loaded (pure).
//!
//! `depmod(8)` writes what a module depends on into `modules.dep`; `modules.builtin` lists what
//! the kernel has in itself. The order is not that of any list kept here, because what depends on
//! what differs from one kernel to the next.

use std::collections::{BTreeMap, BTreeSet};

/// A module that the kernel neither has nor can load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownModule {
    /// Nothing is known of it.
    #[error("the kernel has no module `{0}`, neither to load nor built in")]
    Missing(String),
    /// Modules that need each other.
    #[error("module `{0}` depends on itself")]
    Circular(String),
}

/// What a kernel has, from the files that `depmod` makes.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    /// Path and dependencies' names, by name.
    loadable: BTreeMap<String, (String, Vec<String>)>,
    built_in: BTreeSet<String>,
}

impl Catalogue {
    /// From the text of `modules.dep` and `modules.builtin`.
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

    /// The paths, below the kernel's module directory, of everything that `wanted` needs to be
    /// loaded, each after what it depends on and none twice. What is built in is left out.
    pub(super) fn load_order<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<&str>, UnknownModule> {
        let mut order = Order { catalogue: self, paths: Vec::new(), states: BTreeMap::new() };
        for name in wanted {
            order.visit(&name.replace('-', "_"))?;
        }
        Ok(order.paths)
    }
}

/// A depth-first walk over what depends on what.
struct Order<'c> {
    catalogue: &'c Catalogue,
    paths: Vec<&'c str>,
    /// Whether a module that was begun is done.
    states: BTreeMap<String, bool>,
}

impl Order<'_> {
    fn visit(&mut self, name: &str) -> Result<(), UnknownModule> {
        match self.states.get(name) {
            Some(true) => return Ok(()),
            Some(false) => return Err(UnknownModule::Circular(name.to_owned())),
            None => {}
        }
        let Some((path, needs)) = self.catalogue.loadable.get(name) else {
            return if self.catalogue.built_in.contains(name) {
                Ok(())
            } else {
                Err(UnknownModule::Missing(name.to_owned()))
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

/// A module's name from its path: no directory, no suffix, `_` for `-` as the kernel has it.
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
    fn each_module_comes_after_what_it_needs_and_once() {
        let catalogue = Catalogue::parse(DEP, BUILTIN);
        let order = catalogue.load_order(["virtio_net", "ext4", "failover", "virtio-blk"]);
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
        let catalogue = Catalogue::parse(DEP, BUILTIN);
        assert_eq!(catalogue.load_order(["crc32c_generic"]).unwrap().len(), 1);
        assert_eq!(name_of("kernel/crypto/crc32c-generic.ko.xz"), "crc32c_generic");
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        let catalogue = Catalogue::parse(DEP, BUILTIN);
        let error = catalogue.load_order(["floppy"]).unwrap_err();
        assert_eq!(error, UnknownModule::Missing("floppy".to_owned()));
    }

    #[test]
    fn modules_that_need_each_other_are_refused() {
        let catalogue = Catalogue::parse("a.ko: b.ko\nb.ko: a.ko\n", "");
        let error = catalogue.load_order(["a"]).unwrap_err();
        assert_eq!(error, UnknownModule::Circular("a".to_owned()));
    }

    proptest! {
        /// Module `i` may only need those before it, in any listed order: no circles.
        #[test]
        fn in_any_order_needs_come_first(
            edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..30),
            wanted in prop::collection::vec(any::<prop::sample::Index>(), 1..5),
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
            let wanted: Vec<String> = wanted.iter()
                .map(|index| format!("m{}", index.index(needs.len()))).collect();

            let catalogue = Catalogue::parse(&dep, "");
            let order: Vec<String> = catalogue
                .load_order(wanted.iter().map(String::as_str)).unwrap()
                .into_iter().map(name_of).collect();

            for name in &wanted {
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
