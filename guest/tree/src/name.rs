//! Paths within a tree, of any bytes, that can't lead out of it. Pure.

use crate::{DEEPEST, LONGEST_NAME, LONGEST_PATH};

/// A path relative to the root of a tree: components without `.`, `..` and empty ones. The root
/// itself has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads a path. Says what is wrong with one that is none of these.
    pub fn parse(path: &[u8]) -> Result<Self, &'static str> {
        if path.is_empty() {
            return Err("has no name");
        }
        if path.starts_with(b"/") {
            return Err("is an absolute path");
        }
        let mut name = Self::default();
        let mut depth = 0;
        for component in path.split(|byte| *byte == b'/') {
            if !matches!(component, b"" | b".") {
                name.push(component)?;
                depth += 1;
            }
        }
        if depth > DEEPEST { Err("lies too deep") } else { Ok(name) }
    }

    /// The path of something in this directory.
    pub fn join(&self, component: &[u8]) -> Result<Self, &'static str> {
        if matches!(component, b"" | b".") || component.contains(&b'/') {
            return Err("has no name");
        }
        let mut name = self.clone();
        name.push(component)?;
        if name.depth() > DEEPEST { Err("lies too deep") } else { Ok(name) }
    }

    fn push(&mut self, component: &[u8]) -> Result<(), &'static str> {
        if component == b".." {
            return Err("leads out of the tree");
        }
        if component.contains(&0) {
            return Err("has a zero byte in its name");
        }
        if component.len() > LONGEST_NAME || self.0.len() + 1 + component.len() > LONGEST_PATH {
            return Err("has too long a name");
        }
        if !self.is_root() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(component);
        Ok(())
    }

    /// The path as it is written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the tree's root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that it is in, and its last component; none for the root.
    pub fn split(&self) -> Option<(Name, &[u8])> {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            _ if self.is_root() => None,
            None => Some((Self::default(), &self.0)),
            Some(slash) => Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..])),
        }
    }

    /// How many components it has.
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { self.0.split(|byte| *byte == b'/').count() }
    }

    /// Whether it lies in `directory`, however deep.
    pub fn is_in(&self, directory: &Name) -> bool {
        directory.is_root() && !self.is_root()
            || self.0.strip_prefix(&directory.0[..]).is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// Whether a symbolic link of this name can't lead out of the tree.
    ///
    /// Only targets are believed that climb first and then go down: the directories above a link
    /// are none of them links, but what it goes down through may be, and `..` behind one leads to
    /// who knows where.
    pub fn link_stays_inside(&self, target: &[u8]) -> bool {
        let mut left = self.depth().saturating_sub(1);
        let mut goes_down = false;
        if target.is_empty() || target.starts_with(b"/") || target.len() > LONGEST_PATH {
            return false;
        }
        for component in target.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." if goes_down || left == 0 => return false,
                b".." => left -= 1,
                _ => goes_down = true,
            }
        }
        true
    }
}
