//! The part of upstream's DynamicResources that shows on pods without resource claims: its word when one fits nowhere.
//! Devices are not allocated.

use crate::cluster::Cluster;
use crate::framework::{CycleState, Plugin, PostFiltered, PreFiltered, Rejection, Unfit, point};
use crate::pod::PodInfo;

pub const NAME: &str = "DynamicResources";

pub struct DynamicResources;

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::PRE_FILTER | point::POST_FILTER
    }

    fn pre_filter(&self, _: &Cluster, _: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        Ok(PreFiltered { skip: true, nodes: None })
    }

    fn post_filter(&self, unfit: &Unfit<'_>) -> PostFiltered {
        // A plugin before this one ended PreFilter, so upstream finds no state of its own and gives up.
        if unfit.diagnosis.pre_filter.is_some() {
            return PostFiltered::Failed("not found".to_owned());
        }
        PostFiltered::Rejected { message: "no new claims to deallocate".to_owned(), clear: false }
    }
}
