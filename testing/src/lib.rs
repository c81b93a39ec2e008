//! Databases and ports of a test's own, which end with it. For tests, and for the tools that break and measure stores.

pub mod etcd;
pub mod ports;
pub mod postgres;
