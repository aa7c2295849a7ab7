//! The JWT that a GitHub App authenticates with (RS256, RFC 7519).

use std::time::{Duration, SystemTime};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};

use super::error::SetupError;

/// How far a token is backdated, for clocks that run ahead (GitHub's recommendation).
const BACKDATED: Duration = Duration::from_secs(60);
/// A token's lifetime from now; GitHub's limit is 600 s, and close to it clock skew matters.
const LIFETIME: Duration = Duration::from_secs(8 * 60);

/// The signer of one App's tokens.
pub(super) struct Signer {
    id: String,
    key: RsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// Creates a signer from a key in PEM (PKCS#1, as GitHub provides it, or PKCS#8).
    pub(super) fn new(id: &str, pem: &SecretString) -> Result<Self, SetupError> {
        let der = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes())
            .map_err(|_| SetupError::PrivateKey("not PEM"))?;
        let key = match &der {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            _ => return Err(SetupError::PrivateKey("not an RSA key")),
        };
        // ring's error is a word such as `TooSmall`, without any part of the key. It is left out.
        let key = key.map_err(|_| SetupError::PrivateKey("not a usable RSA key"))?;
        Ok(Self { id: id.to_owned(), key, random: SystemRandom::new() })
    }

    /// Signs a token for `now`, the time on GitHub's clock. Each token is unique: GitHub was seen
    /// to reject the second of two equal tokens within a second.
    pub(super) fn sign(&self, now: SystemTime) -> Result<SecretString, ring::error::Unspecified> {
        let mut nonce = [0; 16];
        self.random.fill(&mut nonce)?;
        let seconds = |time: SystemTime| {
            time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
        };
        let claims = serde_json::json!({
            "iat": seconds(now - BACKDATED),
            "exp": seconds(now + LIFETIME),
            "iss": self.id,
            "jti": HEXLOWER.encode(&nonce),
        });
        let encode = |text: &[u8]| BASE64URL_NOPAD.encode(text);
        let header = encode(br#"{"alg":"RS256","typ":"JWT"}"#);
        let signed = format!("{header}.{}", encode(claims.to_string().as_bytes()));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &self.random, signed.as_bytes(), &mut signature)?;
        Ok(format!("{signed}.{}", encode(&signature)).into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};

    use super::*;
    use crate::testing::private_key;

    #[test]
    fn each_token_is_valid_and_unique() {
        let signer = Signer::new("Iv1.abc", &private_key()).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let token = signer.sign(now).unwrap();
            let parts: Vec<&str> = token.expose_secret().split('.').collect();
            let [header, claims, signature] = parts[..] else { panic!("not a JWT") };
            let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap();
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, signer.key.public())
                .verify(format!("{header}.{claims}").as_bytes(), &decode(signature))
                .unwrap();
            let claims: serde_json::Value = serde_json::from_slice(&decode(claims)).unwrap();
            assert_eq!(claims["iss"], "Iv1.abc");
            assert_eq!(claims["iat"], 1_800_000_000 - 60);
            assert!(claims["exp"].as_u64().unwrap() < 1_800_000_000 + 600 - 60);
            assert!(seen.insert(claims["jti"].as_str().unwrap().to_owned()));
        }
    }

    #[test]
    fn a_key_that_is_not_rsa_is_rejected_and_not_shown() {
        for pem in [
            "",
            "verysecret",
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        ] {
            let Err(error) = Signer::new("1", &pem.into()) else { panic!("{pem:?} is not a key") };
            assert!(!format!("{error:?} {error}").contains("verysecret"));
        }
    }
}
