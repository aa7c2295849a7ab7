//! A trace: what happened to one object, as spans with a start and an end.
//!
//! A trace is created after the fact, from records. Its IDs are derived from names: creating it
//! again, anywhere, gives the same trace.

use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// A trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The ID, 16 bytes.
    pub id: [u8; 16],
    /// The spans, the root first.
    pub spans: Vec<Span>,
}

/// A span.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The ID, 8 bytes.
    pub id: [u8; 8],
    /// The ID of the parent span.
    pub parent: Option<[u8; 8]>,
    /// The name.
    pub name: String,
    /// The start.
    pub start: SystemTime,
    /// The end.
    pub end: SystemTime,
    /// The attributes.
    pub attributes: Vec<(&'static str, Value)>,
    /// The error, if it failed.
    pub error: Option<String>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl Trace {
    /// Creates a trace without spans. `name` must be globally unique.
    pub fn named(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self { id, spans: Vec::new() }
    }

    /// Adds a span and returns its ID, which depends on its position. A span that would end before
    /// it starts, because the clock was set, gets no duration.
    pub fn add_span(
        &mut self,
        parent: Option<[u8; 8]>,
        name: impl Into<String>,
        start: SystemTime,
        end: SystemTime,
    ) -> [u8; 8] {
        let name = name.into();
        let position = u64::try_from(self.spans.len()).unwrap_or(u64::MAX);
        let digest = Sha256::new()
            .chain_update(self.id)
            .chain_update(position.to_be_bytes())
            .chain_update(name.as_bytes())
            .finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        let end = end.max(start);
        let span = Span { id, parent, name, start, end, attributes: Vec::new(), error: None };
        self.spans.push(span);
        id
    }

    /// Adds an attribute to the last span.
    pub fn set_attribute(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = self.spans.last_mut() {
            span.attributes.push((name, value.into()));
        }
    }

    /// Marks the last span as failed.
    pub fn set_error(&mut self, why: &str) {
        if let Some(span) = self.spans.last_mut() {
            span.error = Some(why.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn ids_depend_on_the_name_only() {
        let make = |name: &str| {
            let mut trace = Trace::named(name);
            let start = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
            let root = trace.add_span(None, "job", start, start);
            trace.add_span(Some(root), "phase", start, SystemTime::UNIX_EPOCH);
            trace.add_span(Some(root), "phase", start, start);
            trace
        };
        let trace = make("a");
        assert_eq!(trace, make("a"));
        assert_ne!(trace.id, make("b").id);
        assert_ne!(trace.spans[1].id, trace.spans[2].id);
        assert_ne!(trace.spans[1].id, make("b").spans[1].id);
        assert_eq!(trace.spans[1].end, trace.spans[1].start, "no negative duration");
    }
}
