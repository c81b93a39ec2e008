//! What several controllers do alike, the counterpart of upstream's `controller_utils.go` and `controller_ref_manager.go`.

pub mod claim;
pub mod discovery;
pub mod hash;
pub mod history;
pub mod int_or_percent;
pub mod nodes;
pub mod owners;
pub mod pod_control;
pub mod pods;
pub mod selector;
pub mod slim;
pub mod time;
