//! Transport mode (RFC 4303 3.1.1): ESP stands between the IP header, which stays, and the upper layer's. It is for what the gateway
//! itself says and hears: the addresses are a cluster address and the peer's.

use maps_schema::verdict::Verdict;

use super::inbound::{opened, selected};
use super::pad;
use crate::aead::Scratch;
use crate::aead::global::global_fn;
use crate::bytes::{Bounded, PacketRead};
use crate::checksum;
use crate::env::{Area, Env, HEAD_LEN, Work};
use crate::headers::{
    self, EXTENSIONS, IPV4_LEN, IPV6_LEN, Ip, PROTOCOL_DESTINATION, PROTOCOL_FRAGMENT, PROTOCOL_HOP_BY_HOP,
    PROTOCOL_ICMPV6, PROTOCOL_ROUTING, PROTOCOL_TCP, PROTOCOL_UDP,
};
use crate::mss;
use crate::selectors::Flow;

/// Where the checksum is in what an IP header is followed by.
const TCP_CHECKSUM_AT: usize = 16;
const UDP_CHECKSUM_AT: usize = 6;
const ICMPV6_CHECKSUM_AT: usize = 2;

/// Most octets of IP options or extension headers that stay before ESP. IPv4 has 40 at most (RFC 791 3.1); with IPv6 they must lie in the
/// frame's front ([`HEAD_LEN`]), behind a tag too.
pub const OPTIONS_MAX: usize = 64;
const IPV4_OPTIONS_MAX: usize = 40;
/// Where the next header is in an IPv6 header.
const NEXT_HEADER_AT: usize = 6;

const _: () = assert!(headers::ETHERNET_LEN + headers::VLAN_LEN + IPV6_LEN + OPTIONS_MAX <= HEAD_LEN);

/// What is inside an opened packet: padding, upper layer, selectors. The header in `work.ip` is the outer one; afterwards it says what
/// it will say once ESP is gone.
#[inline(always)]
pub fn inspect(env: &impl Env, area: &mut Area) -> bool {
    let Area { cipher, work } = area;
    let Some(sa) = env.inbound(work.cpu, work.index) else {
        return work.drop(Verdict::InternalError);
    };
    let Some((payload, next_header)) = pad::strip(cipher.text(), cipher.text_len as usize) else {
        return work.drop(Verdict::PaddingBad);
    };
    // A dummy packet of traffic flow confidentiality (RFC 4303 2.6).
    if next_header == headers::PROTOCOL_NONE {
        return work.drop(Verdict::InnerUnsupported);
    }
    let text = Bounded {
        octets: cipher.text(),
        len: payload,
    };
    work.ip.total_len = work.ip.header_len + payload as u32;
    work.ip.protocol = next_header;
    work.outer_tos = work.ip.tos;
    work.upper_at = 0;
    let mut protocol = next_header;
    if work.ip.version == 6 && headers::is_extension(next_header) {
        // SAFETY: the packet's own scratch, which nobody writes meanwhile.
        let found = unsafe { upper_layer(cipher, payload as u32, next_header as u32) };
        if found < 0 {
            return work.drop(Verdict::InnerExtension);
        }
        work.upper_at = found as u32 >> 8;
        protocol = found as u8;
    }
    work.flow = Flow {
        source: work.ip.source,
        destination: work.ip.destination,
        protocol,
        ..Flow::default()
    };
    if let Some((source, destination)) = headers::ports(&text, protocol, work.upper_at as usize) {
        work.flow.ports = [source, destination];
        work.flow.has_ports = 1;
    }
    if !selected(sa, &work.flow) {
        return work.drop(Verdict::SelectorMismatch);
    }
    true
}

global_fn! {
    /// Where the upper layer's header is in a text of `payload` octets that begins with the extension header `next_header`, and in the low
    /// octet its protocol. Negative for more extension headers than are looked behind, and for a fragment.
    //= rfc4303#3.3.4
    // Thus, transport mode ESP is applied only to whole IP datagrams (not to IP fragments).
    pub fn upper_layer(scratch: &Scratch;; payload: u32, next_header: u32) {
        let text = Bounded { octets: scratch.text(), len: payload as usize };
        let mut chain = Ip { total_len: payload, protocol: next_header as u8, ..Ip::default() };
        if headers::skip_extensions(&text, 0, &mut chain).is_none() || chain.is_fragment() {
            return -1;
        }
        (chain.header_len << 8 | chain.protocol as u32) as i32
    }
}

/// Takes ESP out of the packet and passes it to the stack of this member, whose address it bears.
#[inline(always)]
pub fn deliver(env: &impl Env, area: &mut Area) {
    let Area { cipher, work } = area;
    let (at, ip) = (work.link_len as usize, work.ip);
    let header_len = ip.header_len as usize;
    let payload = ip.total_len as usize - header_len;
    if work.esp_at as usize != at + header_len {
        rectify(env, cipher, work, payload);
    }
    let done = shorten(env, work, at + header_len, payload)
        && (payload == 0 || env.store(at + header_len, cipher.text(), payload))
        && restore(env, work, at, &ip);
    if !done {
        work.drop(Verdict::InternalError);
        return;
    }
    work.pass(opened(work, Verdict::EspOpenedLocal));
}

/// The upper layer's checksum of a packet that came in UDP, with the addresses that it bears now.
//= rfc3948#3.1.2
// When transport mode has been used to transmit packets, contained TCP or UDP headers will have incorrect checksums due to the change
// of parts of the IP header during transit. [...] one of the following MUST be done
//
// What is done is b) and, for UDP over IPv4, c): the ICV has said that nothing else was changed. With a) the original addresses would
// have to be kept with the SA.
#[inline(always)]
fn rectify(env: &impl Env, cipher: &mut Scratch, work: &Work, payload: usize) {
    let (ip, protocol, upper_at) = (&work.ip, work.flow.protocol, work.upper_at as usize);
    let v6 = ip.version == 6;
    let place = upper_at
        + match protocol {
            PROTOCOL_TCP => TCP_CHECKSUM_AT,
            PROTOCOL_UDP => UDP_CHECKSUM_AT,
            PROTOCOL_ICMPV6 if v6 => ICMPV6_CHECKSUM_AT,
            _ => return,
        };
    if payload < place + 2 {
        return;
    }
    let text = cipher.text_mut();
    mss::put(text, place, 0);
    // Without a checksum there is nothing to check (RFC 768).
    if protocol == PROTOCOL_UDP && !v6 {
        return;
    }
    // Sums are of whole words: padding is not needed any more.
    mss::put(text, payload, 0);
    mss::put(text, payload + 1, 0);
    let sum = if v6 {
        checksum::words(ip.source[0])
            + checksum::words(ip.source[1])
            + checksum::words(ip.destination[0])
            + checksum::words(ip.destination[1])
    } else {
        checksum::words(headers::to_v4(ip.source) as u64)
            + checksum::words(headers::to_v4(ip.destination) as u64)
    };
    let length = payload - upper_at;
    let mut sum = sum + protocol as u32 + length as u32 + env.sum(text, (payload + 3) & !3) as u32;
    if upper_at != 0 {
        // Extension headers are no part of it.
        sum += !env.sum(text, upper_at) as u32;
    }
    let checksum = match checksum::fold(sum) {
        // In UDP 0 says that there is none.
        0 if protocol == PROTOCOL_UDP => u16::MAX,
        checksum => checksum,
    };
    mss::put(text, place, checksum);
}

/// Makes room for a payload behind the headers, which stay, options too: see [`Work::resize`] for why not by cutting the end.
#[inline(always)]
fn shorten(env: &impl Env, work: &Work, headers: usize, payload: usize) -> bool {
    if work.in_pieces(env) {
        return env.truncate(headers + payload);
    }
    env.cut_head(work.frame_len as i32 - (headers + payload) as i32)
        && env.store_head(0, &work.head, 0, headers)
}

/// Length and protocol of the IP header as they are without ESP, with IPv4's checksum.
#[inline(always)]
fn restore(env: &impl Env, work: &Work, at: usize, ip: &Ip) -> bool {
    if ip.version == 6 {
        let [l0, l1] = ((ip.total_len - ip.header_len) as u16).to_be_bytes();
        return env.write(at + 4, &[l0, l1, ip.protocol]);
    }
    let front = work.front();
    let (Some(length), Some(word)) = (front.u16(at + 2), front.u16(at + 8)) else {
        return false;
    };
    let new_length = ip.total_len as u16;
    let new_word = word & 0xff00 | ip.protocol as u16;
    let sum = checksum::updated(ip.checksum, length, new_length);
    let sum = checksum::updated(sum, word, new_word);
    env.write(at + 2, &new_length.to_be_bytes())
        && env.write(at + 9, &[ip.protocol])
        && env.write(at + 10, &sum.to_be_bytes())
}

/// Where ESP goes in a packet on its way out: octets of the headers that stay before it, with `options_*` and `sealed_as` in `work`. `None`
/// for what is not sealed: fragments (RFC 4303 3.3.4: fragmentation comes after ESP), and more extension headers than [`OPTIONS_MAX`]
/// octets. `encap`: a UDP header comes before ESP, behind the others (RFC 3948 2.1).
//= rfc4303#3.1.1
// In transport mode, ESP is inserted after the IP header and before a next layer protocol, e.g., TCP, UDP, ICMP, etc. [...] In the context of
// IPv4, this translates to placing ESP after the IP header (and any options that it contains), but before the next layer protocol.
#[inline(always)]
pub fn divide(work: &mut Work, encap: bool) -> Option<usize> {
    let ip = work.ip;
    if ip.is_fragment() {
        return None;
    }
    work.sealed_as = ip.protocol;
    let fixed = if ip.version == 6 { IPV6_LEN } else { IPV4_LEN };
    if ip.header_len as usize == fixed {
        return Some(fixed);
    }
    work.options_at = work.link_len + fixed as u32;
    if ip.version == 6 {
        divide_extensions(work, encap)?;
    } else {
        work.options_len = ip.header_len - fixed as u32;
    }
    (work.options_len as usize <= OPTIONS_MAX).then_some(fixed + work.options_len as usize)
}

/// The extension headers of a packet on its way out, as [`divide`] says.
//= rfc4303#3.1.1
// In the IPv6 context, ESP is viewed as an end-to-end payload, and thus should appear after hop-by-hop, routing, and fragmentation
// extension headers. Destination options extension header(s) could appear before, after, or both before and after the ESP header
// depending on the semantics desired.
//
// What nodes on the way look at stays in clear: everything up to the last routing header, otherwise hop-by-hop options. Destination options
// before a routing header are for its addresses (RFC 8200 4.1, note 1); others are for the peer alone, and are sealed.
#[inline(always)]
fn divide_extensions(work: &mut Work, encap: bool) -> Option<()> {
    let first_at = work.options_at as usize;
    let mut named_at = first_at - IPV6_LEN + NEXT_HEADER_AT;
    let mut next = work.front().u8(named_at)?;
    work.sealed_as = next;
    let mut at = first_at;
    let mut left = EXTENSIONS;
    while headers::is_extension(next) {
        left = left.checked_sub(1)?;
        let [following, len, _, segments_left] = work.front().read::<4>(at)?;
        // One that is a whole datagram (RFC 6946) would meet another fragment header where the sealed packet is cut. Hop-by-hop options
        // stand first or not at all (RFC 8200 4.3).
        if next == PROTOCOL_FRAGMENT || (next == PROTOCOL_HOP_BY_HOP && at != first_at) {
            return None;
        }
        // UDP's checksum would have to be that of the last address on the way (RFC 8200 8.1).
        if next == PROTOCOL_ROUTING && encap && segments_left != 0 {
            return None;
        }
        named_at = at;
        at += (len as usize + 1) * 8;
        if next != PROTOCOL_DESTINATION {
            work.options_len = (at - first_at) as u32;
            work.esp_named_at = named_at as u32;
            work.sealed_as = following;
        }
        next = following;
    }
    Some(())
}

/// Writes the options or extension headers that stay behind the new IP header at `ip_at`; of IPv6 the last one names what follows it now.
#[inline(always)]
pub fn keep(env: &impl Env, work: &Work, ip_at: usize, protocol: u8) -> bool {
    let (from, len) = (work.options_at as usize, work.options_len as usize);
    if work.ip.version != 6 {
        return env.store_head(ip_at + IPV4_LEN, &work.head, from, len);
    }
    let header_at = from.wrapping_sub(IPV6_LEN);
    let Some(first) = work.front().u8(header_at.wrapping_add(NEXT_HEADER_AT)) else {
        return false;
    };
    let named_at = (work.esp_named_at as usize).wrapping_sub(header_at);
    env.store_head(ip_at + IPV6_LEN, &work.head, from, len)
        && env.write(ip_at + NEXT_HEADER_AT, &[first])
        && env.write(ip_at + named_at, &[protocol])
}

/// Sum of the 16-bit words of the IPv4 options that stay.
#[inline(always)]
pub fn sum_of_options(work: &Work) -> u32 {
    let (front, from, len) = (work.front(), work.options_at as usize, work.options_len as usize);
    let (mut sum, mut at) = (0, 0);
    while at < IPV4_OPTIONS_MAX {
        if at >= len {
            break;
        }
        let Some(word) = front.u32(from + at) else {
            break;
        };
        sum += (word >> 16) + (word & 0xffff);
        at += 4;
    }
    sum
}
