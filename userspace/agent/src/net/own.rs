//! Routing of what this gateway itself says in transport mode: into the TUN device, from where it is sealed; but never IKE and ESP,
//! which are sent to the same address.
//!
//! A route cannot tell them apart, rules can: a table of ours holds the peers' addresses, and rules lead to it by addresses, protocol
//! and ports. Behind the peers the table prohibits everything, and stays when the agent ends: what has to be sealed is then refused,
//! and not sent in clear.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use model::TrafficSelector;
use netlink_packet_route::IpProtocol;
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RulePortRange};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::socket::{IKE_PORT, NAT_T_PORT};

/// The table.
const TABLE: u32 = 4500;
/// The kernel's main table.
const MAIN: u32 = 254;
/// Rules for IKE and ESP come first, then those that lead to the table.
const EXCEPT: u32 = 4500;
const INTO: u32 = 4501;
/// IP protocols.
const ESP: u8 = 50;
const UDP: u8 = 17;

/// Which packets a rule is about, and the table that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    priority: u32,
    table: u32,
    from: IpAddr,
    to: IpAddr,
    /// 0 for any.
    protocol: u8,
    /// First and last source and destination port; `None` for any.
    ports: [Option<(u16, u16)>; 2],
}

/// The rules for pairs of a local and a remote selector, each of one address.
fn rules(pairs: &[(TrafficSelector, TrafficSelector)]) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    let mut add = |rule: Rule| {
        if !out.contains(&rule) {
            out.push(rule);
        }
    };
    for (local, remote) in pairs {
        let of = |protocol, ports| Rule {
            priority: EXCEPT,
            table: MAIN,
            from: local.first,
            to: remote.first,
            protocol,
            ports,
        };
        add(of(ESP, [None, None]));
        for port in [IKE_PORT, NAT_T_PORT] {
            add(of(UDP, [Some((port, port)), None]));
        }
        // The kernel knows no port 0.
        let range = |ts: &TrafficSelector| {
            ((ts.first_port, ts.last_port) != (0, u16::MAX))
                .then_some((ts.first_port.max(1), ts.last_port.max(1)))
        };
        let protocol = local.protocol.max(remote.protocol);
        add(Rule {
            priority: INTO,
            table: TABLE,
            ..of(protocol, [range(local), range(remote)])
        });
    }
    out
}

/// Routes what this host sends between the addresses of these pairs of selectors into the TUN device, but for IKE and ESP. Rules of
/// a life before go.
///
/// # Errors
/// The kernel refuses.
pub async fn route(handle: &Handle, tun: u32, pairs: &[(TrafficSelector, TrafficSelector)]) -> Result<()> {
    let rules = rules(pairs);
    for version in [IpVersion::V4, IpVersion::V6] {
        remove(handle, &version).await?;
    }
    for v4 in [true, false] {
        let mut peers = rules
            .iter()
            .map(|r| r.to)
            .filter(|a| a.is_ipv4() == v4)
            .collect::<Vec<_>>();
        peers.dedup();
        if peers.is_empty() {
            continue;
        }
        let routes = peers
            .into_iter()
            .map(|peer| to_peer(tun, peer))
            .chain([nowhere(v4)]);
        for message in routes {
            let request = handle.route().add(message).replace();
            request
                .execute()
                .await
                .context("cannot write the routes of transport mode")?;
        }
    }
    for rule in &rules {
        add(handle, rule)
            .await
            .with_context(|| format!("cannot add the routing rule from {} to {}", rule.from, rule.to))?;
    }
    Ok(())
}

fn to_peer(tun: u32, peer: IpAddr) -> RouteMessage {
    match peer {
        IpAddr::V4(peer) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(peer, 32)
            .output_interface(tun)
            .table_id(TABLE)
            .build(),
        IpAddr::V6(peer) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(peer, 128)
            .output_interface(tun)
            .table_id(TABLE)
            .build(),
    }
}

fn nowhere(v4: bool) -> RouteMessage {
    /// Behind every other route.
    const LAST: u32 = 1 << 30;
    if v4 {
        return RouteMessageBuilder::<Ipv4Addr>::new()
            .kind(RouteType::Prohibit)
            .priority(LAST)
            .table_id(TABLE)
            .build();
    }
    RouteMessageBuilder::<Ipv6Addr>::new()
        .kind(RouteType::Prohibit)
        .priority(LAST)
        .table_id(TABLE)
        .build()
}

async fn add(handle: &Handle, rule: &Rule) -> Result<(), rtnetlink::Error> {
    let request = handle.rule().add().priority(rule.priority).table_id(rule.table);
    let request = request.action(RuleAction::ToTable);
    let mut attributes = Vec::new();
    if rule.protocol != 0 {
        attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(rule.protocol)));
    }
    let range = |(start, end)| RulePortRange { start, end };
    attributes.extend(rule.ports[0].map(range).map(RuleAttribute::SourcePortRange));
    attributes.extend(rule.ports[1].map(range).map(RuleAttribute::DestinationPortRange));
    match (rule.from, rule.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut request = request.v4().source_prefix(from, 32).destination_prefix(to, 32);
            request.message_mut().attributes.extend(attributes);
            request.execute().await
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut request = request.v6().source_prefix(from, 128).destination_prefix(to, 128);
            request.message_mut().attributes.extend(attributes);
            request.execute().await
        }
        // The configuration has no such pair.
        _ => Ok(()),
    }
}

/// Removes the rules of a life before.
async fn remove(handle: &Handle, version: &IpVersion) -> Result<()> {
    let mut found = handle.rule().get(version.clone()).execute();
    let mut ours = Vec::new();
    // A host without this family lists nothing.
    while let Ok(Some(rule)) = found.try_next().await {
        let ours_by_priority = rule
            .attributes
            .iter()
            .any(|a| matches!(a, RuleAttribute::Priority(EXCEPT | INTO)));
        if ours_by_priority {
            ours.push(rule);
        }
    }
    for rule in ours {
        let removed = handle.rule().del(rule).execute().await;
        removed.context("cannot remove a routing rule of a life before")?;
    }
    Ok(())
}

/// Whether a packet of this host's own is ESP or IKE: those are never sealed.
pub fn is_ipsec(packet: &[u8]) -> bool {
    let (protocol, at) = match packet.first().map(|first| first >> 4) {
        Some(4) => (packet.get(9), usize::from(packet[0] & 0xf) * 4),
        Some(6) => (packet.get(6), 40),
        _ => return false,
    };
    match protocol {
        Some(&ESP) => true,
        Some(&UDP) => {
            let port = packet.get(at..).and_then(|udp| udp.first_chunk::<2>());
            port.is_some_and(|port| [IKE_PORT, NAT_T_PORT].contains(&u16::from_be_bytes(*port)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, protocol: u8, ports: (u16, u16)) -> TrafficSelector {
        let address = address.parse().unwrap();
        TrafficSelector {
            first: address,
            last: address,
            protocol,
            first_port: ports.0,
            last_port: ports.1,
        }
    }

    const ANY: (u16, u16) = (0, u16::MAX);

    #[test]
    fn ipsec_is_told_from_what_it_protects() {
        let udp = |port: u16| {
            let mut packet = vec![0; 28];
            (packet[0], packet[9]) = (0x45, UDP);
            packet[20..22].copy_from_slice(&port.to_be_bytes());
            packet
        };
        assert!(is_ipsec(&udp(500)) && is_ipsec(&udp(4500)) && !is_ipsec(&udp(53)));
        let mut esp = vec![0; 60];
        (esp[0], esp[6]) = (0x60, ESP);
        assert!(is_ipsec(&esp));
        esp[6] = 47;
        assert!(!is_ipsec(&esp) && !is_ipsec(&[]) && !is_ipsec(&[0x45]));
    }

    #[test]
    fn ike_and_esp_stay_on_their_routes_and_the_rest_of_the_selector_does_not() {
        let pairs = [(host("192.0.2.1", 6, ANY), host("198.51.100.7", 0, (179, 179)))];
        let rules = rules(&pairs);
        let shown = rules
            .iter()
            .map(|r| (r.priority, r.table, r.protocol, r.ports))
            .collect::<Vec<_>>();
        assert_eq!(
            shown,
            [
                (EXCEPT, MAIN, ESP, [None, None]),
                (EXCEPT, MAIN, UDP, [Some((500, 500)), None]),
                (EXCEPT, MAIN, UDP, [Some((4500, 4500)), None]),
                (INTO, TABLE, 6, [None, Some((179, 179))]),
            ]
        );
    }

    /// In a network namespace of its own; skipped where that is not permitted.
    #[test]
    fn the_kernel_routes_what_is_protected_into_the_device_and_ipsec_past_it() {
        let thread = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace ({error})");
                return;
            }
            let ip = |line: &str| {
                let output = std::process::Command::new("ip")
                    .args(line.split(' '))
                    .output()
                    .unwrap();
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                (String::from_utf8_lossy(&output.stdout).into_owned(), error)
            };
            for line in [
                "link add esp-a type veth peer name esp-b",
                "link add esp-t type veth peer name esp-u",
                "addr add 192.0.2.1/24 dev esp-a",
                "addr add 2001:db8::1/64 dev esp-a nodad",
                "link set esp-a up",
                "link set esp-b up",
                "link set esp-t up",
                "link set esp-u up",
            ] {
                let (_, error) = ip(line);
                assert!(error.is_empty(), "ip {line}: {error}");
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let handle = crate::net::netlink().unwrap();
                let tun = crate::net::interface(&handle, "esp-t").await.unwrap().index;
                let pairs = [
                    (host("192.0.2.1", 0, ANY), host("192.0.2.7", 0, ANY)),
                    (host("192.0.2.1", 6, ANY), host("192.0.2.8", 6, (179, 179))),
                    (host("2001:db8::1", 47, ANY), host("2001:db8::7", 47, ANY)),
                ];
                // Twice: as after a restart of the agent.
                for _ in 0..2 {
                    route(&handle, tun, &pairs).await.unwrap();
                }
                let way = |line: &str| ip(&format!("route get {line}")).0;
                for (line, device) in [
                    ("192.0.2.7 from 192.0.2.1 ipproto tcp dport 80", "esp-t"),
                    ("192.0.2.7 from 192.0.2.1 ipproto udp sport 53 dport 53", "esp-t"),
                    (
                        "192.0.2.7 from 192.0.2.1 ipproto udp sport 500 dport 500",
                        "esp-a",
                    ),
                    (
                        "192.0.2.7 from 192.0.2.1 ipproto udp sport 4500 dport 4500",
                        "esp-a",
                    ),
                    ("192.0.2.8 from 192.0.2.1 ipproto tcp dport 179", "esp-t"),
                    ("192.0.2.8 from 192.0.2.1 ipproto tcp dport 80", "esp-a"),
                    ("192.0.2.9 from 192.0.2.1 ipproto tcp dport 179", "esp-a"),
                ] {
                    let shown = way(line);
                    assert!(shown.contains(&format!("dev {device}")), "{line}: {shown}");
                }
                // The device is gone: refused, not sent another way.
                ip("link del esp-t");
                let (out, error) = ip("route get 192.0.2.7 from 192.0.2.1 ipproto tcp dport 80");
                assert!(!out.contains("dev esp-a"), "{out} {error}");
                let count = ip("rule show").0.lines().filter(|l| l.starts_with("450")).count();
                assert_eq!(count, 8, "three exceptions and one rule for each of two peers");
                route(&handle, tun, &[]).await.unwrap();
                assert!(!ip("rule show").0.contains("4501:"));
            });
        });
        thread.join().unwrap();
    }
}
