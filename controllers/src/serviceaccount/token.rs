//! Signs the tokens of service account secrets: JWTs without expiry, with the claims of upstream's legacy tokens.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use serde_json::json;
use sha2::{Digest, Sha256};

pub(super) enum Signer {
    Rsa { key: Box<RsaKeyPair>, id: String },
    Ecdsa { key: Box<EcdsaKeyPair>, algorithm: &'static str, id: String },
}

impl Signer {
    /// Reads a private key: PKCS#1 or PKCS#8 RSA, PKCS#8 P-256 or P-384.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|error| error.to_string())?;
        let mut label = "";
        let mut body = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(begin) = line.strip_prefix("-----BEGIN ") {
                label = begin.trim_end_matches('-');
                body.clear();
            } else if line.starts_with("-----END ") {
                if label.ends_with("PRIVATE KEY") {
                    break;
                }
            } else {
                body.push_str(line);
            }
        }
        let der = STANDARD.decode(&body).map_err(|error| error.to_string())?;
        let rsa = match label {
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(&der),
            _ => RsaKeyPair::from_pkcs8(&der),
        };
        if let Ok(key) = rsa {
            let id = key_id(&rsa_public_info(key.public_key().as_ref()));
            return Ok(Self::Rsa { key: Box::new(key), id });
        }
        let random = SystemRandom::new();
        for (kind, algorithm, curve) in [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, "ES256", P256_PREFIX),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, "ES384", P384_PREFIX),
        ] {
            if let Ok(key) = EcdsaKeyPair::from_pkcs8(kind, &der, &random) {
                let info = [curve, key.public_key().as_ref()].concat();
                return Ok(Self::Ecdsa { id: key_id(&info), key: Box::new(key), algorithm });
            }
        }
        Err(format!("unsupported private key of type {label:?}"))
    }

    pub(super) fn legacy_token(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> String {
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": account,
            "kubernetes.io/serviceaccount/service-account.uid": uid,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
        });
        self.sign(&claims)
    }

    fn sign(&self, claims: &serde_json::Value) -> String {
        let (algorithm, id) = match self {
            Self::Rsa { id, .. } => ("RS256", id),
            Self::Ecdsa { algorithm, id, .. } => (*algorithm, id),
        };
        let header = json!({"alg": algorithm, "kid": id});
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rsa { key, .. } => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
                    .expect("the buffer has the length of the modulus");
                signature
            }
            Self::Ecdsa { key, .. } => {
                key.sign(&random, signed.as_bytes()).expect("a P-curve key signs any message").as_ref().to_vec()
            }
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// What comes before the point in the SubjectPublicKeyInfo of a P-256 or P-384 key.
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P384_PREFIX: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22, 0x03, 0x62, 0x00,
];

/// The SubjectPublicKeyInfo of an RSA key in PKCS#1 form.
fn rsa_public_info(pkcs1: &[u8]) -> Vec<u8> {
    const ALGORITHM: &[u8] =
        &[0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let bits = [&[0][..], pkcs1].concat();
    der(0x30, &[ALGORITHM, &der(0x03, &bits)].concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        out.push(0x80 | (bytes.len() - start) as u8);
        out.extend_from_slice(&bytes[start..]);
    }
    out.extend_from_slice(content);
    out
}

/// The name under which verifiers look the key up: a digest of its public half.
fn key_id(public_info: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(public_info))
}
