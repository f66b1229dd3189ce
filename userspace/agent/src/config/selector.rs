//! Traffic selectors as text: `net`, `net[proto]`, `net[proto/port]`, `net[proto/first-last]`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use model::TrafficSelector;

/// Reads one selector. IPv4 only: the data plane carries no IPv6 yet.
pub(super) fn parse(text: &str) -> Result<TrafficSelector, String> {
    let (net, rest) = match text.split_once('[') {
        Some((net, rest)) => (net, rest.strip_suffix(']').ok_or("the bracket is not closed")?),
        None => (text, ""),
    };
    let net: IpNet = match net.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => net
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| format!("'{net}' is no network"))?,
    };
    if net.addr() != net.network() {
        return Err(format!("'{net}' has host bits; the network is {}", net.trunc()));
    }
    if !net.addr().is_ipv4() {
        return Err("IPv6 selectors are not carried by this version".to_owned());
    }
    let (protocol, ports) = match rest.split_once('/') {
        Some((protocol, ports)) => (protocol, ports),
        None => (rest, ""),
    };
    let protocol = match protocol {
        "" => 0,
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        other => other
            .parse()
            .map_err(|_| format!("'{other}' is no IP protocol"))?,
    };
    let (first_port, last_port) = match ports {
        "" => (0, u16::MAX),
        range => {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |p: &str| p.parse::<u16>().map_err(|_| format!("'{p}' is no port"));
            (number(first)?, number(last)?)
        }
    };
    if first_port > last_port {
        return Err(format!("ports {first_port}-{last_port} are the wrong way round"));
    }
    Ok(TrafficSelector {
        first: net.network(),
        last: net.broadcast(),
        protocol,
        first_port,
        last_port,
    })
}

fn octets(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(_) => 0,
    }
}

/// Whether some packet matches both.
pub(super) fn overlap(a: &TrafficSelector, b: &TrafficSelector) -> bool {
    octets(a.first) <= octets(b.last)
        && octets(b.first) <= octets(a.last)
        && (a.protocol == 0 || b.protocol == 0 || a.protocol == b.protocol)
        && a.first_port <= b.last_port
        && b.first_port <= a.last_port
}

/// The fewest prefixes that cover an inclusive IPv4 range, as (network, length).
pub(crate) fn prefixes(selector: &TrafficSelector) -> Vec<(Ipv4Addr, u8)> {
    let (mut first, last) = (
        u64::from(octets(selector.first)),
        u64::from(octets(selector.last)),
    );
    let mut out = Vec::new();
    while first <= last {
        let align = if first == 0 {
            32
        } else {
            first.trailing_zeros().min(32)
        };
        let size = (last - first + 1).ilog2();
        let bits = align.min(size);
        out.push((Ipv4Addr::from(first as u32), (32 - bits) as u8));
        first += 1 << bits;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_a_network_with_protocol_and_ports() {
        let ts = parse("10.1.0.0/24[tcp/80-81]").unwrap();
        assert_eq!(ts.first, "10.1.0.0".parse::<IpAddr>().unwrap());
        assert_eq!(ts.last, "10.1.0.255".parse::<IpAddr>().unwrap());
        assert_eq!((ts.protocol, ts.first_port, ts.last_port), (6, 80, 81));
        assert_eq!(
            parse("10.1.0.5").unwrap().last,
            "10.1.0.5".parse::<IpAddr>().unwrap()
        );
        assert_eq!(parse("0.0.0.0/0").unwrap().last_port, u16::MAX);
    }

    #[test]
    fn host_bits_open_brackets_and_reversed_ports_are_refused() {
        for text in [
            "10.1.0.1/24",
            "10.1.0.0/24[tcp",
            "10.1.0.0/24[tcp/81-80]",
            "10.1.0.0/24[blah]",
            "x",
            "fd00::/8",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_is_covered_by_the_fewest_prefixes() {
        let mut ts = parse("10.1.0.0/24").unwrap();
        assert_eq!(prefixes(&ts), [("10.1.0.0".parse().unwrap(), 24)]);
        ts.last = "10.1.1.0".parse().unwrap();
        assert_eq!(
            prefixes(&ts),
            [
                ("10.1.0.0".parse().unwrap(), 24),
                ("10.1.1.0".parse().unwrap(), 32)
            ]
        );
        assert_eq!(
            prefixes(&parse("0.0.0.0/0").unwrap()),
            [(Ipv4Addr::UNSPECIFIED, 0)]
        );
    }

    #[test]
    fn selectors_overlap_only_if_address_protocol_and_ports_do() {
        let of = |a: &str, b: &str| overlap(&parse(a).unwrap(), &parse(b).unwrap());
        assert!(of("10.0.0.0/8", "10.1.0.0/16"));
        assert!(!of("10.0.0.0/16", "10.1.0.0/16"));
        assert!(!of("10.0.0.0/8[tcp]", "10.0.0.0/8[udp]"));
        assert!(!of("10.0.0.0/8[tcp/80]", "10.0.0.0/8[tcp/81]"));
    }
}
