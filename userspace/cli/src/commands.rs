//! What each subcommand does.

use crate::client::Client;
use crate::{Command, ConnectionCommand, Query, cluster, tables};
use agent::api::{
    ConnectionRequest, Done, IkeSa, LivenessRequest, LoggedEvent, Policies, RedirectRequest, RekeyRequest,
    ReloadReport, ReloadRequest, StartOverRequest, Status, StopRequest, TakeoverRequest,
};
use agent::config::Config;
use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Prints a line. A reader that went away (`| head`) is no error.
macro_rules! out {
    ($($text:tt)*) => {
        if let Err(error) = writeln!(std::io::stdout(), $($text)*) {
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                return Ok(ExitCode::SUCCESS);
            }
            return Err(error).context("cannot write to standard output");
        }
    };
}

/// Runs the command to its end.
pub fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { config, log } => run(&config, log),
        Command::Check { config, json } => check(&config, json),
        Command::Status(query) => show::<Status>(&query, "/v1/status", tables::status),
        Command::Sas(query) => show::<Vec<IkeSa>>(&query, "/v1/sas", |sas| tables::sas(sas)),
        Command::Policies(query) => show::<Policies>(&query, "/v1/policies", tables::policies),
        Command::Events(query) => {
            show::<Vec<LoggedEvent>>(&query, "/v1/events", |events| tables::events(events))
        }
        Command::Metrics(target) => {
            let text = wait(async { Client::new(&target)?.get_text("/metrics").await })?;
            out!("{}", text.trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Command::Takeover { query, to, group } => {
            move_groups(&query, "/v1/takeover", &TakeoverRequest { to, group })
        }
        Command::Stop { query, keep } => order(&query, "/v1/stop", &StopRequest { keep }),
        Command::Drain(query) => move_groups(&query, "/v1/drain", &()),
        Command::Undrain(query) => order(&query, "/v1/undrain", &()),
        Command::Rebalance(query) => move_groups(&query, "/v1/rebalance", &()),
        Command::StartOver { query, group, yes } => start_over(&query, group, yes),
        Command::Rekey {
            query,
            connection,
            spi,
            ike,
            reauth,
        } => {
            let wish = RekeyRequest {
                connection,
                spi,
                ike,
                reauth,
            };
            order(&query, "/v1/rekey", &wish)
        }
        Command::Liveness { query, connection } => {
            order(&query, "/v1/liveness", &LivenessRequest { connection })
        }
        Command::Connection { command } => connection(command),
        Command::Cluster { command } => cluster::execute(command),
        Command::Reload { query, dry_run } => reload(&query, dry_run),
        Command::ReloadPki(query) => order(&query, "/v1/reload-pki", &()),
    }
}

fn connection(command: ConnectionCommand) -> Result<ExitCode> {
    let (query, connection, start) = match command {
        ConnectionCommand::Start { query, connection } => (query, connection, true),
        ConnectionCommand::Stop { query, connection } => (query, connection, false),
        ConnectionCommand::Redirect {
            query,
            connection,
            gateway,
        } => {
            let wish = RedirectRequest {
                connection,
                to: gateway,
            };
            return order(&query, "/v1/redirect", &wish);
        }
        ConnectionCommand::Rekey { query, connection } => {
            let wish = RekeyRequest {
                ike: Some(connection),
                ..RekeyRequest::default()
            };
            return order(&query, "/v1/rekey", &wish);
        }
    };
    order(&query, "/v1/connection", &ConnectionRequest { connection, start })
}

fn run(config: &Path, log: Option<String>) -> Result<ExitCode> {
    let filter = match log {
        Some(text) => EnvFilter::try_new(&text).with_context(|| format!("--log {text} is no filter"))?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    agent::run(Config::load(config)?, config)?;
    Ok(ExitCode::SUCCESS)
}

fn check(path: &Path, json: bool) -> Result<ExitCode> {
    let source = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}: check the path and its mode", path.display()))?;
    let problems = match Config::read(&source, path.parent().unwrap_or(Path::new("."))) {
        Ok(config) => {
            if json {
                out!("[]");
            } else {
                out!(
                    "{}: correct. Member {} of cluster {}, {} connection(s).",
                    path.display(),
                    config.cluster.member,
                    config.cluster.name,
                    config.connections.len()
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        Err(problems) => problems,
    };
    if json {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        out!("{}", serde_json::to_string_pretty(&list)?);
    } else {
        for problem in &problems {
            out!("{}:{problem}", path.display());
        }
    }
    eprintln!("espalier: {} problem(s) in {}", problems.len(), path.display());
    Ok(ExitCode::from(1))
}

fn show<T: DeserializeOwned>(query: &Query, path: &str, table: impl Fn(&T) -> String) -> Result<ExitCode> {
    let text = wait(async { Client::new(&query.target)?.get_text(path).await })?;
    if query.json {
        let value: serde_json::Value = serde_json::from_str(&text)?;
        out!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        let value =
            serde_json::from_str(&text).context("the agent is of another version than this binary")?;
        out!("{}", table(&value));
    }
    Ok(ExitCode::SUCCESS)
}

fn order(query: &Query, path: &str, body: &impl Serialize) -> Result<ExitCode> {
    let done: Done = wait(async { Client::new(&query.target)?.post(path, body).await })?;
    show_done(query, &done)
}

/// A planned move says what it waits for, once a second, while it does.
fn move_groups(query: &Query, path: &str, body: &impl Serialize) -> Result<ExitCode> {
    let done: Done = wait(async {
        let client = Client::new(&query.target)?;
        let mut order = std::pin::pin!(client.post(path, body));
        loop {
            tokio::select! {
                done = &mut order => return done,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            // The order itself tells what is wrong, if something is.
            if let Ok(text) = client.get_text("/v1/status").await
                && let Ok(status) = serde_json::from_str::<Status>(&text)
                && let Some(waits) = tables::move_waits(&status)
            {
                eprintln!("{waits}");
            }
        }
    })?;
    show_done(query, &done)
}

fn show_done(query: &Query, done: &Done) -> Result<ExitCode> {
    if query.json {
        out!("{}", serde_json::to_string_pretty(done)?);
    } else {
        out!("{} ({:.1} ms)", done.text, done.took_ms);
    }
    Ok(ExitCode::SUCCESS)
}

fn reload(query: &Query, dry_run: bool) -> Result<ExitCode> {
    let report: ReloadReport = wait(async {
        Client::new(&query.target)?
            .post("/v1/reload", &ReloadRequest { dry_run })
            .await
    })?;
    if query.json {
        out!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        out!("{}", tables::reload(&report));
    }
    Ok(ExitCode::SUCCESS)
}

/// What `espalier start-over` says where it is not confirmed.
const START_OVER: &str = "\
This begins anew, without any SA, with groups whose in-sync members are all lost. Every peer of theirs has to establish its
IKE and Child SAs again; until then its traffic is dropped.

Do it only when the members that `espalier events` names as lost will not come back with their state, and none of them still
serves: a member that is alive but cut off would go on with SAs that the others know nothing of. If one of them can be
reached or started again, do that instead.

Add --yes to do it.";

fn start_over(query: &Query, group: Option<u8>, yes: bool) -> Result<ExitCode> {
    if !yes {
        eprintln!("{START_OVER}");
        return Ok(ExitCode::from(2));
    }
    order(query, "/v1/start-over", &StartOverRequest { group, yes })
}

fn wait<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}
