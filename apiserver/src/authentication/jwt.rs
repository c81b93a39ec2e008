//! JSON web tokens in their compact form (RFC 7515, 7519), as far as service accounts use them.

use super::keys::{PrivateKey, PublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Longer tokens are not looked at: no token of ours comes near it.
const LENGTH_MAX: usize = 64 * 1024;

/// A token that was taken apart, not yet verified.
pub struct Unverified<'a> {
    pub header: Value,
    pub claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Unverified<'a> {
    /// None if this is no JWT at all.
    pub fn parse(token: &'a str) -> Option<Self> {
        if token.len() > LENGTH_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let object = |part: &str| -> Option<Value> {
            let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()?;
            value.is_object().then_some(value)
        };
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            signed,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    /// Whether `key` made the signature. The algorithm is the key's, whatever the header says beyond naming the same.
    pub fn signed_by(&self, key: &PublicKey) -> bool {
        self.header["alg"] == key.algorithm.name() && key.verify(self.signed.as_bytes(), &self.signature)
    }
}

/// Signs claims.
pub fn sign(key: &PrivateKey, claims: &Value) -> Result<String, String> {
    let header = json!({"alg": key.public.algorithm.name(), "kid": key.public.id});
    let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
    token.push('.');
    token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    token.push_str(&URL_SAFE_NO_PAD.encode(signature));
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_cannot_be_altered() {
        let key = PrivateKey::parse(rcgen::KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
        let token = sign(&key, &json!({"sub": "a"})).unwrap();
        let parsed = Unverified::parse(&token).unwrap();
        assert_eq!(parsed.claims["sub"], "a");
        assert!(parsed.signed_by(&key.public));
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"b"}"#);
        parts[1] = &forged;
        let forged = parts.join(".");
        assert!(!Unverified::parse(&forged).unwrap().signed_by(&key.public));
        assert!(Unverified::parse("a.b").is_none());
    }
}
