//! Orders the queue: higher priority first, then who has waited longest. The queue itself applies the order.

use crate::framework::{Plugin, point};

pub const NAME: &str = "PrioritySort";

pub struct PrioritySort;

impl Plugin for PrioritySort {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::QUEUE_SORT
    }
}
