//! The token by which a GitHub App says who it is (RS256, RFC 7519), before it has any other.

use std::time::{Duration, SystemTime};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};

use super::error::SetupError;

/// How far back a token is dated, for clocks that run ahead (GitHub's advice).
const BACKDATED: Duration = Duration::from_secs(60);
/// How long a token is good for from now; GitHub's limit is 600 s, and near it clocks decide.
const LIFETIME: Duration = Duration::from_secs(8 * 60);

/// Signs for one App.
pub(super) struct Signer {
    id: String,
    key: RsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// A signer with a key in PEM (PKCS#1 as GitHub gives it, or PKCS#8).
    pub(super) fn new(id: &str, pem: &SecretString) -> Result<Self, SetupError> {
        let der = PrivateKeyDer::from_pem_slice(pem.expose_secret().as_bytes())
            .map_err(|_| SetupError::PrivateKey("it is no PEM"))?;
        let key = match &der {
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            _ => return Err(SetupError::PrivateKey("it is no RSA key")),
        };
        // Why ring rejects a key is a word such as `TooSmall`, and nothing of the key.
        let key = key.map_err(|_| SetupError::PrivateKey("it is no usable RSA key"))?;
        Ok(Self { id: id.to_owned(), key, random: SystemRandom::new() })
    }

    /// A token for the time that GitHub's clock shows. Never twice the same: of two equal ones
    /// within a second the second was seen to be refused.
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
    use crate::github::testing::private_key;

    #[test]
    fn the_token_is_what_github_asks_for_and_each_is_new() {
        let signer = Signer::new("Iv1.abc", &private_key()).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            let token = signer.sign(now).unwrap();
            let parts: Vec<&str> = token.expose_secret().split('.').collect();
            let [header, claims, signature] = parts[..] else { panic!("no JWT") };
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
    fn what_is_no_rsa_key_is_refused_without_being_shown() {
        for pem in [
            "",
            "verysecret",
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
        ] {
            let Err(error) = Signer::new("1", &pem.into()) else { panic!("{pem:?} is no key") };
            assert!(!format!("{error:?} {error}").contains("verysecret"));
        }
    }
}
