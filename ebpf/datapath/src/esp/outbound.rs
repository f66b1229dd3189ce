//! A packet's way out: policy, [CPU], admit, [seal], emit (RFC 4303 3.3).
//!
//! The number is taken under the lease: checked, added atomically, checked again. It is in the IV with member and epoch, so
//! that a key never sees a nonce twice, whoever believes to be the owner.

use maps_schema::event::{
    EVENT_ACQUIRE, EVENT_ACQUIRE_CPU, EVENT_LEASE_EXHAUSTED, EVENT_LEASE_SOFT, EVENT_MERGED, EVENT_PATH_MTU,
    SLOW_NO_SA, SLOW_OUTER_FRAGMENT,
};
use maps_schema::sad::{
    DF_CLEAR, DF_SET, OutboundSa, SA_ESN, SA_TRANSPORT, SA_UDP_ENCAP, SUITE_AES128_GCM, SUITE_LAST,
    slot_place,
};
use maps_schema::spd::{
    ACTION_BYPASS, ACTION_DISCARD, ACTION_NONE, ACTION_PROTECT, ACTION_PROTECT_PER_CPU, ACTION_TRAP_HOLD,
    RULES_PER_PREFIX,
};
use maps_schema::steer::{Local, SIDE_INSIDE};
use maps_schema::verdict::Verdict;

use super::header::{self, ESP_LEN, ICV_LEN, iv_len, outer_len};
use super::{inbound, nonce, pad, too_big, transport};
use crate::aead::{AAD_ESN, AAD_PLAIN, DONE, Scratch, TEXT_MAX};
use crate::bytes::Bounded;
use crate::checksum;
use crate::ecn;
use crate::env::{
    ACTION_CPU, ACTION_NEIGHBOUR, ACTION_PASS, ACTION_REDIRECT, ACTION_TTL, Area, Env, OutboundCounters,
    Route, RouteQuery, Work, must_hop,
};
use crate::headers::{
    self, Address, DONT_FRAGMENT, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, UDP_LEN,
};
use crate::limits::{self, Take, volatile};
use crate::link;
use crate::mss;
use crate::nd;
use crate::selectors;
use crate::steer::{self, ROLE_OLD_OWNER, answer_arp, millis};

/// Devices carry this much, octets; longer packets may have been merged, which costs a question to the kernel.
pub(super) const LEAST_MTU: u32 = 1500;
/// TTL of outer packets.
const OUTER_TTL: u8 = 64;

/// On the inside interface, up to the SA's CPU: `true` where the packet is to be sealed right here, with the SA's slot in
/// `work`. `ACTION_NEIGHBOUR` asks for one more stage.
///
/// `may_move` is false in the cpumap program: there the packet has arrived.
#[inline(always)]
pub fn choose(env: &impl Env, work: &mut Work, may_move: bool) -> bool {
    arrive(env, work) && policy(env, work, may_move)
}

/// First part of [`choose`]: what is this frame? `true`: a packet that policy decides on, its header in `work.ip`.
#[inline(always)]
pub fn arrive(env: &impl Env, work: &mut Work) -> bool {
    let Some(local) = env.local() else {
        return work.pass(Verdict::NotForCluster);
    };
    let Some(link) = steer::arrive(env, work, local, SIDE_INSIDE) else {
        return false;
    };
    if link.ethertype == ETHERTYPE_ARP {
        return answer_arp(env, work, local);
    }
    let Some(ip) = steer::ip(work, &link) else {
        return work.pass(Verdict::NotForCluster);
    };
    work.ip = ip;
    if ip.version == 6 {
        if nd::is_solicitation(work) && steer::reaches(&link, &work.port) {
            return work.end(Verdict::InternalError, ACTION_NEIGHBOUR);
        }
        // What concerns this link only (RFC 4291 2.5.6, 2.7; RFC 4861) is never protected, whatever the policy.
        if headers::is_of_link(ip.source) || headers::is_of_link(ip.destination) || nd::is_discovery(work) {
            return work.pass(Verdict::LocalTraffic);
        }
    }
    if link.destination != work.port.mac {
        return work.pass(Verdict::NotForCluster);
    }
    if env.address(headers::octets(ip.destination)).is_some() {
        return work.pass(Verdict::LocalTraffic);
    }
    true
}

/// Second part of [`choose`]: the rules for the packet.
#[inline(always)]
pub fn policy(env: &impl Env, work: &mut Work, may_move: bool) -> bool {
    let Some(local) = env.local() else {
        return work.pass(Verdict::NotForCluster);
    };
    let policy = match env.policy(work.ip.destination) {
        Ok(Some(policy)) => policy,
        Ok(None) => return work.pass(Verdict::NoPolicy),
        Err(_) => return work.drop(Verdict::Contended),
    };
    let at = work.link_len as usize;
    if work.ip.version == 6 {
        let front = Bounded {
            octets: &work.head,
            len: work.head_len as usize,
        };
        if headers::skip_extensions(&front, at, &mut work.ip).is_none() {
            return work.drop(Verdict::InnerExtension);
        }
    }
    work.flow = inbound::flow(&work.front(), &work.ip, at);
    let mut i = 0;
    while i < RULES_PER_PREFIX {
        let rule = &policy.entry.rules[i];
        if volatile(&rule.action) == ACTION_NONE {
            break;
        }
        if selectors::rule_matches(rule, &work.flow) {
            let rule = Chosen {
                slot: volatile(&rule.slot),
                connection: volatile(&rule.connection),
                action: volatile(&rule.action),
            };
            return if env.policy_holds(&policy) {
                apply(env, work, local, &rule, may_move)
            } else {
                work.drop(Verdict::Contended)
            };
        }
        i += 1;
    }
    if env.policy_holds(&policy) {
        work.pass(Verdict::NoPolicy)
    } else {
        work.drop(Verdict::Contended)
    }
}

/// What the first matching rule says.
struct Chosen {
    slot: u32,
    connection: u16,
    action: u8,
}

#[inline(always)]
fn apply(env: &impl Env, work: &mut Work, local: &Local, rule: &Chosen, may_move: bool) -> bool {
    work.connection = rule.connection as u32;
    match rule.action {
        ACTION_BYPASS => work.pass(Verdict::Bypassed),
        ACTION_DISCARD => work.drop(Verdict::Discarded),
        ACTION_PROTECT | ACTION_PROTECT_PER_CPU if rule.slot < local.slots => {
            let slot = match rule.action {
                ACTION_PROTECT_PER_CPU => own_sa(env, work, local, rule.slot, may_move),
                _ => rule.slot,
            };
            work.slot = slot;
            let (cpu, index) = slot_place(slot, local.cpus);
            work.cpu = cpu;
            work.index = index;
            // In the cpumap program the policy may have moved to an SA of another CPU while the packet was on its way.
            // The counter is atomic: sealing there costs order for one packet, nothing else.
            if may_move && local.cpus > 1 && must_move(env, work, slot, rule.slot, cpu) {
                work.target = cpu;
                return work.end(Verdict::OtherCpu, ACTION_CPU);
            }
            true
        }
        ACTION_TRAP_HOLD => hold(env, work),
        // `ACTION_TRAP`, and what this version does not know.
        _ => no_sa(env, work),
    }
}

/// The SA that this CPU uses in place of the shared one (RFC 9611): its own, or one of its member's, which is on another segment
/// than the shared one and may be another CPU's. Without any the packet uses the shared SA, and the agent hears of it: what came through
/// the cpumap was reported where it arrived.
#[inline(always)]
fn own_sa(env: &impl Env, work: &Work, local: &Local, shared: u32, may_move: bool) -> u32 {
    let here = env.cpu();
    let slot = env.own_slot(here, shared).wrapping_sub(1);
    if slot < local.slots {
        if slot as u8 != shared as u8 {
            return slot;
        }
        if !may_move {
            return shared;
        }
        if slot_place(slot, local.cpus).0 == here {
            return slot;
        }
    }
    if may_move && here < local.cpus && env.acquire_due(work.connection as u16, work.now_ns) {
        env.event(EVENT_ACQUIRE_CPU, shared, here, 0, 0);
    }
    shared
}

/// Whether a packet for an SA goes through the cpumap. A CPU's own SA beside the shared one of its segment is fed on that CPU and nowhere
/// else, so no packet of it waits in a queue.
#[inline(always)]
fn must_move(env: &impl Env, work: &Work, slot: u32, shared: u32, cpu: u32) -> bool {
    let alone_fed = slot != shared && slot as u8 == shared as u8;
    !alone_fed && must_hop(env, work, cpu, true)
}

/// A policy without SA drops and asks for one; it never lets the packet pass in clear.
#[inline(always)]
fn no_sa(env: &impl Env, work: &mut Work) -> bool {
    acquire(env, work);
    work.drop(Verdict::NoSa)
}

/// As [`no_sa`], and the agent keeps the packet for the SA.
#[inline(always)]
fn hold(env: &impl Env, work: &mut Work) -> bool {
    acquire(env, work);
    work.slot = work.connection;
    work.slow(env, SLOW_NO_SA, Verdict::HeldForSa)
}

#[inline(always)]
fn acquire(env: &impl Env, work: &Work) {
    let connection = work.connection as u16;
    if env.acquire_due(connection, work.now_ns) {
        let flow = (work.flow.source[1] << 32) | (work.flow.destination[1] & u32::MAX as u64);
        env.event(EVENT_ACQUIRE, connection as u32, 0, 0, flow);
    }
}

/// Owner, SA, size, number; lays the packet out for the cipher. `true`: seal it.
#[inline(always)]
pub fn admit(env: &impl Env, area: &mut Area) -> bool {
    let work = &mut area.work;
    let Some(local) = env.local() else {
        return work.drop(Verdict::InternalError);
    };
    if !steer::serve_here(env, work, local, work.slot as u8) {
        return false;
    }
    if work.role == ROLE_OLD_OWNER {
        // Its lease ended with the flip: outbound, the new owner alone sends.
        return steer::pass_on(env, work, work.other);
    }
    let Some(sa) = env.outbound(work.cpu, work.index) else {
        return no_sa(env, work);
    };
    work.spi = volatile(&sa.spi);
    if work.spi == 0 {
        return no_sa(env, work);
    }
    work.connection = sa.connection as u32;
    let suite = volatile(&sa.suite);
    if !(SUITE_AES128_GCM..=SUITE_LAST).contains(&suite) {
        return work.drop(Verdict::SuiteUnknown);
    }
    let flags = volatile(&sa.flags);
    let encap = flags & SA_UDP_ENCAP != 0;
    let v6 = !headers::is_v4(headers::address(&sa.outer_dst));
    // What stays outside of the packet: nothing, or its headers.
    let mut skipped = 0;
    if flags & SA_TRANSPORT != 0 {
        // The packet's header becomes the outer one.
        if v6 != (work.ip.version == 6) {
            return work.drop(Verdict::TransportHeader);
        }
        let Some(headers_len) = transport::divide(work, encap) else {
            return work.drop(Verdict::TransportHeader);
        };
        work.transport = 1;
        skipped = headers_len;
    }
    // In transport mode the sender is this gateway, and the agent gives what it sends as one piece.
    if work.transport == 0 && work.ip.total_len > LEAST_MTU && env.exceeds_device(work.ip.total_len) {
        return merged(env, work);
    }
    let inner = work.ip.total_len as usize - skipped;
    let mtu = path_mtu(sa, local);
    let outer = outer_len(encap, v6) + work.options_len as usize;
    let most = header::inner_max(suite, mtu, outer);
    if inner > most {
        // In transport mode the sender is this gateway: it cuts what it sends.
        if work.transport == 0 && !too_big::may_cut(sa, &work.ip, v6) {
            return too_big::answer(env, area, local, most);
        }
        work.cut = 1;
    }
    if inner > pad::INNER_MAX {
        return work.drop(Verdict::TooBig);
    }
    if work.ip.ttl <= 1 && work.transport == 0 {
        return work.end(Verdict::TtlExceeded, ACTION_TTL);
    }
    let Some(counters) = env.counters(work.cpu, work.index) else {
        return work.drop(Verdict::InternalError);
    };
    // RFC 4301 4.4.2.1: what the limit does not hold is not sent. CPUs that seal at the same time may pass it by a packet each.
    if (sa.life_packets != 0 && counters.packets.get() >= sa.life_packets)
        || (sa.life_bytes != 0
            && counters.bytes.get().saturating_add(work.ip.total_len as u64) > sa.life_bytes)
    {
        return work.drop(Verdict::LifetimeExpired);
    }
    if !take_number(env, work, sa, flags, counters) {
        return false;
    }
    let Area { cipher, work } = area;
    if inner != 0 && !env.load(work.link_len as usize + skipped, cipher.text_mut(), inner) {
        return work.drop(Verdict::InternalError);
    }
    let ip = work.ip;
    let next_header = if work.transport != 0 {
        work.sealed_as
    } else {
        let packet = Bounded {
            octets: cipher.text(),
            len: inner,
        };
        work.mss = mss::allowed(&packet, &ip, sa.mss_clamp, most);
        inbound::decrement_ttl(cipher.text_mut(), &ip);
        if ip.version == 6 {
            headers::PROTOCOL_IPV6
        } else {
            headers::PROTOCOL_IPV4
        }
    };
    let Some(text_len) = pad::append(suite, cipher.text_mut(), inner, next_header) else {
        return work.drop(Verdict::TooBig);
    };
    let esn = flags & SA_ESN != 0;
    cipher.text_len = text_len as u32;
    cipher.iv = nonce::iv(local.member as u8, work.epoch, work.seq);
    cipher.aad = header::aad(work.spi, work.seq, esn);
    cipher.aad_len = if esn { AAD_ESN } else { AAD_PLAIN };
    true
}

/// Several packets in one frame, made by a card or by the far end of a veth: sealed as one, or answered as one that is too large, nothing
/// good would come of them, and where one ends is not known here.
#[inline(always)]
pub(super) fn merged(env: &impl Env, work: &mut Work) -> bool {
    if env.acquire_due(0, work.now_ns) {
        let (port, octets) = (work.port.index as u32, work.ip.total_len as u64);
        env.event(EVENT_MERGED, port, 0, 0, octets);
    }
    work.drop(Verdict::Merged)
}

/// Largest outer packet of an SA.
#[inline(always)]
pub(crate) fn path_mtu(sa: &OutboundSa, local: &Local) -> usize {
    let (path, own) = (volatile(&sa.path_mtu) as usize, local.outside_mtu as usize);
    match (path, own) {
        (0, 0) => 1500,
        (0, mtu) | (mtu, 0) => mtu,
        (path, own) => path.min(own),
    }
}

#[inline(always)]
fn take_number(
    env: &impl Env,
    work: &mut Work,
    sa: &OutboundSa,
    flags: u8,
    counters: &OutboundCounters,
) -> bool {
    let Ok((limits, version)) = limits::read(&sa.limits) else {
        return work.drop(Verdict::Contended);
    };
    let Ok(mut range) = limits::outbound_range(&limits, flags, work.alone != 0, work.epoch) else {
        return work.drop(Verdict::EpochBehind);
    };
    let max = limits::sequence_max(flags);
    let at_end = range.last >= max;
    if at_end {
        range.last = max;
    }
    match limits::take(&counters.seq, &range) {
        Take::Number(seq) => {
            work.seq = seq;
            counters.packets.fetch_add(1);
            counters.bytes.fetch_add(work.ip.total_len as u64);
            counters.last_ms.set(millis(work.now_ns));
            if seq == range.soft {
                env.event(EVENT_LEASE_SOFT, work.slot, work.spi, work.epoch, seq);
            }
            true
        }
        Take::Exhausted if at_end => work.drop(Verdict::SequenceExhausted),
        Take::Exhausted => {
            // Once per published lease, and once more per epoch: the agent needs no second call.
            let mark = (version.wrapping_add(1) << 16) | work.epoch as u64;
            let seen = counters.exhausted_version.get();
            if seen != mark && counters.exhausted_version.compare_exchange(seen, mark) == seen {
                env.event(EVENT_LEASE_EXHAUSTED, work.slot, work.spi, work.epoch, range.last);
            }
            work.drop(Verdict::LeaseExhausted)
        }
        Take::Contended => work.drop(Verdict::Contended),
    }
}

/// After the cipher (`status` is that of [`crate::aead::aead_seal`]): outer headers, and on its way. The programs call the two
/// parts each from a stack frame of its own.
#[inline(always)]
pub fn emit(env: &impl Env, area: &mut Area, status: i32) {
    if direct(env, area, status) {
        fill(env, area);
    }
}

#[inline(always)]
const fn outer_protocol(encap: bool) -> u8 {
    if encap {
        headers::PROTOCOL_UDP
    } else {
        headers::PROTOCOL_ESP
    }
}

/// First part of [`emit`]: next hop, room, link header. Places and lengths are in `work` then, and the outcome.
#[inline(always)]
pub fn direct(env: &impl Env, area: &mut Area, status: i32) -> bool {
    let Area { cipher, work } = area;
    if status != DONE {
        return work.drop(Verdict::SuiteUnknown);
    }
    let Some(sa) = env.outbound(work.cpu, work.index) else {
        return work.drop(Verdict::InternalError);
    };
    let encap = volatile(&sa.flags) & SA_UDP_ENCAP != 0;
    let text_len = (cipher.text_len as usize).min(TEXT_MAX);
    let destination = headers::address(&sa.outer_dst);
    let v6 = !headers::is_v4(destination);
    let outer = outer_len(encap, v6) + work.options_len as usize;
    let datagram_len = outer + ESP_LEN + iv_len(volatile(&sa.suite)) + text_len + ICV_LEN;
    work.outer_tos = match sa.dscp {
        0 => work.ip.tos,
        dscp => dscp.wrapping_sub(1) << 2 | work.ip.tos & ecn::MASK,
    };
    let route = env.route(&RouteQuery {
        source: headers::address(&sa.outer_src),
        destination,
        length: datagram_len as u16,
        tos: work.outer_tos,
        protocol: outer_protocol(encap),
        ports: if encap { sa.encap_ports } else { [0; 2] },
        own: true,
        device: 0,
    });
    if work.cut == 0
        && let Some(Route { mtu, .. }) = route
        && mtu != 0
    {
        // The kernel has learnt of a narrow path (RFC 4301 8.2): from the next packet on the SA keeps to it. This one, if it
        // may be cut, is cut by the stack.
        env.event(EVENT_PATH_MTU, work.slot, work.spi, work.epoch, mtu as u64);
        if v6 || outer_df(sa, work) != 0 {
            return work.drop(Verdict::PathTooSmall);
        }
    }
    let known = matches!(route, Some(Route { mtu: 0, .. }));
    let to_stack = matches!(
        route,
        Some(Route {
            mtu: 0,
            whole: true,
            ..
        })
    ) && work.in_pieces(env);
    let known = known && !to_stack;
    // Nobody to send it to is known yet: it is sealed, so the stack may have it, and asks for the neighbour.
    let fallback = Route {
        destination: work.port.mac,
        source: work.port.mac,
        ifindex: 0,
        vlan: work.port.vlan,
        ..Route::NONE
    };
    let route = match route {
        Some(route) if known => route,
        _ => fallback,
    };
    let ip_at = link::len(route.vlan);
    let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
    if !work.resize(env, ip_at + datagram_len)
        || !link::write(env, route.destination, route.source, route.vlan, ethertype)
    {
        return work.drop(Verdict::InternalError);
    }
    work.link_len = ip_at as u32;
    work.esp_at = (ip_at + outer) as u32;
    work.esp_len = (datagram_len - outer) as u32;
    work.target = route.ifindex;
    let action = if known { ACTION_REDIRECT } else { ACTION_PASS };
    let verdict = if to_stack {
        Verdict::PiecesToStack
    } else {
        Verdict::EspSealed
    };
    work.end(verdict, action);
    true
}

/// Second part of [`emit`]: everything behind the link header.
#[inline(always)]
pub fn fill(env: &impl Env, area: &mut Area) {
    let Area { cipher, work } = area;
    let Some(sa) = env.outbound(work.cpu, work.index) else {
        work.drop(Verdict::InternalError);
        return;
    };
    let encap = volatile(&sa.flags) & SA_UDP_ENCAP != 0;
    let source = headers::address(&sa.outer_src);
    let destination = headers::address(&sa.outer_dst);
    let v6 = !headers::is_v4(destination);
    let (ip_at, esp_at) = (work.link_len as usize, work.esp_at as usize);
    let datagram_len = esp_at - ip_at + work.esp_len as usize;
    let protocol = outer_protocol(encap);
    let df = outer_df(sa, work);
    let mut ok = if v6 {
        let ip = outer_ipv6(work, source, destination, protocol, datagram_len);
        env.write(ip_at, &ip)
    } else {
        let (source, destination) = (headers::to_v4(source), headers::to_v4(destination));
        let ip = outer_ip(work, source, destination, protocol, datagram_len, df);
        env.write(ip_at, &ip)
    };
    if work.options_len != 0 {
        ok &= transport::keep(env, work, ip_at, protocol);
    }
    if encap {
        let [s0, s1] = sa.encap_ports[0].to_be_bytes();
        let [d0, d1] = sa.encap_ports[1].to_be_bytes();
        let length = (work.esp_len as usize + UDP_LEN) as u16;
        let [l0, l1] = length.to_be_bytes();
        // RFC 3948 2.1: the IPv4 UDP checksum SHOULD be zero. Over IPv6 it must not be (RFC 8200 8.1).
        let checksum = if v6 {
            udp_checksum(env, work, cipher, source, destination, sa.encap_ports, length)
        } else {
            0
        };
        let [c0, c1] = checksum.to_be_bytes();
        ok &= env.write(esp_at - UDP_LEN, &[s0, s1, d0, d1, l0, l1, c0, c1]);
    }
    let text_len = (cipher.text_len as usize).min(TEXT_MAX);
    let iv_len = iv_len(volatile(&sa.suite));
    let text_at = esp_at + ESP_LEN + iv_len;
    let [p0, p1, p2, p3] = work.spi.to_be_bytes();
    let [q0, q1, q2, q3] = (work.seq as u32).to_be_bytes();
    ok &= env.write(esp_at, &[p0, p1, p2, p3, q0, q1, q2, q3]);
    // All of it: where the IV is short, the text overwrites the rest.
    ok &= env.write(esp_at + ESP_LEN, &cipher.iv);
    ok &= env.store(text_at, cipher.text(), text_len);
    ok &= env.write(text_at + text_len, &cipher.tag);
    if !ok {
        work.drop(Verdict::InternalError);
    } else if work.cut != 0 {
        work.slow(env, SLOW_OUTER_FRAGMENT, Verdict::OuterCut);
    }
}

/// The "don't fragment" bit of the outer header (RFC 4301 8.1).
#[inline(always)]
fn outer_df(sa: &OutboundSa, work: &Work) -> u16 {
    if work.cut != 0 {
        return 0;
    }
    match sa.df {
        DF_SET => DONT_FRAGMENT,
        DF_CLEAR => 0,
        _ => work.ip.fragment & DONT_FRAGMENT,
    }
}

/// TTL or hop limit of the outer header: in transport mode it is the packet's own.
#[inline(always)]
fn outer_ttl(work: &Work) -> u8 {
    if work.transport != 0 {
        work.ip.ttl
    } else {
        OUTER_TTL
    }
}

/// RFC 4301 5.1.2.1: DS field as configured, ECN is copied (RFC 6040 4.1); flow label 0; never fragmented on the way.
#[inline(always)]
fn outer_ipv6(
    work: &Work,
    source: Address,
    destination: Address,
    protocol: u8,
    len: usize,
) -> [u8; IPV6_LEN] {
    let [l0, l1] = ((len - IPV6_LEN) as u16).to_be_bytes();
    let (tos, ttl) = (work.outer_tos, outer_ttl(work));
    let mut ip = [0; IPV6_LEN];
    ip[..8].copy_from_slice(&[0x60 | tos >> 4, tos << 4, 0, 0, l0, l1, protocol, ttl]);
    ip[8..24].copy_from_slice(&headers::octets(source));
    ip[24..].copy_from_slice(&headers::octets(destination));
    ip
}

/// Checksum of a UDP datagram over IPv6 that carries ESP (RFC 8200 8.1); 0 goes out as its other form.
#[inline(always)]
fn udp_checksum(
    env: &impl Env,
    work: &Work,
    cipher: &Scratch,
    source: Address,
    destination: Address,
    ports: [u16; 2],
    length: u16,
) -> u16 {
    // The second half of a short one is zero.
    let iv = headers::address(&cipher.iv);
    let mut sum = checksum::words(source[0])
        + checksum::words(source[1])
        + checksum::words(destination[0])
        + checksum::words(destination[1])
        + headers::PROTOCOL_UDP as u32
        + 2 * length as u32
        + ports[0] as u32
        + ports[1] as u32
        + checksum::words((work.spi as u64) << 32 | work.seq & u32::MAX as u64)
        + checksum::words(iv[0])
        + checksum::words(iv[1]);
    let text_len = (cipher.text_len as usize).min(TEXT_MAX);
    sum += env.sum(cipher.text(), text_len) as u32;
    let tag = headers::address(&cipher.tag);
    sum += checksum::words(tag[0]) + checksum::words(tag[1]);
    match checksum::fold(sum) {
        0 => u16::MAX,
        checksum => checksum,
    }
}

/// RFC 4301 5.1.2.1: DS field and DF as configured, ECN is copied (RFC 6040 4.1), the rest is built. Options that stay behind it in transport
/// mode are in length and checksum.
#[inline(always)]
fn outer_ip(work: &Work, source: u32, destination: u32, protocol: u8, len: usize, df: u16) -> [u8; IPV4_LEN] {
    let [l0, l1] = (len as u16).to_be_bytes();
    let [i0, i1] = (work.seq as u16).to_be_bytes();
    let [f0, f1] = df.to_be_bytes();
    let [s0, s1, s2, s3] = source.to_be_bytes();
    let [d0, d1, d2, d3] = destination.to_be_bytes();
    let (tos, ttl) = (work.outer_tos, outer_ttl(work));
    let first = 0x45 + (work.options_len / 4) as u8;
    let mut ip = [
        first, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3,
    ];
    let fixed = !checksum::internet(&ip) as u32;
    let [a, b] = checksum::fold(fixed + transport::sum_of_options(work)).to_be_bytes();
    ip[10] = a;
    ip[11] = b;
    ip
}
