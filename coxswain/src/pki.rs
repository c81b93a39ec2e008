//! The certificates and keys of a cluster that `coxswain up` makes (upstream: kubeadm's `certs` phase, same file names).
//!
//! Everything lives in one directory. What exists is kept; certificates that expire within a month are made anew from the
//! same authority, so that clients that trust it need no change. Several servers may use one directory: whoever makes
//! something holds a lock, so that a certificate and a key in it belong together.

use anyhow::{Context, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const DAY: u64 = 24 * 3600;
const AUTHORITY_DAYS: u64 = 3650;
const LEAF_DAYS: u64 = 365;
/// A leaf with less time left than this is made anew at start.
const RENEW_BEFORE_DAYS: u64 = 30;

/// A certificate authority on disk: `NAME.crt` and `NAME.key`.
pub struct Authority {
    pub cert_path: PathBuf,
    pub key_path: PathBuf,
    pub cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What a leaf certificate is for.
pub enum Use {
    Client { name: String, groups: Vec<String> },
    Server { name: String, groups: Vec<String>, dns: Vec<String>, ips: Vec<IpAddr> },
}

/// A certificate with its key, as PEM and on disk.
#[derive(Clone, Debug)]
pub struct Leaf {
    pub cert_path: PathBuf,
    pub key_path: PathBuf,
    pub cert_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// Opens the authority, or makes it if the directory has none.
    pub fn open_or_create(dir: &Path, file: &str, common_name: &str) -> Result<Self> {
        let _lock = lock(dir)?;
        let (cert_path, key_path) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
        if !cert_path.exists() || !key_path.exists() {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::default();
            params.distinguished_name = distinguished(common_name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
            lifetime(&mut params, AUTHORITY_DAYS);
            let cert = params.self_signed(&key)?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            write_atomic(&cert_path, cert.pem().as_bytes(), 0o644)?;
        }
        let cert_pem = read(&cert_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?).with_context(|| format!("reading {}", key_path.display()))?;
        if !belongs(&cert_pem, &key) {
            bail!("{} is not the key of {}", key_path.display(), cert_path.display());
        }
        let issuer =
            Issuer::from_ca_cert_pem(&cert_pem, key).with_context(|| format!("reading {}", cert_path.display()))?;
        Ok(Self { cert_path, key_path, cert_pem, issuer })
    }

    /// The leaf `file.crt`/`file.key`; made if it is missing, close to its end, or for other names than asked for.
    pub fn leaf(&self, dir: &Path, file: &str, purpose: &Use) -> Result<Leaf> {
        let _lock = lock(dir)?;
        let (cert_path, key_path) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
        let mut params = CertificateParams::default();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let mut names: Vec<SanType> = Vec::new();
        match purpose {
            Use::Client { name, groups } => {
                params.distinguished_name = distinguished(name, groups);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
            Use::Server { name, groups, dns, ips } => {
                params.distinguished_name = distinguished(name, groups);
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for dns in dns {
                    names.push(SanType::DnsName(dns.as_str().try_into()?));
                }
                names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
            }
        }
        params.subject_alt_names = names;
        if !self.is_current(&cert_path, &key_path, &params) {
            let key = KeyPair::generate()?;
            lifetime(&mut params, LEAF_DAYS);
            params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
            let cert = params.signed_by(&key, &self.issuer)?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            write_atomic(&cert_path, cert.pem().as_bytes(), 0o644)?;
        }
        Ok(Leaf { cert_pem: read(&cert_path)?, key_pem: read(&key_path)?, cert_path, key_path })
    }

    /// Whether the leaf on disk is of this authority, lasts long enough, and bears the names asked for.
    fn is_current(&self, cert_path: &Path, key_path: &Path, wanted: &CertificateParams) -> bool {
        let (Ok(pem), Ok(key)) = (fs::read_to_string(cert_path), fs::read_to_string(key_path)) else { return false };
        // One without the other was written when a server was killed.
        if !KeyPair::from_pem(&key).is_ok_and(|key| belongs(&pem, &key)) {
            return false;
        }
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else { return false };
        let Ok(cert) = pem.parse_x509() else { return false };
        let Ok((_, authority)) = x509_parser::pem::parse_x509_pem(self.cert_pem.as_bytes()) else { return false };
        let Ok(authority) = authority.parse_x509() else { return false };
        let now = unix_now() as i64;
        let lasts = cert.validity().not_after.timestamp() - now > (RENEW_BEFORE_DAYS * DAY) as i64;
        let ours = cert.verify_signature(Some(authority.public_key())).is_ok();
        let mut present: Vec<String> = Vec::new();
        if let Ok(Some(san)) = cert.subject_alternative_name() {
            for name in &san.value.general_names {
                match name {
                    x509_parser::extensions::GeneralName::DNSName(dns) => present.push((*dns).to_owned()),
                    x509_parser::extensions::GeneralName::IPAddress(ip) => present.push(hex(ip)),
                    _ => {}
                }
            }
        }
        let mut asked: Vec<String> = wanted
            .subject_alt_names
            .iter()
            .map(|name| match name {
                SanType::DnsName(dns) => dns.as_str().to_owned(),
                SanType::IpAddress(IpAddr::V4(ip)) => hex(&ip.octets()),
                SanType::IpAddress(IpAddr::V6(ip)) => hex(&ip.octets()),
                other => format!("{other:?}"),
            })
            .collect();
        present.sort();
        asked.sort();
        lasts && ours && present == asked
    }
}

/// Held while something in the directory is looked for and made; other processes wait.
fn lock(dir: &Path) -> Result<fs::File> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join(".lock");
    let locked = || -> std::io::Result<fs::File> {
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    locked().with_context(|| format!("locking {}", path.display()))
}

/// Whether a certificate is of this key.
fn belongs(cert_pem: &str, key: &KeyPair) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else { return false };
    pem.parse_x509().is_ok_and(|cert| cert.public_key().raw == key.subject_public_key_info())
}

/// The key pair that signs service account tokens, as `sa.key` and `sa.pub`. Returns both paths.
pub fn service_account_keys(dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let _lock = lock(dir)?;
    let (private, public) = (dir.join("sa.key"), dir.join("sa.pub"));
    if !private.exists() || !public.exists() {
        let key = KeyPair::generate()?;
        write_private(&private, key.serialize_pem().as_bytes())?;
        write_atomic(&public, key.public_key_pem().as_bytes(), 0o644)?;
    }
    Ok((private, public))
}

fn distinguished(common_name: &str, organizations: &[String]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);

    for organization in organizations {
        name.push(DnType::OrganizationName, organization.as_str());
    }
    name
}

fn lifetime(params: &mut CertificateParams, days: u64) {
    // An hour back, for clocks that disagree.
    let now = SystemTime::now();
    params.not_before = (now - std::time::Duration::from_secs(3600)).into();
    params.not_after = (now + std::time::Duration::from_secs(days * DAY)).into();
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    write_atomic(path, content, 0o600)
}

/// Replaces a file as a whole, so that a crash leaves the old one or the new one.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let next = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&next)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(names: &[&str]) -> Use {
        Use::Server {
            name: "kube-apiserver".into(),
            groups: vec![],
            dns: names.iter().map(|n| (*n).to_owned()).collect(),
            ips: vec![[127, 0, 0, 1].into()],
        }
    }

    #[test]
    fn a_leaf_is_kept_until_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::open_or_create(dir.path(), "ca", "kubernetes").unwrap();
        let first = ca.leaf(dir.path(), "apiserver", &server(&["kubernetes"])).unwrap();
        let again = Authority::open_or_create(dir.path(), "ca", "kubernetes").unwrap();
        let same = again.leaf(dir.path(), "apiserver", &server(&["kubernetes"])).unwrap();
        assert_eq!(first.cert_pem, same.cert_pem);
        let other = again.leaf(dir.path(), "apiserver", &server(&["kubernetes", "example.org"])).unwrap();
        assert_ne!(first.cert_pem, other.cert_pem);
    }

    #[test]
    fn servers_that_start_at_once_in_one_directory_agree() {
        let dir = tempfile::tempdir().unwrap();
        let made: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let ca = Authority::open_or_create(dir.path(), "ca", "kubernetes").unwrap();
                        let leaf = ca.leaf(dir.path(), "apiserver", &server(&["kubernetes"])).unwrap();
                        let (private, public) = service_account_keys(dir.path()).unwrap();
                        (ca.cert_pem, leaf.cert_pem, leaf.key_pem, read(&private).unwrap(), read(&public).unwrap())
                    })
                })
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(made.iter().all(|one| *one == made[0]));
        let (_, cert, key, private, public) = &made[0];
        assert!(belongs(cert, &KeyPair::from_pem(key).unwrap()));
        assert_eq!(KeyPair::from_pem(private).unwrap().public_key_pem(), *public);
    }

    #[test]
    fn a_key_whose_certificate_was_not_written_any_more_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::open_or_create(dir.path(), "ca", "kubernetes").unwrap();
        let first = ca.leaf(dir.path(), "apiserver", &server(&["kubernetes"])).unwrap();
        write_private(&first.key_path, KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
        let next = ca.leaf(dir.path(), "apiserver", &server(&["kubernetes"])).unwrap();
        assert!(belongs(&next.cert_pem, &KeyPair::from_pem(&next.key_pem).unwrap()));
        write_private(&ca.key_path, KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
        let error = Authority::open_or_create(dir.path(), "ca", "kubernetes").err().unwrap();
        assert!(error.to_string().contains("is not the key of"), "{error}");
    }

    #[test]
    fn a_leaf_of_another_authority_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let client = Use::Client { name: "admin".into(), groups: vec!["system:masters".into()] };
        let ca = Authority::open_or_create(dir.path(), "ca", "kubernetes").unwrap();
        let first = ca.leaf(dir.path(), "admin", &client).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let next = Authority::open_or_create(dir.path(), "ca", "kubernetes").unwrap();
        assert_ne!(first.cert_pem, next.leaf(dir.path(), "admin", &client).unwrap().cert_pem);
    }
}
