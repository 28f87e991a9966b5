//! The command line as a whole: nouns, and what applies to all of them.

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::{cmd, exit, output::Format, target::Connection, text};

/// Operate a Prism installation.
///
/// Without flags the server of ./prism-data (or PRISM_DATA_DIR) is used, otherwise the current
/// context; see `prism-admin context`. Data is printed on standard output, everything else on
/// standard error.
#[derive(Parser, Debug)]
#[command(name = "prism-admin", version, after_help = exit::HELP, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Args, Debug, Clone, Default)]
pub struct Global {
    #[command(flatten)]
    pub connection: Connection,
    /// Form of the data
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// Longest wait for an answer; for `drain`, how long the drain may take [default: 30s]
    #[arg(long, global = true, value_parser = text::parse_duration, value_name = "DURATION")]
    pub timeout: Option<Duration>,
    /// Do not ask before something that cannot be undone (asked on a terminal only)
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Key under which a change happens once, however often it is sent [default: a new one]
    #[arg(long, global = true, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// The nouns.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Namespaces: their status, quotas and use
    #[command(subcommand, visible_alias = "ns")]
    Namespace(cmd::namespace::Command),
    /// Client configurations
    #[command(subcommand)]
    Config(cmd::config::Command),
    /// Client sessions
    #[command(subcommand)]
    Session(cmd::session::Command),
    /// Backends and their health
    #[command(subcommand)]
    Backend(cmd::backend::Command),
    /// Maintenance of the gateway or of one namespace
    #[command(subcommand)]
    Maintenance(cmd::maintenance::Command),
    /// End the sessions in scope, letting running operations finish
    ///
    /// Meanwhile no session starts. Answers when all have ended, or at --timeout (30s): then the exit
    /// code is 9, and what still runs goes on, unless --force cuts it.
    Drain(cmd::drain::Drain),
    /// Counters, rates and latencies of the data plane
    ///
    /// Totals since the process started, rates and latencies over --window.
    Metrics(cmd::metrics::Metrics),
    /// The audit log
    #[command(subcommand)]
    Audit(cmd::audit::Command),
    /// Admin API keys
    #[command(subcommand)]
    Key(cmd::key::Command),
    /// Data-plane keys
    #[command(subcommand)]
    ClientKey(cmd::client_key::Command),
    /// Roles: named sets of permissions
    #[command(subcommand)]
    Role(cmd::role::Command),
    /// Roles given to users, groups and certificates
    #[command(subcommand)]
    Binding(cmd::binding::Command),
    /// Namespaces given to users, groups and certificates on the data plane
    #[command(subcommand)]
    ClientBinding(cmd::client_binding::Command),
    /// Certificates of Prism's own CA, and revoked ones of others
    #[command(subcommand)]
    Cert(cmd::cert::Command),
    /// Join tokens: what a new machine needs to become a node
    #[command(subcommand)]
    Token(cmd::token::Command),
    /// Machines that have joined
    #[command(subcommand)]
    Node(cmd::node::Command),
    /// The CA of the cluster: whether it can be replaced, and how far a rotation is
    #[command(subcommand)]
    Ca(cmd::ca::Command),
    /// What hangs together: token, node, certificates, sessions, audit entries
    Lineage(cmd::lineage::Lineage),
    /// Who this credential is, and what it may do
    Whoami(cmd::whoami::WhoAmI),
    /// Whether this credential may call an RPC; exit code 0 or 10
    CanI(cmd::can_i::CanI),
    /// Who holds a permission, by a binding or an API key
    ///
    /// Groups that role_map in prism.toml gives roles to, and controllers' certificates, are not listed.
    WhoCan(cmd::who_can::WhoCan),
    /// Log in at an OIDC issuer, by device code or as a machine
    ///
    /// The login belongs to a context: --context NAME, or the current one. With --endpoint and --ca, or with
    /// --data-dir, the context is made. Its tokens are kept in a private file, renewed by themselves, and never
    /// printed. A context that has logged in once needs no flags to log in again.
    Login(cmd::login::Login),
    /// Give up the login of a context: remove its tokens, and have the issuer revoke them
    Logout(cmd::logout::Logout),
    /// Named contexts: servers and credentials to switch between
    #[command(subcommand)]
    Context(cmd::context::Command),
    /// Print a completion script
    ///
    /// For example `prism-admin completion bash > /etc/bash_completion.d/prism-admin`.
    Completion(cmd::completion::Completion),
    /// What the exit codes mean
    #[command(about = "What the exit codes mean", long_about = exit::HELP)]
    ExitCodes,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("prism-admin").chain(line.split_whitespace()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_noun_and_verb_parses() {
        for line in [
            "namespace list --limit 5 --page-size 2",
            "ns get a",
            "namespace create a --description d --max-sessions 1 --max-rps 2 --max-storage 10MiB",
            "namespace update a --status read-only --etag e",
            "namespace delete a --force --dry-run --yes",
            "config list --namespace a --pattern queue",
            "config get a --version v1 -o yaml",
            "config get a --revision 3",
            "config create -f a.yaml --overwrite --validate-only",
            "config create a --pattern key-value --backend memory --namespace n --version 1 --option a=b --option c=d=e",
            "config update a -f - --etag e",
            "config delete a --etag e",
            "session list --namespace a --status active -o json",
            "session get id",
            "session terminate id --force --reason why",
            "backend list",
            "backend status sqlite",
            "maintenance on --message m --until 2h --namespace a --allow-reads",
            "maintenance off",
            "maintenance status -n a",
            "drain --namespace a --timeout 10s --force --dry-run",
            "metrics --namespace a --window 5m",
            "audit list --actor a --operation CreateConfig --since 1h --until 2026-01-01T00:00:00Z --limit 7",
            "audit tail -n a --last 5",
            "audit verify --file x.jsonl --complete",
            "audit verify --witness 5:0000000000000000000000000000000000000000000000000000000000000000",
            "audit export",
            "key create ci --role viewer --role operator --namespace a --owner u --ttl 90d -o token",
            "audit export --ocsf",
            "audit verify --public-key 00000000000000000000000000000000000000000000000000000000000000aa",
            "audit checkpoint",
            "audit forget -y",
            "key list",
            "key rotate id --overlap 1h -o token",
            "key revoke id",
            "client-key create app --namespace a --permission read --permission write --ttl 1h",
            "client-key list --namespace a",
            "client-key revoke id",
            "role create r --permission config:read --permission session:*,namespace:read",
            "role update r --permission config:read",
            "role delete r -y",
            "role list --limit 3",
            "binding create --subject user:alice --role viewer -n a",
            "binding create --subject group:ops --role admin",
            "binding delete id -y",
            "binding list --subject user:alice",
            "client-binding create --subject certificate:spiffe://c/client/app -n a --permission read --permission write",
            "client-binding delete id",
            "client-binding list --namespace a --subject user:alice",
            "cert issue alice --kind user --ttl 30d --out d --force",
            "cert list",
            "cert revoke 0a1b",
            "cert revoke --fingerprint 00000000000000000000000000000000000000000000000000000000000000aa -y",
            "token create --node n1 --ttl 30m --controller gateway.example:8981 -o token",
            "token list -o json",
            "token revoke id -y",
            "node list --limit 3",
            "node show n1",
            "node revoke n1 -y",
            "node drain n1 --force --dry-run --timeout 10s",
            "lineage n1",
            "lineage 0a1b --kind certificate",
            "whoami --endpoint a:1 --ca c --token-file t --user u",
            "whoami --endpoint a:1 --ca c --cert c --key k",
            "can-i CreateConfig -n a",
            "who-can config:create -n a",
            "login --issuer https://id.example --client-id prism --scope openid --scope prism.admin --audience https://p",
            "login --issuer https://id.example --client-id prism --client-credentials --client-secret-file s --issuer-ca c",
            "login --context a --endpoint a:1 --ca c --issuer https://id.example --client-id prism",
            "logout --context a",
            "context set a --cert c --key k",
            "context list",
            "context use a",
            "context set a --endpoint a:1 --ca c --token-file t --inline-token",
            "context remove a",
            "completion bash",
            "exit-codes",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn usage_errors_end_with_2() {
        for line in [
            "",
            "namespace",
            "namespace list --page-size 0",
            "namespace list --page-size 1001",
            "namespace create a --max-rps -1",
            "namespace update a",
            "config create a --option novalue",
            "config create a --pattern graph",
            "session list --status dead",
            "maintenance on --until someday",
            "client-key create app --namespace a",
            "key create ci",
            "audit list --limit 10001",
            "whoami --token secret",
            "role create r",
            "binding create --role viewer",
            "client-binding create --subject user:a --permission read",
            "client-binding create --subject user:a -n n --permission admin",
            "cert issue",
            "cert issue a --kind node",
            "cert revoke",
            "cert revoke 0a --fingerprint 00",
            "who-can",
            "token create --ttl soon",
            "token revoke",
            "node drain",
            "lineage a --kind key",
            "login --client-secret secret",
            "audit verify --public-key 00",
            "audit verify --complete",
        ] {
            let error = parse(line).map(drop).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn global_flags_are_accepted_anywhere() {
        let cli = parse("-o json drain --timeout 7s -y").unwrap();
        assert_eq!(cli.global.output, Format::Json);
        assert_eq!(cli.global.timeout, Some(Duration::from_secs(7)));
        assert!(cli.global.yes);
    }
}
