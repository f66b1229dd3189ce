//! Two gateways in namespaces carry ping, large packets and TCP for each other, IPv4 and IPv6: the attached programs, cpumaps,
//! answers to ARP and neighbour solicitations, redirects and the stack together.
//!
//! ```text
//!   near --- (in) west (out) === (out) east (in) --- far
//! ```
//!
//! Needs root, bpffs and the program object; skipped where neither `ESPALIER_BPF_OBJECT` nor `ESPALIER_OBJECT` names one.

mod jumbo;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use aya::programs::{Xdp, XdpMode};
use aya::{EbpfLoader, VerifierLogLevel};
use datapath::aead;
use dataplane::{Mode, ObjectSource, Options, Plane};
use maps_schema::names::PROG_PASS;
use maps_schema::sad::{InboundSaRuntime, MSS_AUTO, MSS_OFF, SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305};
use maps_schema::segment::{OwnerWord, SideWord};
use maps_schema::spd::SpdKey;
use maps_schema::steer::{AddressKey, ClusterAddress, Local, Port, SIDE_INSIDE, SIDE_OUTSIDE};
use maps_schema::verdict::Verdict;
use nix::sched::{CloneFlags, setns};
use sad::port::{DataPlane, MapOp, MapPlan};
use test_packet::kernel;
use test_packet::world::{CONNECTION, SALT, World, key_octets, last_of_48, mapped, v6};

/// What differs between the two gateways.
struct Side {
    name: &'static str,
    outside: &'static str,
    inside_net: u32,
    outside_v6: [u8; 16],
    /// Third group of its inside network, 2001:db8:N::/48.
    inside_v6: u16,
    slot: u32,
    spi_in: u32,
}

const WEST: Side = Side {
    name: "west",
    outside: "192.168.10.1",
    inside_net: 0x0a01_0000,
    outside_v6: v6(0xa, 1),
    inside_v6: 1,
    slot: 0x204,
    spi_in: 0x0300_0204,
};
const EAST: Side = Side {
    name: "east",
    outside: "192.168.10.2",
    inside_net: 0x0a02_0000,
    outside_v6: v6(0xa, 2),
    inside_v6: 2,
    slot: 0x205,
    spi_in: 0x0700_0205,
};

/// Namespaces of one test; gone when it ends.
struct Lab {
    prefix: String,
}

impl Lab {
    fn new(tag: &str) -> Self {
        let lab = Self {
            prefix: format!("esp-{tag}{}", std::process::id()),
        };
        for name in ["near", "west", "east", "far"] {
            run(&["ip", "netns", "add", &lab.ns(name)]);
            lab.ip(name, "link set lo up");
        }
        let cards = cards();
        if let Some(cards) = &cards {
            for (card, name) in cards.iter().zip(["west", "east"]) {
                run(&["ip", "link", "set", card, "netns", &lab.ns(name), "name", "out"]);
            }
        }
        for (a, a_if, b, b_if) in [
            ("near", "e", "west", "in"),
            ("west", "out", "east", "out"),
            ("east", "in", "far", "e"),
        ] {
            if cards.is_some() && a_if == "out" {
                continue;
            }
            let (a_ns, b_ns) = (lab.ns(a), lab.ns(b));
            run(&[
                "ip", "link", "add", a_if, "netns", &a_ns, "type", "veth", "peer", "name", b_if, "netns",
                &b_ns,
            ]);
        }
        for (name, side) in [("near", &WEST), ("far", &EAST)] {
            let net = side.inside_net;
            // Nobody completes a checksum on the way.
            lab.exec(name, &["ethtool", "-K", "e", "tx", "off"]);
            lab.ip(name, &format!("addr add {}/16 dev e", Ipv4Addr::from(net + 5)));
            lab.ip(name, "link set e up");
            lab.ip(
                name,
                &format!("route add default via {}", Ipv4Addr::from(net + 1)),
            );
            let own = Ipv6Addr::from(v6(side.inside_v6, 5));
            lab.ip(name, &format!("addr add {own}/64 dev e nodad"));
            let next = Ipv6Addr::from(v6(side.inside_v6, 1));
            lab.ip(name, &format!("-6 route add default via {next}"));
            // XDP_TX and redirects on a veth reach a peer that has an XDP program.
            lab.within(name, || pass_on("e"));
        }
        for side in [&WEST, &EAST] {
            for setting in [
                "all/forwarding=1",
                "all/rp_filter=0",
                "default/rp_filter=0",
                "in/rp_filter=0",
                "out/rp_filter=0",
                "in/accept_local=1",
                "all/arp_ignore=1",
                "all/arp_announce=2",
            ] {
                let (key, value) = setting.split_once('=').expect("a setting");
                lab.exec(
                    side.name,
                    &["sysctl", "-qw", &format!("net/ipv4/conf/{key}={value}")],
                );
            }
            lab.ip(
                side.name,
                &format!("addr add {}/16 dev in", Ipv4Addr::from(side.inside_net + 2)),
            );
            let uplink = if side.name == "west" {
                "192.168.10.11/24"
            } else {
                "192.168.10.12/24"
            };
            lab.ip(side.name, &format!("addr add {uplink} dev out"));
            lab.ip(side.name, &format!("addr add {}/32 dev lo", side.outside));
            lab.exec(side.name, &["sysctl", "-qw", "net/ipv6/conf/all/forwarding=1"]);
            let [.., last] = side.outside_v6;
            for (address, device) in [
                (v6(0xa, 0x10 + u16::from(last)), "out"),
                (v6(side.inside_v6, 2), "in"),
            ] {
                let address = Ipv6Addr::from(address);
                lab.ip(side.name, &format!("addr add {address}/64 dev {device} nodad"));
            }
            let cluster = Ipv6Addr::from(side.outside_v6);
            lab.ip(side.name, &format!("addr add {cluster}/128 dev lo nodad"));
            lab.ip(side.name, "link set in up");
            lab.ip(side.name, "link set out up");
        }
        lab
    }

    fn ns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn ip(&self, name: &str, line: &str) {
        let ns = self.ns(name);
        let mut command = vec!["ip", "-n", &ns];
        command.extend(line.split(' '));
        run(&command);
    }

    fn exec(&self, name: &str, command: &[&str]) -> Output {
        let net = format!("--net=/run/netns/{}", self.ns(name));
        Command::new("nsenter")
            .arg(net)
            .args(command)
            .output()
            .expect("nsenter runs")
    }

    /// Runs `f` on a thread in a namespace.
    fn within<T: Send>(&self, name: &str, f: impl FnOnce() -> T + Send) -> T {
        let ns = PathBuf::from("/run/netns").join(self.ns(name));
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file = std::fs::File::open(&ns).expect("the namespace");
                    setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                    f()
                })
                .join()
                .expect("the thread ends")
        })
    }

    fn pins(&self, name: &str) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.ns(name))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in ["west", "east"] {
            let _ = dataplane::remove_pins(&self.pins(name));
        }
        for name in ["near", "west", "east", "far"] {
            let _ = Command::new("ip").args(["netns", "del", &self.ns(name)]).status();
        }
    }
}

/// Two network cards on one wire, by name, in place of a veth pair between the gateways: `ESPALIER_CARDS=eth0,eth1`. They go
/// back where they were with the namespaces, under another name.
fn cards() -> Option<[String; 2]> {
    let names = std::env::var("ESPALIER_CARDS").ok()?;
    let (first, second) = names.split_once(',').expect("ESPALIER_CARDS names two devices");
    Some([first.to_owned(), second.to_owned()])
}

fn run(command: &[&str]) {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .expect("the command runs");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Attaches the program that passes everything, for as long as the interface lives.
fn pass_on(interface: &str) {
    let object = std::fs::read(kernel::object_path()).expect("the object");
    let mut ebpf = EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::DISABLE | VerifierLogLevel::STATS)
        .load(&object)
        .expect("the object's maps");
    let program: &mut Xdp = ebpf
        .program_mut(PROG_PASS)
        .expect("the program")
        .try_into()
        .expect("an XDP program");
    program.load().expect("load");
    let link = program.attach(interface, XdpMode::Driver).expect("attach");
    // The link goes with the interface.
    std::mem::forget(program.take_link(link).expect("the link"));
}

fn mac_of(interface: &str) -> [u8; 6] {
    let output = Command::new("ip")
        .args(["-o", "link", "show", interface])
        .output()
        .expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mac = text
        .split("link/ether ")
        .nth(1)
        .and_then(|t| t.split(' ').next())
        .expect("a MAC address");
    let mut octets = [0; 6];
    for (octet, hex) in octets.iter_mut().zip(mac.split(':')) {
        *octet = u8::from_str_radix(hex, 16).expect("hexadecimal");
    }
    octets
}

/// One gateway: every segment is its own, one SA pair with the other.
fn gateway(lab: &Lab, me: &Side, peer: &Side, how: How) -> Plane {
    let pins = lab.pins(me.name);
    lab.within(me.name, || {
        let index = |name: &str| nix::net::if_::if_nametoindex(name).expect("the interface");
        let mut options = Options::new(
            ObjectSource::Path(kernel::object_path()),
            pins,
            index("out"),
            index("in"),
        );
        (options.slots, options.mode) = (1024, Mode::Driver);
        let mut plane = Plane::load(&options).expect("load");
        plane
            .set_local(&Local {
                member: 1,
                own_device: index("out"),
                outside_mtu: u32::from(how.mtu),
                nat_t_port: 4500,
                ike_port: 500,
                inside_address: mapped(me.inside_net + 1),
                inside_address_v6: v6(me.inside_v6, 1),
                ..Local::default()
            })
            .expect("local");
        let port = |number: u8, side: u8, name: &str| Port {
            ifindex: index(name),
            device: index(name),
            mac: mac_of(name),
            side,
            index: number,
            ..Port::default()
        };
        plane
            .set_ports(&[port(0, SIDE_OUTSIDE, "out"), port(8, SIDE_INSIDE, "in")])
            .expect("ports");
        let outside: Ipv4Addr = me.outside.parse().expect("an address");
        for (address, side) in [
            (mapped(u32::from(outside)), SIDE_OUTSIDE),
            (mapped(me.inside_net + 1), SIDE_INSIDE),
            (me.outside_v6, SIDE_OUTSIDE),
            (v6(me.inside_v6, 1), SIDE_INSIDE),
        ] {
            let value = ClusterAddress {
                side,
                segment: 0,
                ports: u16::MAX,
            };
            plane
                .put_address(&AddressKey { address }, &value)
                .expect("address");
        }
        let word = OwnerWord {
            owner: 1,
            epoch: 1,
            valid_until_ms: dataplane::monotonic_ms() + 600_000,
        };
        for segment in 0..=255 {
            plane.segments().flip(segment, word, SideWord::default());
        }
        plane.execute(&sa_pair(me, peer, how)).expect("SA pair");
        plane.attach().expect("attach");
        plane
    })
}

fn sa_pair(me: &Side, peer: &Side, how: How) -> MapPlan {
    let How {
        suite, esn, encap, ..
    } = how;
    let address = |text: &str| mapped(u32::from(text.parse::<Ipv4Addr>().expect("an address")));
    let base = World::base(suite, esn, encap);
    // The key of a direction is that of its receiver's SPI.
    let key = |spi: u32| {
        Box::new(
            aead::expand(suite, &key_octets(suite, (spi >> 24) as u8), SALT, spi).expect("key of the suite"),
        )
    };
    let mut inbound = base.inbound;
    inbound.spi = me.spi_in;
    inbound.limits = test_packet::world::cell(1 << 20, 1 << 20, 0, 1);
    inbound.selectors[0].remote_first = mapped(peer.inside_net);
    inbound.selectors[0].remote_last = mapped(peer.inside_net | 0xffff);
    inbound.selectors[0].local_first = mapped(me.inside_net);
    inbound.selectors[0].local_last = mapped(me.inside_net | 0xffff);
    let network = |side: &Side| (v6(side.inside_v6, 0), last_of_48(v6(side.inside_v6, 0)));
    let pair = &mut inbound.selectors[1];
    (pair.remote_first, pair.remote_last) = network(peer);
    (pair.local_first, pair.local_last) = network(me);
    let mut outbound = base.outbound;
    outbound.spi = peer.spi_in;
    outbound.limits = inbound.limits;
    outbound.mss_clamp = if how.clamp { MSS_AUTO } else { MSS_OFF };
    outbound.path_mtu = how.mtu;
    outbound.outer_src = address(me.outside);
    outbound.outer_dst = address(peer.outside);
    if how.v6 {
        (outbound.outer_src, outbound.outer_dst) = (me.outside_v6, peer.outside_v6);
    }
    let mut entry = base.policy;
    entry.rules[0].source_first = mapped(me.inside_net);
    entry.rules[0].source_last = mapped(me.inside_net | 0xffff);
    entry.rules[0].slot = me.slot;
    let mut entry_v6 = base.policy_v6;
    (entry_v6.rules[0].source_first, entry_v6.rules[0].source_last) = network(me);
    entry_v6.rules[0].slot = me.slot;
    let slot = me.slot;
    MapPlan {
        ops: vec![
            MapOp::PutKeyIn {
                slot,
                key: key(me.spi_in),
            },
            MapOp::PutKeyOut {
                slot,
                key: key(peer.spi_in),
            },
            MapOp::ResetRuntime { slot, spi: me.spi_in },
            MapOp::PutInbound {
                slot,
                record: Box::new(inbound),
            },
            MapOp::PutOutbound {
                slot,
                record: Box::new(outbound),
            },
            MapOp::PutSpd {
                prefix_len: 96 + 16,
                key: SpdKey {
                    destination: mapped(peer.inside_net),
                },
                entry: Box::new(entry),
            },
            MapOp::PutSpd {
                prefix_len: 48,
                key: SpdKey {
                    destination: v6(peer.inside_v6, 0),
                },
                entry: Box::new(entry_v6),
            },
        ],
    }
}

fn count(plane: &Plane, connection: u16, verdict: Verdict) -> u64 {
    let counts = plane.verdicts().expect("verdicts");
    counts
        .iter()
        .filter(|c| c.connection == connection && c.verdict == verdict)
        .map(|c| c.packets)
        .sum()
}

/// What the SA pair is like.
#[derive(Clone, Copy)]
struct How {
    suite: u8,
    esn: bool,
    encap: bool,
    /// Outside; what is inside is of both families in any case.
    v6: bool,
    /// TCP announces what fits: nobody need be told.
    clamp: bool,
    /// MTU of every link.
    mtu: u16,
}

fn carries(tag: &str, how: How) {
    if std::env::var_os("ESPALIER_BPF_OBJECT")
        .or_else(|| std::env::var_os("ESPALIER_OBJECT"))
        .is_none()
    {
        eprintln!("skipped: neither ESPALIER_BPF_OBJECT nor ESPALIER_OBJECT names a program object");
        return;
    }
    let lab = Lab::new(tag);
    let west = gateway(&lab, &WEST, &EAST, how);
    let east = gateway(&lab, &EAST, &WEST, how);
    let far = Ipv4Addr::from(EAST.inside_net + 5);
    let report = |what: &str| format!("{what}\nwest {:?}\neast {:?}", west.verdicts(), east.verdicts());

    let far_v6 = Ipv6Addr::from(v6(EAST.inside_v6, 5));
    for far in [far.to_string(), far_v6.to_string()] {
        let ping = lab.exec("near", &["ping", "-n", "-c", "20", "-i", "0.01", "-W", "2", &far]);
        let text = String::from_utf8_lossy(&ping.stdout).into_owned();
        // The first may wait for ARP or neighbour discovery.
        assert!(
            text.contains(" 20 received") || text.contains(" 19 received"),
            "{}",
            report(&text)
        );
    }
    for plane in [&west, &east] {
        // The hosts' kernels asked for the inside addresses, and each gateway's for the other's outside one.
        assert!(count(plane, 0, Verdict::NeighbourAnswered) > 0, "{}", report(""));
    }

    // 1500 octets do not fit: the sender learns the path MTU from the program's ICMP message.
    let ping = lab.exec(
        "near",
        &[
            "ping",
            "-n",
            "-c",
            "2",
            "-i",
            "0.01",
            "-W",
            "1",
            "-M",
            "do",
            "-s",
            "1472",
            &far.to_string(),
        ],
    );
    let text = String::from_utf8_lossy(&[ping.stdout, ping.stderr].concat()).into_owned();
    assert!(
        text.contains("mtu = ") || text.contains("mtu="),
        "{}",
        report(&text)
    );

    // TCP in both directions: IPv4 through path MTU discovery.
    tcp(&lab, far.into(), &report);
    tcp(&lab, far_v6.into(), &report);

    // With IPv6 a sender either knows from the start, or is told.
    let told = count(&west, CONNECTION, Verdict::PacketTooBig);
    assert_eq!(told == 0, how.clamp, "{told} answers\n{}", report(""));

    for (plane, side, from) in [(&west, &WEST, &east), (&east, &EAST, &west)] {
        let counts = || {
            let opened = count(plane, CONNECTION, Verdict::EspOpened)
                + count(plane, CONNECTION, Verdict::EspOpenedLocal);
            (count(from, CONNECTION, Verdict::EspSealed), opened)
        };
        // The ends of the TCP connections may still be on their way. How many packets there are is TCP's business.
        let until = Instant::now() + Duration::from_secs(10);
        let mut now = counts();
        while now.0.abs_diff(now.1) >= 10 && Instant::now() < until {
            now = counts();
        }
        let (sealed, opened) = now;
        assert!(
            opened > 30 && sealed.abs_diff(opened) < 10,
            "{}: {sealed} sealed for it, {opened} opened\n{}",
            side.name,
            report("")
        );
        for verdict in [
            Verdict::IcvBad,
            Verdict::ReplayDuplicate,
            Verdict::InternalError,
            Verdict::PaddingBad,
        ] {
            assert_eq!(
                count(plane, CONNECTION, verdict),
                0,
                "{}: {verdict:?}\n{}",
                side.name,
                report("")
            );
        }
        let counters = plane.counters(side.slot).expect("counters");
        assert_eq!(counters.outbound.seq, counters.outbound.packets);
        let InboundSaRuntime { edge, packets, .. } = counters.inbound;
        assert!(
            packets <= edge && packets > 30,
            "{}: {packets} packets up to {edge}",
            side.name
        );
    }
    eprintln!("{}", report(tag));
}

fn tcp(lab: &Lab, far: IpAddr, report: &(dyn Fn(&str) -> String + Sync)) {
    const OCTETS: usize = 2_000_000;
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            lab.within("far", || {
                let listener = TcpListener::bind((far, 7)).expect("listen");
                ready.send(()).expect("tell");
                let (mut stream, _) = listener.accept().expect("accept");
                stream
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .expect("timeout");
                let mut sum = 0u64;
                let mut buffer = vec![0; 65536];
                let mut left = OCTETS;
                while left > 0 {
                    let n = stream.read(&mut buffer).expect("read");
                    assert!(n > 0, "the stream ended early");
                    sum = buffer[..n]
                        .iter()
                        .fold(sum, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(*b)));
                    left -= n;
                }
                stream.write_all(&sum.to_be_bytes()).expect("answer");
            });
        });
        started.recv().expect("the server listens");
        lab.within("near", || {
            let target = (far, 7).into();
            let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))
                .unwrap_or_else(|e| panic!("connect: {e}\n{}", report("")));
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("timeout");
            let data: Vec<u8> = (0..OCTETS).map(|i| (i * 7 + i / 251) as u8).collect();
            stream
                .write_all(&data)
                .unwrap_or_else(|e| panic!("write: {e}\n{}", report("")));
            let mut answer = [0; 8];
            stream
                .read_exact(&mut answer)
                .unwrap_or_else(|e| panic!("read: {e}\n{}", report("")));
            let sum = data
                .iter()
                .fold(0u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(*b)));
            assert_eq!(u64::from_be_bytes(answer), sum, "octets changed on the way");
        });
        server.join().expect("the server ends");
    });
}

#[test]
fn chacha20_poly1305_carries_ping_and_tcp() {
    carries(
        "c",
        How {
            suite: SUITE_CHACHA20_POLY1305,
            esn: false,
            encap: false,
            v6: false,
            clamp: false,
            mtu: 1500,
        },
    );
}

#[test]
fn aes_256_gcm_with_esn_in_udp_carries_ping_and_tcp() {
    carries(
        "a",
        How {
            suite: SUITE_AES256_GCM,
            esn: true,
            encap: true,
            v6: false,
            clamp: true,
            mtu: 1500,
        },
    );
}

#[test]
fn esp_over_ipv6_carries_ping_and_tcp_of_both_families() {
    carries(
        "s",
        How {
            suite: SUITE_CHACHA20_POLY1305,
            esn: true,
            encap: false,
            v6: true,
            clamp: false,
            mtu: 1500,
        },
    );
}

#[test]
fn esp_in_udp_over_ipv6_carries_ping_and_tcp_of_both_families() {
    carries(
        "u",
        How {
            suite: SUITE_CHACHA20_POLY1305,
            esn: false,
            encap: true,
            v6: true,
            clamp: true,
            mtu: 1500,
        },
    );
}
