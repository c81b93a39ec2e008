//! Binds pods through the `binding` subresource; the cycle itself sends the call.

use crate::framework::{Plugin, point};

pub const NAME: &str = "DefaultBinder";

pub struct DefaultBinder;

impl Plugin for DefaultBinder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::BIND
    }
}
