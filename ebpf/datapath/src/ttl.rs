//! A packet whose TTL or hop limit is used up at this gateway: its sender is told (RFC 1812 5.3.1, RFC 4443 3.3), so that a trace
//! through the tunnel shows it.

use maps_schema::event::SLOW_TTL_EXCEEDED;
use maps_schema::steer::{Local, SIDE_INSIDE};
use maps_schema::verdict::Verdict;

use crate::aead::{Scratch, TEXT_MAX};
use crate::checksum;
use crate::env::{ACTION_TRANSMIT, Area, Env, Work};
use crate::esp::too_big::{IPV6_MIN_MTU, may_tell};
use crate::headers::{self, Address, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, PROTOCOL_ICMPV6};
use crate::icmp;
use crate::link;
use crate::opaque::opaque;

/// Least time between two errors in the long run, nanoseconds: 100 a second on each CPU (RFC 1812 4.3.2.8, RFC 4443 2.4 (f)).
const INTERVAL_NS: u64 = 10_000_000;
/// Errors that may follow one another at once: a trace sends several probes for each hop.
const BURST: u64 = 32;

/// Most octets that an error quotes: it fits every link of IPv6, and is longer than RFC 1812 4.3.2.3 asks for over IPv4.
const QUOTED_V6: usize = IPV6_MIN_MTU - IPV6_LEN - icmp::V6_LEN;
const QUOTED_V4: usize = 576 - IPV4_LEN - icmp::V6_LEN;

/// Whether one more error may be sent, and then counts. `until`: time at which the errors so far are paid for.
#[inline(always)]
pub fn due(until: &mut u64, now_ns: u64) -> bool {
    let from = if *until < now_ns { now_ns } else { *until };
    if from.saturating_sub(now_ns) > (BURST - 1) * INTERVAL_NS {
        return false;
    }
    *until = from.saturating_add(INTERVAL_NS);
    true
}

/// Tells the sender of the packet with the header `work.ip` that it died here. Of a packet from inside, the frame is as it came; of
/// an opened one the text holds the packet. Always ends the packet. A stage of its own: its stack must not add to that of others.
#[inline(always)]
pub fn exceeded(env: &impl Env, area: &mut Area) -> bool {
    let Area { cipher, work } = area;
    work.drop(Verdict::TtlExceeded);
    let Some(local) = env.local() else {
        return work.drop(Verdict::InternalError);
    };
    if work.port.side != SIDE_INSIDE {
        return far(env, cipher, work);
    }
    let from = source(local, &work.ip);
    if from == [0; 2] || !may_tell(work) || !env.tell_due(work.now_ns) {
        return false;
    }
    answer(env, cipher, work, from)
}

/// Address that the error comes from: zero where there is none of its family.
#[inline(always)]
fn source(local: &Local, ip: &headers::Ip) -> Address {
    if ip.version == 6 {
        return headers::address(&local.inside_address_v6);
    }
    let address = headers::address(&local.inside_address);
    if headers::is_v4(address) && headers::to_v4(address) != 0 {
        address
    } else {
        [0; 2]
    }
}

/// The sender is on the inside network: the packet stays where it is, the new headers are put before it.
#[inline(always)]
fn answer(env: &impl Env, cipher: &mut Scratch, work: &mut Work, from: Address) -> bool {
    let (v6, to, vlan) = (work.ip.version == 6, work.ip.source, work.port.vlan);
    let most = if v6 { QUOTED_V6 } else { QUOTED_V4 };
    let total = work.ip.total_len as usize;
    let quoted = if total < most { total } else { most };
    let link_len = work.link_len as usize;
    if quoted < IPV4_LEN || !env.load(link_len, cipher.text_mut(), quoted) {
        return work.drop(Verdict::InternalError);
    }
    end_with_zeros(cipher.text_mut(), quoted);
    let sum = env.sum(cipher.text(), (quoted + 3) & !3);
    let ip_at = link::len(vlan);
    let ip_len = if v6 { IPV6_LEN } else { IPV4_LEN };
    let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    let mut ok = env.truncate(link_len + quoted);
    ok &= env.cut_head(link_len as i32 - (ip_at + ip_len + icmp::V6_LEN) as i32);
    ok &= link::write(env, work.source_mac, work.port.mac, vlan, ethertype);
    if v6 {
        let [l0, l1] = ((quoted + icmp::V6_LEN) as u16).to_be_bytes();
        ok &= env.write(ip_at, &[0x60, 0, 0, 0, l0, l1, PROTOCOL_ICMPV6, 64]);
        ok &= env.write(ip_at + 8, &headers::octets(from));
        ok &= env.write(ip_at + 24, &headers::octets(to));
        let message = icmp::error_v6(from, to, 0x0300, 0, quoted, sum);
        ok &= env.write(ip_at + IPV6_LEN, &message);
    } else {
        let (from, to) = (headers::to_v4(from), headers::to_v4(to));
        ok &= env.write(ip_at, &icmp::header_v4(from, to, quoted + icmp::V6_LEN));
        let [k0, k1] = checksum::fold(0x0b00 + sum as u32).to_be_bytes();
        ok &= env.write(ip_at + IPV4_LEN, &[11, 0, k0, k1, 0, 0, 0, 0]);
    }
    if !ok {
        return work.drop(Verdict::InternalError);
    }
    work.end(Verdict::TimeExceeded, ACTION_TRANSMIT)
}

/// Zeros behind the quoted octets: the sum is made of whole words.
#[inline(always)]
fn end_with_zeros(text: &mut [u8; TEXT_MAX], len: usize) {
    let at = opaque(len as u64) as usize;
    if at > TEXT_MAX - 4 {
        return;
    }
    if let Some(to) = text.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
        *to = [0; 4];
    }
}

/// The sender is behind the tunnel, so the answer has to be sealed: the slow path makes it, and runs it through the programs like any
/// packet from inside.
#[inline(always)]
fn far(env: &impl Env, cipher: &mut Scratch, work: &mut Work) -> bool {
    if !env.tell_due(work.now_ns) {
        return false;
    }
    let total = work.ip.total_len as usize;
    let quoted = if total < QUOTED_V6 { total } else { QUOTED_V6 };
    let ip_at = link::len(0);
    let ethertype = if work.ip.version == 6 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    let (to, from) = (work.port.mac, work.source_mac);
    if quoted < IPV4_LEN
        || !work.resize(env, ip_at + quoted)
        || !env.store(ip_at, cipher.text(), quoted)
        || !link::write(env, to, from, 0, ethertype)
    {
        return work.drop(Verdict::InternalError);
    }
    work.slow(env, SLOW_TTL_EXCEEDED, Verdict::TimeExceededFar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_told_and_then_one_in_each_interval() {
        let mut until = 0;
        let now = 5_000_000_000;
        let told = (0..100).filter(|_| due(&mut until, now)).count();
        assert_eq!(told as u64, BURST);
        assert!(!due(&mut until, now + INTERVAL_NS - 1));
        assert!(due(&mut until, now + INTERVAL_NS));
        assert!(!due(&mut until, now + INTERVAL_NS));
        // A second of silence pays for all of them.
        let told = (0..100).filter(|_| due(&mut until, now + 1_000_000_000)).count();
        assert_eq!(told as u64, BURST);
    }
}
