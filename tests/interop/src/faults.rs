//! Faults of a network and of a host that are injected and taken back: cut cables, lost packets, programs taken off, another
//! wall clock.
//!
//! A cable is cut on the bridge's side, so that no member sees loss of carrier. Lost packets are dropped by nftables in the
//! member's namespace: that concerns what its stack sends and receives (heartbeats, the synch channel, IKE), not what XDP
//! forwards.

use crate::cmd;
use crate::member::Member;
use crate::pass::PassProgram;
use crate::topology::Lab;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A member's cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// To the synch network.
    Synch,
    /// To the outside network.
    Outside,
    /// To the inside network.
    Inside,
}

impl Cable {
    /// The member's interface.
    pub fn interface(self) -> &'static str {
        match self {
            Self::Synch => "synch",
            Self::Outside => "outside",
            Self::Inside => "inside",
        }
    }

    /// Its bridge, and the start of its port's name there.
    fn bridge(self) -> (&'static str, &'static str) {
        match self {
            Self::Synch => ("br-synch", "synch"),
            Self::Outside => ("br-out", "out"),
            Self::Inside => ("br-in", "in"),
        }
    }
}

/// Which way packets are lost, as the member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// What it would receive.
    In,
    /// What it sends.
    Out,
    /// Both.
    Both,
}

/// Takes a member's cable off its bridge, or puts it back.
pub fn cable(lab: &Lab, letter: &str, cable: Cable, connected: bool) -> Result<()> {
    let (bridge, port) = cable.bridge();
    let to = if connected {
        format!("master {bridge}")
    } else {
        "nomaster".to_owned()
    };
    lab.bridges.ip(&format!("link set {port}-{letter} {to}"))
}

/// Drops so many per cent (1 to 100) of the packets on a member's interfaces until [`heal_loss`].
pub fn lose(member: &Member, interfaces: &[&str], way: Way, percent: u8) -> Result<()> {
    let mut rules = String::from("table inet esp_chaos {\n");
    let chance = if percent >= 100 {
        String::new()
    } else {
        format!("numgen random mod 100 < {percent}")
    };
    for (chain, hook, matches, on) in [
        ("into", "input", "iifname", way != Way::Out),
        ("out", "output", "oifname", way != Way::In),
    ] {
        if on {
            let names: Vec<String> = interfaces.iter().map(|i| format!("\"{i}\"")).collect();
            rules.push_str(&format!(
                "chain {chain} {{\n type filter hook {hook} priority -300;\n {matches} {{ {} }} {chance} drop\n}}\n",
                names.join(", ")
            ));
        }
    }
    rules.push_str("}\n");
    member.place.netns.nft(&rules)
}

/// Cuts a member off from these addresses (of one port) on the synch network until [`heal_loss`].
pub fn cut_from(member: &Member, addresses: &[std::net::Ipv4Addr]) -> Result<()> {
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let list = list.join(", ");
    member.place.netns.nft(&format!(
        "table inet esp_chaos {{\nchain into {{\n type filter hook input priority -300;\n ip saddr {{ {list} }} drop\n}}\n\
         chain out {{\n type filter hook output priority -300;\n ip daddr {{ {list} }} drop\n}}\n}}\n"
    ))
}

/// No packets are lost any more.
pub fn heal_loss(member: &Member) -> Result<()> {
    member
        .place
        .netns
        .nft("table inet esp_chaos\ndelete table inet esp_chaos\n")
}

/// Takes the XDP program off one of a member's interfaces, as another program on the host might; the pin stays.
pub fn detach_program(member: &Member, cable: Cable) -> Result<()> {
    let pin = link_pin(member, cable)?;
    cmd::run(&[
        "bpftool".as_ref(),
        "link".as_ref(),
        "detach".as_ref(),
        "pinned".as_ref(),
        pin.as_os_str(),
    ])
    .map(drop)
}

/// Puts a program that passes everything in the place of the XDP program on one of a member's interfaces.
pub fn replace_program(lab: &Lab, member: &Member, cable: Cable) -> Result<()> {
    PassProgram::of(&lab.resources).take_the_place_behind(&link_pin(member, cable)?)
}

/// The pinned link of a member's interface.
fn link_pin(member: &Member, cable: Cable) -> Result<PathBuf> {
    // The pin's name ends with the interface's number.
    let begins = format!("link_{}_", cable.interface());
    std::fs::read_dir(&member.pins)
        .with_context(|| format!("cannot read {}", member.pins.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&begins))
        })
        .with_context(|| format!("no pin {begins}* in {}", member.pins.display()))
}

/// Whether an XDP program is on a member's interface.
pub fn program_attached(member: &Member, cable: Cable) -> Result<bool> {
    let text = member
        .place
        .netns
        .run(&["ip", "-json", "link", "show", "dev", cable.interface()])?;
    let json: serde_json::Value = serde_json::from_str(&text).context("ip -json link")?;
    Ok(json[0]["xdp"].is_object())
}

/// A wall clock of a member's own, by Debian's libfaketime. `CLOCK_MONOTONIC` stays as it is.
#[derive(Clone, Debug)]
pub struct WallClock {
    file: PathBuf,
}

/// Debian's path of the library.
pub const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

impl WallClock {
    /// Gives the member's agent such a clock from its next start on; it shows the true time until [`WallClock::jump`].
    pub fn give(member: &mut Member, folder: &Path) -> Result<Self> {
        anyhow::ensure!(
            Path::new(FAKETIME).exists(),
            "{FAKETIME} is missing: `cargo xtask setup` installs libfaketime"
        );
        let clock = Self {
            file: folder.join("wall-clock"),
        };
        clock.jump(0)?;
        member.environment = vec![
            ("LD_PRELOAD", FAKETIME.to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", clock.file.display().to_string()),
            // The file is read at most this often, in seconds.
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ];
        Ok(clock)
    }

    /// From now on (a second later at most) the clock is so many seconds off.
    pub fn jump(&self, seconds: i64) -> Result<()> {
        let fresh = self.file.with_extension("new");
        fs::write(&fresh, format!("{seconds:+}\n")).with_context(|| fresh.display().to_string())?;
        fs::rename(&fresh, &self.file).with_context(|| self.file.display().to_string())
    }
}
