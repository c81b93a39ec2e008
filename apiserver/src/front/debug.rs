//! `/debug`: profiles of the process and the level of its log (upstream: `installAPI`'s `Profiling` and `DebugFlags`).

use super::{Front, Incoming, NotCompressed};
use crate::respond::{Answer, Body, page_not_found};
use coxswain_profiling::routes::{self, Asked};

impl Front {
    pub(super) async fn debug(&self, mut incoming: Incoming) -> Answer {
        if !self.profiling {
            return page_not_found();
        }
        let (method, info) = (incoming.method.clone(), incoming.ctx.info.clone());
        let query = incoming.uri.query().unwrap_or_default().to_owned();
        let body = incoming.read_body().await.map_err(|status| status.message);
        let asked = Asked { method: &method, path: &info.path, query: &query, body };
        let Some(answer) = routes::answer(asked).await else { return page_not_found() };
        let mut answer = answer.map(Body::Full);
        // A profile is compressed already, and the rest is short.
        answer.extensions_mut().insert(NotCompressed);
        answer
    }
}
