//! Kubernetes in one binary: `coxswain up` for a whole cluster, or each component under upstream's name, by subcommand or by
//! the name it is called by.

mod admin;
mod cluster_setup;
mod components;
mod containerd;
mod convert;
mod debug_socket;
mod flags;
mod join;
mod kubeconfig;
mod load_balancer_addresses;
mod logging;
mod machine;
mod memory_copies;
mod node;
mod node_network;
mod pki;
mod reset;
mod secure_port;
mod storage_command;
mod up;

use anyhow::Result;
use clap::Command;
use flags::{Component, Flags};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    memory_copies::make_fast(&args);
    let called = args.first().map(Path::new).and_then(Path::file_name).and_then(|n| n.to_str()).unwrap_or_default();
    let by_name = Component::ALL.into_iter().find(|c| c.name() == called);
    let outcome = match by_name {
        Some(component) => {
            let matches = component.command().get_matches_from(args);
            components::run(Flags::new(component, matches))
        }
        None => run(&command().get_matches_from(args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let mut command = Command::new("coxswain")
        .about("Kubernetes in one binary: a whole cluster with `coxswain up`, or one component under upstream's name")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(up::command())
        .subcommand(node::join_command())
        .subcommand(node::print_join_command())
        .subcommand(reset::command())
        .subcommand(convert::command())
        .subcommand(storage_command::command())
        .subcommand(Command::new("version").about("Prints the version"));
    for component in Component::ALL {
        command = command.subcommand(component.command());
    }
    command
}

fn run(matches: &clap::ArgMatches) -> Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    if let Some(component) = Component::ALL.into_iter().find(|c| c.name() == name) {
        return components::run(Flags::new(component, matches.clone()));
    }
    match name {
        "up" => up::main(matches),
        "join" => node::join(matches),
        "join-command" => node::print_join(matches),
        "reset" => reset::main(matches),
        "convert" => convert::main(matches),
        "storage" => storage_command::main(matches),
        _ => {
            println!(
                "coxswain {} (Kubernetes {})",
                env!("CARGO_PKG_VERSION"),
                coxswain_apiserver::version::GIT_VERSION
            );
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }
}
