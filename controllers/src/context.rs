//! What a controller is given: its client, the shared informers, its event recorder and the signal to stop.

use std::sync::Arc;

use coxswain_client::events::EventRecorder;
use coxswain_client::{Client, Informer, Informers};
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::common::discovery;
use crate::common::slim::SlimPod;
use crate::config::Config;
use crate::table::Controller;

#[derive(Clone)]
pub struct Context {
    pub config: Arc<Config>,
    /// The controller's own identity.
    pub client: Client,
    /// Shared by all controllers of the process.
    pub informers: Informers,
    pub recorder: EventRecorder,
    /// Shared like the informers.
    pub discovery: Arc<discovery::Cache>,
    pub shutdown: CancellationToken,
}

impl Context {
    pub fn new(
        config: Arc<Config>,
        informers: Informers,
        discovery: Arc<discovery::Cache>,
        client: Client,
        controller: &Controller,
        shutdown: CancellationToken,
    ) -> Self {
        let client = coxswain_client::connect::with_user_agent(
            client,
            &format!(
                "kube-controller-manager/v1.36.2 (linux/amd64) coxswain/system:serviceaccount:kube-system:{}",
                controller.identity
            ),
        );
        let recorder = EventRecorder::new(client.clone(), controller.event_source, None);
        Self { config, client, informers, recorder, discovery, shutdown }
    }

    /// The pods, reduced to what controllers look at and indexed by owner.
    pub fn pods(&self) -> Informer<SlimPod> {
        let pods = self.informers.projected::<Pod, SlimPod>(Default::default(), SlimPod::of);
        SlimPod::index(&pods.store());
        pods
    }

    pub fn workers(&self, upstream_default: usize) -> usize {
        (upstream_default * self.config.concurrency).max(1)
    }
}
