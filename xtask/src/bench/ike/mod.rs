//! `cargo xtask bench ike`: handshakes that a responder completes, espalier and strongSwan under the same load in the same run.
//!
//! Processor time of the responder counts, not the clock: load and responder share the machine, and so does whoever else is on it.

mod instructions;

use crate::steps::{detail, say, step};
use crate::{build, cargo_tools, setup};
use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use lab::cluster::Cluster;
use lab::config::{Connection, Settings};
use lab::handshakes::{self, ESP, Load, NAME, SUITE};
use lab::member::Product;
use lab::strongswan::{self, Daemon, swanctl_conf};
use lab::topology::{Lab, Plan, Site, addr};
use serde::Serialize;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// Handshakes a second and core that this project wants to be able to do.
const WANTED: f64 = 4000.0;
/// The network behind the initiators.
const BEHIND: &str = "10.64.0.0/10";
/// The network behind the responder.
const NETWORK: &str = "10.20.1.0/24";

/// How it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Handshakes of each row.
    #[arg(long, default_value_t = 4000)]
    pub handshakes: usize,
    /// Of these under way at the same time: below the thresholds for cookies.
    #[arg(long, default_value_t = 32)]
    pub at_once: usize,
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// A binary `espalier` to measure instead of one that is built now, with the BPF object that is there: for what was before a change.
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// Let `perf` sample the owner's agent in its last row; the report's file is named.
    #[arg(long)]
    pub profile: bool,
    /// Let the lab's bridges and router do their work in the time of whoever sends, as they did before: it counts as the responder's then.
    #[arg(long)]
    pub carry_in_line: bool,
    /// Count the engine's instructions for each handshake, by part, instead: they do not depend on what else the machine does. Needs
    /// valgrind, and no lab.
    #[arg(long)]
    pub instructions: bool,
}

/// One responder with one kind of handshake.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `espalier` (of a pair: every step acknowledged by the standby first) or `strongSwan`.
    pub system: &'static str,
    /// Algorithms, and whether a Child SA comes with the IKE SA.
    pub suite: String,
    /// What one core of this machine would do: 1000 divided by the next.
    pub handshakes_per_s: f64,
    /// Processor time of the responding process.
    pub cpu_ms_per_handshake: f64,
    /// By the clock, load generator and neighbours included.
    pub handshakes_per_s_by_the_clock: f64,
    /// Processor time of the standby's agent, where there is one.
    pub standby_cpu_ms_per_handshake: Option<f64>,
    /// Journal entries, each with an acknowledgement of the standby; two commits are a handshake's.
    pub entries_per_handshake: Option<f64>,
    /// Handshakes.
    pub handshakes: usize,
    /// Requests that were sent again.
    pub repeated: usize,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// The rows.
    pub rows: Vec<Row>,
    /// Folder with configurations and logs.
    pub folder: String,
}

/// Runs it; true if espalier does as many handshakes as it wants to.
pub fn run(options: &Options) -> Result<bool> {
    ensure!(options.handshakes > 0 && options.at_once > 0, "nothing to do");
    if options.instructions {
        let rows = instructions::rows()?;
        match options.json {
            true => println!("{}", serde_json::to_string(&rows)?),
            false => instructions::print(&rows),
        }
        return Ok(true);
    }
    lab::resources::clear_on_signal()?;
    setup::run()?;
    let product = product(options.binary.as_deref())?;
    let psk = lab::stage::random_psk()?;
    let plan = Plan {
        sites: 1,
        ..Plan::PAIR
    };
    let lab = step("a lab", || {
        Lab::planned(&cargo_tools::root().join("target/lab"), plan)
    })?;
    if !options.carry_in_line {
        lab.carry_beside()?;
    }
    let site = lab.sites.first().context("a site for the initiators")?.clone();
    let mut figures = Figures {
        folder: lab.folder.display().to_string(),
        ..Figures::default()
    };
    detail(&format!("configurations and logs: {}", figures.folder));
    strongswan_rows(options, &lab, &site, &psk, &mut figures).context("strongSwan as the responder")?;
    espalier_rows(options, lab, &site, &product, &psk, &mut figures).context("espalier as the responder")?;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print(&figures);
    }
    let ours = |row: &&Row| row.system == "espalier";
    Ok(figures
        .rows
        .iter()
        .find(ours)
        .is_some_and(|row| row.handshakes_per_s >= WANTED))
}

/// What is measured.
fn product(binary: Option<&Path>) -> Result<Product> {
    let Some(binary) = binary else {
        let built = build::run()?;
        return Ok(Product {
            binary: built.espalier,
            object: built.object,
        });
    };
    let object = cargo_tools::root().join("ebpf/programs/target/bpfel-unknown-none/release/espalier");
    for file in [binary, &object] {
        ensure!(file.is_file(), "{} is not there", file.display());
    }
    Ok(Product {
        binary: binary.to_owned(),
        object,
    })
}

/// The load of a row: without and with a Child SA.
fn loads(options: &Options, site: &Site, psk: &str, seed: u64) -> [(String, Load); 2] {
    let load = Load {
        local: site.address,
        remote: addr::CLUSTER_OUTSIDE,
        psk: psk.to_owned(),
        count: options.handshakes,
        at_once: options.at_once,
        child: None,
        seed,
    };
    let with_child = Load {
        child: Some((
            Ipv4Addr::new(10, 64, 0, 0),
            (Ipv4Addr::new(10, 20, 1, 0), Ipv4Addr::new(10, 20, 1, 255)),
        )),
        seed: seed + 1,
        ..load.clone()
    };
    [
        (format!("{SUITE}, PSK"), load),
        (format!("{SUITE}, PSK, Child SA {ESP}"), with_child),
    ]
}

/// What a responder has used so far.
struct Used {
    /// Processor seconds of the responding process.
    cpu: f64,
    /// Of the standby's.
    standby: Option<f64>,
    /// Entries of the journal.
    entries: Option<u64>,
}

/// Runs one load between two readings of what the responder has used.
fn row(
    system: &'static str,
    site: &Site,
    (suite, load): &(String, Load),
    used: impl Fn() -> Result<Used>,
) -> Result<Row> {
    // A few first, so that memory and caches are there.
    let warm = Load {
        count: load.at_once * 4,
        seed: load.seed + 1000,
        ..load.clone()
    };
    handshakes::run(&site.netns, &warm)?;
    let before = used()?;
    let outcome = handshakes::run(&site.netns, load)?;
    let after = used()?;
    let each = |seconds: f64| seconds * 1000.0 / load.count as f64;
    let cpu_ms = each(after.cpu - before.cpu);
    let entries = after.entries.zip(before.entries);
    let row = Row {
        system,
        suite: suite.clone(),
        handshakes_per_s: 1000.0 / cpu_ms,
        cpu_ms_per_handshake: cpu_ms,
        handshakes_per_s_by_the_clock: load.count as f64 / outcome.elapsed.as_secs_f64(),
        standby_cpu_ms_per_handshake: after
            .standby
            .zip(before.standby)
            .map(|(after, before)| each(after - before)),
        entries_per_handshake: entries.map(|(after, before)| (after - before) as f64 / load.count as f64),
        handshakes: load.count,
        repeated: outcome.repeated,
    };
    detail(&format!(
        "{system}, {suite}: {:.3} ms of processor time each, {:.0} a second and core",
        row.cpu_ms_per_handshake, row.handshakes_per_s
    ));
    Ok(row)
}

fn strongswan_rows(
    options: &Options,
    lab: &Lab,
    site: &Site,
    psk: &str,
    figures: &mut Figures,
) -> Result<()> {
    say("strongSwan");
    let connection = strongswan::Connection {
        name: NAME,
        local: addr::CLUSTER_OUTSIDE.to_string(),
        remote: site.address.to_string(),
        local_id: format!("gw-{NAME}.example"),
        remote_id: format!("peer-{NAME}.example"),
        proposal: SUITE,
        esp_proposal: ESP,
        local_ts: NETWORK,
        remote_ts: BEHIND,
        child_rekey: "0",
        restart: false,
    };
    let daemon = Daemon {
        // It protects itself against a flood from one address, which the load is.
        settings: &["dos_protection = no"],
        quiet: true,
        ..Daemon::default()
    };
    let charon = lab::baseline::start_with(lab, &swanctl_conf(&[connection], psk), daemon)?;
    // Its user-space data path takes no Child SA without UDP encapsulation, which the load does not do.
    for load in loads(options, site, psk, 1).into_iter().take(1) {
        let row = row("strongSwan", site, &load, || {
            Ok(Used {
                cpu: charon.cpu_seconds(),
                standby: None,
                entries: None,
            })
        })?;
        figures.rows.push(row);
    }
    lab::baseline::stop(lab, charon)
}

fn espalier_rows(
    options: &Options,
    lab: Lab,
    site: &Site,
    product: &Product,
    psk: &str,
    figures: &mut Figures,
) -> Result<()> {
    say("espalier");
    let settings = Settings {
        slots: 1 << 17,
        connections: vec![Connection {
            name: NAME,
            remote: site.address,
            ike: SUITE,
            start: "passive",
            local_ts: NETWORK,
            remote_ts: BEHIND,
            esp: ESP,
        }],
        ..Settings::demo()
    };
    let mut cluster = Cluster::prepare(lab, product, psk, &settings)?;
    for member in &mut cluster.members {
        // As strongSwan, which logs errors only.
        member.environment.push(("RUST_LOG", "warn".to_owned()));
    }
    cluster.start()?;
    let loads = loads(options, site, psk, 11);
    for (number, load) in loads.iter().enumerate() {
        let in_sync = || cluster.wait_all_in_sync(Duration::from_secs(60));
        let owner = in_sync().context("the cluster did not form")?;
        let standby = 1 - owner;
        let profile = match options.profile && number + 1 == loads.len() {
            true => Some(Profile::start(&cluster, owner)?),
            false => None,
        };
        let row = row("espalier", site, load, || {
            let of = |member: usize| cluster.members[member].cpu_seconds();
            Ok(Used {
                cpu: of(owner)?,
                standby: Some(of(standby)?),
                entries: cluster.members[owner].status()?["journal"]["position"].as_u64(),
            })
        })?;
        // On a busy machine a member may be taken for dead; then the two figures are of half a responder each.
        ensure!(
            in_sync()? == owner,
            "the standby has taken over meanwhile: the machine is too busy for this"
        );
        figures.rows.push(row);
        profile.map(Profile::end).transpose()?;
    }
    Ok(())
}

/// `perf record` beside the load. Samples by time, since virtual machines have no counters.
struct Profile {
    perf: Child,
    data: PathBuf,
}

impl Profile {
    fn start(cluster: &Cluster, owner: usize) -> Result<Self> {
        let data = cluster.lab.folder.join("perf.data");
        let member = &cluster.members[owner];
        let pid = member.pid().context("the owner does not run")?;
        // A namespace's command hears the signal that ends it; others inherit that it is blocked.
        let perf = member
            .place
            .netns
            .command("perf")
            // Without build ids it ends at once.
            .args(["record", "--quiet", "--no-buildid"])
            .args(["-e", "cpu-clock", "-F", "5000", "-g", "-o"])
            .arg(&data)
            .args(["-p", &pid.to_string()])
            .spawn()
            .context("perf: apt-get install linux-perf")?;
        cluster.lab.resources.note_process(perf.id())?;
        let profile = Self { perf, data };
        // An idle agent has something to do as well: what it has written of that shows that it looks.
        let looks = || {
            fs::metadata(&profile.data)
                .is_ok_and(|file| file.len() > 1 << 16)
                .then_some(())
        };
        lab::clock::wait_for(Duration::from_secs(60), Duration::from_millis(100), looks)
            .context("perf does not begin")?;
        Ok(profile)
    }

    fn end(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.perf.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).context("perf")?;
        let ended = || self.perf.try_wait().ok().flatten();
        lab::clock::wait_for(Duration::from_secs(60), Duration::from_millis(100), ended)
            .context("perf does not end within 60 s; what it has written is lost")?;
        detail(&format!("perf report --no-children -i {}", self.data.display()));
        Ok(())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        // One that has ended is none any more, and none is left where a row has failed.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

fn print(figures: &Figures) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "responder",
        "handshake",
        "CPU ms each",
        "a second and core",
        "a second by the clock",
        "standby's CPU ms",
        "journal entries each",
    ]);
    for row in &figures.rows {
        table.add_row([
            row.system.to_owned(),
            row.suite.clone(),
            format!("{:.3}", row.cpu_ms_per_handshake),
            format!("{:.0}", row.handshakes_per_s),
            format!("{:.0}", row.handshakes_per_s_by_the_clock),
            row.standby_cpu_ms_per_handshake
                .map_or("-".to_owned(), |ms| format!("{ms:.3}")),
            row.entries_per_handshake
                .map_or("-".to_owned(), |entries| format!("{entries:.2}")),
        ]);
    }
    println!("{table}");
}
