//! How components talk to an API server: transports, shared informers, work queues, leader election and events.
//!
//! The counterpart of client-go. Requests go through [`kube::Client`], whose transport is either ours over the network
//! ([`connect`]) or a call of an API server in the same process. What client-go's `tools/cache` does is in [`informer`]:
//! one watch for each selection in a process, whose subscribers can never hold each other up.

pub mod backoff;
pub mod connect;
pub mod delegated;
pub mod drive;
pub mod errors;
pub mod events;
pub mod expectations;
pub mod informer;
pub mod leader;
pub mod metrics;
pub mod objects;
pub mod queue;
pub mod runner;

pub use informer::{Event, Informer, Informers, ObjectKey, Selection, Store, Subscription};
pub use k8s_openapi;
pub use kube;
pub use kube::{Api, Client};
pub use queue::WorkQueue;
