//! The one binary: `espalier`.

mod client;
mod cluster;
mod commands;
mod tables;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// A cluster of Linux hosts that acts as one IPsec gateway.
#[derive(Parser)]
#[command(name = "espalier", version, about, long_about = None, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit status: 0 done; 1 it failed (the reason is on standard error); 2 wrong usage; \
3 the agent cannot be reached.";

#[derive(Subcommand)]
enum Command {
    /// Run this host's member of the cluster in the foreground.
    Run {
        /// Configuration file.
        #[arg(long, short)]
        config: PathBuf,
        /// What to log, in the syntax of RUST_LOG (which is heeded where this is not given).
        #[arg(long)]
        log: Option<String>,
    },
    /// Read a configuration file and say what is wrong, with the line.
    Check {
        /// Configuration file.
        config: PathBuf,
        /// Print the problems as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Role, epoch, in-sync set, connections, last takeover.
    Status(Query),
    /// IKE SAs and Child SAs.
    Sas(Query),
    /// Policies by precedence: of the rules that match an outgoing packet, the first one decides.
    Policies(Query),
    /// What happened, oldest first.
    Events(Query),
    /// Counters in the format of Prometheus.
    Metrics(Target),
    /// Move groups of segments to another member in a planned way: nothing is lost. Waits for the end.
    Takeover {
        #[command(flatten)]
        query: Query,
        /// Member that is to own the segments; the standby where not given.
        #[arg(long)]
        to: Option<u8>,
        /// This group of segments only (see espalier status); all where not given.
        #[arg(long)]
        group: Option<u8>,
    },
    /// Stop the agent. What another member can take is handed over first.
    Stop {
        #[command(flatten)]
        query: Query,
        /// A planned restart of a member that is alone: traffic of established SAs goes on without the agent, which has to be
        /// started again within 10 seconds and goes on with the same SAs.
        #[arg(long)]
        keep: bool,
    },
    /// Hand over all that the member owns and take nothing back, for maintenance. Waits for the end; nothing is lost.
    Drain(Query),
    /// End of drain: the member takes groups over again.
    Undrain(Query),
    /// Move every group to the member that it is meant for, where that one is in sync. Waits for the end; nothing is lost.
    Rebalance(Query),
    /// Begin anew, with no SAs, with groups whose in-sync members are all lost. Read the warning: run it without --yes.
    StartOver {
        #[command(flatten)]
        query: Query,
        /// This group of segments only; every group without an owner that is heard where not given.
        #[arg(long)]
        group: Option<u8>,
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
    /// Rekey Child SAs or an IKE SA now.
    Rekey {
        #[command(flatten)]
        query: Query,
        /// Connection whose Child SAs are rekeyed, or one child: CONNECTION/CHILD, or its name where no other connection has one like it.
        #[arg(required_unless_present_any = ["spi", "ike", "reauth"], conflicts_with_all = ["spi", "ike", "reauth"])]
        connection: Option<String>,
        /// The Child SA with this inbound SPI (hexadecimal).
        #[arg(long, conflicts_with_all = ["ike", "reauth"])]
        spi: Option<String>,
        /// The IKE SA of this connection.
        #[arg(long, conflicts_with = "reauth")]
        ike: Option<String>,
        /// A new IKE SA with new proofs of identity in place of that of this connection, which ends once the new one is up. Only where
        /// we initiated it.
        #[arg(long)]
        reauth: Option<String>,
    },
    /// Ask the peer of a connection for a sign of life now, and wait for it.
    Liveness {
        #[command(flatten)]
        query: Query,
        /// Connection.
        connection: String,
    },
    /// Bring a connection up or take it down.
    Connection {
        #[command(subcommand)]
        command: ConnectionCommand,
    },
    /// Have the agent read its configuration file again: the whole is checked, then used or refused. Connections that did not
    /// change are not touched. In a cluster: on each member, one after the other.
    Reload {
        #[command(flatten)]
        query: Query,
        /// Show what would change, and what that takes; change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Have the agent read its certificate, the authorities and the revocation list again; nothing is interrupted.
    ReloadPki(Query),
    /// The cluster's certificates: make, add, remove, rotate, show.
    Cluster {
        #[command(subcommand)]
        command: cluster::ClusterCommand,
    },
}

/// `espalier connection`.
#[derive(Subcommand)]
enum ConnectionCommand {
    /// Bring it up with its children, and wait for it.
    Start {
        #[command(flatten)]
        query: Query,
        /// Connection.
        connection: String,
    },
    /// Take it down; it stays so until it is started again, or until this agent is.
    Stop {
        #[command(flatten)]
        query: Query,
        /// Connection.
        connection: String,
    },
    /// Send its peers, where they initiated and can be redirected (RFC 5685), to another gateway.
    Redirect {
        #[command(flatten)]
        query: Query,
        /// Connection.
        connection: String,
        /// Address of the other gateway.
        gateway: String,
    },
    /// Replace its IKE SA, and wait for it.
    Rekey {
        #[command(flatten)]
        query: Query,
        /// Connection.
        connection: String,
    },
}

/// Which agent to ask.
#[derive(Args, Clone)]
struct Target {
    /// Control socket of the agent.
    #[arg(long, short)]
    socket: Option<PathBuf>,
    /// Configuration file that names the control socket.
    #[arg(long, short, conflicts_with = "socket")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone)]
struct Query {
    #[command(flatten)]
    target: Target,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("espalier: {error:#}");
            if error.downcast_ref::<client::Unreachable>().is_some() {
                ExitCode::from(3)
            } else {
                ExitCode::from(1)
            }
        }
    }
}
