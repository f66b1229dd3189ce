//! The systems that are compared, each at both ends of the same chain.

use super::chain::{Chain, Site};
use crate::steps::detail;
use anyhow::{Context, Result, bail};
use lab::clock::wait_for;
use lab::cmd;
use lab::member::Product;
use lab::strongswan::{Charon, Connection, swanctl_conf};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Limit of every wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// IKE proposal of both daemons.
const IKE: &str = "chacha20poly1305-prfsha256-x25519";
const PSK: &str = "a bench is no secret, but a key it needs";

/// A system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// The kernel forwards, without a tunnel: what hosts and wire cost.
    Plain,
    /// espalier, agents and programs, at both ends.
    Espalier,
    /// strongSwan with its user-space data path (kernel-libipsec).
    StrongSwan,
    /// wireguard-go.
    WireguardGo,
}

/// Everything that is measured: system and suite.
pub const ALL: [(System, &str); 6] = [
    (System::Plain, "none"),
    (System::Espalier, "chacha20poly1305"),
    (System::StrongSwan, "chacha20poly1305"),
    (System::WireguardGo, "chacha20poly1305"),
    (System::Espalier, "aes128gcm16"),
    (System::StrongSwan, "aes128gcm16"),
];

impl System {
    /// All names.
    pub const NAMES: [&str; 4] = ["plain", "espalier", "strongswan", "wireguard-go"];

    /// Its name in tables and figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Espalier => "espalier",
            Self::StrongSwan => "strongswan",
            Self::WireguardGo => "wireguard-go",
        }
    }
}

/// A process that is ended with its system.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        let _ = kill(nix::unistd::Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let gone = wait_for(Duration::from_secs(5), Duration::from_millis(10), || {
            self.0.try_wait().ok().flatten()
        });
        if gone.is_none() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// What runs on the gateways; ends when dropped.
#[derive(Default)]
pub struct Running {
    _processes: Vec<Process>,
    _charons: Vec<Charon>,
}

/// Which CPUs the SAs of both gateways are on.
///
/// An SA belongs to one CPU of its gateway, by its slot. Here both gateways are on the same two: where both SAs come to the same one,
/// sealing and opening share it, and the other is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// Each gateway's on another one, as gateways have cores of their own.
    Apart,
    /// Both on one.
    Together,
    /// As it comes.
    Any,
}

/// Starts until the placement is as wanted; each has it with a probability of one half.
const TRIES: usize = 16;

/// Starts a system at both ends and waits until the hosts reach each other.
pub fn start(
    chain: &Chain,
    system: System,
    suite: &'static str,
    product: Option<&Product>,
    placement: Placement,
) -> Result<Running> {
    let running = match system {
        System::Plain => plain(chain),
        System::Espalier => {
            return placed(
                chain,
                suite,
                product.context("espalier was not built")?,
                placement,
            );
        }
        System::StrongSwan => strongswan(chain, suite),
        System::WireguardGo => wireguard(chain),
    }?;
    reached(chain, system)?;
    Ok(running)
}

fn reached(chain: &Chain, system: System) -> Result<()> {
    let to = chain.east.host_address();
    wait_for(PATIENCE, Duration::from_millis(50), || {
        let ping = ["ping", "-n", "-c", "1", "-W", "1", &to];
        chain.west.host.run(&ping).ok()
    })
    .with_context(|| {
        format!(
            "{}: the hosts do not reach each other; see {}",
            system.name(),
            chain.folder.display()
        )
    })?;
    Ok(())
}

fn placed(chain: &Chain, suite: &str, product: &Product, placement: Placement) -> Result<Running> {
    for _ in 0..TRIES {
        let running = espalier(chain, suite, product)?;
        reached(chain, System::Espalier)?;
        let cpus = (
            cpu_of(chain, &chain.west, product)?,
            cpu_of(chain, &chain.east, product)?,
        );
        let apart = cpus.0 != cpus.1;
        if placement == Placement::Any || apart == (placement == Placement::Apart) {
            detail(&format!(
                "SA of west on CPU {}, of east on CPU {}",
                cpus.0, cpus.1
            ));
            return Ok(running);
        }
    }
    bail!("{TRIES} starts did not bring the SAs to CPUs as --placement wants; are there two CPUs?")
}

/// The CPU that serves a gateway's SA.
fn cpu_of(chain: &Chain, site: &Site, product: &Product) -> Result<u64> {
    let socket = socket(chain, site);
    let mut command = site.gateway.command(&product.binary.to_string_lossy());
    command.args(["sas", "--json", "--socket"]).arg(&socket);
    let text = cmd::output(command, "").context("espalier sas")?;
    let sas: serde_json::Value = serde_json::from_str(&text).context("espalier sas --json")?;
    find_cpu(&sas).context("espalier sas names no Child SA with its CPU")
}

/// The first `cpu` within.
fn find_cpu(value: &serde_json::Value) -> Option<u64> {
    match value {
        serde_json::Value::Object(fields) => fields
            .get("cpu")
            .and_then(serde_json::Value::as_u64)
            .or_else(|| fields.values().find_map(find_cpu)),
        serde_json::Value::Array(values) => values.iter().find_map(find_cpu),
        _ => None,
    }
}

fn socket(chain: &Chain, site: &Site) -> PathBuf {
    chain.resources.folder.join(format!("{}.sock", site.name))
}

fn plain(chain: &Chain) -> Result<Running> {
    addresses(chain)?;
    for (site, other) in chain.both() {
        site.gateway.ip(&format!(
            "route add {} via {}",
            other.network(),
            other.tunnel_address()
        ))?;
    }
    Ok(Running::default())
}

/// What gateways have that are no cluster.
fn addresses(chain: &Chain) -> Result<()> {
    for (site, _) in chain.both() {
        site.gateway.ip(&format!(
            "addr add {}/24 dev outside\naddr add {}/24 dev inside",
            site.tunnel_address(),
            site.next_hop()
        ))?;
    }
    Ok(())
}

fn espalier(chain: &Chain, suite: &str, product: &Product) -> Result<Running> {
    let mut processes = Vec::new();
    for (site, other) in chain.both() {
        // Replaced, not added: a start that is repeated finds them there.
        site.gateway.ip(&format!(
            "addr replace {}/24 dev outside\naddr replace {}/24 dev inside",
            site.own_address(),
            site.own_inside()
        ))?;
        let folder = chain.folder.join(site.name);
        fs::create_dir_all(&folder)?;
        if !folder.join("pki").exists() {
            // Certificates for two are the fewest; a lone member uses the first.
            let mut command = std::process::Command::new(&product.binary);
            command
                .args(["cluster", "init", "--name", site.name, "--members", "2", "--dir"])
                .arg(folder.join("pki"));
            cmd::output(command, "").context("espalier cluster init")?;
        }
        let mut psk = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(folder.join("psk"))?;
        writeln!(psk, "{PSK}")?;
        let pins = Path::new("/sys/fs/bpf").join(chain.resources.name(site.name));
        chain.resources.note_path(&pins)?;
        let file = folder.join("espalier.toml");
        fs::write(&file, configuration(chain, site, other, suite, product, &pins))?;
        let log = File::create(folder.join("espalier.log"))?;
        let process = site
            .gateway
            .command(&product.binary.to_string_lossy())
            .args(["run", "--config"])
            .arg(&file)
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start espalier")?;
        chain.resources.note_process(process.id())?;
        processes.push(Process(process));
    }
    Ok(Running {
        _processes: processes,
        ..Running::default()
    })
}

fn configuration(
    chain: &Chain,
    site: &Site,
    other: &Site,
    suite: &str,
    product: &Product,
    pins: &Path,
) -> String {
    format!(
        "[cluster]
name = \"{name}\"
member = 1
solo = \"continue\"
pki = \"pki\"

[[cluster.members]]
id = 1
name = \"{name}\"
synch = \"{own}:4700\"
outside = \"{own}:4701\"

[interfaces]
outside = \"outside\"
inside = \"inside\"
tun = \"esp0\"

[addresses]
outside = [\"{local}\"]
inside = [\"{next_hop}\"]

[data_plane]
object = \"{object}\"
pin_dir = \"{pins}\"
slots = 1024
mode = \"native\"

[control]
socket = \"{socket}\"
metrics = \"127.0.0.1:9469\"

[[connections]]
name = \"tunnel\"
local = \"{local}\"
remote = \"{remote}\"
local_id = \"{name}.example\"
remote_id = \"{other}.example\"
psk_file = \"psk\"
ike = [\"{IKE}\"]
start = \"{start}\"

[[connections.children]]
name = \"tunnel\"
local_ts = [\"{local_ts}\"]
remote_ts = [\"{remote_ts}\"]
esp = [\"{suite}\"]
",
        name = site.name,
        own = site.own_address(),
        local = site.tunnel_address(),
        next_hop = site.next_hop(),
        object = product.object.display(),
        pins = pins.display(),
        socket = socket(chain, site).display(),
        remote = other.tunnel_address(),
        other = other.name,
        start = if site.number == 1 { "initiate" } else { "passive" },
        local_ts = site.network(),
        remote_ts = other.network(),
    )
}

fn strongswan(chain: &Chain, suite: &'static str) -> Result<Running> {
    addresses(chain)?;
    let mut charons = Vec::new();
    for (site, other) in chain.both() {
        let (local_ts, remote_ts) = if site.number == 1 {
            ("10.1.0.0/24", "10.2.0.0/24")
        } else {
            ("10.2.0.0/24", "10.1.0.0/24")
        };
        let connection = Connection {
            name: "tunnel",
            local: site.tunnel_address(),
            remote: other.tunnel_address(),
            local_id: format!("{}.example", site.name),
            remote_id: format!("{}.example", other.name),
            proposal: IKE,
            esp_proposal: suite,
            local_ts,
            remote_ts,
            child_rekey: "0",
            restart: false,
        };
        charons.push(Charon::start(
            &site.gateway,
            &chain.folder.join(site.name),
            &chain.resources.folder,
            &chain.resources,
            &swanctl_conf(&[connection], PSK),
        )?);
    }
    charons[0].initiate("tunnel")?;
    Ok(Running {
        _charons: charons,
        ..Running::default()
    })
}

fn wireguard(chain: &Chain) -> Result<Running> {
    addresses(chain)?;
    let mut processes = Vec::new();
    let mut keys = Vec::new();
    for _ in 0..2 {
        let private = cmd::run(&["wg", "genkey"])?;
        let public = cmd::run_with_input(&["wg", "pubkey"], &private)?;
        keys.push((private, public.trim().to_owned()));
    }
    for (at, (site, other)) in chain.both().into_iter().enumerate() {
        // The control socket lies under the interface's name, in one folder for the whole host.
        let interface = format!("wg{}{}", chain.resources.id, site.number);
        chain
            .resources
            .note_path(&Path::new("/run/wireguard").join(format!("{interface}.sock")))?;
        let log = File::create(chain.folder.join(format!("{}.log", site.name)))?;
        let process = site
            .gateway
            .command("wireguard-go")
            .args(["--foreground", &interface])
            .env("LOG_LEVEL", "error")
            // It hesitates on a kernel that has WireGuard itself; here the user-space one is wanted.
            .env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start wireguard-go")?;
        chain.resources.note_process(process.id())?;
        processes.push(Process(process));
        let private = chain.folder.join(format!("{}.key", site.name));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&private)?;
        file.write_all(keys[at].0.as_bytes())?;
        let up = wait_for(PATIENCE, Duration::from_millis(20), || {
            site.gateway
                .run(&[
                    "wg",
                    "set",
                    &interface,
                    "listen-port",
                    "51820",
                    "private-key",
                    &private.to_string_lossy(),
                    "peer",
                    &keys[1 - at].1,
                    "allowed-ips",
                    &other.network(),
                    "endpoint",
                    &format!("{}:51820", other.tunnel_address()),
                ])
                .ok()
        });
        if up.is_none() {
            bail!("wireguard-go does not answer; see {}", chain.folder.display());
        }
        site.gateway.ip(&format!(
            "link set {interface} mtu 1420\nlink set {interface} up\nroute add {} dev {interface}",
            other.network()
        ))?;
    }
    Ok(Running {
        _processes: processes,
        ..Running::default()
    })
}
