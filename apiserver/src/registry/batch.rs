//! The batch group (upstream: `pkg/registry/batch`, `pkg/apis/batch`).

pub mod cron_job;
mod indexes;
pub mod job;
mod job_spec;
mod job_status;
mod schedule;
