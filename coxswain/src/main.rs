//! Kubernetes in one binary: `coxswain up` for a whole cluster, or each component under upstream's name, by subcommand or by
//! the name it is called by.

mod containerd;
mod flags;
mod kubeconfig;
mod node_network;
mod pki;

fn main() {}
