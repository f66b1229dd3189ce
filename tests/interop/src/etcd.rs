//! Real etcd nodes: one cluster of them, each in a namespace of its own or on a loopback address, to be killed, frozen and
//! started again.

use crate::clock::wait_for;
use crate::cmd;
use crate::netns::Netns;
use crate::resources::{Ledger, Resources};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Where one node runs. It takes its ports from the kernel and keeps them over restarts.
#[derive(Clone, Debug)]
pub struct EtcdSite {
    /// The namespace; `None`: the host's own.
    pub netns: Option<Netns>,
    /// Address of this node there, for clients and for the other nodes.
    pub address: IpAddr,
}

/// Certificates of the servers (PEM). With them, clients must show one of the same authority; the nodes talk to each other
/// in the clear.
#[derive(Clone, Debug)]
pub struct EtcdServerTls {
    /// The authority.
    pub ca: PathBuf,
    /// Certificate of all nodes, with their addresses.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// A client's certificate and key, for [`EtcdCluster::etcdctl`].
    pub client: (PathBuf, PathBuf),
}

#[derive(Debug)]
struct Node {
    site: EtcdSite,
    name: String,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

/// A cluster of etcd nodes. Dropping it ends them and removes their data.
#[derive(Debug)]
pub struct EtcdCluster {
    folder: PathBuf,
    tls: Option<EtcdServerTls>,
    nodes: Vec<Node>,
    ledger: Ledger,
}

impl EtcdCluster {
    /// Sites on loopback addresses that belong to this lab alone: `127.<its id>.<n>`, counted from 1.
    pub fn loopback(resources: &Resources, nodes: u8) -> Result<Vec<EtcdSite>> {
        let id = u16::from_str_radix(&resources.id, 16).context("the lab's id")?;
        let [a, b] = id.to_be_bytes();
        Ok((1..=nodes)
            .map(|n| EtcdSite {
                netns: None,
                address: Ipv4Addr::new(127, a, b, n).into(),
            })
            .collect())
    }

    /// Starts one node at each site, with their data in memory (/dev/shm: what is measured is not this host's disk), and waits
    /// until all of them answer.
    ///
    /// Their heartbeat is 20 ms and their election time-out 200 ms, as docs/examples/etcd.md has it for nodes side by side.
    pub fn start(resources: &Resources, sites: Vec<EtcdSite>, tls: Option<EtcdServerTls>) -> Result<Self> {
        let folder = PathBuf::from("/dev/shm").join(resources.name("etcd"));
        resources.note_path(&folder)?;
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut nodes = Vec::new();
        for (number, site) in sites.into_iter().enumerate() {
            let (client, peer) = free_ports(&site)?;
            nodes.push(Node {
                name: resources.name(&format!("etcd{}", number + 1)),
                site,
                client,
                peer,
                process: None,
            });
        }
        let mut cluster = Self {
            folder,
            tls,
            nodes,
            ledger: resources.ledger(),
        };
        for number in 0..cluster.nodes.len() {
            cluster.spawn(number)?;
        }
        for number in 0..cluster.nodes.len() {
            cluster.wait_ready(number)?;
        }
        Ok(cluster)
    }

    /// How many nodes there are, running or not.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// What clients are configured with.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|n| self.endpoint(n)).collect()
    }

    /// The same, of one node.
    pub fn endpoint(&self, node: usize) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.nodes[node].client)
    }

    /// Ends a node at once (SIGKILL). What it has acknowledged is in its data folder.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        if let Some(mut process) = self.nodes[node].process.take() {
            process.kill().context("killing etcd")?;
            process.wait().context("waiting for etcd")?;
        }
        Ok(())
    }

    /// Freezes a node (SIGSTOP): its sockets stay open and take what is sent.
    pub fn freeze(&self, node: usize) -> Result<()> {
        self.signal(node, Signal::SIGSTOP)
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self, node: usize) -> Result<()> {
        self.signal(node, Signal::SIGCONT)
    }

    /// Freezes the first so many nodes.
    pub fn freeze_all(&self, count: usize) -> Result<()> {
        (0..count.min(self.nodes.len())).try_for_each(|n| self.freeze(n))
    }

    /// Lets all nodes go on, also those that were not frozen.
    pub fn thaw_all(&self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|n| self.thaw(n))
    }

    /// Starts a node that was killed, on its old data and ports. Does not wait: alone it will not answer.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        self.kill(node)?;
        self.spawn(node)
    }

    /// Waits until a node answers a linearizable read, which takes a leader.
    pub fn wait_ready(&mut self, node: usize) -> Result<()> {
        let ready = wait_for(Duration::from_secs(30), Duration::from_millis(20), || {
            let dead = self.nodes[node]
                .process
                .as_mut()
                .and_then(|p| p.try_wait().ok().flatten());
            if dead.is_some() {
                return Some(false);
            }
            self.etcdctl(node, &["--command-timeout=1s", "get", "ready"])
                .is_ok()
                .then_some(true)
        });
        match ready {
            Some(true) => Ok(()),
            Some(false) => bail!("{} has ended:\n{}", self.nodes[node].name, self.log_tail(node)),
            None => bail!(
                "{} does not answer within 30 s:\n{}",
                self.nodes[node].name,
                self.log_tail(node)
            ),
        }
    }

    /// Which node leads, as the nodes that answer see it; waits for an election to end.
    pub fn leader(&self) -> Result<usize> {
        let seen = || -> Option<usize> {
            (0..self.nodes.len()).find(|n| {
                let Ok(status) = self.etcdctl(
                    *n,
                    &["--command-timeout=1s", "endpoint", "status", "--write-out=json"],
                ) else {
                    return false;
                };
                let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
                let status = &status[0]["Status"];
                status["leader"].is_u64() && status["leader"] == status["header"]["member_id"]
            })
        };
        wait_for(Duration::from_secs(10), Duration::from_millis(20), seen)
            .context("etcd has no leader for 10 s")
    }

    /// Runs etcdctl against one node, in its namespace.
    pub fn etcdctl(&self, node: usize, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(node, "etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint(node)));
        if let Some(tls) = &self.tls {
            command
                .arg(argument("cacert", &tls.ca))
                .arg(argument("cert", &tls.client.0))
                .arg(argument("key", &tls.client.1));
        }
        command.args(arguments);
        cmd::output(command, "")
    }

    /// What a node has logged since it was first started.
    pub fn log(&self, node: usize) -> String {
        fs::read_to_string(self.log_path(node)).unwrap_or_default()
    }

    fn spawn(&mut self, number: usize) -> Result<()> {
        let everybody: Vec<String> = self
            .nodes
            .iter()
            .map(|n| format!("{}=http://{}", n.name, n.peer))
            .collect();
        let node = &self.nodes[number];
        let client = self.endpoint(number);
        let peer = format!("http://{}", node.peer);
        let mut command = self.command(number, "etcd");
        command
            .args(["--name", &node.name])
            .arg(argument("data-dir", &self.folder.join(format!("node{number}"))))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &everybody.join(",")])
            .args(["--initial-cluster-token", &node.name[..node.name.len() - 1]])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args([
                "--logger",
                "zap",
                "--log-outputs",
                "stderr",
                "--log-level",
                "warn",
            ]);
        if let Some(tls) = &self.tls {
            command
                .arg("--client-cert-auth")
                .arg(argument("trusted-ca-file", &tls.ca))
                .arg(argument("cert-file", &tls.cert))
                .arg(argument("key-file", &tls.key));
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path(number))?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start etcd; `cargo xtask setup` installs what is missing")?;
        self.ledger.note_process(process.id())?;
        self.nodes[number].process = Some(process);
        Ok(())
    }

    fn command(&self, node: usize, program: &str) -> Command {
        match &self.nodes[node].site.netns {
            Some(netns) => netns.command(program),
            None => Command::new(program),
        }
    }

    fn signal(&self, node: usize, signal: Signal) -> Result<()> {
        let process = self.nodes[node]
            .process
            .as_ref()
            .with_context(|| format!("{} does not run", self.nodes[node].name))?;
        kill(Pid::from_raw(process.id() as i32), signal).with_context(|| format!("{signal} to etcd"))
    }

    fn log_path(&self, node: usize) -> PathBuf {
        self.folder.join(format!("node{node}.log"))
    }

    fn log_tail(&self, node: usize) -> String {
        let log = self.log(node);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            let _ = self.kill(node);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn argument(name: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(format!("--{name}="));
    argument.push(path);
    argument
}

/// Two ports that are free at the site just now.
fn free_ports(site: &EtcdSite) -> Result<(SocketAddr, SocketAddr)> {
    let address = site.address;
    let pick = move || -> Result<(SocketAddr, SocketAddr)> {
        let bind = || TcpListener::bind((address, 0)).with_context(|| format!("no free port at {address}"));
        // Both are held until both are known, so that they differ.
        let (client, peer) = (bind()?, bind()?);
        Ok((client.local_addr()?, peer.local_addr()?))
    };
    match &site.netns {
        Some(netns) => netns.inside(pick),
        None => pick(),
    }
}
