//! Who may approve, sign and ask for which certificates (upstream: `plugin/pkg/admission/certificates`).

use super::escalation::only_for_collection;
use super::{Attributes, Operation, Plugin};
use crate::authorization::{Authorization, Authorizer};
use crate::request::{RequestInfo, User};
use async_trait::async_trait;
use base64::Engine;
use coxswain_api::features::Feature;
use coxswain_api::field::go_quote;
use coxswain_api::{Status, Value};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

const GROUP: &str = "certificates.k8s.io";

/// Whether the user may do `verb` with the signer, or with all signers of its domain.
pub(crate) async fn may(authorization: &Authorization, user: &User, verb: &str, signer: &str) -> bool {
    let whole_domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*"));
    for name in [Some(signer.to_owned()), whole_domain].into_iter().flatten() {
        let request = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: GROUP.into(),
            version: "*".into(),
            resource: "signers".into(),
            name,
            ..RequestInfo::default()
        };
        if authorization.authorize(user, &request).await.is_allow() {
            return true;
        }
    }
    false
}

fn signer_name(object: &Value) -> &str {
    object["spec"]["signerName"].as_str().unwrap_or_default()
}

/// `CertificateApproval`
pub struct CertificateApproval {
    pub authorization: Arc<Authorization>,
}

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is_of(GROUP, "certificatesigningrequests") || attributes.subresource != "approval" {
            return Ok(());
        }
        let signer = attributes.new_object().map(signer_name).unwrap_or_default();
        if may(&self.authorization, &attributes.ctx.user, "approve", signer).await {
            return Ok(());
        }
        Err(attributes
            .forbidden(format!("user not permitted to approve requests with signerName {}", go_quote(signer))))
    }
}

/// `CertificateSigning`
pub struct CertificateSigning {
    pub authorization: Arc<Authorization>,
}

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is_of(GROUP, "certificatesigningrequests") || attributes.subresource != "status" {
            return Ok(());
        }
        let (Some(object), Some(old)) = (attributes.new_object(), attributes.old) else { return Ok(()) };
        let same = |key: &str| object["status"][key] == old["status"][key];
        let signer = signer_name(object);
        if (same("certificate") && same("conditions"))
            || may(&self.authorization, &attributes.ctx.user, "sign", signer).await
        {
            return Ok(());
        }
        Err(attributes.forbidden(format!("user not permitted to sign requests with signerName {}", go_quote(signer))))
    }
}

/// `ClusterTrustBundleAttest`
pub struct ClusterTrustBundleAttest {
    pub authorization: Arc<Authorization>,
}

#[async_trait]
impl Plugin for ClusterTrustBundleAttest {
    fn name(&self) -> &'static str {
        "ClusterTrustBundleAttest"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        if !attributes.is(GROUP, "clustertrustbundles") {
            return Ok(());
        }
        let Some(object) = attributes.new_object().filter(|_| Feature::ClusterTrustBundle.enabled()) else {
            return Ok(());
        };
        // The collector of garbage need not be trusted with a signer.
        if attributes.old.is_some_and(|old| only_for_collection(object, old)) {
            return Ok(());
        }
        let signer = signer_name(object);
        // Bundles of no signer are anybody's who may write them.
        if signer.is_empty() || may(&self.authorization, &attributes.ctx.user, "attest", signer).await {
            return Ok(());
        }
        Err(attributes.forbidden(format!("user not permitted to attest for signerName {}", go_quote(signer))))
    }
}

/// `CertificateSubjectRestriction`
pub struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn validate(&self, attributes: &Attributes<'_>) -> Result<(), Status> {
        const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
        if !attributes.is(GROUP, "certificatesigningrequests") {
            return Ok(());
        }
        let Some(object) = attributes.new_object().filter(|o| signer_name(o) == SIGNER) else { return Ok(()) };
        let pem =
            base64::engine::general_purpose::STANDARD.decode(object["spec"]["request"].as_str().unwrap_or_default());
        let organizations = pem.ok().and_then(|pem| organizations(&pem));
        match organizations {
            None => Err(attributes.forbidden("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST")),
            Some(list) if list.iter().any(|o| o == crate::authentication::MASTERS) => {
                Err(attributes.forbidden(format!("use of {SIGNER} signer with system:masters group is not allowed")))
            }
            Some(_) => Ok(()),
        }
    }
}

fn organizations(pem: &[u8]) -> Option<Vec<String>> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let subject = &request.certification_request_info.subject;
    Some(subject.iter_organization().filter_map(|a| a.as_str().ok()).map(str::to_owned).collect())
}
