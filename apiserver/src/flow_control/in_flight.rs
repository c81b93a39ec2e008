//! The two plain bounds of requests in flight, for servers without priority and fairness (upstream: `filters/maxinflight.go`).

use super::Refused;
use crate::authentication::MASTERS;
use crate::request::{RequestInfo, User};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub struct InFlight {
    reads: Option<Arc<Semaphore>>,
    writes: Option<Arc<Semaphore>>,
}

impl InFlight {
    /// Zero is no bound.
    pub fn new(reads: usize, writes: usize) -> Self {
        let bound = |most: usize| (most > 0).then(|| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))));
        Self { reads: bound(reads), writes: bound(writes) }
    }

    /// A place among those that are served, at once or not at all. Masters always get an answer.
    pub fn enter(&self, user: &User, info: &RequestInfo) -> Result<Option<OwnedSemaphorePermit>, Refused> {
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch");
        let Some(bound) = (if reads { &self.reads } else { &self.writes }) else { return Ok(None) };
        match bound.clone().try_acquire_owned() {
            Ok(place) => Ok(Some(place)),
            Err(_) if user.in_group(MASTERS) => Ok(None),
            Err(_) => Err(Refused { retry_after: 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_are_bounded_apart_and_masters_are_not() {
        let bounds = InFlight::new(1, 2);
        let user = User::default();
        let master = User { groups: vec![MASTERS.into()], ..User::default() };
        let info = |verb: &str| RequestInfo { verb: verb.into(), ..RequestInfo::default() };
        let first = bounds.enter(&user, &info("get")).unwrap();
        assert_eq!(bounds.enter(&user, &info("list")).unwrap_err().retry_after, 1);
        assert!(bounds.enter(&master, &info("list")).unwrap().is_none());
        let writes = ["create", "post"].map(|verb| bounds.enter(&user, &info(verb)).unwrap());
        assert!(bounds.enter(&user, &info("delete")).is_err());
        drop((first, writes));
        assert!(bounds.enter(&user, &info("list")).unwrap().is_some());
        assert!(InFlight::new(0, 0).enter(&user, &info("list")).unwrap().is_none());
    }
}
