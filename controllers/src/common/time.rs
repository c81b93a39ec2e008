//! The present, as the API writes it.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Now, in whole seconds.
pub fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// How long after `earlier` `later` is; zero if it is not.
pub fn since(earlier: &Time, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier.0)).unwrap_or(Duration::ZERO)
}
