//! Transport mode (RFC 4303 3.1.1): ESP stands between the IP header, which stays, and the upper layer's. It is for what the gateway
//! itself says and hears: the addresses are a cluster address and the peer's.

use maps_schema::verdict::Verdict;

use super::inbound::{opened, selected};
use super::pad;
use crate::aead::Scratch;
use crate::bytes::{Bounded, PacketRead};
use crate::checksum;
use crate::env::{Area, Env, Work};
use crate::headers::{
    self, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, Ip, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, VLAN_LEN,
};
use crate::mss;
use crate::selectors::Flow;

/// Where the checksum is in what an IP header is followed by.
const TCP_CHECKSUM_AT: usize = 16;
const UDP_CHECKSUM_AT: usize = 6;
const ICMPV6_CHECKSUM_AT: usize = 2;

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
    work.flow = Flow {
        source: work.ip.source,
        destination: work.ip.destination,
        protocol: next_header,
        ..Flow::default()
    };
    if let Some((source, destination)) = headers::ports(&text, next_header, 0) {
        work.flow.ports = [source, destination];
        work.flow.has_ports = 1;
    }
    if !selected(sa, &work.flow) {
        return work.drop(Verdict::SelectorMismatch);
    }
    true
}

/// Takes ESP out of the packet and passes it to the stack of this member, whose address it bears.
#[inline(always)]
pub fn deliver(env: &impl Env, area: &mut Area) {
    let Area { cipher, work } = area;
    let (at, ip) = (work.link_len as usize, work.ip);
    let header_len = ip.header_len as usize;
    let payload = ip.total_len as usize - header_len;
    if work.esp_at as usize != at + header_len {
        rectify(env, cipher, &ip, payload);
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
fn rectify(env: &impl Env, cipher: &mut Scratch, ip: &Ip, payload: usize) {
    let v6 = ip.version == 6;
    let place = match ip.protocol {
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
    if ip.protocol == PROTOCOL_UDP && !v6 {
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
    let sum = sum + ip.protocol as u32 + payload as u32 + env.sum(text, (payload + 3) & !3) as u32;
    let checksum = match checksum::fold(sum) {
        // In UDP 0 says that there is none.
        0 if ip.protocol == PROTOCOL_UDP => u16::MAX,
        checksum => checksum,
    };
    mss::put(text, place, checksum);
}

/// Makes room for a payload behind the headers, which stay: see [`super::inbound`] for why not by cutting the end. With options or
/// extension headers it is done so all the same.
#[inline(always)]
fn shorten(env: &impl Env, work: &Work, headers: usize, payload: usize) -> bool {
    let front = work.front();
    let link = headers - work.ip.header_len as usize;
    let plain = work.ip.header_len as usize == if work.ip.version == 6 { IPV6_LEN } else { IPV4_LEN };
    if work.in_pieces(env) || !plain {
        return env.truncate(headers + payload);
    }
    let Some(start) = front.read::<ETHERNET_LEN>(0) else {
        return false;
    };
    let moved = env.cut_head(work.frame_len as i32 - (headers + payload) as i32) && env.write(0, &start);
    let tagged = match front.read::<VLAN_LEN>(ETHERNET_LEN) {
        Some(tag) if link > ETHERNET_LEN => env.write(ETHERNET_LEN, &tag),
        _ => true,
    };
    let ip = if work.ip.version == 6 {
        front
            .read::<IPV6_LEN>(link)
            .is_some_and(|ip| env.write(link, &ip))
    } else {
        front
            .read::<IPV4_LEN>(link)
            .is_some_and(|ip| env.write(link, &ip))
    };
    moved && tagged && ip
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

/// Octets of the IP header that stays, of a packet on its way out; `None` for what is not sealed: options, extension headers, and
/// fragments (RFC 4303 3.3.4: fragmentation comes after ESP).
#[inline(always)]
pub fn header_len(ip: &Ip) -> Option<usize> {
    let plain = if ip.version == 6 { IPV6_LEN } else { IPV4_LEN };
    (ip.header_len as usize == plain && !ip.is_fragment()).then_some(plain)
}
