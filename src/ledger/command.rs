//! The command of a local job, as stored in the ledger.
//!
//! Arguments are bytes on Linux, JSON is text: bytes that are not UTF-8 are stored in Base64.

use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

/// The command of a local job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCommand {
    /// The program and its arguments.
    pub arguments: Vec<CommandBytes>,
    /// Environment variables. May contain secrets: wiped when the job ends.
    pub environment: Vec<(CommandBytes, CommandBytes)>,
    /// The working directory.
    pub directory: Option<CommandBytes>,
    /// The user to run as.
    pub user: Option<String>,
    /// The time limit.
    pub timeout: Option<Duration>,
}

/// Bytes that are mostly text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "JsonBytes", into = "JsonBytes")]
pub struct CommandBytes(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum JsonBytes {
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

impl From<JsonBytes> for CommandBytes {
    fn from(json: JsonBytes) -> Self {
        match json {
            JsonBytes::Text(text) => Self(text.into_bytes()),
            JsonBytes::Other { encoded } => Self(encoded.0),
        }
    }
}

impl From<CommandBytes> for JsonBytes {
    fn from(bytes: CommandBytes) -> Self {
        match String::from_utf8(bytes.0) {
            Ok(text) => Self::Text(text),
            Err(error) => Self::Other { encoded: Encoded(error.into_bytes()) },
        }
    }
}

impl<T: AsRef<[u8]> + ?Sized> From<&T> for CommandBytes {
    fn from(bytes: &T) -> Self {
        Self(bytes.as_ref().to_vec())
    }
}

// Required by serde's `into`.
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
        fn any_bytes_survive_a_round_trip_through_json(bytes: Vec<u8>, text: String) {
            for bytes in [CommandBytes(bytes), CommandBytes::from(&text)] {
                let json = serde_json::to_string(&bytes).unwrap();
                prop_assert_eq!(serde_json::from_str::<CommandBytes>(&json).unwrap(), bytes);
            }
        }
    }
}
