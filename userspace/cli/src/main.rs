//! The one binary: `espalier`.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 wrong use, 3 the agent is not running or does not answer.

mod client;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agent::config::Config;
use agent::control::{ConnectionWish, RekeyWish, TakeoverWish};
use agent::status::{EventEntry, Outcome, SaList, Status};
use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use client::Client;

/// Several Linux hosts act as one IPsec gateway.
#[derive(Parser)]
#[command(name = "espalier", version)]
struct Cli {
    /// Log filter, for example `info` or `agent=debug,quinn=warn` (also RUST_LOG).
    #[arg(long, global = true, value_name = "FILTER")]
    log: Option<String>,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    log_json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this member's agent.
    Run {
        /// Configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a configuration and print every problem with line and column.
    Check {
        /// Configuration file.
        file: PathBuf,
        /// Do not look at the files that it names.
        #[arg(long)]
        without_files: bool,
    },
    /// Cluster certificates.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Role, epoch, members, connections, last takeover.
    Status(Ask),
    /// Security associations with their counters and limits.
    Sas(Ask),
    /// What happened last.
    Events {
        #[command(flatten)]
        ask: Ask,
        /// Only events after this number.
        #[arg(long, default_value_t = 0)]
        since: u64,
    },
    /// Values for Prometheus.
    Metrics {
        #[command(flatten)]
        target: Target,
    },
    /// Hand the segments over without loss.
    Takeover {
        #[command(flatten)]
        ask: Ask,
        /// Member that is to own them.
        #[arg(long, value_name = "MEMBER")]
        to: Option<u8>,
    },
    /// Rekey Child SAs.
    Rekey {
        #[command(flatten)]
        ask: Ask,
        /// Child, as `child` or `connection/child`.
        #[arg(required_unless_present = "spi")]
        child: Option<String>,
        /// One SA by its inbound SPI (hex).
        #[arg(long, conflicts_with = "child")]
        spi: Option<String>,
    },
    /// Ask a connection's peer whether it is there.
    Liveness {
        #[command(flatten)]
        ask: Ask,
        /// Connection.
        connection: String,
    },
    /// Bring a connection up.
    Initiate {
        #[command(flatten)]
        ask: Ask,
        /// Connection.
        connection: String,
    },
    /// Delete a connection's SAs.
    Terminate {
        #[command(flatten)]
        ask: Ask,
        /// Connection.
        connection: String,
    },
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Make a CA, member certificates and the cluster secret. Never overwrites.
    Init {
        /// Folder for the files.
        #[arg(long)]
        dir: PathBuf,
        /// Number of members.
        #[arg(long, default_value_t = 2)]
        members: u8,
        /// Name of the cluster, as in [cluster] name.
        #[arg(long)]
        name: String,
    },
}

#[derive(Args)]
struct Target {
    /// Control socket.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Take the control socket from this configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct Ask {
    #[command(flatten)]
    target: Target,
    /// JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Target {
    /// The socket that is named, that of the configuration, or the only one in /run/espalier.
    fn client(&self) -> Result<Client> {
        let path = match (&self.socket, &self.config) {
            (Some(path), _) => path.clone(),
            (None, Some(file)) => socket_of(file)?,
            (None, None) => only_socket(Path::new("/run/espalier"))?,
        };
        Ok(Client::new(path))
    }
}

fn socket_of(file: &Path) -> Result<PathBuf> {
    let source = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let base = file.parent().unwrap_or(Path::new("."));
    match Config::read_without_files(&source, base) {
        Ok(config) => Ok(config.control.socket),
        Err(_) => bail!("{} has mistakes; run: espalier check {}", file.display(), file.display()),
    }
}

fn only_socket(dir: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|e| e == "sock") {
            found.push(entry.path());
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(client::NotRunning(format!(
            "there is no control socket in {}; is the agent running? Else give --socket or --config",
            dir.display()
        ))
        .into()),
        _ => bail!("there are {} control sockets in {}; choose one with --socket", found.len(), dir.display()),
    }
}

fn start_logging(cli: &Cli) {
    use tracing_subscriber::EnvFilter;
    let filter = match &cli.log {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,quinn=warn,quinn_proto=warn")),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if cli.log_json {
        builder.json().init();
    } else {
        builder.with_target(false).init();
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the async runtime")
}

fn check(file: &Path, without_files: bool) -> Result<ExitCode> {
    let source = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let base = file.parent().unwrap_or(Path::new("."));
    let read = if without_files { Config::read_without_files } else { Config::read };
    match read(&source, base) {
        Ok(config) => {
            println!(
                "{}: correct: member {} of cluster {}, {} connections",
                file.display(),
                config.cluster.member,
                config.cluster.name,
                config.connections.len()
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            for problem in &problems {
                println!("{}:{problem}", file.display());
            }
            println!("{} problem(s)", problems.len());
            Ok(ExitCode::FAILURE)
        }
    }
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Reads and shows, as JSON or as a table.
fn show<T>(ask: &Ask, path: &str, table: impl FnOnce(&T) -> String) -> Result<ExitCode>
where
    T: serde::de::DeserializeOwned + serde::Serialize,
{
    let client = ask.target.client()?;
    let value: T = runtime()?.block_on(client.get(path))?;
    if ask.json { print_json(&value)? } else { println!("{}", table(&value)) }
    Ok(ExitCode::SUCCESS)
}

/// Sends a command and shows what came of it.
fn tell<T: serde::Serialize>(ask: &Ask, path: &str, wish: &T) -> Result<ExitCode> {
    let client = ask.target.client()?;
    let outcome: Outcome = runtime()?.block_on(client.post(path, wish))?;
    if ask.json { print_json(&outcome)? } else { println!("{}", outcome.message) }
    Ok(if outcome.done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn execute(cli: Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run { config } => {
            start_logging(&cli);
            agent::run::run(Config::load(config)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { file, without_files } => check(file, *without_files),
        Command::Cluster(ClusterCommand::Init { dir, members, name }) => {
            for path in agent::pki::init(dir, name, *members)? {
                println!("{}", path.display());
            }
            println!(
                "copy ca.crt, cluster.secret and member-N.crt, member-N.key to member N; keep ca.key off the members"
            );
            Ok(ExitCode::SUCCESS)
        }
        Command::Status(ask) => show::<Status>(ask, "/v1/status", show::status),
        Command::Sas(ask) => show::<SaList>(ask, "/v1/sas", show::sas),
        Command::Events { ask, since } => {
            show::<Vec<EventEntry>>(ask, &format!("/v1/events?since={since}"), |events| show::events(events))
        }
        Command::Metrics { target } => {
            print!("{}", runtime()?.block_on(target.client()?.text("/metrics"))?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Takeover { ask, to } => tell(ask, "/v1/takeover", &TakeoverWish { to: *to }),
        Command::Rekey { ask, child, spi } => {
            tell(ask, "/v1/rekey", &RekeyWish { child: child.clone(), spi: spi.clone() })
        }
        Command::Liveness { ask, connection } => {
            tell(ask, "/v1/liveness", &ConnectionWish { connection: connection.clone() })
        }
        Command::Initiate { ask, connection } => {
            tell(ask, "/v1/initiate", &ConnectionWish { connection: connection.clone() })
        }
        Command::Terminate { ask, connection } => {
            tell(ask, "/v1/terminate", &ConnectionWish { connection: connection.clone() })
        }
    }
}

fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("espalier: {error:#}");
            if error.downcast_ref::<client::NotRunning>().is_some() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rekey_wants_a_child_or_an_spi_but_not_both() {
        assert!(Cli::try_parse_from(["espalier", "rekey"]).is_err());
        assert!(Cli::try_parse_from(["espalier", "rekey", "lan", "--spi", "01000000"]).is_err());
        assert!(Cli::try_parse_from(["espalier", "rekey", "lan"]).is_ok());
        assert!(Cli::try_parse_from(["espalier", "rekey", "--spi", "01000000", "--json"]).is_ok());
    }
}
