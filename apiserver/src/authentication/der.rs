//! The few DER encodings that public keys need; reading is left to `x509-parser`.

/// A DER element with its length.
pub fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|p| p.len()).sum();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let first = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1);
        out.push(0x80 | (bytes.len() - first) as u8);
        out.extend(&bytes[first..]);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
/// rsaEncryption with its NULL parameter.
const RSA: [u8; 13] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
/// id-ecPublicKey, then the curve.
const EC: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
pub const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub const P384: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
pub const P521: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23];

/// `SubjectPublicKeyInfo` of an RSA key given as PKCS#1 `RSAPublicKey`.
pub fn rsa_spki(pkcs1: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[&element(SEQUENCE, &[&RSA]), &element(BIT_STRING, &[&[0], pkcs1])])
}

/// `SubjectPublicKeyInfo` of an uncompressed point on `curve` (an encoded OID).
pub fn ec_spki(curve: &[u8], point: &[u8]) -> Vec<u8> {
    element(SEQUENCE, &[&element(SEQUENCE, &[&EC, curve]), &element(BIT_STRING, &[&[0], point])])
}

/// Reads one element: its tag, its content, and what follows.
pub fn read(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (first as usize, rest)
    } else {
        let count = (first & 0x7f) as usize;
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let length = rest[..count].iter().fold(0usize, |n, b| n << 8 | *b as usize);
        (length, &rest[count..])
    };
    (rest.len() >= length).then(|| (tag, &rest[..length], &rest[length..]))
}
