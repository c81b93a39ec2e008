//! `/openapi/v2` and `/openapi/v3` (upstream: `kube-openapi/pkg/handler` and `handler3`).

use crate::front::{Front, Incoming};
use crate::respond::{Answer, page_not_found};

/// Serves one of the documents.
pub fn serve(_front: &Front, _incoming: &Incoming, _path: &str) -> Answer {
    page_not_found()
}
