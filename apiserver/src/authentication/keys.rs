//! Keys that sign and verify service account tokens (upstream: `client-go/util/keyutil` and `serviceaccount/jwt.go`).
//!
//! A key file is PEM: public keys, certificates, or private keys, of which the public half is taken. RSA and the curves
//! P-256 and P-384 are known.

use super::{ConfigError, der, read};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, RsaKeyPair, UnparsedPublicKey};
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde_json::{Value, json};
use sha2::Digest;
use std::path::Path;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Es256,
    Es384,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
        }
    }
}

/// A key that tokens are checked with.
#[derive(Clone, Debug)]
pub struct PublicKey {
    pub algorithm: Algorithm,
    /// Hash of the public key, the `kid` of a token's header.
    pub id: String,
    /// PKCS#1 for RSA, the uncompressed point for curves: what ring takes.
    raw: Vec<u8>,
}

impl PublicKey {
    fn rsa(pkcs1: &[u8]) -> Self {
        Self { algorithm: Algorithm::Rs256, id: key_id(&der::rsa_spki(pkcs1)), raw: pkcs1.to_vec() }
    }

    fn ec(algorithm: Algorithm, point: &[u8]) -> Self {
        let curve: &[u8] = if algorithm == Algorithm::Es256 { &der::P256 } else { &der::P384 };
        Self { algorithm, id: key_id(&der::ec_spki(curve, point)), raw: point.to_vec() }
    }

    fn from_spki(spki: &[u8]) -> Result<Self, String> {
        let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|e| e.to_string())?;
        let bits: &[u8] = &info.subject_public_key.data;
        match info.algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.113549.1.1.1" => Ok(Self::rsa(bits)),
            "1.2.840.10045.2.1" => match bits.len() {
                65 => Ok(Self::ec(Algorithm::Es256, bits)),
                97 => Ok(Self::ec(Algorithm::Es384, bits)),
                _ => Err("an elliptic curve other than P-256 and P-384".into()),
            },
            other => Err(format!("unknown public key algorithm {other}")),
        }
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::Es384 => &signature::ECDSA_P384_SHA384_FIXED,
        };
        UnparsedPublicKey::new(algorithm, &self.raw).verify(message, signature).is_ok()
    }

    /// The entry of this key in `/openid/v1/jwks`.
    pub fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self.algorithm {
            Algorithm::Rs256 => {
                let (n, e) = rsa_numbers(&self.raw).unwrap_or_default();
                json!({"use": "sig", "kty": "RSA", "kid": self.id, "alg": "RS256", "n": encode(n), "e": encode(e)})
            }
            algorithm => {
                let half = (self.raw.len() - 1) / 2;
                let (x, y) = self.raw[1..].split_at(half);
                let curve = if algorithm == Algorithm::Es256 { "P-256" } else { "P-384" };
                json!({"use": "sig", "kty": "EC", "kid": self.id, "crv": curve, "alg": algorithm.name(),
                    "x": encode(x), "y": encode(y)})
            }
        }
    }
}

/// Modulus and exponent of a PKCS#1 key, without leading zeros.
fn rsa_numbers(pkcs1: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, content, _) = der::read(pkcs1)?;
    let (_, n, rest) = der::read(content)?;
    let (_, e, _) = der::read(rest)?;
    let trim = |b: &'_ [u8]| b.iter().position(|x| *x != 0).unwrap_or(0);
    Some((&n[trim(n)..], &e[trim(e)..]))
}

fn key_id(spki: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(spki))
}

/// A key that tokens are signed with.
pub struct PrivateKey {
    pub public: PublicKey,
    inner: Private,
    random: SystemRandom,
}

enum Private {
    Rsa(Box<RsaKeyPair>),
    Ec(Box<EcdsaKeyPair>),
}

impl PrivateKey {
    /// The first private key of a PEM file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let content = |what: String| ConfigError::Content { path: path.to_owned(), what };
        Self::parse(&read(path)?).map_err(content)
    }

    /// The first private key of a PEM text.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|e| e.to_string())?;
            if let Some(key) = Self::from_section(kind, &der)? {
                return Ok(key);
            }
        }
        Err("data does not contain a valid RSA or ECDSA private key".into())
    }

    fn from_section(kind: SectionKind, bytes: &[u8]) -> Result<Option<Self>, String> {
        match kind {
            SectionKind::RsaPrivateKey => Self::rsa(RsaKeyPair::from_der(bytes)).map(Some),
            SectionKind::EcPrivateKey => Self::sec1(bytes, None).map(Some),
            SectionKind::PrivateKey => {
                if let Ok(pair) = RsaKeyPair::from_pkcs8(bytes) {
                    return Self::rsa(Ok(pair)).map(Some);
                }
                // PKCS#8: version, algorithm with the curve, and the SEC 1 key as an octet string.
                let parts = || -> Option<(&[u8], &[u8])> {
                    let (_, content, _) = der::read(bytes)?;
                    let (_, _, rest) = der::read(content)?;
                    let (_, algorithm, rest) = der::read(rest)?;
                    let (_, sec1, _) = der::read(rest)?;
                    let (_, _, curve) = der::read(algorithm)?;
                    Some((curve, sec1))
                };
                let (curve, sec1) = parts().ok_or("not a PKCS#8 private key")?;
                Self::sec1(sec1, Some(curve)).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn rsa(pair: Result<RsaKeyPair, ring::error::KeyRejected>) -> Result<Self, String> {
        let pair = pair.map_err(|e| format!("RSA private key: {e}"))?;
        let public = PublicKey::rsa(pair.public_key().as_ref());
        Ok(Self { public, inner: Private::Rsa(Box::new(pair)), random: SystemRandom::new() })
    }

    /// SEC 1: version 1, the private number, then optionally `[0]` the curve and `[1]` the public point.
    fn sec1(bytes: &[u8], curve: Option<&[u8]>) -> Result<Self, String> {
        let read = || -> Option<(&[u8], Option<&[u8]>, Option<&[u8]>)> {
            let (_, content, _) = der::read(bytes)?;
            let (_, _, rest) = der::read(content)?;
            let (_, private, mut rest) = der::read(rest)?;
            let (mut curve, mut point) = (curve, None);
            while let Some((tag, value, next)) = der::read(rest) {
                match tag {
                    0xa0 => curve = Some(value),
                    0xa1 => point = der::read(value).map(|(_, bits, _)| &bits[1..]),
                    _ => {}
                }
                rest = next;
            }
            Some((private, curve, point))
        };
        let (private, curve, point) = read().ok_or("not an EC private key")?;
        let point = point.ok_or("an EC private key without its public half")?;
        let (algorithm, signing) = match curve {
            Some(c) if c == der::P256 => (Algorithm::Es256, &signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Some(c) if c == der::P384 => (Algorithm::Es384, &signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Some(c) if c == der::P521 => return Err("the curve P-521 is not supported".into()),
            _ => return Err("an elliptic curve other than P-256 and P-384".into()),
        };
        let pair = EcdsaKeyPair::from_private_key_and_public_key(signing, private, point, &SystemRandom::new())
            .map_err(|e| format!("EC private key: {e}"))?;
        let public = PublicKey::ec(algorithm, pair.public_key().as_ref());
        Ok(Self { public, inner: Private::Ec(Box::new(pair)), random: SystemRandom::new() })
    }

    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "signing failed".to_owned();
        match &self.inner {
            Private::Rsa(pair) => {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &self.random, message, &mut out).map_err(failed)?;
                Ok(out)
            }
            Private::Ec(pair) => Ok(pair.sign(&self.random, message).map_err(failed)?.as_ref().to_vec()),
        }
    }
}

/// Every public key of a PEM file: of public keys, certificates and private keys.
pub fn public_keys(path: &Path) -> Result<Vec<PublicKey>, ConfigError> {
    let content = |what: String| ConfigError::Content { path: path.to_owned(), what };
    let keys = parse_public_keys(&read(path)?).map_err(content)?;
    if keys.is_empty() {
        return Err(content("data does not contain any valid RSA or ECDSA public keys".into()));
    }
    Ok(keys)
}

pub fn parse_public_keys(pem: &[u8]) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, der) = section.map_err(|e| e.to_string())?;
        match kind {
            SectionKind::PublicKey => keys.push(PublicKey::from_spki(&der)?),
            SectionKind::Certificate => {
                let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| e.to_string())?;
                keys.push(PublicKey::from_spki(certificate.public_key().raw)?);
            }
            other => keys.extend(PrivateKey::from_section(other, &der)?.map(|k| k.public)),
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_with_the_public_half_only() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = PrivateKey::parse(pair.serialize_pem().as_bytes()).unwrap();
        let public = parse_public_keys(pair.public_key_pem().as_bytes()).unwrap().remove(0);
        assert_eq!(key.public.id, public.id);
        let signature = key.sign(b"message").unwrap();
        assert!(public.verify(b"message", &signature));
        assert!(!public.verify(b"another", &signature));
        assert_eq!(public.jwk()["crv"], "P-256");
    }
}
