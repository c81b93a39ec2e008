//! Clients that act as service accounts, by tokens that a manager asks for in their name (upstream:
//! `controller-manager/pkg/clientbuilder`, `DynamicControllerClientBuilder`).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::errors;

const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// A token is replaced when this part of its life is over.
const RENEWED_AFTER: f64 = 0.8;

struct Account {
    /// Whose rights make the account and its tokens.
    manager: Client,
    namespace: String,
    name: String,
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

/// A client that sends through `anonymous`, which has no identity of its own, as the service account. The account is made if it is missing.
pub fn as_service_account(anonymous: Client, manager: Client, namespace: &str, name: &str) -> Client {
    let account =
        Arc::new(Account { manager, namespace: namespace.to_owned(), name: name.to_owned(), token: Mutex::default() });
    let service = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
        let (anonymous, account) = (anonymous.clone(), account.clone());
        async move {
            request.headers_mut().insert(AUTHORIZATION, account.token().await?);
            let response = anonymous.send(request).await?;
            if response.status() == http::StatusCode::UNAUTHORIZED {
                // The account may have been deleted and made anew; its old token is worth nothing then.
                *account.token.lock().await = None;
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, namespace.to_owned())
}

impl Account {
    async fn token(&self) -> Result<HeaderValue, kube::Error> {
        let mut token = self.token.lock().await;
        if let Some((present, until)) = &*token
            && *until > Instant::now()
        {
            return Ok(present.clone());
        }
        let (text, lifetime) = self.request().await?;
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|e| kube::Error::Service(e.into()))?;
        value.set_sensitive(true);
        *token = Some((value.clone(), Instant::now() + lifetime.mul_f64(RENEWED_AFTER)));
        Ok(value)
    }

    /// A fresh token and how long it lives.
    async fn request(&self) -> Result<(String, Duration), kube::Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.manager.clone(), &self.namespace);
        let spec = TokenRequestSpec {
            expiration_seconds: Some(TOKEN_LIFETIME.as_secs() as i64),
            ..TokenRequestSpec::default()
        };
        let wanted = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let params = PostParams::default();
        let made = match accounts.create_token_request(&self.name, &params, &wanted).await {
            Err(error) if errors::is_not_found(&error) => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let account = ServiceAccount { metadata, ..ServiceAccount::default() };
                match accounts.create(&params, &account).await {
                    Err(error) if !errors::is_already_exists(&error) => return Err(error),
                    _ => accounts.create_token_request(&self.name, &params, &wanted).await?,
                }
            }
            other => other?,
        };
        let status = made.status.unwrap_or_default();
        let token = status.token.ok_or_else(|| kube::Error::Service("the token request brought no token".into()))?;
        let lifetime = status.expiration_timestamp.map(|until| until.0.duration_since(jiff::Timestamp::now()));
        let lifetime = lifetime.and_then(|lifetime| Duration::try_from(lifetime).ok()).unwrap_or(TOKEN_LIFETIME);
        Ok((token, lifetime))
    }
}
