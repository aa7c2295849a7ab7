//! The command of a local job, as the ledger keeps it.
//!
//! Arguments are bytes on Linux, JSON is text: bytes that are no UTF-8 are kept in Base64.

use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

/// What a local job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments.
    pub arguments: Vec<Bytes>,
    /// Variables. May hold secrets: they are wiped when the job is over.
    pub environment: Vec<(Bytes, Bytes)>,
    /// Where it starts.
    pub directory: Option<Bytes>,
    /// The user that it runs as.
    pub user: Option<String>,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// Bytes that are mostly text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Kept", into = "Kept")]
pub struct Bytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Kept {
    Text(String),
    Other {
        #[serde(rename = "base64")]
        encoded: Encoded,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Encoded(Vec<u8>);

impl TryFrom<String> for Encoded {
    type Error = data_encoding::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        BASE64.decode(text.as_bytes()).map(Self)
    }
}

impl From<Encoded> for String {
    fn from(encoded: Encoded) -> Self {
        BASE64.encode(&encoded.0)
    }
}

impl From<Kept> for Bytes {
    fn from(kept: Kept) -> Self {
        match kept {
            Kept::Text(text) => Self(text.into_bytes()),
            Kept::Other { encoded } => Self(encoded.0),
        }
    }
}

impl From<Bytes> for Kept {
    fn from(bytes: Bytes) -> Self {
        match String::from_utf8(bytes.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Other { encoded: Encoded(error.into_bytes()) },
        }
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for Bytes {
    fn from(bytes: &T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

// What `Encoded` needs for serde's `into`.
impl Clone for Encoded {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_survive_the_way_through_json(bytes: Vec<u8>, text: String) {
            for bytes in [Bytes(bytes), Bytes::from(&text)] {
                let kept = serde_json::to_string(&bytes).unwrap();
                prop_assert_eq!(serde_json::from_str::<Bytes>(&kept).unwrap(), bytes);
            }
        }
    }
}
