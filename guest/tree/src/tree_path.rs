//! Paths within a tree, of any bytes, that can't leave it. Pure.

use crate::{MAX_COMPONENT_LENGTH, MAX_DEPTH, MAX_PATH_LENGTH};

/// A path relative to the root of a tree, without empty, `.`, or `..` components. The root itself
/// has no components.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TreePath(Vec<u8>);

impl TreePath {
    /// Parses a path. The error says what is wrong with it.
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
        if depth > MAX_DEPTH { Err("is nested too deeply") } else { Ok(name) }
    }

    /// Returns the path of an entry of this directory.
    pub fn join(&self, component: &[u8]) -> Result<Self, &'static str> {
        if matches!(component, b"" | b".") || component.contains(&b'/') {
            return Err("has no name");
        }
        let mut name = self.clone();
        name.push(component)?;
        if name.depth() > MAX_DEPTH { Err("is nested too deeply") } else { Ok(name) }
    }

    fn push(&mut self, component: &[u8]) -> Result<(), &'static str> {
        if component == b".." {
            return Err("leads out of the tree");
        }
        if component.contains(&0) {
            return Err("has a NUL byte in its name");
        }
        if component.len() > MAX_COMPONENT_LENGTH
            || self.0.len() + 1 + component.len() > MAX_PATH_LENGTH
        {
            return Err("has a name that is too long");
        }
        if !self.is_root() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(component);
        Ok(())
    }

    /// Returns the path as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns whether this is the root of the tree.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the parent directory and the last component; `None` for the root.
    pub fn split(&self) -> Option<(TreePath, &[u8])> {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            _ if self.is_root() => None,
            None => Some((Self::default(), &self.0)),
            Some(slash) => Some((Self(self.0[..slash].to_vec()), &self.0[slash + 1..])),
        }
    }

    /// Returns the number of components.
    pub fn depth(&self) -> usize {
        if self.is_root() { 0 } else { self.0.split(|byte| *byte == b'/').count() }
    }

    /// Returns whether the path is in `directory`, at any depth.
    pub fn is_in(&self, directory: &TreePath) -> bool {
        directory.is_root() && !self.is_root()
            || self.0.strip_prefix(&directory.0[..]).is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// Returns whether a symbolic link at this path can't leave the tree.
    ///
    /// Accepts only targets whose `..` components all come first. The directories above a link are
    /// not links themselves, but those that the target descends through may be, and `..` after a
    /// link can lead anywhere.
    pub fn link_stays_inside(&self, target: &[u8]) -> bool {
        let mut levels_up = self.depth().saturating_sub(1);
        let mut has_descended = false;
        if target.is_empty() || target.starts_with(b"/") || target.len() > MAX_PATH_LENGTH {
            return false;
        }
        for component in target.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." if has_descended || levels_up == 0 => return false,
                b".." => levels_up -= 1,
                _ => has_descended = true,
            }
        }
        true
    }
}
