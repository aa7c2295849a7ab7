//! A trace: what happened to one thing, as spans with a beginning and an end.
//!
//! A trace is made when all of it is over, from records. Its ids are made from names: whoever
//! makes it, and however often, it is the same trace.

use std::time::SystemTime;

use sha2::{Digest, Sha256};

/// What happened to one thing.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Its id, 16 bytes.
    pub id: [u8; 16],
    /// Its spans, the one around all others first.
    pub spans: Vec<Span>,
}

/// Something that lasted.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its id, 8 bytes.
    pub id: [u8; 8],
    /// The one that it is a part of.
    pub parent: Option<[u8; 8]>,
    /// What it is.
    pub name: String,
    /// When it began.
    pub begin: SystemTime,
    /// When it was over.
    pub end: SystemTime,
    /// More about it.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it went wrong, where it did.
    pub error: Option<String>,
}

/// What is told of a span.
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
    /// The trace of the thing that has this name, which no other may have anywhere. No spans yet.
    pub fn of(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self { id, spans: Vec::new() }
    }

    /// Adds a span, whose place among those before makes its id; gives that. One that would end
    /// before it begins, by a clock that was set, lasts no time.
    pub fn add(
        &mut self,
        parent: Option<[u8; 8]>,
        name: impl Into<String>,
        begin: SystemTime,
        end: SystemTime,
    ) -> [u8; 8] {
        let name = name.into();
        let place = u64::try_from(self.spans.len()).unwrap_or(u64::MAX);
        let digest = Sha256::new()
            .chain_update(self.id)
            .chain_update(place.to_be_bytes())
            .chain_update(name.as_bytes())
            .finalize();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        let end = end.max(begin);
        let span = Span { id, parent, name, begin, end, attributes: Vec::new(), error: None };
        self.spans.push(span);
        id
    }

    /// Tells more of the span that was added last.
    pub fn tell(&mut self, name: &'static str, value: impl Into<Value>) {
        if let Some(span) = self.spans.last_mut() {
            span.attributes.push((name, value.into()));
        }
    }

    /// The span that was added last went wrong.
    pub fn fail(&mut self, why: &str) {
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
    fn the_same_thing_has_the_same_ids_and_another_has_others() {
        let make = |name: &str| {
            let mut trace = Trace::of(name);
            let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(9);
            let root = trace.add(None, "job", begin, begin);
            trace.add(Some(root), "phase", begin, SystemTime::UNIX_EPOCH);
            trace.add(Some(root), "phase", begin, begin);
            trace
        };
        let trace = make("a");
        assert_eq!(trace, make("a"));
        assert_ne!(trace.id, make("b").id);
        assert_ne!(trace.spans[1].id, trace.spans[2].id);
        assert_ne!(trace.spans[1].id, make("b").spans[1].id);
        assert_eq!(trace.spans[1].end, trace.spans[1].begin, "time does not go back");
    }
}
