//! strongSwan daemons: the standard peer, and the baseline in espalier's place.

use crate::clock::wait_for;
use crate::cmd;
use crate::netns::Netns;
use crate::resources::Resources;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What a daemon may have beside the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Daemon<'a> {
    /// Further settings, each `name = value`.
    pub settings: &'a [&'a str],
    /// Further plugins, such as those of EAP methods.
    pub plugins: &'a str,
    /// Virtual addresses are put on an interface.
    pub virtual_ip: bool,
    /// Only errors are logged: what a daemon that is measured would not write.
    pub quiet: bool,
}

/// A running charon with its own configuration folder and control socket.
#[derive(Debug)]
pub struct Charon {
    netns: Netns,
    folder: PathBuf,
    process: Child,
}

impl Charon {
    /// Writes the configuration, starts the daemon and waits until it answers.
    ///
    /// `swanctl_conf` is the text of swanctl.conf; the user-space data path (kernel-libipsec) carries ESP.
    pub fn start(
        netns: &Netns,
        folder: &Path,
        sockets: &Path,
        resources: &Resources,
        swanctl_conf: &str,
    ) -> Result<Self> {
        Self::start_with(netns, folder, sockets, resources, swanctl_conf, &[])
    }

    /// The same with further settings of the daemon, each `name = value`.
    pub fn start_with(
        netns: &Netns,
        folder: &Path,
        sockets: &Path,
        resources: &Resources,
        swanctl_conf: &str,
        settings: &[&str],
    ) -> Result<Self> {
        let daemon = Daemon {
            settings,
            ..Daemon::default()
        };
        Self::start_daemon(netns, folder, sockets, resources, swanctl_conf, daemon)
    }

    /// The same with whatever a daemon may have beside the usual.
    pub fn start_daemon(
        netns: &Netns,
        folder: &Path,
        sockets: &Path,
        resources: &Resources,
        swanctl_conf: &str,
        daemon: Daemon<'_>,
    ) -> Result<Self> {
        fs::create_dir_all(folder.join("swanctl")).with_context(|| folder.display().to_string())?;
        let socket = sockets.join(format!("{}.vici", netns.name));
        let further: String = daemon.settings.iter().map(|line| format!("  {line}\n")).collect();
        let kernel = format!("{} kernel-libipsec kernel-netlink", daemon.plugins);
        let conf = daemon_conf(folder, &socket, &kernel);
        let mut conf = conf.replacen("  threads = 16\n", &format!("  threads = 16\n{further}"), 1);
        if daemon.virtual_ip {
            conf = conf.replace("install_virtual_ip = no", "install_virtual_ip = yes");
        }
        if daemon.quiet {
            for group in ["default", "ike", "enc", "net"] {
                conf = conf.replacen(
                    &format!("      {group} = 1\n"),
                    &format!("      {group} = 0\n"),
                    1,
                );
            }
        }
        fs::write(folder.join("strongswan.conf"), conf)?;
        fs::write(folder.join("swanctl/swanctl.conf"), swanctl_conf)?;
        let log = fs::File::create(folder.join("charon.out"))?;
        let process = netns
            .command("/usr/sbin/charon-systemd")
            .env("STRONGSWAN_CONF", folder.join("strongswan.conf"))
            .env("SWANCTL_DIR", folder.join("swanctl"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start charon-systemd")?;
        resources.note_process(process.id())?;
        let mut charon = Self {
            netns: netns.clone(),
            folder: folder.to_owned(),
            process,
        };
        let ready = wait_for(Duration::from_secs(20), Duration::from_millis(20), || {
            (socket.exists() && charon.swanctl(&["--stats"]).is_ok()).then_some(())
        });
        if ready.is_none() {
            let _ = charon.process.kill();
            bail!(
                "charon did not answer within 20 s; see {}",
                folder.join("charon.out").display()
            );
        }
        charon.swanctl(&["--load-all"])?;
        Ok(charon)
    }

    /// Runs `swanctl` against this daemon.
    pub fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.swanctl_command();
        command.args(arguments);
        cmd::output(command, "")
    }

    /// Brings a child up from this side.
    pub fn initiate(&self, child: &str) -> Result<()> {
        self.swanctl(&["--initiate", "--child", child, "--timeout", "15"])
            .map(drop)
    }

    /// Rekeys a Child SA from this side.
    pub fn rekey_child(&self, child: &str) -> Result<()> {
        self.swanctl(&["--rekey", "--child", child]).map(drop)
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("charon.log")).unwrap_or_default()
    }

    /// Processor time that the daemon has used, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap_or_default();
        let after = stat.rfind(')').map_or("", |i| &stat[i + 1..]);
        let ticks: u64 = after
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|f| f.parse::<u64>().ok())
            .sum();
        ticks as f64 / 100.0
    }

    /// A line that starts `swanctl` by hand.
    pub fn by_hand(&self, arguments: &str) -> String {
        format!(
            "STRONGSWAN_CONF={0}/strongswan.conf SWANCTL_DIR={0}/swanctl nsenter --net={1} -- swanctl {arguments}",
            self.folder.display(),
            self.netns.path().display()
        )
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn swanctl_command(&self) -> Command {
        let mut command = self.netns.command("swanctl");
        command
            .env("STRONGSWAN_CONF", self.folder.join("strongswan.conf"))
            .env("SWANCTL_DIR", self.folder.join("swanctl"));
        command
    }
}

impl Drop for Charon {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        let _ = kill(
            nix::unistd::Pid::from_raw(self.process.id() as i32),
            Signal::SIGTERM,
        );
        let gone = wait_for(Duration::from_secs(3), Duration::from_millis(10), || {
            self.process.try_wait().ok().flatten()
        });
        if gone.is_none() {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// strongswan.conf: `kernel` names the kernel interfaces in order.
pub fn daemon_conf(folder: &Path, socket: &Path, kernel: &str) -> String {
    let plugins = "random nonce openssl pem pkcs1 pkcs8 x509 pubkey revocation constraints hmac kdf chapoly curve25519 gcm \
                   aes sha1 sha2";
    format!(
        "charon-systemd {{
  load = {plugins} {kernel} socket-default vici updown
  install_virtual_ip = no
  threads = 16
  retransmit_tries = 8
  retransmit_timeout = 0.5
  retransmit_base = 1.3
  plugins {{
    vici {{
      socket = unix://{socket}
    }}
    resolve {{
      file = {folder}/resolv.conf
      resolvconf {{
        path = {folder}/no-resolvconf
      }}
    }}
  }}
  filelog {{
    main {{
      path = {folder}/charon.log
      flush_line = yes
      time_format = %s
      time_add_ms = yes
      default = 1
      ike = 1
      enc = 1
      net = 1
    }}
  }}
  journal {{
    default = -1
  }}
}}
swanctl {{
  socket = unix://{socket}
  load = random openssl pem pkcs1 pkcs8 x509 pubkey
}}
",
        folder = folder.display(),
        socket = socket.display()
    )
}

/// One connection of swanctl.conf, as this side sees it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Name of the connection and of its child.
    pub name: &'static str,
    /// Own outer address.
    pub local: String,
    /// The other side's outer address.
    pub remote: String,
    /// Own identity.
    pub local_id: String,
    /// The other side's identity.
    pub remote_id: String,
    /// IKE proposal.
    pub proposal: &'static str,
    /// ESP proposal.
    pub esp_proposal: &'static str,
    /// Own selector.
    pub local_ts: &'static str,
    /// The other side's selector.
    pub remote_ts: &'static str,
    /// The peer rekeys the Child SA after this time; `0` for never.
    pub child_rekey: &'static str,
    /// The peer brings the connection up again when it is lost.
    pub restart: bool,
}

/// charon's ESP in user space counts whole seconds. With charon's usual tenth between rekey and expiry both fall into one second, and
/// the SA expires, with a gap, where it should have been rekeyed.
const REKEYS: &str = "        life_time = 1h\n        rand_time = 0s\n";
const RESTARTS: &str = "        dpd_action = restart\n        close_action = start\n";

/// swanctl.conf for these connections with one pre-shared key for each.
pub fn swanctl_conf(connections: &[Connection], psk: &str) -> String {
    let mut conns = String::new();
    let mut secrets = String::new();
    for c in connections {
        conns.push_str(&format!(
            "  {name} {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = {proposal}
    mobike = no
    local {{
      auth = psk
      id = {local_id}
    }}
    remote {{
      auth = psk
      id = {remote_id}
    }}
    children {{
      {name} {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
        rekey_time = {rekey}
{more}      }}
    }}
    rekey_time = 0
    dpd_delay = 3s
  }}
",
            name = c.name,
            local = c.local,
            remote = c.remote,
            proposal = c.proposal,
            local_id = c.local_id,
            remote_id = c.remote_id,
            local_ts = c.local_ts,
            remote_ts = c.remote_ts,
            esp = c.esp_proposal,
            rekey = c.child_rekey,
            more = [
                if c.child_rekey == "0" { "" } else { REKEYS },
                if c.restart { RESTARTS } else { "" },
            ]
            .concat(),
        ));
        secrets.push_str(&format!(
            "  ike-{} {{\n    id-1 = {}\n    id-2 = {}\n    secret = \"{psk}\"\n  }}\n",
            c.name, c.local_id, c.remote_id
        ));
    }
    format!("connections {{\n{conns}}}\nsecrets {{\n{secrets}}}\n")
}
