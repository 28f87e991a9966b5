//! The command line of `prism` (contract §1).

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// One gateway for every data backend, governed by an audited admin plane.
#[derive(Debug, Parser)]
#[command(name = "prism", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server; it needs no configuration file
    Serve(ServeArgs),
    /// Make a new admin key on a stopped server, for an operator who is locked out
    ///
    /// Writes it to admin.token in the data directory. Keys that are there stay as they are. The audit log tells of it.
    Recover(RecoverArgs),
    /// Make this machine a node of a cluster, with a token of `prism-admin token create`
    ///
    /// Makes a key that never leaves this machine, checks by the token that the controller is the right one, and writes the
    /// node's identity to the folder `node` of the data directory. It may be repeated when it fails.
    Join(JoinArgs),
}

/// Flags of `prism join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// The join token (prj_…), or `-` to read it from standard input, where no list of processes shows it
    pub token: String,
    /// Admin port of a controller; may be repeated, the first that answers is taken
    #[arg(long = "controller", value_name = "HOST:PORT", required = true)]
    pub controllers: Vec<String>,
    /// Name of this node [default: the first part of the host name]
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// Data directory [env: PRISM_DATA_DIR] [default: ./prism-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// CAs, in PEM, to trust for the connection, where the controller's certificate is not of the cluster's own CA
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// Flags of `prism recover`.
#[derive(Clone, Debug, Default, Args)]
pub struct RecoverArgs {
    /// Data directory [env: PRISM_DATA_DIR] [default: ./prism-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Flags of `prism serve`. A flag wins over the environment, the environment over the file, the file over the default.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeArgs {
    /// Configuration file (prism.toml)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory [env: PRISM_DATA_DIR] [default: ./prism-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on [default: 0.0.0.0, or 127.0.0.1 with --dev]
    #[arg(long, value_name = "ADDR")]
    pub bind: Option<IpAddr>,
    /// Port of the data plane, 0 = any free one [env: PRISM_DATA_PORT] [default: 8980]
    #[arg(long, value_name = "N")]
    pub data_port: Option<u16>,
    /// Port of the admin plane, 0 = any free one [env: PRISM_ADMIN_PORT] [default: 8981]
    #[arg(long, value_name = "N")]
    pub admin_port: Option<u16>,
    /// Port of metrics and health, 0 = any free one [env: PRISM_METRICS_PORT] [default: 9090]
    #[arg(long, value_name = "N")]
    pub metrics_port: Option<u16>,
    /// What this process runs
    #[arg(long, value_enum, default_value_t)]
    pub role: Role,
    /// For a laptop: loopback only, data plane in clear text, a namespace, configs and a client key to try
    #[arg(long)]
    pub dev: bool,
    /// Form of the log on stderr; PRISM_LOG sets its filter [default: text on a terminal, else json]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// What a process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Both planes
    #[default]
    All,
    /// The admin plane only
    Admin,
    /// A data-plane node of a cluster
    Data,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// For programs
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn flags_are_those_of_the_contract() {
        Cli::command().debug_assert();
        let line = "prism serve --config c.toml --data-dir d --bind ::1 --data-port 0 --admin-port 2 --metrics-port 3 --role data --dev";
        let Command::Serve(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line}") };
        assert_eq!((args.data_port, args.admin_port, args.metrics_port), (Some(0), Some(2), Some(3)));
        assert_eq!((args.role, args.dev, args.bind), (Role::Data, true, Some("::1".parse().unwrap())));
        let line = "prism recover --data-dir d";
        let Command::Recover(args) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("{line}") };
        assert_eq!(args.data_dir, Some("d".into()));
        for bad in [
            "prism",
            "prism recover here",
            "prism serve --data-port 65536",
            "prism serve --bind here",
            "prism serve --role x",
            "prism serve extra",
            "prism join",
            "prism join prj_x",
            "prism join --controller a:1",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
