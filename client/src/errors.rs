//! What a failed request means to a controller, the counterpart of apimachinery's `api/errors` predicates.

use kube::Error;

fn status(error: &Error) -> Option<&kube::core::Status> {
    match error {
        Error::Api(status) => Some(status),
        _ => None,
    }
}

fn is(error: &Error, code: u16, reason: &str) -> bool {
    status(error).is_some_and(|status| status.reason == reason || (status.reason.is_empty() && status.code == code))
}

pub fn is_not_found(error: &Error) -> bool {
    is(error, 404, "NotFound")
}

pub fn is_already_exists(error: &Error) -> bool {
    status(error).is_some_and(|status| status.reason == "AlreadyExists")
}

pub fn is_conflict(error: &Error) -> bool {
    is(error, 409, "Conflict")
}

pub fn is_invalid(error: &Error) -> bool {
    is(error, 422, "Invalid")
}

pub fn is_forbidden(error: &Error) -> bool {
    is(error, 403, "Forbidden")
}

pub fn is_too_many_requests(error: &Error) -> bool {
    is(error, 429, "TooManyRequests")
}

/// The history that a watch or list asked for is gone.
pub fn is_expired(error: &Error) -> bool {
    status(error).is_some_and(|status| status.code == 410 || status.reason == "Expired" || status.reason == "Gone")
}

/// Whether the failure carries a cause of this type, such as `NamespaceTerminating`.
pub fn has_cause(error: &Error, cause: &str) -> bool {
    status(error)
        .and_then(|status| status.details.as_ref())
        .is_some_and(|details| details.causes.iter().any(|c| c.reason == cause))
}

/// The server's message, or the description of a failure that never reached it.
pub fn message(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        // What is wrapped says it all; the wrapper would only add its own name.
        Error::Service(source) => source.to_string(),
        other => other.to_string(),
    }
}

/// Turns the absence of the object into `None`.
pub fn ignore_not_found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
