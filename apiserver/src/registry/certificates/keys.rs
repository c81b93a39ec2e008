//! Public keys, and what was signed with them: by which a node shows that it has the other half.

use num_bigint::BigUint;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    Ed25519(Vec<u8>),
    Ec { curve: &'static str, point: Vec<u8> },
    Rsa { bits: usize, modulus: BigUint, exponent: BigUint },
    Other,
}

const EC: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";
const X25519: &str = "1.3.101.110";
/// Curves by identifier, with the names that upstream shows.
const CURVES: [(&str, &str); 4] =
    [("1.3.132.0.33", "P-224"), ("1.2.840.10045.3.1.7", "P-256"), ("1.3.132.0.34", "P-384"), ("1.3.132.0.35", "P-521")];

/// The key of a request (PKCS#10); none if it is not one.
pub(super) fn of_request(der: &[u8]) -> Option<Key> {
    let (rest, request) = X509CertificationRequest::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let info = &request.certification_request_info.subject_pki;
    Some(of_info(info)?.unwrap_or(Key::Other))
}

/// The key in its own encoding (PKIX).
pub(super) fn of_public_key(der: &[u8]) -> Option<Key> {
    let (rest, info) = SubjectPublicKeyInfo::from_der(der).ok()?;
    if rest.is_empty() { of_info(&info)? } else { None }
}

/// None if the key is malformed, and nothing within it if it is of a sort that nobody knows.
#[expect(clippy::option_option, reason = "malformed and unknown are told apart in two of three places")]
pub(super) fn of_info(info: &SubjectPublicKeyInfo<'_>) -> Option<Option<Key>> {
    let bytes = info.subject_public_key.data.to_vec();
    match info.algorithm.algorithm.to_id_string().as_str() {
        ED25519 => return (bytes.len() == 32).then_some(Some(Key::Ed25519(bytes))),
        // Nothing can be signed with it.
        X25519 => return Some(Some(Key::Other)),
        EC => {
            let parameters = info.algorithm.parameters.as_ref()?;
            let curve = parameters.as_oid().ok()?.to_id_string();
            let (_, curve) = CURVES.iter().find(|(id, _)| *id == curve)?;
            return Some(Some(Key::Ec { curve, point: bytes }));
        }
        _ => {}
    }
    match info.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let [modulus, exponent] = [key.modulus, key.exponent].map(BigUint::from_bytes_be);
            // Counted in bytes, as upstream does.
            let bits = modulus.bits().div_ceil(8) as usize * 8;
            Some(Some(Key::Rsa { bits, modulus, exponent }))
        }
        Ok(PublicKey::DSA(_)) => Some(Some(Key::Other)),
        Ok(_) => Some(None),
        Err(_) => None,
    }
}

/// Whether a request is signed with its own key.
pub(super) fn is_signed(der: &[u8]) -> bool {
    X509CertificationRequest::from_der(der).is_ok_and(|(_, request)| request.verify_signature().is_ok())
}

impl Key {
    /// Whether it is of a size, or on a curve, that pods may have certificates for.
    pub fn is_supported(&self) -> bool {
        match self {
            Key::Ed25519(_) => true,
            Key::Ec { curve, .. } => *curve != "P-224",
            Key::Rsa { bits, .. } => matches!(bits, 3072 | 4096),
            Key::Other => false,
        }
    }

    /// Whether the signature was made with this key. Signatures on the curve P-521 cannot be verified here.
    pub fn proves(&self, message: &[u8], signature: &[u8]) -> bool {
        let verify = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match self {
            Key::Ed25519(key) => verify(&signature::ED25519, key),
            Key::Ec { curve: "P-256", point } => verify(&signature::ECDSA_P256_SHA256_ASN1, point),
            Key::Ec { curve: "P-384", point } => verify(&signature::ECDSA_P384_SHA256_ASN1, point),
            Key::Rsa { modulus, exponent, .. } => verify_pss(modulus, exponent, message, signature).is_some(),
            Key::Ec { .. } | Key::Other => false,
        }
    }
}

/// RSASSA-PSS with SHA-256 and a salt of any length (RFC 8017, 9.1.2): nodes use the longest that fits, which `ring` does not take.
fn verify_pss(modulus: &BigUint, exponent: &BigUint, message: &[u8], signature: &[u8]) -> Option<()> {
    const HASH_BYTES: usize = 32;
    let bits = modulus.bits() as usize - 1;
    let length = bits.div_ceil(8);
    let signature_number = BigUint::from_bytes_be(signature);
    if signature.len() != modulus.bits().div_ceil(8) as usize || signature_number >= *modulus {
        return None;
    }
    let number = signature_number.modpow(exponent, modulus).to_bytes_be();
    let mut encoded = vec![0; length.checked_sub(number.len())?];
    encoded.extend(number);
    let (masked, tail) = encoded.split_at(length.checked_sub(HASH_BYTES + 1)?);
    let (hash, end) = tail.split_at(HASH_BYTES);
    let unused = 8 * length - bits;
    if end != [0xbc] || masked.first()?.leading_zeros() < unused as u32 {
        return None;
    }
    let mut block: Vec<u8> = masked.iter().zip(mask(hash, masked.len())).map(|(a, b)| a ^ b).collect();
    block[0] &= 0xff >> unused;
    let start = block.iter().position(|byte| *byte != 0).filter(|at| block[*at] == 1)?;
    let expected =
        Sha256::new().chain_update([0; 8]).chain_update(Sha256::digest(message)).chain_update(&block[start + 1..]);
    (expected.finalize().as_slice() == hash).then_some(())
}

/// MGF1 with SHA-256 (RFC 8017, B.2.1).
fn mask(seed: &[u8], length: usize) -> Vec<u8> {
    let parts =
        (0u32..).flat_map(|i| Sha256::new().chain_update(seed).chain_update(i.to_be_bytes()).finalize().to_vec());
    parts.take(length).collect()
}
