//! Certificate signing requests: kubelets' are approved, approved ones are signed, old ones are removed. The counterpart of
//! `pkg/controller/certificates`.

use std::sync::Arc;
use std::time::Duration;

use coxswain_client::drive::{drive, every, feed};
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, Event, Informer, ObjectKey, Store, WorkQueue, errors, kube};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};

use crate::Context;
use crate::common::{owners, time};

mod signer;

use signer::{Request, Signer};

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CLEAN_UP_PERIOD: Duration = Duration::from_secs(3600);

fn condition<'a>(request: &'a CertificateSigningRequest, kind: &str) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn add_condition(request: &mut CertificateSigningRequest, kind: &str, reason: &str, message: String) {
    let now = time::now();
    let conditions = request.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.push(CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(now.clone()),
        last_transition_time: Some(now),
    });
}

fn is_issued(request: &CertificateSigningRequest) -> bool {
    request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|certificate| !certificate.0.is_empty())
}

type Approving = (Client, Store<CertificateSigningRequest>);

/// Approves kubelets' requests for client certificates, as far as the requester may have them.
pub async fn run_approver(context: Context) {
    let requests: Informer<CertificateSigningRequest> = context.informers.informer();
    requests.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state: Arc<Approving> = Arc::new((context.client.clone(), requests.store()));
    let feeds = feed(&requests, |event| enqueue(&queue, &event));
    let reconcile = |state: Arc<Approving>, key: ObjectKey| async move { approve(&state, key).await };
    drive("certificatesigningrequest-approving", state, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds)
        .await;
}

fn enqueue(queue: &WorkQueue<ObjectKey>, event: &Event<CertificateSigningRequest>) {
    if !matches!(event, Event::Deleted(_)) {
        queue.add(ObjectKey::of(event.object().as_ref()));
    }
}

async fn approve((client, requests): &Approving, key: ObjectKey) -> Result<(), kube::Error> {
    let Some(request) = requests.get_key(&key) else { return Ok(()) };
    let decided = condition(&request, "Approved").is_some() || condition(&request, "Denied").is_some();
    if decided || is_issued(&request) || request.spec.signer_name != KUBELET_CLIENT {
        return Ok(());
    }
    let Ok(parsed) = Request::parse(&request.spec.request.0) else { return Ok(()) };
    if parsed.check(KUBELET_CLIENT, request.spec.usages.as_deref().unwrap_or_default()).is_err() {
        return Ok(());
    }
    let own = parsed.common_name() == request.spec.username.as_deref();
    let candidates = [
        (own, "selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."),
        (true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
    ];
    for (applies, subresource, message) in candidates {
        if applies && may(client, &request.spec, subresource).await? {
            let mut approved = request.as_ref().clone();
            add_condition(&mut approved, "Approved", "AutoApproved", message.to_owned());
            let updated = objects::update_subresource(client, &approved, "approval").await;
            return errors::ignore_not_found(updated).map(drop);
        }
    }
    Ok(())
}

/// Asks the server whether the requester may have a certificate of this kind.
async fn may(client: &Client, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool, kube::Error> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".to_owned()),
                version: Some("*".to_owned()),
                resource: Some("certificatesigningrequests".to_owned()),
                subresource: Some(subresource.to_owned()),
                verb: Some("create".to_owned()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SubjectAccessReview::default()
    };
    let answer = objects::create(client, &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

struct Signing {
    client: Client,
    requests: Store<CertificateSigningRequest>,
    signer: Signer,
}

/// Signs approved requests with the cluster's authority.
pub async fn run_signer(context: Context) {
    let Some((certificate, key)) = &context.config.cluster_signing else { return };
    let signer = match Signer::new(certificate, key, context.config.cluster_signing_duration) {
        Ok(signer) => signer,
        Err(error) => {
            tracing::error!(%error, "cannot use the signing authority; requests stay unsigned");
            return;
        }
    };
    let requests: Informer<CertificateSigningRequest> = context.informers.informer();
    requests.synced().await;
    let queue = WorkQueue::<ObjectKey>::new();
    let state = Arc::new(Signing { client: context.client.clone(), requests: requests.store(), signer });
    let feeds = feed(&requests, |event| enqueue(&queue, &event));
    let reconcile = |state: Arc<Signing>, key: ObjectKey| async move { state.sign(key).await };
    drive("certificatesigningrequest-signing", state, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds)
        .await;
}

impl Signing {
    async fn sign(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(request) = self.requests.get_key(&key) else { return Ok(()) };
        let approved = condition(&request, "Approved").is_some() && condition(&request, "Denied").is_none();
        let known = signer::SIGNERS.contains(&request.spec.signer_name.as_str());
        if !approved || !known || is_issued(&request) || condition(&request, "Failed").is_some() {
            return Ok(());
        }
        let usages = request.spec.usages.as_deref().unwrap_or_default();
        let mut updated = request.as_ref().clone();
        let issued = Request::parse(&request.spec.request.0).and_then(|parsed| {
            parsed.check(&request.spec.signer_name, usages)?;
            self.signer.issue(parsed, usages, request.spec.expiration_seconds, Timestamp::now())
        });
        match issued {
            Ok(pem) => updated.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes())),
            Err(message) if request.spec.signer_name.ends_with("/legacy-unknown") => {
                // Whoever asked may be meant by another signer.
                tracing::debug!(request = key.name, message, "not signed");
                return Ok(());
            }
            Err(message) => add_condition(&mut updated, "Failed", "SignerValidationFailure", message),
        }
        errors::ignore_not_found(objects::update_status(&self.client, &updated).await).map(drop)
    }
}

/// Removes requests that are done with or that nobody answered.
pub async fn run_cleaner(context: Context) {
    let requests: Informer<CertificateSigningRequest> = context.informers.informer();
    requests.synced().await;
    every(CLEAN_UP_PERIOD, &context.shutdown, || async {
        for request in requests.store().list() {
            if is_old(&request, Timestamp::now()) {
                let key = ObjectKey::of(request.as_ref());
                let deletion = Deletion { uid: request.metadata.uid.as_deref(), ..Deletion::default() };
                let deleted = objects::delete::<CertificateSigningRequest>(&context.client, &key, &deletion).await;
                if let Err(error) = errors::ignore_not_found(deleted) {
                    tracing::debug!(request = key.name, %error, "cannot remove an old request");
                }
            }
        }
    })
    .await;
}

fn is_old(request: &CertificateSigningRequest, now: Timestamp) -> bool {
    const HOUR: i64 = 3600;
    let older = |seconds: i64, since: i64| now.as_second() - since > seconds;
    let updated = |kind: &str| {
        let found = condition(request, kind)?;
        found.last_update_time.as_ref().map(|time| time.0.as_second())
    };
    let created = owners::created(&request.metadata);
    match (updated("Approved"), updated("Denied"), updated("Failed")) {
        (_, Some(denied), _) => older(HOUR, denied),
        (_, _, Some(failed)) => older(HOUR, failed),
        (Some(approved), ..) if is_issued(request) => older(HOUR, approved),
        (Some(approved), ..) => older(24 * HOUR, approved),
        (None, None, None) => older(24 * HOUR, created),
    }
}
