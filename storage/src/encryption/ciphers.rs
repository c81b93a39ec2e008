//! The ciphers of encryption at rest, in the forms in which upstream stores what they make (upstream:
//! `value/encrypt/{aes,secretbox}`). The refusals are upstream's, or those of Go's own libraries.

use super::TransformError;
use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{AesGcm, KeyInit};
use crypto_secretbox::XSalsa20Poly1305;
use ring::rand::{SecureRandom, SystemRandom};

const TOO_SHORT: &str = "the stored data was shorter than the required size";
/// What Go says of data that was changed, moved, or sealed with another key.
const NOT_AUTHENTIC: &str = "cipher: message authentication failed";

type Result<T> = std::result::Result<T, TransformError>;

/// Random bytes from the system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| TransformError::new("unable to read sufficient random bytes"))?;
    Ok(bytes)
}

/// Seals and opens with one key.
pub trait Cipher: Send + Sync + 'static {
    /// `context` is authenticated where the cipher can do that.
    fn open(&self, data: &[u8], context: &[u8]) -> Result<Vec<u8>>;

    fn seal(&self, data: &[u8], context: &[u8]) -> Result<Vec<u8>>;
}

fn invalid_key_size(size: usize) -> TransformError {
    TransformError::new(format!("crypto/aes: invalid key size {size}"))
}

/// AES-GCM: a random nonce of 12 bytes, the sealed data, the tag of 16 bytes.
pub enum Gcm {
    Aes128(AesGcm<Aes128, aes_gcm::aead::consts::U12>),
    Aes192(AesGcm<Aes192, aes_gcm::aead::consts::U12>),
    Aes256(AesGcm<Aes256, aes_gcm::aead::consts::U12>),
}

const GCM_NONCE: usize = 12;

impl Gcm {
    pub fn new(key: &[u8]) -> Result<Gcm> {
        let wrong = |_| invalid_key_size(key.len());
        Ok(match key.len() {
            16 => Gcm::Aes128(AesGcm::new_from_slice(key).map_err(wrong)?),
            24 => Gcm::Aes192(AesGcm::new_from_slice(key).map_err(wrong)?),
            32 => Gcm::Aes256(AesGcm::new_from_slice(key).map_err(wrong)?),
            size => return Err(invalid_key_size(size)),
        })
    }
}

impl Cipher for Gcm {
    fn open(&self, data: &[u8], context: &[u8]) -> Result<Vec<u8>> {
        let Some((nonce, msg)) = data.split_at_checked(GCM_NONCE) else { return Err(TransformError::new(TOO_SHORT)) };
        let payload = Payload { msg, aad: context };
        let opened = match self {
            Gcm::Aes128(gcm) => gcm.decrypt(nonce.into(), payload),
            Gcm::Aes192(gcm) => gcm.decrypt(nonce.into(), payload),
            Gcm::Aes256(gcm) => gcm.decrypt(nonce.into(), payload),
        };
        opened.map_err(|_| TransformError::new(NOT_AUTHENTIC))
    }

    fn seal(&self, data: &[u8], context: &[u8]) -> Result<Vec<u8>> {
        let nonce = random::<GCM_NONCE>()?;
        let payload = Payload { msg: data, aad: context };
        let sealed = match self {
            Gcm::Aes128(gcm) => gcm.encrypt(&nonce.into(), payload),
            Gcm::Aes192(gcm) => gcm.encrypt(&nonce.into(), payload),
            Gcm::Aes256(gcm) => gcm.encrypt(&nonce.into(), payload),
        };
        let sealed = sealed.map_err(|_| TransformError::new("the data is too long for AES-GCM"))?;
        Ok([&nonce[..], &sealed].concat())
    }
}

/// AES-CBC with PKCS#7 padding: a random initialization vector, the sealed blocks. Nothing is authenticated.
pub struct Cbc {
    key: Vec<u8>,
}

const BLOCK: usize = 16;

impl Cbc {
    pub fn new(key: &[u8]) -> Result<Cbc> {
        match key.len() {
            16 | 24 | 32 => Ok(Cbc { key: key.to_vec() }),
            size => Err(invalid_key_size(size)),
        }
    }
}

impl Cipher for Cbc {
    fn open(&self, data: &[u8], _context: &[u8]) -> Result<Vec<u8>> {
        let Some((iv, blocks)) = data.split_at_checked(BLOCK) else { return Err(TransformError::new(TOO_SHORT)) };
        if blocks.len() % BLOCK != 0 {
            return Err(TransformError::new("the stored data is not a multiple of the block size"));
        }
        if blocks.is_empty() {
            return Err(TransformError::new("invalid PKCS7 data (empty or not padded)"));
        }
        let wrong = |_| invalid_key_size(self.key.len());
        let opened = match self.key.len() {
            16 => cbc::Decryptor::<Aes128>::new_from_slices(&self.key, iv)
                .map_err(wrong)?
                .decrypt_padded_vec_mut::<Pkcs7>(blocks),
            24 => cbc::Decryptor::<Aes192>::new_from_slices(&self.key, iv)
                .map_err(wrong)?
                .decrypt_padded_vec_mut::<Pkcs7>(blocks),
            _ => cbc::Decryptor::<Aes256>::new_from_slices(&self.key, iv)
                .map_err(wrong)?
                .decrypt_padded_vec_mut::<Pkcs7>(blocks),
        };
        opened.map_err(|_| TransformError::new("invalid padding on input"))
    }

    fn seal(&self, data: &[u8], _context: &[u8]) -> Result<Vec<u8>> {
        let iv = random::<BLOCK>()?;
        let wrong = |_| invalid_key_size(self.key.len());
        let sealed = match self.key.len() {
            16 => cbc::Encryptor::<Aes128>::new_from_slices(&self.key, &iv)
                .map_err(wrong)?
                .encrypt_padded_vec_mut::<Pkcs7>(data),
            24 => cbc::Encryptor::<Aes192>::new_from_slices(&self.key, &iv)
                .map_err(wrong)?
                .encrypt_padded_vec_mut::<Pkcs7>(data),
            _ => cbc::Encryptor::<Aes256>::new_from_slices(&self.key, &iv)
                .map_err(wrong)?
                .encrypt_padded_vec_mut::<Pkcs7>(data),
        };
        Ok([&iv[..], &sealed].concat())
    }
}

/// NaCl's secretbox (XSalsa20 and Poly1305): a random nonce of 24 bytes, the tag of 16 bytes, the sealed data.
pub struct Secretbox(XSalsa20Poly1305);

const SECRETBOX_NONCE: usize = 24;
const SECRETBOX_OVERHEAD: usize = 16;

impl Secretbox {
    pub fn new(key: &[u8]) -> Result<Secretbox> {
        let wrong = || TransformError::new(format!("expected key size 32 for secretbox provider, got {}", key.len()));
        Ok(Secretbox(XSalsa20Poly1305::new_from_slice(key).map_err(|_| wrong())?))
    }
}

impl Cipher for Secretbox {
    fn open(&self, data: &[u8], _context: &[u8]) -> Result<Vec<u8>> {
        if data.len() < SECRETBOX_NONCE + SECRETBOX_OVERHEAD {
            return Err(TransformError::new(TOO_SHORT));
        }
        let (nonce, boxed) = data.split_at(SECRETBOX_NONCE);
        let opened = self.0.decrypt(nonce.into(), boxed);
        opened.map_err(|_| TransformError::new("output array was not large enough for encryption"))
    }

    fn seal(&self, data: &[u8], _context: &[u8]) -> Result<Vec<u8>> {
        let nonce = random::<SECRETBOX_NONCE>()?;
        let sealed = self.0.encrypt(&nonce.into(), data);
        let sealed = sealed.map_err(|_| TransformError::new("the data is too long for a secretbox"))?;
        Ok([&nonce[..], &sealed].concat())
    }
}

/// AES-256-GCM with a key of its own for every value, derived of a seed: 32 random bytes, which with the seed give the key,
/// then as [`Gcm`]. No number of values wears the seed out.
pub struct SeededGcm {
    seed: ring::hkdf::Prk,
}

pub const SEED: usize = 32;
const INFO: usize = 32;

impl SeededGcm {
    pub fn new(seed: &[u8]) -> Result<SeededGcm> {
        if seed.len() < SEED {
            return Err(TransformError::new(format!("invalid seed length {} used for key generation", seed.len())));
        }
        Ok(SeededGcm { seed: ring::hkdf::Prk::new_less_safe(ring::hkdf::HKDF_SHA256, seed) })
    }

    fn derived(&self, info: &[u8]) -> Result<Gcm> {
        let mut key = [0; 32];
        let wrong = |_| TransformError::new("failed to read a derived key from KDF");
        self.seed.expand(&[info], ring::hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key)).map_err(wrong)?;
        Gcm::new(&key)
    }
}

impl Cipher for SeededGcm {
    fn open(&self, data: &[u8], context: &[u8]) -> Result<Vec<u8>> {
        let Some((info, sealed)) = data.split_at_checked(INFO) else { return Err(TransformError::new(TOO_SHORT)) };
        self.derived(info)?.open(sealed, context)
    }

    fn seal(&self, data: &[u8], context: &[u8]) -> Result<Vec<u8>> {
        let info = random::<INFO>()?;
        let sealed = self.derived(&info)?.seal(data, context)?;
        Ok([&info[..], &sealed].concat())
    }
}
