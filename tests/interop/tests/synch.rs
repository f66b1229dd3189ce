//! The synch channel of running members: certificates are changed under traffic, and its network is flooded.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::wait_for;
use lab::cmd;
use lab::member::{Member, Product, label, samples};
use lab::ping::Ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, sendto, setsockopt, socket, sockopt,
};
use serde_json::Value;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SYNCH_PORT: u16 = 4700;

/// Which of the cluster's facts must not change.
fn facts(stage: &Stage) -> Result<Vec<Value>> {
    let mut facts = Vec::new();
    for member in &stage.members {
        let status = member.status()?;
        facts.push(serde_json::json!([
            status["role"],
            status["epoch"],
            status["owner"],
            status["in_sync"]
        ]));
    }
    Ok(facts)
}

/// `espalier cluster ...` on the folder that both members read.
fn cluster(stage: &Stage, binary: &Path, line: &str) -> Result<()> {
    let mut command = std::process::Command::new(binary);
    command.arg("cluster").args(line.split(' ')).arg("--dir");
    command.arg(stage.lab.folder.join("pki"));
    cmd::output(command, "")
        .map(drop)
        .with_context(|| line.to_owned())
}

/// Waits until every link of a member is up under its newest certificate.
fn wait_renewed(member: &Member) -> Result<Value> {
    wait_for(Duration::from_secs(20), Duration::from_millis(50), || {
        let channel = member.status().ok()?["channel"].clone();
        let links = channel["links"].as_array()?;
        let up = links.iter().all(|link| !link["up_s"].is_null());
        (up && links.len() == 2 && channel["renewing"] == false).then_some(channel)
    })
    .with_context(|| format!("the links of member {} were not renewed", member.place.letter))
}

#[test]
fn certificates_and_authority_change_and_the_network_is_flooded_while_traffic_flows() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let stage = Stage::up(lab, peer, &product, &psk)?;
    stage.connect()?;
    let before = facts(&stage)?;
    let first = stage.members[0].status()?["channel"]["certificate"].clone();
    let ping = Ping::start(
        &stage.lab.host,
        "rotation",
        addr::HOST_ONE,
        addr::SERVER_ONE,
        10_000,
    )?;

    for step in ["rotate ca", "rotate members", "rotate finish"] {
        cluster(&stage, &product.binary, step)?;
        for member in &stage.members {
            member
                .espalier(&["reload-pki"])
                .with_context(|| step.to_owned())?;
            wait_renewed(member)?;
        }
        assert_eq!(facts(&stage)?, before, "after {step}");
    }
    let channel = wait_renewed(&stage.members[0])?;
    assert_ne!(channel["certificate"], first);
    assert_eq!(channel["issuer"], "espalier cluster demo CA 2");
    let result = ping.stop()?;
    println!("rotation: {} pings, {} lost", result.sent(), result.lost());
    assert_eq!(result.lost(), 0, "pings lost while certificates changed");

    flooded(&stage, &before)
}

/// A socket with a forged source address, in the namespace of the bridges.
fn forged(source: SocketAddrV4) -> Result<std::os::fd::OwnedFd> {
    let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
    setsockopt(&fd, sockopt::IpTransparent, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(source)).context("bind")?;
    Ok(fd)
}

fn cpu_and_memory(member: &Member) -> Result<(f64, f64)> {
    let all = samples(&member.metrics()?);
    let of = |name: &str| {
        all.iter()
            .find(|s| s.0 == name)
            .map(|s| s.2)
            .context(name.to_owned())
    };
    Ok((
        of("process_cpu_seconds_total")?,
        of("process_resident_memory_bytes")?,
    ))
}

/// Whoever is on the synch network sends garbage to B, under its own address and under A's.
fn flooded(stage: &Stage, before: &[Value]) -> Result<()> {
    let [a, b] = [0, 1].map(|at: usize| stage.members[at].place.synch);
    let bridges = &stage.lab.bridges;
    bridges.ip("address add 10.255.0.99/24 dev br-synch")?;
    let to = SockaddrIn::from(SocketAddrV4::new(b, SYNCH_PORT));
    let own = SocketAddrV4::new("10.255.0.99".parse()?, SYNCH_PORT);
    for (what, source) in [
        ("its own address", own),
        ("A's address", SocketAddrV4::new(a, SYNCH_PORT)),
    ] {
        let fd = bridges.inside(move || forged(source))?;
        let (cpu, memory) = cpu_and_memory(&stage.members[1])?;
        let ping = Ping::start(&stage.lab.host, "flood", addr::HOST_ONE, addr::SERVER_ONE, 10_000)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let flood = std::thread::spawn(move || {
            let mut sent = 0_u64;
            // First packets of connections (RFC 9000 section 17.2.2), short headers, nonsense.
            let heads: [&[u8]; 3] = [&[0xc3, 0, 0, 0, 1, 8], &[0x45], &[0]];
            while !stopped.load(Ordering::Relaxed) {
                for head in heads {
                    let mut packet = [0x5a; 1200];
                    packet[..head.len()].copy_from_slice(head);
                    packet[8..16].copy_from_slice(&sent.to_be_bytes());
                    sent += u64::from(sendto(fd.as_raw_fd(), &packet, &to, MsgFlags::empty()).is_ok());
                }
            }
            sent
        });
        std::thread::sleep(Duration::from_secs(3));
        let (cpu_after, memory_after) = cpu_and_memory(&stage.members[1])?;
        stop.store(true, Ordering::Relaxed);
        let sent = flood
            .join()
            .map_err(|_| anyhow::anyhow!("the flood has panicked"))?;
        let result = ping.stop()?;
        let refused = samples(&stage.members[1].metrics()?)
            .into_iter()
            .filter(|s| s.0 == "espalier_synch_refused_total" && s.2 > 0.0)
            .map(|s| format!("{} {}", label(&s.1, "reason").unwrap_or_default(), s.2))
            .collect::<Vec<_>>();
        println!(
            "flood from {what}: {} packets a second; B used {:.2} s of CPU in 3 s and {:.0} KiB more memory; {} pings, {} lost; refused: {refused:?}",
            sent / 3,
            cpu_after - cpu,
            (memory_after - memory) / 1024.0,
            result.sent(),
            result.lost(),
        );
        ensure!(sent > 3000, "that was no flood: {sent} packets");
        assert_eq!(result.lost(), 0, "pings lost");
        assert_eq!(facts(stage)?, before, "nothing changed");
        ensure!(memory_after - memory < 32e6, "memory grew");
        let links = stage.members[1].status()?["channel"]["links"].clone();
        ensure!(
            links
                .as_array()
                .is_some_and(|l| l.iter().all(|link| link["up_s"].as_u64() >= Some(3))),
            "a link was lost: {links}"
        );
    }
    Ok(())
}
