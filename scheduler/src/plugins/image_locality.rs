//! Prefers nodes that have the pod's images, more so if the images are large and widespread.

use crate::cluster::Cluster;
use crate::framework::{CycleState, Plugin, SCORE_MAX, point};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub const NAME: &str = "ImageLocality";

const BYTES_MIN: i64 = 23 << 20;
const BYTES_MAX_PER_CONTAINER: i64 = 1000 << 20;

pub struct ImageLocality;

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        NAME
    }

    fn points(&self) -> u32 {
        point::SCORE
    }

    fn score(&self, cluster: &Cluster, pod: &PodInfo, _: &CycleState, info: &NodeInfo) -> i64 {
        let (images, all) = (&info.node().images, cluster.len() as f64);
        if images.is_empty() {
            return 0;
        }
        let bytes: i64 = pod
            .spec
            .images
            .iter()
            .filter_map(|image| {
                let at = images.binary_search_by(|(name, _)| name.cmp(image)).ok()?;
                // An image that few nodes have draws less, lest all pods go to one node.
                Some((images[at].1 as f64 * (cluster.nodes_with_image(image) as f64 / all)) as i64)
            })
            .sum();
        let max = BYTES_MAX_PER_CONTAINER * pod.spec.images.len() as i64;
        SCORE_MAX * (bytes.clamp(BYTES_MIN, max.max(BYTES_MIN)) - BYTES_MIN) / (max - BYTES_MIN).max(1)
    }
}
