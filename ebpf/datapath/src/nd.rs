//! Neighbour discovery (RFC 4861): solicitations for cluster addresses, answered by the program.

use maps_schema::verdict::Verdict;

use crate::bytes::PacketRead;
use crate::checksum;
use crate::env::{ACTION_TRANSMIT, Env, Work};
use crate::headers::{self, Address, ETHERTYPE_IPV6, IPV6_LEN, PROTOCOL_ICMPV6};
use crate::link;
use crate::steer;

const SOLICITATION: u8 = 135;
/// Octets of a solicitation without options.
const SOLICITATION_LEN: usize = 24;
/// Longest solicitation that is answered: room for five options of 8 octets. Longer ones are those of SEND (RFC 3971), which
/// wants a signed answer.
const SOLICITATION_MAX: usize = 64;
/// Octets of an advertisement with one option, the link-layer address.
const ADVERTISEMENT_LEN: usize = 32;
/// Octets of an advertisement with its IPv6 header.
pub const ANSWER_LEN: usize = IPV6_LEN + ADVERTISEMENT_LEN;
const ALL_NODES: Address = [0xff02_0000_0000_0000, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// The sender is a router, was asked, and what it says replaces what is known (RFC 4861 4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

#[inline(always)]
fn icmp_type(work: &Work) -> Option<u8> {
    if work.ip.protocol != PROTOCOL_ICMPV6 {
        return None;
    }
    work.front().u8(work.link_len as usize + IPV6_LEN)
}

/// Whether the packet with the header `work.ip` is a neighbour solicitation.
#[inline(always)]
pub fn is_solicitation(work: &Work) -> bool {
    icmp_type(work) == Some(SOLICITATION)
}

/// Whether it is any message of neighbour discovery: solicitation, advertisement, redirect.
#[inline(always)]
pub fn is_discovery(work: &Work) -> bool {
    matches!(icmp_type(work), Some(133..=137))
}

/// Whether a solicitation may be heeded (RFC 4861 7.1.1).
#[inline(always)]
fn is_valid(work: &Work, target: Address) -> bool {
    let at = work.link_len as usize + IPV6_LEN;
    let len = work.ip.total_len as usize - IPV6_LEN;
    let front = work.front();
    if work.ip.ttl != 255 || front.u8(at + 1) != Some(0) || target[0] >> 56 == 0xff {
        return false;
    }
    if !(SOLICITATION_LEN..=SOLICITATION_MAX).contains(&len) || !len.is_multiple_of(8) {
        return false;
    }
    let probe = work.ip.source == [0; 2];
    // Of a probe for duplicates: to the solicited-node group.
    if probe && (work.ip.destination[0] != ALL_NODES[0] || work.ip.destination[1] >> 24 != 0x1ff) {
        return false;
    }
    let (source, destination) = (work.ip.source, work.ip.destination);
    let mut sum = checksum::words(source[0])
        + checksum::words(source[1])
        + checksum::words(destination[0])
        + checksum::words(destination[1])
        + len as u32
        + PROTOCOL_ICMPV6 as u32;
    let mut option_at = SOLICITATION_LEN;
    let mut i = 0;
    while i < SOLICITATION_MAX {
        if i >= len {
            break;
        }
        let Some(words) = front.u64(at + i) else {
            return false;
        };
        sum += checksum::words(words);
        if i == option_at {
            let (kind, units) = ((words >> 56) as u8, (words >> 48) as u8 as usize);
            // Of no length; beyond the end; or the asker's link-layer address where it has no address.
            if units == 0 || i + units * 8 > len || (probe && kind == 1) {
                return false;
            }
            option_at = i + units * 8;
        }
        i += 8;
    }
    checksum::fold(sum) == 0
}

/// Answers a neighbour solicitation for a cluster address of this port while this member serves the address's segment; one
/// for another address is the host's. Always ends the packet. A stage of its own: its stack must not add to that of others.
#[inline(always)]
pub fn answer(env: &impl Env, work: &mut Work) -> bool {
    let Some(local) = env.local() else {
        return work.drop(Verdict::InternalError);
    };
    let at = work.link_len as usize + IPV6_LEN;
    let front = work.front();
    let (Some(high), Some(low)) = (front.u64(at + 8), front.u64(at + 16)) else {
        return work.pass(Verdict::NotForCluster);
    };
    let target = [high, low];
    let Some(address) = env.address(headers::octets(target)) else {
        return work.pass(Verdict::NotForCluster);
    };
    if address.side != work.port.side || address.ports >> (work.port.index as u32 & 15) & 1 == 0 {
        return work.pass(Verdict::NotForCluster);
    }
    if !is_valid(work, target) {
        return work.drop(Verdict::Malformed);
    }
    match steer::answers(env, work, local, address.segment) {
        Some(true) => {}
        Some(false) => return work.drop(Verdict::NeighbourNotOwner),
        None => return work.drop(Verdict::InternalError),
    }
    // RFC 4861 7.2.4: an asker without address is told by telling all.
    let (asker, to, flags) = if work.ip.source == [0; 2] {
        (ALL_NODES, ALL_NODES_MAC, ROUTER | OVERRIDE)
    } else {
        (work.ip.source, work.source_mac, ROUTER | SOLICITED | OVERRIDE)
    };
    let (mac, vlan) = (local.mac_of(address.segment, &work.port), work.port.vlan);
    let ip_at = link::len(vlan);
    let mut ok = work.resize(env, ip_at + ANSWER_LEN);
    ok &= link::write(env, to, mac, vlan, ETHERTYPE_IPV6);
    let len = ADVERTISEMENT_LEN as u8;
    ok &= env.write(ip_at, &[0x60, 0, 0, 0, 0, len, PROTOCOL_ICMPV6, 255]);
    ok &= env.write(ip_at + 8, &headers::octets(target));
    ok &= env.write(ip_at + 24, &headers::octets(asker));
    let [a, b, c, d, e, f] = mac;
    let option = [2, 1, a, b, c, d, e, f];
    let mut sum = checksum::words(asker[0]) + checksum::words(asker[1]);
    // The target is there twice: as the sender, and in the message.
    sum += 2 * (checksum::words(target[0]) + checksum::words(target[1]));
    sum += ADVERTISEMENT_LEN as u32 + PROTOCOL_ICMPV6 as u32;
    sum += (0x8800 + ((flags as u32) << 8)) + checksum::words(u64::from_be_bytes(option));
    let [k0, k1] = checksum::fold(sum).to_be_bytes();
    ok &= env.write(ip_at + IPV6_LEN, &[136, 0, k0, k1, flags, 0, 0, 0]);
    ok &= env.write(ip_at + IPV6_LEN + 8, &headers::octets(target));
    ok &= env.write(ip_at + IPV6_LEN + 24, &option);
    if !ok {
        return work.drop(Verdict::InternalError);
    }
    work.end(Verdict::NeighbourAnswered, ACTION_TRANSMIT)
}
