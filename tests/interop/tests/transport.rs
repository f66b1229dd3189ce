//! Transport mode with a Linux kernel: what the gateway itself says and hears is sealed, in both roles, over rekeys and a takeover, and
//! is not taken in clear; with a NAT between the two that changes the peer's address as well.
//!
//! ```text
//!   198.51.100.130 (Linux 6.1, charon) -- router -- 203.0.113.10 A and B, on their lo
//! ```
//!
//! Needs root, strongSwan, nftables, the kernel in User Mode Linux, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::{Connection, Settings};
use lab::linux::{LinuxLab, NAME, PINGS, only_child, verdict};
use lab::member::Product;
use lab::nat::translate;
use lab::netns::Netns;
use lab::stage::random_psk;
use lab::strongswan::swanctl_conf;
use lab::topology::{Lab, addr};
use lab::uml::{self, UmlPeer};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::path::Path;
use std::time::Duration;

const PORT: u16 = 7777;
/// Octets that go there and back over TCP.
const OCTETS: usize = 200_000;
/// As many of them are there before the first is read.
const QUEUED: usize = 30_000;

/// What the NAT makes of the peer's address; not the router's own, which is everybody's next hop as well.
const SEEN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 140);

/// The peer's swanctl.conf: without selectors they are those of the two addresses.
fn peer_conf(psk: &str) -> Result<String> {
    let text = swanctl_conf(&[uml::connection()], psk);
    let selectors = "        local_ts = 10.30.1.0/24\n        remote_ts = 10.20.1.0/24\n";
    ensure!(text.contains(selectors), "the selectors are another text: {text}");
    Ok(text.replace(selectors, "        mode = transport\n"))
}

/// A cluster that has the peer at this address, with XDP in this mode, and the peer.
fn up(lab: Lab, seen: Ipv4Addr, mode: &'static str) -> Result<LinuxLab> {
    let (product, psk) = (Product::built()?, random_psk()?);
    let (local_ts, remote_ts) = ("203.0.113.10", "the peer");
    let settings = Settings {
        connections: vec![Connection {
            name: NAME,
            remote: seen,
            ike: "aes128gcm16-prfsha256-x25519",
            start: "trap",
            local_ts,
            remote_ts,
            esp: "aes128gcm16-esn",
        }],
        mode,
        ..Settings::demo()
    };
    let cluster = Cluster::prepare(lab, &product, &psk, &settings)?;
    for member in &cluster.members {
        let selectors = format!("local_ts = [\"{local_ts}\"]\nremote_ts = [\"{remote_ts}\"]\n");
        member.edit(&selectors, "mode = \"transport\"\n")?;
    }
    LinuxLab::start(cluster, &peer_conf(&psk)?)
}

/// How many of [`PINGS`] came back.
fn received(text: &str) -> Result<u32> {
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
    Ok(received.with_context(|| format!("ping says: {text}"))?.parse()?)
}

/// Pings from a cluster address of this member.
fn from_gateway(netns: &Netns, to: Ipv4Addr, options: &[&str]) -> Result<u32> {
    let count = PINGS.to_string();
    let output = netns
        .command("ping")
        .args(["-n", "-q", "-i", "0.02", "-W", "1", "-c", &count])
        .args(options)
        .args(["-I", &addr::CLUSTER_OUTSIDE.to_string(), &to.to_string()])
        .output()
        .context("ping")?;
    received(&String::from_utf8_lossy(&output.stdout))
}

fn from_peer(peer: &mut UmlPeer, options: &[&str]) -> Result<u32> {
    let command = format!(
        "ping -n -q -i 0.02 -W 1 -c {PINGS} {} {} || true",
        options.join(" "),
        addr::CLUSTER_OUTSIDE
    );
    received(&peer.run("ping", &command, 30)?)
}

fn settled(lab: &mut LinuxLab, what: &str, at: usize, seen: Ipv4Addr) -> Result<()> {
    settled_with(lab, what, at, seen, &[])
}

fn settled_with(lab: &mut LinuxLab, what: &str, at: usize, seen: Ipv4Addr, options: &[&str]) -> Result<()> {
    let netns = lab.member(at).place.netns.clone();
    lab.settled(what, at, |lab| {
        Ok((
            from_gateway(&netns, seen, options)?,
            from_peer(&mut lab.peer, options)?,
        ))
    })
}

/// We begin, since the gateway has something to say.
fn on_demand(lab: &mut LinuxLab, seen: Ipv4Addr) -> Result<()> {
    let a = lab.first;
    let netns = lab.member(a).place.netns.clone();
    let up = wait_for(Duration::from_secs(20), Duration::from_millis(50), || {
        from_gateway(&netns, seen, &[]).ok()?;
        only_child(lab.member(a)).filter(|child| child["transport"] == true)
    });
    if up.is_none() {
        bail!(
            "no Child SA in transport mode on demand:\n{}",
            lab.member(a).log_text()
        );
    }
    settled(lab, "we began", a, seen)?;
    let state = lab.peer.xfrm_state()?;
    ensure!(state.contains("mode transport"), "{state}");
    let log = lab.peer.run("log", "cat /run/shared/charon.log", 10)?;
    let request = log.lines().find(|line| line.contains("parsed IKE_AUTH request"));
    refuses_padding(request.unwrap_or(&log))
}

/// A packet in transport mode need not tell where padding begins (RFC 7296 1.3.1).
fn refuses_padding(heard: &str) -> Result<()> {
    ensure!(
        heard.contains("N(ESP_TFC_PAD_N)"),
        "padding is not refused: {heard}"
    );
    Ok(())
}

/// The peer begins.
fn on_its_demand(lab: &mut LinuxLab, seen: Ipv4Addr) -> Result<()> {
    let a = lab.first;
    lab.peer
        .run("terminate", &format!("swanctl --terminate --ike {NAME}"), 15)?;
    let gone = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
        lab.spi(a).is_none().then_some(())
    });
    gone.context("the peer's Delete")?;
    let initiate = format!("swanctl --initiate --child {NAME} --timeout 15");
    let said = lab.peer.run("initiate", &initiate, 30);
    let said = said.with_context(|| lab.member(a).log_text())?;
    refuses_padding(&said)?;
    settled(lab, "the peer began", a, seen)
}

/// The peer reads octets from a server on the cluster address and sends them back.
fn echo(lab: &mut LinuxLab, at: usize, seen: Ipv4Addr) -> Result<()> {
    let client = format!(
        "timeout 50 bash -c 'exec 3<>/dev/tcp/{}/{PORT}; cat <&3 > /run/octets; cat /run/octets >&3'",
        addr::CLUSTER_OUTSIDE
    );
    echo_by(lab, at, seen, &client)
}

/// The same with an option in each packet of the peer's: a route to record, which the server's packets then have as well (RFC 1122 3.2.1.8).
fn echo_with_options(lab: &mut LinuxLab, at: usize, seen: Ipv4Addr) -> Result<()> {
    let client = format!(
        "timeout 50 perl -MSocket -e '
            socket(S, PF_INET, SOCK_STREAM, 0) or die;
            setsockopt(S, 0, 4, pack(\"C*\", 7, 39, 4, (0) x 37)) or die \"options: $!\";
            connect(S, pack_sockaddr_in({PORT}, inet_aton(\"{}\"))) or die \"connect: $!\";
            my $octets = \"\";
            while (sysread(S, my $some, 65536)) {{ $octets .= $some }}
            for (my $at = 0; $at < length $octets;) {{
                $at += syswrite(S, $octets, length($octets) - $at, $at) or die \"write: $!\";
            }}'",
        addr::CLUSTER_OUTSIDE
    );
    echo_by(lab, at, seen, &client)
}

fn echo_by(lab: &mut LinuxLab, at: usize, seen: Ipv4Addr, client: &str) -> Result<()> {
    let (ready, listening) = std::sync::mpsc::channel();
    let netns = lab.member(at).place.netns.clone();
    let server = netns.thread("server", move || {
        let listener = TcpListener::bind((addr::CLUSTER_OUTSIDE, PORT)).context("the server's socket")?;
        let _ = ready.send(());
        let (mut stream, from) = listener.accept()?;
        ensure!(from.ip() == seen, "from {from}");
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let octets = (0..OCTETS).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>();
        stream.write_all(&octets)?;
        stream.shutdown(Shutdown::Write)?;
        // The kernel puts together what has to wait.
        let mut queued = [0; QUEUED];
        let waiting = wait_for(Duration::from_secs(30), Duration::from_millis(10), || {
            (stream.peek(&mut queued).ok()? == QUEUED).then_some(())
        });
        waiting.with_context(|| format!("{QUEUED} octets that come back"))?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).context("what comes back")?;
        ensure!(back == octets, "{} octets came back, or others", back.len());
        Ok(())
    })?;
    listening
        .recv_timeout(Duration::from_secs(10))
        .context("the server")?;
    let said = lab.peer.run("tcp", client, 60);
    said.with_context(|| format!("{:?}", lab.member(at).verdicts()))?;
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?
}

#[test]
fn a_linux_kernel_in_transport_mode_over_rekeys_and_a_takeover() -> Result<()> {
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let seen = addr::PEER_TWO;
    let mut lab = up(lab, seen, "native")?;
    let (a, b) = (lab.first, 1 - lab.first);
    on_demand(&mut lab, seen)?;

    // Everything between the addresses is sealed, TCP too; nothing of it is sent in clear.
    echo(&mut lab, a, seen)?;
    let (opened, sealed) = (
        verdict(lab.member(a), "esp_opened_local")?,
        verdict(lab.member(a), "esp_sealed")?,
    );
    ensure!(opened > 100 && sealed > 100, "opened {opened}, sealed {sealed}");

    // What is larger than any link is sealed whole and cut outside, in both directions.
    let netns = lab.member(a).place.netns.clone();
    for octets in ["2500", "8000"] {
        let large = wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
            (from_gateway(&netns, seen, &["-s", octets]).ok()? == PINGS).then_some(())
        });
        large.with_context(|| format!("datagrams of {octets}: {:?}", lab.member(a).verdicts()))?;
    }
    for name in ["outer_cut", "outer_fragment"] {
        ensure!(verdict(lab.member(a), name)? > 0, "no {name}");
    }
    let recorded = ["-R", "-s", "2500"];
    settled_with(&mut lab, "large, with a route to record", a, seen, &recorded)?;

    lab.rekey_from_both(a, |lab, what| settled(lab, what, a, seen))?;
    on_its_demand(&mut lab, seen)?;

    // Somebody on the way speaks as the peer, in clear.
    let before = verdict(lab.member(a), "clear_text")?;
    let router = &lab.cluster.lab.router;
    router.ip(&format!("addr add {}/32 dev lo", addr::PEER_TWO))?;
    let forged = router
        .command("ping")
        .args(["-n", "-q", "-i", "0.01", "-W", "1", "-c", "5"])
        .args([
            "-I",
            &addr::PEER_TWO.to_string(),
            &addr::CLUSTER_OUTSIDE.to_string(),
        ])
        .output()?;
    router.ip(&format!("addr del {}/32 dev lo", addr::PEER_TWO))?;
    let text = String::from_utf8_lossy(&forged.stdout);
    ensure!(received(&text)? == 0, "answered in clear: {text}");
    ensure!(
        verdict(lab.member(a), "clear_text")? >= before + 5,
        "{:?}",
        lab.member(a).verdicts()
    );
    settled(&mut lab, "after the forgery", a, seen)?;

    // The other member goes on with the SA, on its own stack.
    lab.take_over(a, |lab, what| settled(lab, what, b, seen))?;
    echo(&mut lab, b, seen)?;
    lab.nothing_twice()
}

/// ```text
///   198.51.100.130 --- NAT 198.51.100.140 --- A, B      both kernels count the other one's address as they see it into TCP's checksum
/// ```
#[test]
fn behind_a_nat_a_linux_kernel_in_transport_mode_is_heard_and_hears() -> Result<()> {
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    // Without translated ports we may begin, too: to 500 of the NAT, which leads to the peer's.
    let seen = SEEN;
    translate(&lab, addr::PEER_TWO, seen, 500, 4500)?;
    let mut lab = up(lab, seen, "native")?;
    let (a, b) = (lab.first, 1 - lab.first);
    on_demand(&mut lab, seen)?;
    echo(&mut lab, a, seen)?;
    let child = only_child(lab.member(a)).context("a Child SA")?;
    ensure!(child["udp_encap"] == true, "plain ESP through a NAT: {child}");
    settled_with(&mut lab, "routes to record, in UDP", a, seen, &["-R"])?;
    echo_with_options(&mut lab, a, seen)?;
    lab.rekey_from_both(a, |lab, what| settled(lab, what, a, seen))?;
    on_its_demand(&mut lab, seen)?;
    echo(&mut lab, a, seen)?;
    lab.rekey_from_both(a, |lab, what| settled(lab, what, a, seen))?;
    lab.take_over(a, |lab, what| settled(lab, what, b, seen))?;
    echo(&mut lab, b, seen)?;
    lab.nothing_twice()
}

/// The router counts sealed packets whose header has a route to record: what it can read and write stays outside.
const COUNTERS: &str = "table ip options_seen {
  counter sent {}
  counter heard {}
  chain on_the_way {
    type filter hook forward priority 0;
    ip protocol esp ip option rr exists oifname != outside counter name sent
    ip protocol esp ip option rr exists oifname outside counter name heard
  }
}
";

/// Packets that one of [`COUNTERS`] has seen.
fn counted(lab: &LinuxLab, name: &str) -> Result<u64> {
    let list = ["nft", "list", "counter", "ip", "options_seen", name];
    let text = lab.cluster.lab.router.run(&list)?;
    let packets = text
        .split_whitespace()
        .skip_while(|word| *word != "packets")
        .nth(1);
    Ok(packets.with_context(|| format!("nft says: {text}"))?.parse()?)
}

/// Pings and TCP with IP options, both ways: the options are in clear before ESP, and what is sealed behind them arrives as it was.
#[test]
fn ip_options_stay_before_esp_and_what_is_behind_them_arrives() -> Result<()> {
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let seen = addr::PEER_TWO;
    let mut lab = up(lab, seen, "native")?;
    let (a, b) = (lab.first, 1 - lab.first);
    on_demand(&mut lab, seen)?;
    lab.cluster.lab.router.nft(COUNTERS)?;

    settled_with(&mut lab, "timestamps", a, seen, &["-T", "tsonly"])?;
    let mut before = [0, 0];
    let mut more = |lab: &LinuxLab, what: &str| -> Result<()> {
        let now = [counted(lab, "sent")?, counted(lab, "heard")?];
        let least = u64::from(2 * PINGS);
        ensure!(
            now[0] >= before[0] + least && now[1] >= before[1] + least,
            "{what}: sealed packets with a route to record {now:?}, before {before:?}"
        );
        before = now;
        Ok(())
    };
    settled_with(&mut lab, "routes to record", a, seen, &["-R"])?;
    more(&lab, "routes to record")?;
    echo_with_options(&mut lab, a, seen)?;
    more(&lab, "TCP")?;
    lab.rekey_from_both(a, |lab, what| settled_with(lab, what, a, seen, &["-R"]))?;
    lab.take_over(a, |lab, what| settled_with(lab, what, b, seen, &["-R"]))?;
    echo_with_options(&mut lab, b, seen)?;
    more(&lab, "after the takeover")?;
    ensure!(
        verdict(lab.member(b), "transport_header")? == 0,
        "{:?}",
        lab.member(b).verdicts()
    );
    lab.nothing_twice()
}

/// What is opened after its way through another CPU's queue, and what the slow path opens, reaches the stack through the agent (ADR 33).
#[test]
fn in_generic_mode_what_is_opened_reaches_the_stack() -> Result<()> {
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let seen = addr::PEER_TWO;
    let mut lab = up(lab, seen, "generic")?;
    let a = lab.first;
    on_demand(&mut lab, seen)?;
    echo(&mut lab, a, seen)?;
    let netns = lab.member(a).place.netns.clone();
    for octets in ["2500", "8000"] {
        let large = wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
            (from_gateway(&netns, seen, &["-s", octets]).ok()? == PINGS).then_some(())
        });
        large.with_context(|| format!("datagrams of {octets}: {:?}", lab.member(a).verdicts()))?;
    }
    lab.rekey_from_both(a, |lab, what| settled(lab, what, a, seen))?;
    lab.take_over(a, |lab, what| settled(lab, what, 1 - a, seen))?;
    echo(&mut lab, 1 - a, seen)?;
    lab.nothing_twice()
}
