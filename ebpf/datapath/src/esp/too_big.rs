//! An inner packet that does not fit the path: its sender is told, it is cut before or after sealing, or dropped.

use maps_schema::event::SLOW_OUT_FRAGMENT;
use maps_schema::sad::{DF_CLEAR, OutboundSa};
use maps_schema::steer::Local;
use maps_schema::verdict::Verdict;

use crate::bytes::PacketRead;
use crate::env::{ACTION_TRANSMIT, Area, Env, Work};
use crate::headers::{self, DONT_FRAGMENT, ETHERTYPE_IPV6, IPV6_LEN, Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6};
use crate::icmp;
use crate::link;

/// What every IPv6 link carries (RFC 8200 5): no sender can be told to send less.
pub const IPV6_MIN_MTU: usize = 1280;

/// Whether the sealed packet may be cut: `df = "clear"` over IPv4; and whatever the setting, an IPv6 packet that its sender
/// may not make smaller (RFC 8200 5, RFC 2473 7.1).
#[inline(always)]
pub fn may_cut(sa: &OutboundSa, ip: &Ip, outer_v6: bool) -> bool {
    (sa.df == DF_CLEAR && !outer_v6) || (ip.version == 6 && ip.total_len as usize <= IPV6_MIN_MTU)
}

/// RFC 1191 and RFC 4301 8.2.1: with DF the sender learns the size that fits; without, the slow path makes pieces.
#[inline(always)]
pub fn answer(env: &impl Env, area: &mut Area, local: &Local, mtu: usize) -> bool {
    if area.work.ip.version == 6 {
        return packet_too_big(env, area, local, mtu);
    }
    let Area { cipher, work } = area;
    let ip = work.ip;
    if ip.fragment & DONT_FRAGMENT == 0 {
        return work.slow(env, SLOW_OUT_FRAGMENT, Verdict::OutFragment);
    }
    if !may_tell(work) {
        return work.drop(Verdict::TooBig);
    }
    let source = headers::to_v4(ip.source);
    let text = cipher.text_mut();
    // The quotation lies behind the place of the new headers; the area between is overwritten.
    if !env.load(work.link_len as usize, text, icmp::QUOTED) {
        return work.drop(Verdict::InternalError);
    }
    text.copy_within(..icmp::QUOTED, icmp::QUOTE_AT);
    icmp::fragmentation_needed(
        text,
        headers::to_v4(headers::address(&local.inside_address)),
        source,
        mtu as u16,
    );
    let link_len = work.link_len as usize;
    if !env.truncate(link_len + icmp::ERROR_LEN)
        || !env.store(link_len, text, icmp::ERROR_LEN)
        || !link::write_addresses(env, work.source_mac, work.port.mac)
    {
        return work.drop(Verdict::InternalError);
    }
    work.end(Verdict::FragmentNeeded, ACTION_TRANSMIT)
}

#[inline(always)]
fn is_echo(work: &Work) -> bool {
    let at = (work.link_len + work.ip.header_len) as usize;
    matches!(work.front().u8(at), Some(0 | 8))
}

/// Whether RFC 1122 3.2.2 and RFC 4443 2.4 (e) allow an error about the packet in the frame: to one host, and not about another
/// error. Whether an ICMP message is an error says its type; over IPv4 all but echoes are treated as one.
#[inline(always)]
pub(crate) fn may_tell(work: &Work) -> bool {
    let ip = &work.ip;
    if ip.version != 6 {
        let source = headers::to_v4(ip.source);
        let single_host = source >> 28 < 0xe && source != 0;
        return single_host && !ip.is_later_fragment() && (ip.protocol != PROTOCOL_ICMP || is_echo(work));
    }
    if ip.source == [0; 2] || ip.source[0] >> 56 == 0xff {
        return false;
    }
    if ip.protocol != PROTOCOL_ICMPV6 {
        return true;
    }
    let at = (work.link_len + ip.header_len) as usize;
    // Informational messages have the upper half of the types. Of a later fragment nobody knows.
    !ip.is_later_fragment() && matches!(work.front().u8(at), Some(128..))
}

/// Packet Too Big (RFC 4443 3.2): the packet stays where it is, the new headers are put before it, and it ends where the
/// answer is as long as every link carries.
#[inline(always)]
fn packet_too_big(env: &impl Env, area: &mut Area, local: &Local, mtu: usize) -> bool {
    const QUOTED: usize = IPV6_MIN_MTU - IPV6_LEN - icmp::V6_LEN;
    let Area { cipher, work } = area;
    let from = headers::address(&local.inside_address_v6);
    if from == [0; 2] || !may_tell(work) {
        return work.drop(Verdict::TooBig);
    }
    let mtu = if mtu < IPV6_MIN_MTU { IPV6_MIN_MTU } else { mtu };
    let link_len = work.link_len as usize;
    if !env.load(link_len, cipher.text_mut(), QUOTED) {
        return work.drop(Verdict::InternalError);
    }
    let quoted = env.sum(cipher.text(), QUOTED);
    let to = work.ip.source;
    let vlan = work.port.vlan;
    let ip_at = link::len(vlan);
    let mut ok = env.truncate(link_len + QUOTED);
    ok &= env.cut_head(link_len as i32 - (ip_at + IPV6_LEN + icmp::V6_LEN) as i32);
    ok &= link::write(env, work.source_mac, work.port.mac, vlan, ETHERTYPE_IPV6);
    let [l0, l1] = ((QUOTED + icmp::V6_LEN) as u16).to_be_bytes();
    ok &= env.write(ip_at, &[0x60, 0, 0, 0, l0, l1, PROTOCOL_ICMPV6, 64]);
    ok &= env.write(ip_at + 8, &headers::octets(from));
    ok &= env.write(ip_at + 24, &headers::octets(to));
    ok &= env.write(
        ip_at + IPV6_LEN,
        &icmp::error_v6(from, to, icmp::PACKET_TOO_BIG, mtu as u32, QUOTED, quoted),
    );
    if !ok {
        return work.drop(Verdict::InternalError);
    }
    work.end(Verdict::PacketTooBig, ACTION_TRANSMIT)
}
