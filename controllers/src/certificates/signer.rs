//! What a request asks for, whether its signer gives that, and the certificate it gets.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber, date_time_ymd,
};

/// The signers served here.
pub(super) const SIGNERS: [&str; 4] = [
    "kubernetes.io/kube-apiserver-client",
    "kubernetes.io/kube-apiserver-client-kubelet",
    "kubernetes.io/kubelet-serving",
    "kubernetes.io/legacy-unknown",
];
/// A certificate is valid from a little earlier, as clocks differ.
const BACKDATE: Duration = Duration::from_secs(300);
/// No certificate is asked for shorter than this.
const DURATION_MIN: Duration = Duration::from_secs(600);

/// A parsed request.
pub(super) struct Request {
    csr: CertificateSigningRequestParams,
    common_name: Option<String>,
    organizations: Vec<String>,
}

fn text(value: &DnValue) -> Option<String> {
    match value {
        DnValue::Utf8String(text) => Some(text.clone()),
        DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        DnValue::Ia5String(text) => Some(text.as_str().to_owned()),
        DnValue::TeletexString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

impl Request {
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let pem = std::str::from_utf8(pem).map_err(|error| error.to_string())?;
        let csr =
            CertificateSigningRequestParams::from_pem(pem).map_err(|error| format!("unable to parse csr: {error}"))?;
        let name = &csr.params.distinguished_name;
        let common_name = name.get(&DnType::CommonName).and_then(text);
        let organizations = name
            .iter()
            .filter(|(kind, _)| **kind == DnType::OrganizationName)
            .filter_map(|(_, value)| text(value))
            .collect();
        Ok(Self { csr, common_name, organizations })
    }

    pub(super) fn common_name(&self) -> Option<&str> {
        self.common_name.as_deref()
    }

    /// Whether a signer may sign this; otherwise why not.
    pub(super) fn check(&self, signer: &str, usages: &[String]) -> Result<(), String> {
        let names = &self.csr.params.subject_alt_names;
        let only = |allowed: &[&str], needed: &str| {
            usages.iter().all(|usage| allowed.contains(&usage.as_str())) && usages.iter().any(|usage| usage == needed)
        };
        let is_node = || {
            if self.organizations != ["system:nodes"] {
                return Err("subject organization is not system:nodes".to_owned());
            }
            let prefixed = self.common_name.as_deref().is_some_and(|name| name.starts_with("system:node:"));
            if prefixed { Ok(()) } else { Err("subject common name does not begin with system:node: ".to_owned()) }
        };
        let usages_differ = || format!("usages did not match {usages:?}");
        match signer {
            "kubernetes.io/kube-apiserver-client" => {
                only(&["digital signature", "key encipherment", "client auth"], "client auth")
                    .then_some(())
                    .ok_or_else(usages_differ)
            }
            "kubernetes.io/kube-apiserver-client-kubelet" => {
                is_node()?;
                if !names.is_empty() {
                    return Err("DNS, IP, email and URI subjectAltNames are not allowed".to_owned());
                }
                only(&["digital signature", "key encipherment", "client auth"], "client auth")
                    .then_some(())
                    .ok_or_else(usages_differ)
            }
            "kubernetes.io/kubelet-serving" => {
                is_node()?;
                let hosts = names.iter().all(|name| matches!(name, SanType::DnsName(_) | SanType::IpAddress(_)));
                if names.is_empty() || !hosts {
                    return Err("DNS or IP subjectAltName is required, and no others are allowed".to_owned());
                }
                only(&["digital signature", "key encipherment", "server auth"], "server auth")
                    .then_some(())
                    .ok_or_else(usages_differ)
            }
            _ => Ok(()),
        }
    }
}

pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    duration_max: Duration,
}

impl Signer {
    pub(super) fn new(certificate: &[u8], key: &[u8], duration_max: Duration) -> Result<Self, String> {
        let read = |pem: &[u8]| String::from_utf8(pem.to_vec()).map_err(|error| error.to_string());
        let key = KeyPair::from_pem(&read(key)?).map_err(|error| error.to_string())?;
        let issuer = Issuer::from_ca_cert_pem(&read(certificate)?, key).map_err(|error| error.to_string())?;
        Ok(Self { issuer, duration_max })
    }

    /// The certificate in PEM.
    pub(super) fn issue(
        &self,
        request: Request,
        usages: &[String],
        seconds: Option<i32>,
        now: Timestamp,
    ) -> Result<String, String> {
        let mut csr = request.csr;
        let asked = seconds.map(|seconds| Duration::from_secs(seconds.max(0) as u64).max(DURATION_MIN));
        let duration = asked.map_or(self.duration_max, |asked| asked.min(self.duration_max));
        let epoch = date_time_ymd(1970, 1, 1);
        let now = Duration::from_secs(now.as_second().max(0) as u64);
        let params = &mut csr.params;
        params.not_before = epoch + now.saturating_sub(BACKDATE);
        params.not_after = epoch + (now + duration).saturating_sub(BACKDATE);
        params.is_ca = IsCa::ExplicitNoCa;
        params.serial_number = Some(SerialNumber::from_slice(&(rand::random::<u128>() >> 1).to_be_bytes()));
        params.use_authority_key_identifier_extension = true;
        (params.key_usages, params.extended_key_usages) = purposes(usages)?;
        csr.signed_by(&self.issuer).map(|certificate| certificate.pem()).map_err(|error| error.to_string())
    }
}

fn purposes(usages: &[String]) -> Result<(Vec<KeyUsagePurpose>, Vec<ExtendedKeyUsagePurpose>), String> {
    let (mut plain, mut extended) = (Vec::new(), Vec::new());
    for usage in usages {
        match usage.as_str() {
            "signing" | "digital signature" => plain.push(KeyUsagePurpose::DigitalSignature),
            "content commitment" => plain.push(KeyUsagePurpose::ContentCommitment),
            "key encipherment" => plain.push(KeyUsagePurpose::KeyEncipherment),
            "key agreement" => plain.push(KeyUsagePurpose::KeyAgreement),
            "data encipherment" => plain.push(KeyUsagePurpose::DataEncipherment),
            "cert sign" => plain.push(KeyUsagePurpose::KeyCertSign),
            "crl sign" => plain.push(KeyUsagePurpose::CrlSign),
            "encipher only" => plain.push(KeyUsagePurpose::EncipherOnly),
            "decipher only" => plain.push(KeyUsagePurpose::DecipherOnly),
            "any" => extended.push(ExtendedKeyUsagePurpose::Any),
            "server auth" => extended.push(ExtendedKeyUsagePurpose::ServerAuth),
            "client auth" => extended.push(ExtendedKeyUsagePurpose::ClientAuth),
            "code signing" => extended.push(ExtendedKeyUsagePurpose::CodeSigning),
            "email protection" | "s/mime" => extended.push(ExtendedKeyUsagePurpose::EmailProtection),
            "timestamping" => extended.push(ExtendedKeyUsagePurpose::TimeStamping),
            "ocsp signing" => extended.push(ExtendedKeyUsagePurpose::OcspSigning),
            other => return Err(format!("unrecognized usage {other:?}")),
        }
    }
    plain.dedup();
    extended.dedup();
    Ok((plain, extended))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName};

    use super::*;

    fn request(organization: &str) -> Request {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "system:node:a");
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        Request::parse(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_kubelet_gets_a_client_certificate_only_as_a_node() {
        let usages = ["digital signature".to_owned(), "client auth".to_owned()];
        let signer = "kubernetes.io/kube-apiserver-client-kubelet";
        assert!(request("system:masters").check(signer, &usages).is_err());
        assert!(request("system:nodes").check(signer, &["server auth".to_owned()]).is_err());
        let good = request("system:nodes");
        assert!(good.check(signer, &usages).is_ok());

        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = ca.self_signed(&key).unwrap().pem();
        let signer = Signer::new(certificate.as_bytes(), key.serialize_pem().as_bytes(), DURATION_MIN).unwrap();
        let pem = signer.issue(good, &usages, Some(3600), Timestamp::now()).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
