//! The second peer: a Linux kernel in User Mode Linux, with strongSwan for IKE and the kernel's own ESP, so plain ESP, ESN and
//! replay windows come from code that nobody here wrote.
//!
//! Its root is the host's file system, read-only; one folder is shared and writable. Commands are handed over as files
//! `N.cmd` there; the guest answers with `N.out` and `N.rc`.

use crate::clock::wait_for;
use crate::strongswan::{Connection, daemon_conf, swanctl_conf};
use crate::topology::{Lab, addr};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// A running second peer.
#[derive(Debug)]
pub struct UmlPeer {
    process: Child,
    shared: PathBuf,
    next: u32,
}

/// Where the unpacked Debian package is.
pub fn package() -> PathBuf {
    std::env::var_os("ESPALIER_UML").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/uml"),
        PathBuf::from,
    )
}

/// The connection of peer site two, as the peer sees it.
pub fn connection() -> Connection {
    Connection {
        name: "three",
        local: addr::PEER_TWO.to_string(),
        remote: addr::CLUSTER_OUTSIDE.to_string(),
        local_id: "peer-three.example".into(),
        remote_id: "gw-three.example".into(),
        proposal: "aes128gcm16-prfsha256-x25519",
        esp_proposal: "aes128gcm16-esn",
        local_ts: "10.30.1.0/24",
        remote_ts: "10.20.1.0/24",
        child_rekey: "0",
        restart: false,
    }
}

impl UmlPeer {
    /// Boots the kernel out of the unpacked Debian package and starts charon in it.
    pub fn boot(lab: &Lab, package: &Path, psk: &str) -> Result<Self> {
        Self::boot_with(lab, package, &swanctl_conf(&[connection()], psk))
    }

    /// The same with another swanctl.conf.
    pub fn boot_with(lab: &Lab, package: &Path, conf: &str) -> Result<Self> {
        let kernel = package.join("usr/bin/linux.uml");
        if !kernel.is_file() {
            bail!("no {}: run `cargo xtask setup`", kernel.display());
        }
        let shared = lab.folder.join("peer-two");
        fs::create_dir_all(shared.join("swanctl"))?;
        fs::create_dir_all(shared.join("lib"))?;
        // modprobe wants BASE/lib/modules/VERSION.
        std::os::unix::fs::symlink(package.join("usr/lib/uml/modules"), shared.join("lib/modules"))?;
        let guest = Path::new("/run/shared");
        let daemon = daemon_conf(guest, Path::new("/run/charon.vici"), "kernel-netlink");
        fs::write(shared.join("strongswan.conf"), daemon)?;
        fs::write(shared.join("swanctl/swanctl.conf"), conf)?;
        let init = shared.join("init.sh");
        fs::write(&init, init_script(&shared))?;
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let log = fs::File::create(shared.join("console.log"))?;
        let process = lab
            .router
            .command(&kernel.to_string_lossy())
            .args([
                "mem=256M",
                "root=none",
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "con=null",
                "con0=null,fd:1",
            ])
            .arg(format!("umid={}", lab.resources.name("uml")))
            .arg(format!("uml_dir={}/", lab.sockets().display()))
            .arg(format!("init={}", init.display()))
            .arg(format!("vec0:transport=tap,ifname={},depth=128,gro=0", lab.tap))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("User Mode Linux")?;
        lab.resources.note_process(process.id())?;
        let mut peer = Self {
            process,
            shared,
            next: 0,
        };
        peer.run("charon", "charon-systemd > /run/shared/charon.out 2>&1 &", 30)
            .with_context(|| {
                format!(
                    "the second peer did not boot; see {}/console.log",
                    peer.shared.display()
                )
            })?;
        peer.run(
            "swanctl",
            "i=0; until swanctl --stats > /dev/null 2>&1; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done; \
             swanctl --load-all",
            30,
        )?;
        Ok(peer)
    }

    /// Brings the tunnel up.
    pub fn initiate(&mut self) -> Result<()> {
        self.run("initiate", "swanctl --initiate --child three --timeout 15", 30)
            .map(drop)
    }

    /// Pings the server through the tunnel: packets sent and answered.
    pub fn ping(&mut self, count: u32) -> Result<(u64, u64)> {
        let command = format!(
            "ping -q -i 0.01 -W 1 -c {count} -I {} {} || true",
            addr::HOST_THREE,
            addr::SERVER_ONE
        );
        let text = self.run("ping", &command, 30 + u64::from(count) / 50)?;
        let figures = text
            .lines()
            .find(|l| l.contains("packets transmitted"))
            .context("ping printed no summary")?;
        let mut numbers = figures
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse::<u64>().ok());
        Ok((
            numbers.next().context("ping: sent")?,
            numbers.next().context("ping: received")?,
        ))
    }

    /// `ip -s xfrm state`: the kernel's own account of keys, counters and windows.
    pub fn xfrm_state(&mut self) -> Result<String> {
        self.run("xfrm state", "ip -s xfrm state", 10)
    }

    /// Runs a shell command in the guest and returns its output.
    pub fn run(&mut self, what: &str, command: &str, seconds: u64) -> Result<String> {
        let number = self.next;
        self.next += 1;
        let file = |kind: &str| self.shared.join(format!("{number}.{kind}"));
        fs::write(file("new"), format!("{command}\n"))?;
        fs::rename(file("new"), file("cmd"))?;
        let answered = wait_for(Duration::from_secs(seconds), Duration::from_millis(10), || {
            let code = fs::read_to_string(file("rc")).ok()?;
            code.trim().parse::<i32>().ok()
        });
        let output = fs::read_to_string(file("out")).unwrap_or_default();
        match answered {
            Some(0) => Ok(output),
            Some(code) => bail!("{what} in the second peer ended with {code}: {}", output.trim()),
            None => bail!(
                "{what} in the second peer took more than {seconds} s: {}",
                output.trim()
            ),
        }
    }
}

impl Drop for UmlPeer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn init_script(shared: &Path) -> String {
    // Crypto templates load by request_module, so the kernel's modprobe must know where the modules are.
    format!(
        "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
export STRONGSWAN_CONF=/run/shared/strongswan.conf SWANCTL_DIR=/run/shared/swanctl
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/shared
mount -t hostfs -o {shared} hostfs /run/shared
printf '#!/bin/sh\\nexec /sbin/modprobe -d /run/shared \"$@\"\\n' > /run/modprobe
chmod +x /run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe
/run/modprobe -a esp4 xfrm_user rfc4106 gcm
ip link set lo up
ip link set vec0 up
ip addr add {peer}/25 dev vec0
ip addr add {inside}/24 dev lo
ip route add default via 198.51.100.129
i=0
while :; do
  if [ -f /run/shared/$i.cmd ]; then
    sh /run/shared/$i.cmd > /run/shared/$i.out 2>&1
    echo $? > /run/shared/$i.rc
    i=$((i+1))
  else
    sleep 0.02
  fi
done
",
        shared = shared.display(),
        peer = addr::PEER_TWO,
        inside = addr::HOST_THREE
    )
}
