//! `prism-admin`, the operator's command line of Prism.
//!
//! One file per noun in `cmd`; the request structs of the contract are the operations. Data goes to
//! standard output, everything else to standard error; see [`exit`] for the exit codes.

mod chain;
mod checkpoint;
mod cli;
mod client;
mod cmd;
mod config_file;
mod connect;
mod context;
mod controller_cert;
mod error;
mod exit;
mod export;
mod identity;
mod memory;
mod names;
mod ocsf;
mod oidc;
mod output;
mod pages;
mod private_file;
mod rpc;
mod secret;
mod stopped;
mod target;
mod text;
mod watch;
mod whole_log;

use std::process::ExitCode;

use clap::Parser;

use crate::{cli::Cli, error::Failure, exit::Exit};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("no runtime could be started: {error}")))
        .and_then(|runtime| runtime.block_on(cmd::run(cli)));
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.report();
            failure.exit().into()
        }
    }
}
