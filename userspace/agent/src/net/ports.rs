//! The interfaces that serve the cluster, each under the number that it has on every member.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use dataplane::Mode;
use maps_schema::steer::{
    AddressKey, ClusterAddress, MAX_PORTS, Member, PORTS_PER_SIDE, Port, SIDE_INSIDE, SIDE_OUTSIDE,
};
use rtnetlink::Handle;

use super::{Interface, devices, interface, networks, own_master};
use crate::config::{AddressConfig, AttachMode, InterfaceConfig};
use crate::net::announce::Announcer;

/// First segment of the inside addresses.
const INSIDE_SEGMENT: u8 = 128;

/// All interfaces of the configuration, in its order.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Towards the peers.
    pub outside: Vec<Interface>,
    /// Towards the protected networks.
    pub inside: Vec<Interface>,
    /// Virtual MAC address but for its last octet, the segment.
    pub virtual_mac: Option<[u8; 6]>,
}

/// MAC addresses of a member by port number.
pub type Macs = Vec<(u8, [u8; 6])>;

impl Ports {
    /// Looks them up.
    ///
    /// # Errors
    /// One does not exist, or two of them cannot be told apart.
    pub async fn find(handle: &Handle, config: &InterfaceConfig) -> Result<Self> {
        let mut ports = Self {
            outside: Vec::new(),
            inside: Vec::new(),
            virtual_mac: config.virtual_mac,
        };
        for (names, side) in [
            (&config.outside, &mut ports.outside),
            (&config.inside, &mut ports.inside),
        ] {
            for name in names {
                let mut found = interface(handle, name).await?;
                own_master(handle, name).await?;
                found.devices = devices(handle, found.parent).await?;
                found.networks = networks(handle, found.index).await;
                side.push(found);
            }
        }
        ports.check()?;
        Ok(ports)
    }

    fn check(&self) -> Result<()> {
        let mut seen = BTreeMap::new();
        for port in self.all() {
            if let Some(other) = seen.insert((port.parent, port.vlan), &port.name) {
                bail!(
                    "interfaces {other} and {} carry the same frames; leave one out of [interfaces]",
                    port.name
                );
            }
        }
        for inside in &self.inside {
            if let Some(outside) = self.outside.iter().find(|o| o.parent == inside.parent) {
                bail!(
                    "{} (outside) and {} (inside) lie on one device, on which only one program runs; use two devices",
                    outside.name,
                    inside.name
                );
            }
        }
        Ok(())
    }

    /// All of them, outside first.
    pub fn all(&self) -> impl Iterator<Item = &Interface> {
        self.outside.iter().chain(&self.inside)
    }

    /// All of them with number and side.
    pub fn numbered(&self) -> impl Iterator<Item = (u8, u8, &Interface)> {
        let number = |base: usize| (base as u8)..;
        number(0)
            .zip(&self.outside)
            .map(|(at, port)| (at, SIDE_OUTSIDE, port))
            .chain(
                number(PORTS_PER_SIDE)
                    .zip(&self.inside)
                    .map(|(at, port)| (at, SIDE_INSIDE, port)),
            )
    }

    /// Entries of the programs' table.
    pub fn table(&self) -> Vec<Port> {
        self.numbered()
            .map(|(index, side, port)| Port {
                ifindex: port.parent,
                device: port.index,
                vlan: port.vlan,
                mac: port.mac,
                side,
                index,
                flags: 0,
                reserved: 0,
            })
            .collect()
    }

    /// This member's MAC addresses, for the others.
    pub fn macs(&self) -> Macs {
        self.numbered()
            .map(|(index, _, port)| (index, port.mac))
            .collect()
    }

    /// Devices on which the outside and the inside program run.
    pub fn devices(&self) -> (Vec<u32>, Vec<u32>) {
        let of = |side: &[Interface]| {
            let mut devices = side.iter().map(|p| p.parent).collect::<Vec<_>>();
            devices.sort_unstable();
            devices.dedup();
            devices
        };
        (of(&self.outside), of(&self.inside))
    }

    /// Smallest outside MTU.
    pub fn outside_mtu(&self) -> u32 {
        self.outside.iter().map(|p| p.mtu).min().unwrap_or(1500)
    }

    /// The device that sealed packets leave on, 0 where routes choose one of several.
    pub fn own_device(&self) -> u32 {
        match &self.outside[..] {
            [only] => only.index,
            _ => 0,
        }
    }

    /// Cluster addresses with segment (by place in the configuration, which is the same on all members) and with the ports
    /// on which this member answers for them: those whose network holds the address, or all of its side.
    pub fn addresses(&self, config: &AddressConfig) -> Vec<(AddressKey, ClusterAddress)> {
        let mut out = Vec::new();
        for (side, base, addresses) in [
            (SIDE_OUTSIDE, 0u8, &config.outside),
            (SIDE_INSIDE, INSIDE_SEGMENT, &config.inside),
        ] {
            for (at, address) in (0u8..).zip(addresses) {
                let address = *address;
                let key = AddressKey {
                    address: model::address::mapped(address),
                };
                let value = ClusterAddress {
                    side,
                    segment: base.wrapping_add(at),
                    ports: self.ports_of(side, address),
                };
                out.push((key, value));
            }
        }
        out
    }

    fn ports_of(&self, side: u8, address: IpAddr) -> u16 {
        let mut all = 0;
        let mut near = 0;
        for (index, of, port) in self.numbered() {
            if of == side {
                all |= 1u16 << index;
                if port.networks.iter().any(|(net, len)| within(*net, *len, address)) {
                    near |= 1 << index;
                }
            }
        }
        if near == 0 { all } else { near }
    }

    /// Joins the groups that solicitations for the cluster addresses go to, where this member answers for them.
    ///
    /// # Errors
    /// The first group that could not be joined.
    pub fn join(&self, announcer: &mut Announcer, config: &AddressConfig) -> std::io::Result<()> {
        for (key, address) in self.addresses(config) {
            for (index, _, port) in self.numbered() {
                if address.ports >> index & 1 == 1 {
                    announcer.join(port, model::address::unmapped(key.address))?;
                }
            }
        }
        Ok(())
    }

    /// How to attach the programs. With a virtual MAC address on a veth device it has to be generic mode: in native mode veth
    /// decides whose a frame is before the program has rewritten its destination, and the stack then drops what the program
    /// passes to it, IKE above all (ADR 8). Cards decide afterwards.
    ///
    /// # Errors
    /// The configuration insists on native mode there.
    pub fn mode(&self, wish: AttachMode) -> Result<Mode> {
        let veth = self.all().find(|p| p.veth && self.virtual_mac.is_some());
        match (wish, veth) {
            (AttachMode::Native, Some(port)) => bail!(
                "{} is a veth device, where interfaces.virtual_mac does not work in native mode: set data_plane.mode to \"generic\" \
                 or \"auto\", or leave virtual_mac out",
                port.name
            ),
            (AttachMode::Auto, Some(port)) => {
                tracing::warn!(
                    interface = port.name,
                    "a veth device with a virtual MAC address: XDP runs in generic mode, which is slow"
                );
                Ok(Mode::Generic)
            }
            (AttachMode::Native, None) => Ok(Mode::Driver),
            (AttachMode::Generic, _) => Ok(Mode::Generic),
            (AttachMode::Auto, None) => Ok(Mode::DriverPreferred),
        }
    }

    /// The MAC address that addresses of a segment are at, on a port.
    fn mac_of(&self, segment: u8, port: &Interface) -> [u8; 6] {
        match self.virtual_mac {
            Some([a, b, c, d, e, _]) => [a, b, c, d, e, segment],
            None => port.mac,
        }
    }

    /// Has the cards take frames to the virtual MAC addresses: as further unicast addresses of the devices on which frames
    /// arrive (a card that has no room for them becomes promiscuous). They stay when the agent stops, as cluster addresses do;
    /// frames to them are dropped then.
    ///
    /// # Errors
    /// The first one that a device refuses.
    pub async fn accept_virtual(&self, handle: &Handle, config: &AddressConfig) -> Result<()> {
        if self.virtual_mac.is_none() {
            return Ok(());
        }
        for (_, address) in self.addresses(config) {
            for (index, _, port) in self.numbered() {
                if address.ports >> index & 1 == 1 {
                    super::add_unicast(handle, port, self.mac_of(address.segment, port)).await?;
                }
            }
        }
        Ok(())
    }

    /// Tells every network where the cluster addresses of these segments are.
    pub fn announce(&self, announcer: &Announcer, config: &AddressConfig, of: impl Fn(u8) -> bool) {
        let owned = self.addresses(config).into_iter().filter(|(_, a)| of(a.segment));
        for (key, address) in owned {
            for (index, _, port) in self.numbered() {
                if address.ports >> index & 1 == 1 {
                    let mac = self.mac_of(address.segment, port);
                    announcer.announce(port, mac, model::address::unmapped(key.address));
                }
            }
        }
    }
}

/// A member with these MAC addresses as second hop. Numbers that no port can have are left out.
pub fn second_hop(macs: &[(u8, [u8; 6])]) -> Member {
    let mut table = [[0; 6]; MAX_PORTS];
    for (index, mac) in macs {
        if let Some(entry) = table.get_mut(usize::from(*index)) {
            *entry = *mac;
        }
    }
    Member::reached_at(table)
}

/// Whether a network holds an address.
pub fn within(network: IpAddr, len: u8, address: IpAddr) -> bool {
    let bits = |a: IpAddr| match a {
        IpAddr::V4(a) => (u128::from(u32::from(a)) << 96, 32),
        IpAddr::V6(a) => (u128::from(a), 128),
    };
    let ((network, width), (address, other)) = (bits(network), bits(address));
    let shift = 128 - u32::from(len.min(width));
    width == other && (shift == 128 || (network ^ address) >> shift == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, index: u32, network: &str, len: u8) -> Interface {
        Interface {
            name: name.to_owned(),
            index,
            parent: index,
            veth: false,
            vlan: 0,
            devices: Vec::new(),
            mac: [2, 0, 0, 0, 0, index as u8],
            mtu: 1400 + index,
            networks: vec![(network.parse().unwrap(), len)],
        }
    }

    fn ports() -> Ports {
        Ports {
            outside: vec![
                port("eth0", 3, "192.0.2.11", 24),
                port("eth2", 5, "198.51.100.11", 25),
            ],
            inside: vec![port("eth1", 4, "10.2.0.2", 16)],
            virtual_mac: None,
        }
    }

    #[test]
    fn an_address_is_answered_for_in_its_network_or_everywhere_on_its_side() {
        let config = AddressConfig {
            outside: ["192.0.2.1", "198.51.100.1", "198.51.100.200"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
            inside: vec!["10.2.0.1".parse().unwrap()],
        };
        let found = ports().addresses(&config);
        let seen = found.iter().map(|(_, a)| (a.side, a.segment, a.ports));
        assert_eq!(
            seen.collect::<Vec<_>>(),
            [
                (SIDE_OUTSIDE, 0, 0b01),
                (SIDE_OUTSIDE, 1, 0b10),
                (SIDE_OUTSIDE, 2, 0b11),
                (SIDE_INSIDE, 128, 1 << 8)
            ]
        );
    }

    #[test]
    fn numbers_and_devices_follow_the_configuration() {
        let ports = ports();
        let table = ports.table();
        assert_eq!(
            table.iter().map(|p| (p.index, p.ifindex)).collect::<Vec<_>>(),
            [(0, 3), (1, 5), (8, 4)]
        );
        assert_eq!(ports.devices(), (vec![3, 5], vec![4]));
        assert_eq!((ports.own_device(), ports.outside_mtu()), (0, 1403));
        let hop = second_hop(&[(0, [2, 0, 0, 0, 0, 9]), (99, [1; 6])]);
        assert_eq!((hop.via[0], hop.via[1], hop.via[8]), (0, 0, 0xff));
    }

    #[test]
    fn a_virtual_mac_address_on_a_veth_device_needs_generic_mode() {
        let modes = |ports: &Ports| {
            [AttachMode::Native, AttachMode::Auto, AttachMode::Generic].map(|wish| ports.mode(wish).ok())
        };
        let as_wished = [
            Some(Mode::Driver),
            Some(Mode::DriverPreferred),
            Some(Mode::Generic),
        ];
        let mut ports = ports();
        ports.inside[0].veth = true;
        assert_eq!(
            modes(&ports),
            as_wished,
            "a veth device without a virtual address"
        );
        ports.virtual_mac = Some([2, 1, 2, 3, 4, 0]);
        assert_eq!(modes(&ports), [None, Some(Mode::Generic), Some(Mode::Generic)]);
        let error = ports.mode(AttachMode::Native).unwrap_err().to_string();
        assert!(error.starts_with("eth1 is a veth device"), "{error}");
        ports.inside[0].veth = false;
        assert_eq!(modes(&ports), as_wished, "a virtual address on cards");
    }

    #[test]
    fn a_virtual_mac_address_ends_in_the_segment() {
        let mut ports = ports();
        assert_eq!(ports.mac_of(128, &ports.inside[0]), [2, 0, 0, 0, 0, 4]);
        ports.virtual_mac = Some([2, 1, 2, 3, 4, 0]);
        assert_eq!(ports.mac_of(128, &ports.inside[0]), [2, 1, 2, 3, 4, 128]);
    }

    #[test]
    fn two_ports_that_carry_the_same_frames_are_refused() {
        let mut same = ports();
        same.outside[1].parent = 3;
        let error = same.check().unwrap_err().to_string();
        assert!(error.contains("eth0 and eth2 carry the same frames"), "{error}");
        same.outside[1].vlan = 7;
        same.check().unwrap();
        same.inside[0].parent = 3;
        same.inside[0].vlan = 8;
        let error = same.check().unwrap_err().to_string();
        assert!(error.contains("lie on one device"), "{error}");
    }

    #[test]
    fn networks_of_any_length_hold_their_addresses() {
        let a = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(within(a("0.0.0.0"), 0, a("255.1.2.3")));
        assert!(within(a("10.2.0.2"), 32, a("10.2.0.2")));
        assert!(!within(a("10.2.0.2"), 31, a("10.2.0.1")));
        assert!(within(a("2001:db8::1"), 64, a("2001:db8::ffff:1")));
        assert!(!within(a("2001:db8::1"), 128, a("2001:db8::2")));
        assert!(!within(a("::"), 0, a("10.0.0.1")));
    }
}
