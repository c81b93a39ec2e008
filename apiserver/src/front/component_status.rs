//! `componentstatuses`: whether scheduler, controller manager and store answer (upstream: `pkg/registry/core/componentstatus`).
//! Deprecated, read-only and stored nowhere.

use super::{Front, Incoming};
use crate::connect::empty_body;
use crate::connect::target::Target;
use crate::encode::Encoder;
use crate::respond::Answer;
use coxswain_api::{Map, Status, Value, json};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);
const COMPONENTS: [(&str, u16); 3] = [("controller-manager", 10257), ("scheduler", 10259), ("etcd-0", 0)];

impl Front {
    pub(super) async fn component_status(&self, encoder: &Encoder, incoming: &Incoming) -> Result<Answer, Status> {
        let info = incoming.info();
        if info.resource != "componentstatuses" {
            return Err(Status::page_not_found());
        }
        if info.verb == "get" {
            let found = COMPONENTS.iter().find(|(name, _)| *name == info.name);
            let (name, port) = *found.ok_or_else(|| Status::not_found("", "componentstatus", &info.name))?;
            return encoder.tree_answer(self.component(name, port).await, StatusCode::OK);
        }
        let mut items = Vec::new();
        for (name, port) in COMPONENTS {
            items.push(self.component(name, port).await);
        }
        encoder.tree_list(items)
    }

    async fn component(&self, name: &str, port: u16) -> Value {
        let checked = if port == 0 { self.health.storage().await } else { self.probe(port).await };
        let mut condition = Map::new();
        condition.insert("type".into(), "Healthy".into());
        match checked {
            Ok(message) => {
                condition.insert("status".into(), "True".into());
                condition.insert("message".into(), message.into());
            }
            Err(error) => {
                condition.insert("status".into(), "False".into());
                condition.insert("message".into(), error.into());
            }
        }
        json!({
            "kind": "ComponentStatus", "apiVersion": "v1",
            "metadata": {"name": name}, "conditions": [condition],
        })
    }

    /// Asks a component of this machine for its health.
    async fn probe(&self, port: u16) -> Result<String, String> {
        let target = Target {
            host_name: "127.0.0.1".into(),
            port,
            host: format!("127.0.0.1:{port}"),
            is_tls: true,
            path_and_query: "/healthz".into(),
            is_kubelet: false,
            is_get: true,
            is_proxy: false,
            must_upgrade: false,
            location_prefix: String::new(),
        };
        let ask = async {
            let stream = self.dialer.dial(&target).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            let request = Request::get("/healthz").header("host", &target.host).body(empty_body());
            let response = sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| e.to_string())?;
            let code = response.status();
            let body = response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            let text = String::from_utf8_lossy(&body).into_owned();
            if code.is_success() { Ok(text) } else { Err(text) }
        };
        let url = format!("Get \"https://127.0.0.1:{port}/healthz\": ");
        match tokio::time::timeout(TIMEOUT, ask).await {
            Ok(result) => result.map_err(|e| format!("{url}{e}")),
            Err(_) => Err(format!("{url}context deadline exceeded")),
        }
    }
}
