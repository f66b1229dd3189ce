//! Traffic selectors as text: `net`, `net[proto]`, `net[proto/port]`, `net[proto/first-last]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::TrafficSelector;

/// Reads one selector.
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
    if matches!(net, IpNet::V6(v6) if v6.network().to_ipv4_mapped().is_some()) {
        return Err(format!(
            "'{net}' holds mapped IPv4 addresses; write those as IPv4"
        ));
    }
    let (protocol, ports) = match rest.split_once('/') {
        Some((protocol, ports)) => (protocol, ports),
        None => (rest, ""),
    };
    let protocol = match protocol {
        "" => 0,
        "icmp" => 1,
        "icmpv6" => 58,
        "tcp" => 6,
        "udp" => 17,
        "gre" => 47,
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

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The fewest prefixes that cover an inclusive range, as (network, length).
pub(crate) fn prefixes(selector: &TrafficSelector) -> Vec<(IpAddr, u8)> {
    let v4 = selector.first.is_ipv4();
    let width: u32 = if v4 { 32 } else { 128 };
    let (mut first, last) = (number(selector.first), number(selector.last));
    let mut out = Vec::new();
    while first <= last {
        // Of all 2^128 addresses the count does not fit.
        let size = match (last - first).checked_add(1) {
            Some(count) => count.ilog2(),
            None => 128,
        };
        let bits = first.trailing_zeros().min(width).min(size);
        let network = if v4 {
            IpAddr::from(Ipv4Addr::from(first as u32))
        } else {
            IpAddr::from(Ipv6Addr::from(first))
        };
        out.push((network, (width - bits) as u8));
        match 1u128.checked_shl(bits).and_then(|step| first.checked_add(step)) {
            Some(next) => first = next,
            None => break,
        }
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
            "fd00::1/8",
            "::ffff:10.1.0.0/112",
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
            [("0.0.0.0".parse().unwrap(), 0)]
        );
        for net in ["::/0", "2001:db8:1::/48", "2001:db8::5/128"] {
            let (network, len) = net.split_once('/').unwrap();
            assert_eq!(
                prefixes(&parse(net).unwrap()),
                [(network.parse().unwrap(), len.parse().unwrap())]
            );
        }
        let mut ts = parse("ffff::/16").unwrap();
        ts.first = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffd".parse().unwrap();
        assert_eq!(prefixes(&ts).iter().map(|p| p.1).collect::<Vec<_>>(), [128, 127]);
    }
}
