//! A member of the cluster: its configuration file, its agent, and its links.

use crate::clock::{now_ns, patience, wait_for};
use crate::cmd;
use crate::config::{METRICS_PORT, Paths, Settings, configuration_with};
use crate::netns::Netns;
use crate::resources::{Resources, start_time};
use crate::topology::{Lab, Place};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where the binary and the BPF object are.
#[derive(Clone, Debug)]
pub struct Product {
    /// The binary `espalier`.
    pub binary: PathBuf,
    /// The BPF object.
    pub object: PathBuf,
}

impl Product {
    /// What `cargo xtask build` has made; `ESPALIER_BIN` and `ESPALIER_OBJECT` name others.
    pub fn built() -> Result<Self> {
        // Where both are named there need be no source tree: not in an emulated machine, for one.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let root = root.canonicalize().unwrap_or(root);
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let of = |name: &str, default: PathBuf| std::env::var_os(name).map_or(default, PathBuf::from);
        let product = Self {
            binary: of("ESPALIER_BIN", target.join("release/espalier")),
            object: of(
                "ESPALIER_OBJECT",
                root.join("ebpf/programs/target/bpfel-unknown-none/release/espalier"),
            ),
        };
        for file in [&product.binary, &product.object] {
            if !file.is_file() {
                bail!("{} is missing: run `cargo xtask build` first", file.display());
            }
        }
        Ok(product)
    }
}

/// A command of the product's that goes on, and ends with this at the latest: a process that nobody waits for would keep its namespace.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Waits for its end: whether it succeeded.
    pub fn wait(&mut self) -> Result<bool> {
        Ok(self.0.wait().context("espalier")?.success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A member, running or not.
#[derive(Debug)]
pub struct Member {
    /// Its place in the lab.
    pub place: Place,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its control socket.
    pub socket: PathBuf,
    /// Its bpffs folder.
    pub pins: PathBuf,
    /// Environment variables for the agent, from its next start on.
    pub environment: Vec<(&'static str, String)>,
    /// Files that the agent sees in place of the host's, from its next start on: (file of the host, what stands there for the agent).
    pub files: Vec<(&'static str, PathBuf)>,
    log: PathBuf,
    product: Product,
    process: Option<Child>,
    /// A killed process that may still be on its way out.
    dying: Option<u32>,
    /// A socket in the member's namespace, for taking its links down without starting a program.
    switch: UdpSocket,
}

impl Member {
    /// Writes the demo's configuration.
    pub fn new(lab: &Lab, place: &Place, product: &Product) -> Result<Self> {
        Self::with(lab, place, product, &Settings::demo())
    }

    /// Writes the configuration.
    pub fn with(lab: &Lab, place: &Place, product: &Product, settings: &Settings) -> Result<Self> {
        let seats: Vec<_> = lab.members.iter().map(Place::seat).collect();
        Self::configured(lab, place, product, |paths| {
            configuration_with(&place.seat(), &seats, paths, settings)
        })
    }

    /// Writes a configuration that is made out of the paths.
    pub fn configured(
        lab: &Lab,
        place: &Place,
        product: &Product,
        text: impl FnOnce(&Paths<'_>) -> String,
    ) -> Result<Self> {
        let folder = lab.folder.join(place.letter);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let member = Self {
            place: place.clone(),
            config: folder.join("espalier.toml"),
            socket: lab.sockets().join(format!("{}.sock", place.letter)),
            pins: PathBuf::from("/sys/fs/bpf").join(lab.resources.name(place.letter)),
            log: folder.join("espalier.log"),
            product: product.clone(),
            environment: Vec::new(),
            files: Vec::new(),
            process: None,
            dying: None,
            switch: place
                .netns
                .inside(|| UdpSocket::bind("127.0.0.1:0").context("switch socket"))?,
        };
        lab.resources.note_path(&member.pins)?;
        let paths = Paths {
            pki: Path::new("../pki"),
            psk: Path::new("../psk"),
            object: &product.object,
            pins: &member.pins,
            socket: &member.socket,
        };
        fs::write(&member.config, text(&paths))?;
        Ok(member)
    }

    /// Replaces a text in the configuration, for the next start.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(&self.config)?;
        anyhow::ensure!(text.contains(from), "no {from:?} in {}", self.config.display());
        Ok(fs::write(&self.config, text.replacen(from, to, 1))?)
    }

    /// Adds keys to every connection, one a line.
    pub fn add_keys(&self, keys: &str) -> Result<()> {
        let text = fs::read_to_string(&self.config)?;
        let with = text.replace("\nstart = ", &format!("\n{keys}\nstart = "));
        anyhow::ensure!(with != text, "no connection in {}", self.config.display());
        Ok(fs::write(&self.config, with)?)
    }

    /// Nothing is left of a killed agent: its programs are detached, and all maps are gone.
    pub fn remove_pins(&self) -> Result<()> {
        fs::remove_dir_all(&self.pins).with_context(|| self.pins.display().to_string())
    }

    /// `espalier events --json`: (`CLOCK_MONOTONIC` ns, kind, text), oldest first.
    pub fn events(&self) -> Result<Vec<(u64, String, String)>> {
        let text = self.espalier(&["events", "--json"])?;
        let events: Vec<Value> = serde_json::from_str(&text).context("espalier events --json")?;
        let of = |event: &Value| {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            (
                event["monotonic_ns"].as_u64().unwrap_or(0),
                text("kind"),
                text("text"),
            )
        };
        Ok(events.iter().map(of).collect())
    }

    /// Starts the agent.
    pub fn start(&mut self, resources: &Resources) -> Result<()> {
        if let Some(pid) = self.dying.take() {
            // Its control socket is taken until the last of its threads is gone and it was reaped.
            wait_for(Duration::from_secs(10), Duration::from_millis(2), || {
                (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
            })
            .with_context(|| format!("the killed agent {pid} does not go away"))?;
        }
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| self.log.display().to_string())?;
        let process = self
            .command()
            .arg("run")
            .arg("--config")
            .arg(&self.config)
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into()),
            )
            .env("RUST_BACKTRACE", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start espalier")?;
        resources.note_process(process.id())?;
        self.process = Some(process);
        let limit = patience(Duration::from_secs(30));
        let ready = wait_for(limit, Duration::from_millis(20), || {
            if !self.alive() {
                return Some(false);
            }
            self.status().is_ok().then_some(true)
        });
        if ready != Some(true) {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(12).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            bail!(
                "member {} does not answer; {} ends with:\n{}",
                self.place.letter,
                self.log.display(),
                last.join("\n")
            );
        }
        Ok(())
    }

    /// The agent's binary in its namespace; with files of its own in a mount namespace too, which sees the same bpffs.
    fn command(&self) -> Command {
        let binary = self.product.binary.to_string_lossy();
        if self.files.is_empty() {
            return self.place.netns.command(&binary);
        }
        let mut command = self.place.netns.command("unshare");
        let script =
            r#"while [ "$1" != -- ]; do mount --bind "$2" "$1" || exit 1; shift 2; done; shift; exec "$@""#;
        command.args(["--mount", "sh", "-c", script, "sh"]);
        for (there, here) in &self.files {
            command.arg(there).arg(here);
        }
        command.arg("--").arg(&*binary);
        command
    }

    /// Whether the agent's process lives.
    pub fn alive(&self) -> bool {
        self.process
            .as_ref()
            .is_some_and(|p| start_time(p.id()).is_some())
    }

    /// The agent's process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Sends the agent a signal. Returns the time just before.
    pub fn signal(&self, signal: Signal) -> Result<u64> {
        let pid = self.pid().context("the agent does not run")?;
        let at = now_ns();
        kill(Pid::from_raw(pid as i32), signal).with_context(|| format!("{signal} to the agent"))?;
        Ok(at)
    }

    /// Anonymous memory of the agent (its heap, not the maps that it shares with the kernel), octets.
    pub fn anonymous_octets(&self) -> Result<u64> {
        let pid = self.pid().context("the agent does not run")?;
        let text = fs::read_to_string(format!("/proc/{pid}/status")).context("status of the agent")?;
        let line = text.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let kib: u64 = line
            .and_then(|l| l.split_whitespace().next()?.parse().ok())
            .context("no RssAnon in the agent's status")?;
        Ok(kib * 1024)
    }

    /// Processor time that the agent has used, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let pid = self.pid().context("the agent does not run")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("stat of the agent")?;
        let after = stat.rfind(')').map_or("", |i| &stat[i + 1..]);
        let ticks = after.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|f| f.parse::<u64>().ok()).sum();
        // SAFETY: a plain library call without pointers.
        let a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        Ok(ticks as f64 / a_second.max(1) as f64)
    }

    /// Kills the agent (SIGKILL). Returns the time just before.
    pub fn kill_agent(&mut self) -> Result<u64> {
        let mut process = self.process.take().context("the agent does not run")?;
        self.dying = Some(process.id());
        let at = now_ns();
        kill(Pid::from_raw(process.id() as i32), Signal::SIGKILL).context("kill")?;
        // Reaped later in the background: waiting here would delay what comes in the same instant.
        std::thread::spawn(move || process.wait());
        Ok(at)
    }

    /// The host dies: the agent is killed and all links go down in the same instant. Returns the time just before.
    pub fn kill_host(&mut self) -> Result<u64> {
        let at = self.kill_agent()?;
        self.links(false)?;
        Ok(at)
    }

    /// Links up again, with the routes that went away with them.
    pub fn revive_links(&self) -> Result<()> {
        self.links(true)?;
        self.place.netns.ip(&self.place.routes())
    }

    /// Ends the agent in an orderly way.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM);
            let limit = Duration::from_secs(5);
            if wait_for(limit, Duration::from_millis(10), || {
                process.try_wait().ok().flatten()
            })
            .is_none()
            {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
    }

    /// Waits until the agent, which was told to stop, has ended.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<()> {
        let process = self.process.as_mut().context("the agent does not run")?;
        let ended = wait_for(limit, Duration::from_millis(2), || {
            process.try_wait().ok().flatten()
        });
        let status = ended.with_context(|| format!("the agent has not ended within {limit:?}"))?;
        self.process = None;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(())
    }

    /// Takes one link down or up at once; routes that went with it are put back.
    pub fn link(&self, interface: &str, up: bool) -> Result<u64> {
        let at = now_ns();
        set_link(&self.switch, interface, up)
            .with_context(|| format!("{interface} of member {}", self.place.letter))?;
        if up {
            self.place.netns.ip(&self.place.routes())?;
        }
        Ok(at)
    }

    /// Runs `espalier <arguments>` against this member.
    pub fn espalier(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.place.netns.command(&self.product.binary.to_string_lossy());
        command.args(arguments).arg("--socket").arg(&self.socket);
        cmd::output(command, "")
    }

    /// A command of the product's that goes on while something else happens. Its output is for nobody.
    pub fn launch(&self, arguments: &[&str]) -> Result<Running> {
        let mut command = self.place.netns.command(&self.product.binary.to_string_lossy());
        command.args(arguments).arg("--socket").arg(&self.socket);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("espalier").map(Running)
    }

    /// `espalier status --json`.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.espalier(&["status", "--json"])?).context("espalier status --json")
    }

    /// `espalier sas --json`.
    pub fn sas(&self) -> Result<Value> {
        serde_json::from_str(&self.espalier(&["sas", "--json"])?).context("espalier sas --json")
    }

    /// Our SPIs of a connection's IKE SA and its Child SA, if there is one of each and no other.
    pub fn only_sas(&self, connection: &str) -> Option<(String, String)> {
        let sas = self.sas().ok()?;
        let of = |ike: &&Value| ike["connection"] == connection;
        let ours: Vec<_> = sas.as_array()?.iter().filter(of).collect();
        let [ike] = ours[..] else { return None };
        let [child] = &ike["children"].as_array()?[..] else {
            return None;
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some((text(&ike["spi_local"])?, text(&child["spi_in"])?))
    }

    /// The text of /metrics.
    pub fn metrics(&self) -> Result<String> {
        self.place.netns.inside(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT)).context("/metrics")?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).context("/metrics")?;
            Ok(text)
        })
    }

    /// Packets by verdict, over all connections.
    pub fn verdicts(&self) -> Result<BTreeMap<String, u64>> {
        serde_json::from_value(self.status()?["verdicts"].clone())
            .context("verdicts in espalier status --json")
    }

    /// The agent's log so far.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Commands to look at this member by hand.
    pub fn by_hand(&self) -> Vec<String> {
        let enter = format!("nsenter --net={}", self.place.netns.path().display());
        let binary = self.product.binary.display();
        vec![
            format!("{enter} {binary} status --socket {}", self.socket.display()),
            format!("{enter} {binary} sas --socket {}", self.socket.display()),
            format!("{enter} {binary} metrics --socket {}", self.socket.display()),
            format!("bpftool map dump pinned {}/SEGMENTS", self.pins.display()),
            format!("{enter} tcpdump -ni outside"),
        ]
    }

    /// Takes links down or up at once: no program is started between the kill and this.
    fn links(&self, up: bool) -> Result<()> {
        for interface in ["outside", "inside", "synch"] {
            set_link(&self.switch, interface, up)
                .with_context(|| format!("{interface} of member {}", self.place.letter))?;
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes what the members share: certificates by `espalier cluster init`, and the pre-shared key.
pub fn shared_secrets(lab: &Lab, product: &Product, psk: &str) -> Result<()> {
    let pki = lab.folder.join("pki");
    let mut command = std::process::Command::new(&product.binary);
    command
        .args(["cluster", "init", "--name", "demo", "--members"])
        // A member alone has the certificates of a pair.
        .arg(lab.members.len().max(2).to_string())
        .arg("--dir")
        .arg(&pki);
    cmd::output(command, "").context("espalier cluster init")?;
    let mut file = private_file(&lab.folder.join("psk"))?;
    writeln!(file, "{psk}").context("writing the pre-shared key")
}

fn private_file(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// Samples of the Prometheus text format: name, text between the braces, value.
pub fn samples(text: &str) -> Vec<(String, String, f64)> {
    let mut found = Vec::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let Some((head, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        found.push((name.to_owned(), labels.trim_end_matches('}').to_owned(), value));
    }
    found
}

/// The value of a label.
pub fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim_matches('"'))
    })
}

fn set_link(socket: &UdpSocket, interface: &str, up: bool) -> Result<()> {
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let fd = socket.as_raw_fd();
    // SAFETY: the request is live and of the type that this ioctl takes.
    if unsafe { libc::ioctl(fd, libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error()).context("reading link flags");
    }
    // SAFETY: the ioctl above has filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let bit = libc::IFF_UP as libc::c_short;
    request.ifr_ifru.ifru_flags = if up { flags | bit } else { flags & !bit };
    // SAFETY: as above.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error()).context("setting link flags");
    }
    Ok(())
}

/// The namespace and MAC addresses of the members' interfaces of one name.
pub fn macs(lab: &Lab, interface: &str) -> Result<Vec<[u8; 6]>> {
    let of = |n: &Netns| Lab::mac(n, interface);
    lab.members.iter().map(|p| of(&p.netns)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_with_their_labels() {
        let text = "# HELP x y\nx_total{connection=\"one\",verdict=\"esp_opened\"} 12\nup 1\n";
        let all = samples(text);
        assert_eq!(all.len(), 2);
        assert_eq!(label(&all[0].1, "verdict"), Some("esp_opened"));
        assert_eq!((all[0].2, label(&all[1].1, "verdict")), (12.0, None));
    }
}
