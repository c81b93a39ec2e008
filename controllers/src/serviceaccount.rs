//! Service accounts: every namespace has one called `default`, and token secrets follow the accounts they are for. The
//! counterparts of `pkg/controller/serviceaccount` and of `pkg/controller/certificates/rootcacertpublisher`.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_client::drive::{drive, feed};
use coxswain_client::objects::{self, Deletion};
use coxswain_client::{Client, Event, Informer, ObjectKey, Selection, Store, WorkQueue, errors, kube};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::Context;
use crate::common::owners;

mod token;

pub async fn run(context: Context) {
    let namespaces: Informer<Namespace> = context.informers.informer();
    let accounts: Informer<ServiceAccount> = context.informers.informer();
    tokio::join!(namespaces.synced(), accounts.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let feeds = async {
        tokio::join!(
            feed(&namespaces, |event| {
                if !matches!(event, Event::Deleted(_)) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
            feed(&accounts, |event| {
                if let Event::Deleted(account) = event {
                    queue.add(ObjectKey::new("", owners::namespace(&account.metadata)));
                }
            }),
        )
    };
    let state = Arc::new((context.client.clone(), namespaces.store(), accounts.store()));
    let reconcile = |state: Arc<(Client, Store<Namespace>, Store<ServiceAccount>)>, key: ObjectKey| async move {
        let (client, namespaces, accounts) = state.as_ref();
        if !is_active(namespaces, &key.name) || accounts.get(&key.name, "default").is_some() {
            return Ok(());
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some("default".to_owned()),
                namespace: Some(key.name),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        unless_pointless(objects::create(client, &account).await)
    };
    drive("serviceaccount", state, queue.clone(), 1, context.shutdown.clone(), reconcile, feeds).await;
}

fn is_active(namespaces: &Store<Namespace>, name: &str) -> bool {
    namespaces.get("", name).is_some_and(|namespace| {
        let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
        phase != Some("Terminating") && !owners::is_deleting(&namespace.metadata)
    })
}

/// Creating what is there already, or where nothing can be created any more, is no failure.
fn unless_pointless<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if errors::is_already_exists(&error) || errors::is_not_found(&error) => Ok(()),
        Err(error) if errors::has_cause(&error, "NamespaceTerminating") => Ok(()),
        Err(error) => Err(error),
    }
}

const ROOT_CA: &str = "kube-root-ca.crt";
const ROOT_CA_DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
     endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
     distributions of Kubernetes clusters.";

struct Publisher {
    client: Client,
    namespaces: Store<Namespace>,
    published: Store<ConfigMap>,
    bundle: String,
}

/// Publishes the cluster's authority to every namespace, in the ConfigMap `kube-root-ca.crt`.
pub async fn run_root_ca_publisher(context: Context) {
    let Some(ca) = &context.config.root_ca else { return };
    let namespaces: Informer<Namespace> = context.informers.informer();
    let published: Informer<ConfigMap> =
        context.informers.informer_with(Selection::fields(format!("metadata.name={ROOT_CA}")));
    tokio::join!(namespaces.synced(), published.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let feeds = async {
        tokio::join!(
            feed(&namespaces, |event| {
                if !matches!(event, Event::Deleted(_)) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
            feed(&published, |event| {
                if !matches!(event, Event::Added(_)) {
                    queue.add(ObjectKey::new("", owners::namespace(&event.object().metadata)));
                }
            }),
        )
    };
    let publisher = Arc::new(Publisher {
        client: context.client.clone(),
        namespaces: namespaces.store(),
        published: published.store(),
        bundle: String::from_utf8_lossy(ca).into_owned(),
    });
    let reconcile = |publisher: Arc<Publisher>, key: ObjectKey| async move { publisher.publish(&key.name).await };
    drive("root-ca-certificate-publisher", publisher, queue.clone(), 1, context.shutdown.clone(), reconcile, feeds)
        .await;
}

impl Publisher {
    async fn publish(&self, namespace: &str) -> Result<(), kube::Error> {
        if !is_active(&self.namespaces, namespace) {
            return Ok(());
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.bundle.clone())]);
        let description = ("kubernetes.io/description".to_owned(), ROOT_CA_DESCRIPTION.to_owned());
        let Some(present) = self.published.get(namespace, ROOT_CA) else {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(ROOT_CA.to_owned()),
                    namespace: Some(namespace.to_owned()),
                    annotations: Some(BTreeMap::from([description])),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            return unless_pointless(objects::create(&self.client, &map).await);
        };
        let described = owners::annotation(&present.metadata, &description.0) == Some(ROOT_CA_DESCRIPTION);
        if present.data.as_ref() == Some(&data) && described {
            return Ok(());
        }
        let mut map = present.as_ref().clone();
        map.data = Some(data);
        map.metadata.annotations.get_or_insert_default().insert(description.0, description.1);
        unless_pointless(objects::update(&self.client, &map).await)
    }
}

const TOKEN_TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";

struct Tokens {
    client: Client,
    accounts: Store<ServiceAccount>,
    secrets: Store<Secret>,
    signer: Option<token::Signer>,
    root_ca: Option<Vec<u8>>,
}

/// Fills token secrets with a signed token, and deletes those whose account is gone.
pub async fn run_tokens(context: Context) {
    let signer = match context.config.service_account_key.as_deref().map(token::Signer::from_pem).transpose() {
        Ok(signer) => signer,
        Err(error) => {
            tracing::error!(%error, "cannot use the service account key; token secrets stay empty");
            None
        }
    };
    let accounts: Informer<ServiceAccount> = context.informers.informer();
    let secrets: Informer<Secret> = context.informers.informer_with(Selection::fields(format!("type={TOKEN_TYPE}")));
    tokio::join!(accounts.synced(), secrets.synced());
    let queue = WorkQueue::<ObjectKey>::new();
    let of_account = |account: &ServiceAccount| {
        let name = owners::name(&account.metadata).to_owned();
        let mut found = secrets.store().list_namespace(owners::namespace(&account.metadata));
        found.retain(|secret| owners::annotation(&secret.metadata, ACCOUNT_NAME) == Some(name.as_str()));
        found
    };
    let feeds = async {
        tokio::join!(
            feed(&secrets, |event| {
                if !matches!(event, Event::Deleted(_)) {
                    queue.add(ObjectKey::of(event.object().as_ref()));
                }
            }),
            feed(&accounts, |event| {
                if !matches!(event, Event::Updated { .. }) {
                    for secret in of_account(event.object()) {
                        queue.add(ObjectKey::of(secret.as_ref()));
                    }
                }
            }),
        )
    };
    let tokens = Arc::new(Tokens {
        client: context.client.clone(),
        accounts: accounts.store(),
        secrets: secrets.store(),
        signer,
        root_ca: context.config.root_ca.clone(),
    });
    let reconcile = |tokens: Arc<Tokens>, key: ObjectKey| async move { tokens.reconcile(key).await };
    drive("serviceaccount-token", tokens, queue.clone(), 5, context.shutdown.clone(), reconcile, feeds).await;
}

impl Tokens {
    async fn reconcile(&self, key: ObjectKey) -> Result<(), kube::Error> {
        let Some(secret) = self.secrets.get_key(&key).filter(|secret| secret.type_.as_deref() == Some(TOKEN_TYPE))
        else {
            return Ok(());
        };
        let Some(name) = owners::annotation(&secret.metadata, ACCOUNT_NAME).filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let uid = owners::annotation(&secret.metadata, ACCOUNT_UID).filter(|uid| !uid.is_empty());
        let is_same = |account: &ServiceAccount| uid.is_none_or(|uid| owners::uid(&account.metadata) == uid);
        let account_key = ObjectKey::new(key.namespace.clone(), name);
        let mut account = self.accounts.get_key(&account_key).map(|account| account.as_ref().clone());
        if !account.as_ref().is_some_and(is_same) {
            // The account may have been made a moment ago: only the server knows.
            account = errors::ignore_not_found(objects::get::<ServiceAccount>(&self.client, &account_key).await)?;
        }
        let Some(account) = account.filter(is_same) else {
            let deletion = Deletion { uid: secret.metadata.uid.as_deref(), ..Deletion::default() };
            let deleted = objects::delete::<Secret>(&self.client, &key, &deletion).await;
            return match errors::ignore_not_found(deleted) {
                Err(error) if errors::is_conflict(&error) => Ok(()),
                result => result.map(drop),
            };
        };
        let Some(signer) = &self.signer else { return Ok(()) };
        let mut new = secret.as_ref().clone();
        let annotations = new.metadata.annotations.get_or_insert_default();
        annotations.insert(ACCOUNT_UID.to_owned(), owners::uid(&account.metadata).to_owned());
        let data = new.data.get_or_insert_default();
        if let Some(ca) = &self.root_ca {
            data.insert("ca.crt".to_owned(), ByteString(ca.clone()));
        }
        data.insert("namespace".to_owned(), ByteString(key.namespace.clone().into_bytes()));
        if data.get("token").is_none_or(|token| token.0.is_empty()) {
            let token = signer.legacy_token(&key.namespace, name, owners::uid(&account.metadata), &key.name);
            data.insert("token".to_owned(), ByteString(token.into_bytes()));
        }
        if new == *secret {
            return Ok(());
        }
        match objects::update(&self.client, &new).await {
            Ok(_) => Ok(()),
            Err(error) if errors::is_not_found(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
