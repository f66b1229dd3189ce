//! `cargo xtask bench tunnel`: the same two hosts talk through espalier, strongSwan's user-space data path, and a user-space
//! WireGuard, each at both ends.

mod chain;
mod plot;
mod profile;
mod systems;
mod traffic;

use super::figures::{Cells, median, table};
use crate::steps::{detail, say};
use crate::{build, cargo_tools, setup};
use anyhow::{Context, Result};
use chain::Chain;
use lab::member::Product;
use serde::Serialize;
use std::fs;
use std::path::PathBuf;
use systems::{Placement, System};
use traffic::Server;

/// How it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds over all systems; a figure is the median of them.
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Seconds of each TCP run.
    #[arg(long, default_value_t = 5)]
    pub seconds: u32,
    /// Octets of UDP datagrams, separated by commas. 1372 fill a packet of 1400 octets.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 350, 1372])]
    pub sizes: Vec<u32>,
    /// Systems, separated by commas; ratios need espalier and another one.
    #[arg(long, value_delimiter = ',', default_values_t = System::NAMES.map(str::to_owned))]
    pub systems: Vec<String>,
    /// Which CPUs espalier's SAs of both gateways are on.
    #[arg(long, value_enum, default_value_t = Placement::Apart)]
    pub placement: Placement,
    /// One more TCP run of each system under `perf`: what the processors do.
    #[arg(long)]
    pub profile: bool,
    /// An espalier that was built before, instead of building one now.
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// One system in one test.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// `plain` (no tunnel), `espalier`, `strongswan` or `wireguard-go`.
    pub system: String,
    /// ESP proposal.
    pub suite: String,
    /// `tcp_1`, `tcp_1_reverse`, `tcp_4`, `udp_SIZE` or `ping`.
    pub test: String,
    /// Payload, bits a second.
    pub bps: f64,
    /// Packets a second.
    pub pps: f64,
    /// Packets lost, per cent.
    pub loss: f64,
    /// Busy seconds of all processors by gigabyte (10^9 octets) of payload, hosts included.
    pub cpu_s_per_gb: f64,
    /// Round trip of a small packet, microseconds.
    pub rtt_us: f64,
}

/// espalier by another system, in one test with one suite.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The other system.
    pub to: String,
    /// The suite of espalier; that of the other is the same where it has it.
    pub suite: String,
    /// Test.
    pub test: String,
    /// Throughput.
    pub bps: f64,
    /// CPU by gigabyte.
    pub cpu: f64,
    /// CPU by gigabyte beyond what the hosts need without any tunnel.
    pub cpu_above_plain: f64,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// By system, suite and test.
    pub rows: Vec<Row>,
    /// espalier by each other system.
    pub ratios: Vec<Ratio>,
    /// What the processors did in a TCP run, with `--profile`.
    pub shares: Vec<profile::Share>,
    /// Folder with the plot.
    pub folder: String,
}

/// Runs it.
pub fn run(options: &Options) -> Result<bool> {
    anyhow::ensure!(
        options.rounds > 0 && options.seconds > 0,
        "--rounds and --seconds must be at least 1"
    );
    anyhow::ensure!(
        options.sizes.iter().all(|s| (16..=1372).contains(s)),
        "--sizes must be from 16 to 1372, what fits into a packet of 1400 octets"
    );
    if let Some(unknown) = options
        .systems
        .iter()
        .find(|s| !System::NAMES.contains(&s.as_str()))
    {
        anyhow::bail!("--systems: {unknown} is none of {}", System::NAMES.join(", "));
    }
    let wanted = |system: System| options.systems.iter().any(|s| s == system.name());
    lab::resources::clear_on_signal()?;
    setup::run()?;
    let product = if wanted(System::Espalier) {
        let (binary, object) = match &options.binary {
            Some(binary) => (binary.clone(), build::bpf()?),
            None => {
                let built = build::run()?;
                (built.espalier, built.object)
            }
        };
        Some(Product { binary, object })
    } else {
        None
    };
    let parent = cargo_tools::root().join("target/lab");
    let mut all: Vec<Vec<Row>> = Vec::new();
    let mut folder = parent.clone();
    let mut shares = Vec::new();
    for round in 0..options.rounds {
        let systems = systems::ALL.into_iter().filter(|(system, _)| wanted(*system));
        for (at, (system, suite)) in systems.enumerate() {
            say(&format!(
                "round {} of {}: {}, {suite}",
                round + 1,
                options.rounds,
                system.name()
            ));
            let chain = Chain::build(&parent)?;
            let rows = measure(&chain, system, suite, product.as_ref(), options, &mut shares)
                .with_context(|| format!("{} with {suite}; see {}", system.name(), chain.folder.display()))?;
            for row in &rows {
                detail(&format!(
                    "{:14} {:7.0} Mbit/s {:7.1} kpps {:6.2} CPU-s/GB {:6.0} us",
                    row.test,
                    row.bps / 1e6,
                    row.pps / 1e3,
                    row.cpu_s_per_gb,
                    row.rtt_us
                ));
            }
            folder.clone_from(&chain.folder);
            match all.get_mut(at) {
                Some(before) => before.extend(rows),
                None => all.push(rows),
            }
        }
    }
    let mut figures = Figures {
        rows: all.iter().flat_map(|rows| medians(rows)).collect(),
        shares,
        folder: folder.display().to_string(),
        ..Figures::default()
    };
    figures.ratios = ratios(&figures.rows);
    fs::write(folder.join("tunnel.svg"), plot::draw(&figures.rows)).context("writing the plot")?;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print(&figures);
    }
    Ok(true)
}

fn measure(
    chain: &Chain,
    system: System,
    suite: &'static str,
    product: Option<&Product>,
    options: &Options,
    shares: &mut Vec<profile::Share>,
) -> Result<Vec<Row>> {
    let _running = systems::start(chain, system, suite, product, options.placement)?;
    let server = Server::start(chain, options.seconds)?;
    let mut rows = Vec::new();
    let mut add = |test: String, row: Row| {
        rows.push(Row {
            system: system.name().to_owned(),
            suite: suite.to_owned(),
            test,
            ..row
        });
    };
    add("ping".to_owned(), server.ping()?);
    add("tcp_1".to_owned(), server.tcp(1, false)?);
    add("tcp_1_reverse".to_owned(), server.tcp(1, true)?);
    add("tcp_4".to_owned(), server.tcp(4, false)?);
    if options.profile
        && shares
            .iter()
            .all(|s| (&*s.system, &*s.suite) != (system.name(), suite))
    {
        shares.extend(profile::record(chain, &server, system.name(), suite)?);
    }
    for size in &options.sizes {
        add(format!("udp_{size}"), server.udp(*size)?);
    }
    Ok(rows)
}

/// One row for each test out of those of all rounds.
fn medians(rows: &[Row]) -> Vec<Row> {
    let mut out: Vec<Row> = Vec::new();
    for row in rows {
        if out.iter().any(|o| o.test == row.test) {
            continue;
        }
        let same: Vec<&Row> = rows.iter().filter(|r| r.test == row.test).collect();
        let of = |f: &dyn Fn(&Row) -> f64| median(&same.iter().map(|r| f(r)).collect::<Vec<_>>());
        out.push(Row {
            bps: of(&|r| r.bps),
            pps: of(&|r| r.pps),
            loss: of(&|r| r.loss),
            cpu_s_per_gb: of(&|r| r.cpu_s_per_gb),
            rtt_us: of(&|r| r.rtt_us),
            ..row.clone()
        });
    }
    out
}

fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let mut out = Vec::new();
    let find = |system: &str, test: &str, suite: Option<&str>| {
        rows.iter()
            .find(|r| r.system == system && r.test == test && suite.is_none_or(|s| r.suite == s))
    };
    for ours in rows.iter().filter(|r| r.system == "espalier" && r.test != "ping") {
        for to in ["strongswan", "wireguard-go"] {
            let theirs = find(to, &ours.test, Some(&ours.suite)).or_else(|| find(to, &ours.test, None));
            let Some(theirs) = theirs else { continue };
            // Without `plain` in the run there is nothing to take away, and no figure.
            let hosts = find("plain", &ours.test, None).map_or(f64::NAN, |plain| plain.cpu_s_per_gb);
            let above = |r: &Row| r.cpu_s_per_gb - hosts;
            out.push(Ratio {
                to: to.to_owned(),
                suite: ours.suite.clone(),
                test: ours.test.clone(),
                bps: ours.bps / theirs.bps,
                cpu: ours.cpu_s_per_gb / theirs.cpu_s_per_gb,
                cpu_above_plain: above(ours) / above(theirs),
            });
        }
    }
    out
}

fn print(figures: &Figures) {
    let mut cells: Cells = Vec::new();
    for row in &figures.rows {
        let ping = row.test == "ping";
        let unless = |hide: bool, text: String| if hide { "-".to_owned() } else { text };
        cells.push(vec![
            row.system.clone(),
            row.suite.clone(),
            row.test.clone(),
            unless(ping, format!("{:.0}", row.bps / 1e6)),
            unless(ping, format!("{:.1}", row.pps / 1e3)),
            format!("{:.2} %", row.loss),
            unless(ping, format!("{:.2}", row.cpu_s_per_gb)),
            unless(!ping, format!("{:.0}", row.rtt_us)),
        ]);
    }
    println!(
        "{}",
        table(
            &[
                "system", "suite", "test", "Mbit/s", "kpps", "lost", "CPU-s/GB", "rtt us"
            ],
            cells
        )
    );
    let cells = figures.ratios.iter().map(|r| {
        vec![
            r.to.clone(),
            r.suite.clone(),
            r.test.clone(),
            format!("{:.2}", r.bps),
            format!("{:.2}", r.cpu),
            format!("{:.2}", r.cpu_above_plain),
        ]
    });
    println!(
        "{}",
        table(
            &[
                "espalier by",
                "suite",
                "test",
                "throughput",
                "CPU by GB",
                "the same, above plain"
            ],
            cells.collect(),
        )
    );
    if !figures.shares.is_empty() {
        println!("{}", profile::table(&figures.shares));
    }
    println!("plot: {}/tunnel.svg", figures.folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(system: &str, test: &str, bps: f64, cpu_s_per_gb: f64) -> Row {
        Row {
            system: system.into(),
            suite: "x".into(),
            test: test.into(),
            bps,
            cpu_s_per_gb,
            ..Row::default()
        }
    }

    #[test]
    fn a_ratio_is_of_the_same_test_and_leaves_out_what_the_hosts_need_anyway() {
        let rows = [
            row("plain", "tcp_1", 9.0, 2.0),
            row("espalier", "tcp_1", 6.0, 4.0),
            row("strongswan", "tcp_1", 2.0, 12.0),
            row("strongswan", "tcp_4", 1.0, 99.0),
        ];
        let ratios = super::ratios(&rows);
        assert_eq!(ratios.len(), 1);
        assert_eq!((ratios[0].bps, ratios[0].cpu_above_plain), (3.0, 0.2));
        let without_plain = super::ratios(&rows[1..]);
        assert_eq!(without_plain[0].bps, 3.0);
        assert!(without_plain[0].cpu_above_plain.is_nan());
    }

    #[test]
    fn rounds_are_taken_together_test_by_test() {
        let rows = [
            row("a", "one", 1.0, 0.0),
            row("a", "two", 9.0, 0.0),
            row("a", "one", 3.0, 0.0),
        ];
        let rows = medians(&rows);
        assert_eq!(rows.iter().map(|r| r.bps).collect::<Vec<_>>(), [2.0, 9.0]);
    }
}
