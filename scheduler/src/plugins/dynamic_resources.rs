//! The part of upstream's DynamicResources that shows on pods without resource claims: its word when one fits nowhere.
//! Devices are not allocated: a pod that wants some is turned away instead of being run without.

use crate::cluster::Cluster;
use crate::framework::{CycleState, Plugin, PostFiltered, PreFiltered, Rejection, Unfit, point, unresolvable};
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

    fn pre_filter(&self, _: &Cluster, pod: &PodInfo, _: &mut CycleState) -> Result<PreFiltered, Box<Rejection>> {
        if pod.spec.wants_devices {
            unresolvable(NAME, "resource claims cannot be allocated by this scheduler")?;
        }
        Ok(PreFiltered { skip: true, nodes: None })
    }

    fn post_filter(&self, unfit: &Unfit<'_>) -> PostFiltered {
        // A plugin before this one ended PreFilter, so upstream finds no state of its own and gives up.
        if unfit.diagnosis.pre_filter.is_some() && !unfit.pod.spec.wants_devices {
            return PostFiltered::Failed("not found".to_owned());
        }
        PostFiltered::Rejected { message: "no new claims to deallocate".to_owned(), clear: false }
    }
}
