//! An ESP packet's way in (RFC 4303 3.4): admit, [open], accept, forward.
//!
//! Order: window check, ICV, ceiling, padding, selectors, window mark. A number above the ceiling is authenticated first and
//! then waits for a raise; a number up to the takeover floor is authenticated and counted as evidence.

use maps_schema::event::{
    EVENT_CEILING_SOFT, EVENT_EVIDENCE, EVENT_FIRST_INBOUND, SLOW_ABOVE_CEILING, SLOW_AWAITED, SLOW_HELD,
    SLOW_LONG_MAX, SLOW_MOVED,
};
use maps_schema::sad::{
    InboundSa, SA_ESN, SA_LENIENT, SA_MAY_MOVE, SA_TRANSPORT, SA_UDP_ENCAP, SELECTORS_PER_SA,
    SUITE_AES128_GCM, SUITE_LAST,
};
use maps_schema::steer::{NO_VLAN, SLOW_PATH_MAC};
use maps_schema::verdict::Verdict;

use super::header::{self, ESP_LEN, ICV_LEN, IV_MAX, block_len, iv_len};
use super::outbound::{self, LEAST_MTU, path_mtu};
use super::pad;
use super::transport;
use crate::aead::{AAD_ESN, AAD_PLAIN, NOT_AUTHENTIC, TEXT_MAX};
use crate::bytes::{Bounded, PacketRead};
use crate::checksum;
use crate::ecn;
use crate::env::{ACTION_REDIRECT, ACTION_TTL, Area, Env, Route, RouteQuery, Work};
use crate::headers::{
    self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_IPV4, PROTOCOL_IPV6, PROTOCOL_TCP, PROTOCOL_UDP, UDP_LEN,
};
use crate::limits::{self, volatile};
use crate::link;
use crate::mss;
use crate::replay::{self, IcvVerified};
use crate::selectors::{self, Flow};
use crate::steer::{self, ROLE_OLD_OWNER, ROLE_TAKER_HOLDING, ROLE_TAKER_OPEN, millis};

/// The number is above the floor: the window decides.
pub const FLOOR_ABOVE: u8 = 0;
/// Up to the floor: evidence, never accepted.
pub const FLOOR_EVIDENCE: u8 = 1;
/// Up to the floor: held until the old owner's final window is merged.
pub const FLOOR_HOLD: u8 = 2;
/// Up to the floor: the old owner serves it.
pub const FLOOR_OLD_OWNER: u8 = 3;
/// Up to what a strict policy takes for seen, but above the last reported edge, and the policy is lenient: counted.
pub const FLOOR_LENIENT: u8 = 4;

/// Packets that make evidence for a rekey.
const EVIDENCE_PACKETS: u32 = 3;
/// Milliseconds that they span at least.
const EVIDENCE_SPAN_MS: u64 = 200;
/// Set in `evidence_count` once the event was sent.
const EVIDENCE_REPORTED: u32 = 1 << 31;

/// Looks up the SA, applies limits and window, and lays the packet out for the cipher. `true`: open it.
#[inline(always)]
pub fn admit(env: &impl Env, area: &mut Area) -> bool {
    let work = &mut area.work;
    let Some(sa) = env.inbound(work.cpu, work.index) else {
        return work.drop(Verdict::UnknownSpi);
    };
    if volatile(&sa.spi) != work.spi || work.spi == 0 {
        return not_there(env, work, volatile(&sa.awaited));
    }
    work.connection = sa.connection as u32;
    let suite = volatile(&sa.suite);
    if !(SUITE_AES128_GCM..=SUITE_LAST).contains(&suite) {
        return work.drop(Verdict::SuiteUnknown);
    }
    let iv_len = iv_len(suite);
    let Some(text_len) = (work.esp_len as usize).checked_sub(ESP_LEN + iv_len + ICV_LEN) else {
        return work.drop(Verdict::EspTruncated);
    };
    let block = block_len(suite);
    if text_len < block {
        return work.drop(Verdict::EspTruncated);
    }
    // An AEAD takes any length; what is in it says the padding.
    if iv_len == IV_MAX && text_len & (block - 1) != 0 {
        return refuse(env, work, Verdict::EspRagged);
    }
    if text_len > TEXT_MAX {
        return refuse(env, work, Verdict::TooBig);
    }
    let flags = volatile(&sa.flags);
    work.transport = (flags & SA_TRANSPORT != 0) as u8;
    let Ok((limits, _)) = limits::read(&sa.limits) else {
        return work.drop(Verdict::Contended);
    };
    let Ok(range) = limits::inbound_range(&limits, flags, work.alone != 0, work.epoch) else {
        if work.role == ROLE_OLD_OWNER {
            // The new owner has published limits of its own epoch: everything is its business by now.
            return steer::pass_on(env, work, work.other);
        }
        return work.drop(Verdict::EpochBehind);
    };
    work.may_move = (flags & SA_MAY_MOVE != 0) as u8;
    work.ceiling = range.ceiling;
    work.soft = range.soft;
    // Not while a planned takeover is under way: there the old owner serves what is up to its ceiling, and tells what it has seen.
    let lenient = flags & SA_LENIENT != 0 && work.role != ROLE_TAKER_OPEN && work.role != ROLE_TAKER_HOLDING;
    let floor = if lenient {
        range.floor.min(volatile(&sa.reported_edge))
    } else {
        range.floor
    };
    let verdict = env.window(work.cpu, work.index, |window| {
        replay::prepare(window, work.spi, work.epoch, floor);
        work.seq = if flags & SA_ESN != 0 {
            replay::infer_under(window.edge, work.seq_low, range.ceiling)
        } else {
            work.seq_low as u64
        };
        work.floor_rule = FLOOR_ABOVE;
        if work.role == ROLE_OLD_OWNER && work.seq > range.ceiling {
            work.floor_rule = FLOOR_OLD_OWNER;
            return None;
        }
        if work.seq <= window.floor && work.seq != 0 {
            if work.role == ROLE_TAKER_OPEN {
                work.floor_rule = FLOOR_OLD_OWNER;
                return None;
            }
            if work.role == ROLE_TAKER_HOLDING {
                work.floor_rule = FLOOR_HOLD;
                return None;
            }
            if window.above_floor == 0 {
                work.floor_rule = FLOOR_EVIDENCE;
                return None;
            }
        }
        // A window without a floor is merged with the old owner's, and exact; or nothing was ever reported.
        if lenient && work.seq <= range.floor && (window.floor != 0 || floor == 0) {
            work.floor_rule = FLOOR_LENIENT;
        }
        replay::check(window, work.seq).err()
    });
    match verdict {
        None => return work.drop(Verdict::InternalError),
        Some(Some(verdict)) => return work.drop(verdict),
        Some(None) => {}
    }
    if work.floor_rule == FLOOR_OLD_OWNER {
        if work.role == ROLE_OLD_OWNER {
            return steer::pass_on(env, work, work.other);
        }
        if !env.is_member_mac(work.source_mac) {
            return steer::second_hop(env, work, work.other);
        }
        // The old owner sent it here, since it has closed already, or another member, which knows the new owner already.
        work.floor_rule = FLOOR_HOLD;
    }
    lay_out(env, area, iv_len, text_len, flags & SA_ESN != 0)
}

/// No SA with this SPI. The peer may have made one whose answer is under way to us.
#[inline(always)]
fn not_there(env: &impl Env, work: &mut Work, awaited: u32) -> bool {
    if awaited != work.spi || work.spi == 0 {
        return work.drop(Verdict::UnknownSpi);
    }
    if work.role == ROLE_OLD_OWNER {
        // The new owner goes on with the exchange.
        return steer::pass_on(env, work, work.other);
    }
    work.seq = work.seq_low as u64;
    work.slow(env, SLOW_AWAITED, Verdict::HeldForAnswer)
}

/// Copies IV, ciphertext and ICV to the cipher's area and sets the AAD.
#[inline(always)]
fn lay_out(env: &impl Env, area: &mut Area, iv_len: usize, text_len: usize, esn: bool) -> bool {
    let Area { cipher, work } = area;
    let at = work.esp_at as usize;
    // A short IV is followed by text and ICV: so many octets are there in any case.
    let Some(iv) = work.front().read::<IV_MAX>(at + ESP_LEN) else {
        return work.drop(Verdict::EspTruncated);
    };
    cipher.iv = iv;
    cipher.aad = header::aad(work.spi, work.seq, esn);
    cipher.aad_len = if esn { AAD_ESN } else { AAD_PLAIN };
    cipher.text_len = text_len as u32;
    let text_at = at + ESP_LEN + iv_len;
    if !env.load(text_at, cipher.text_mut(), text_len) || !env.load_16(text_at + text_len, &mut cipher.tag) {
        return work.drop(Verdict::InternalError);
    }
    true
}

/// After the cipher (`status` is that of [`crate::aead::aead_open`]): ceiling, padding, selectors, mark. `true`: the inner
/// packet, its header in `work.ip`, is to be forwarded. The programs call the three parts each from a stack frame of its own.
#[inline(always)]
pub fn accept(env: &impl Env, area: &mut Area, status: i32) -> bool {
    let accepted = authentic(env, &mut area.work, status)
        && if area.work.transport != 0 {
            transport::inspect(env, area)
        } else {
            inspect(env, area)
        }
        && mark(env, &mut area.work, status);
    if accepted && area.work.mss != 0 {
        mss::apply(area);
    }
    accepted
}

/// Drops what is no ESP packet of the SA. Where it is longer than the MTU of the device, that is because several have been merged into
/// it (GRO, TSO), which is said instead. Only here: a driver may well take a little more than the MTU, and what is authentic is welcome.
#[inline(always)]
fn refuse(env: &impl Env, work: &mut Work, verdict: Verdict) -> bool {
    // The agent's slow path hands over whole what came in fragments.
    if work.ip.total_len > LEAST_MTU
        && work.source_mac != SLOW_PATH_MAC
        && env.exceeds_device(work.ip.total_len)
    {
        return outbound::merged(env, work);
    }
    work.drop(verdict)
}

/// Whether the packet is authentic, and its number one that this member may deliver now.
#[inline(always)]
pub fn authentic(env: &impl Env, work: &mut Work, status: i32) -> bool {
    if IcvVerified::from_status(status).is_none() {
        if status == NOT_AUTHENTIC {
            return refuse(env, work, Verdict::IcvBad);
        }
        return work.drop(Verdict::SuiteUnknown);
    }
    if work.floor_rule == FLOOR_HOLD {
        return work.slow(env, SLOW_HELD, Verdict::HeldForWindow);
    }
    if work.floor_rule == FLOOR_EVIDENCE {
        let Some(sa) = env.inbound(work.cpu, work.index) else {
            return work.drop(Verdict::InternalError);
        };
        evidence(env, work, volatile(&sa.reported_edge));
        return work.drop(Verdict::BelowTakeoverFloor);
    }
    if work.seq > work.ceiling {
        if work.frame_len as usize > SLOW_LONG_MAX {
            // It cannot wait; when its sender repeats it, or sends on, the ceiling is there.
            env.event(EVENT_CEILING_SOFT, work.slot, work.spi, work.epoch, work.seq);
            return work.drop(Verdict::SlowTooLong);
        }
        return work.slow(env, SLOW_ABOVE_CEILING, Verdict::AboveCeiling);
    }
    if work.may_move != 0 {
        work.moved = comes_from_elsewhere(env, work) as u8;
    }
    true
}

/// Whether an authentic packet's source (the outer header is still at hand) is not where the SA's peer was. Only SAs in UDP may move.
#[inline(always)]
fn comes_from_elsewhere(env: &impl Env, work: &Work) -> bool {
    let (Some(back), PROTOCOL_UDP) = (env.outbound(work.cpu, work.index), work.ip.protocol) else {
        return false;
    };
    let Some(port) = work
        .front()
        .read::<2>((work.esp_at as usize).wrapping_sub(UDP_LEN))
    else {
        return false;
    };
    volatile(&back.encap_ports)[1] != u16::from_be_bytes(port)
        || headers::address(&volatile(&back.outer_dst)) != work.ip.source
}

/// What is inside: padding, headers, selectors.
#[inline(always)]
pub fn inspect(env: &impl Env, area: &mut Area) -> bool {
    let Area { cipher, work } = area;
    let (Some(sa), Some(local)) = (env.inbound(work.cpu, work.index), env.local()) else {
        return work.drop(Verdict::InternalError);
    };
    let Some((payload, next_header)) = pad::strip(cipher.text(), cipher.text_len as usize) else {
        return work.drop(Verdict::PaddingBad);
    };
    let text = Bounded {
        octets: cipher.text(),
        len: payload,
    };
    let found = match next_header {
        PROTOCOL_IPV4 => headers::ipv4(&text, 0, payload),
        PROTOCOL_IPV6 => headers::ipv6(&text, 0, payload),
        // A dummy packet of traffic flow confidentiality (RFC 4303 2.6).
        headers::PROTOCOL_NONE => return work.drop(Verdict::InnerUnsupported),
        _ => return work.drop(Verdict::PaddingBad),
    };
    let Some(ip) = found else {
        return work.drop(Verdict::InnerMalformed);
    };
    work.outer_tos = work.ip.tos;
    work.ip = ip;
    if ip.version == 6 && headers::skip_extensions(&text, 0, &mut work.ip).is_none() {
        return work.drop(Verdict::InnerExtension);
    }
    work.flow = flow(&text, &work.ip, 0);
    if !selected(sa, &work.flow) {
        return work.drop(Verdict::SelectorMismatch);
    }
    if ecn::merged(work.ip.tos, work.outer_tos).is_none() {
        return work.drop(Verdict::EcnDropped);
    }
    if work.ip.protocol == PROTOCOL_TCP
        && let Some(back) = env.outbound(work.cpu, work.index)
    {
        // What a SYN from the peer announces is the size of the segments that go back.
        let v6 = !headers::is_v4(headers::address(&back.outer_dst));
        let outer = header::outer_len(volatile(&back.flags) & SA_UDP_ENCAP != 0, v6);
        let most = header::inner_max(back.suite, path_mtu(back, local), outer);
        work.mss = mss::allowed(&text, &work.ip, back.mss_clamp, most);
    }
    true
}

/// What selectors look at in an inner packet at `offset`.
#[inline(always)]
pub(crate) fn flow(packet: &impl PacketRead, ip: &headers::Ip, offset: usize) -> Flow {
    let mut flow = Flow {
        source: ip.source,
        destination: ip.destination,
        protocol: ip.protocol,
        ..Flow::default()
    };
    if !ip.is_later_fragment()
        && let Some((source, destination)) =
            headers::ports(packet, ip.protocol, offset + ip.header_len as usize)
    {
        flow.ports = [source, destination];
        flow.has_ports = 1;
    }
    flow
}

#[inline(always)]
pub(crate) fn selected(sa: &InboundSa, flow: &Flow) -> bool {
    let mut i = 0;
    while i < SELECTORS_PER_SA {
        if i as u32 >= sa.selector_count {
            return false;
        }
        if selectors::pair_matches(&sa.selectors[i], flow) {
            return true;
        }
        i += 1;
    }
    false
}

/// Marks the number in the window: from here on it counts as seen.
#[inline(always)]
pub fn mark(env: &impl Env, work: &mut Work, status: i32) -> bool {
    let (Some(proof), Some(sa)) = (
        IcvVerified::from_status(status),
        env.inbound(work.cpu, work.index),
    ) else {
        return work.drop(Verdict::InternalError);
    };
    let (life_packets, life_bytes) = (sa.life_packets, sa.life_bytes);
    let marked = env.window(work.cpu, work.index, |window| {
        // The same CPU checked before the cipher ran; nothing can have come between, and the proof costs little.
        let checked = replay::check(window, work.seq)?;
        let bytes = window.bytes.wrapping_add(work.ip.total_len as u64);
        // RFC 4301 4.4.2.1: what the limit does not hold is not delivered.
        if (life_packets != 0 && window.packets >= life_packets) || (life_bytes != 0 && bytes > life_bytes) {
            return Err(Verdict::LifetimeExpired);
        }
        let before = replay::mark(window, checked, proof);
        let first = window.above_floor == 0;
        // What is older than the newest may come from where the peer was before.
        let tell = work.moved != 0 && work.seq > before && window.last_ms != millis(work.now_ns);
        window.above_floor = window.above_floor.wrapping_add(1);
        window.packets = window.packets.wrapping_add(1);
        window.bytes = bytes;
        window.last_ms = millis(work.now_ns);
        Ok((before, first, tell))
    });
    let (before, first, tell) = match marked {
        None => return work.drop(Verdict::InternalError),
        Some(Err(verdict)) => return work.drop(verdict),
        Some(Ok(marked)) => marked,
    };
    if first {
        env.event(EVENT_FIRST_INBOUND, work.slot, work.spi, work.epoch, work.seq);
    }
    if tell {
        // One that finds no room is followed by others.
        let _ = env.slow(SLOW_MOVED, work.slot, work.spi, work.seq);
    }
    if before <= work.soft && work.seq > work.soft {
        env.event(EVENT_CEILING_SOFT, work.slot, work.spi, work.epoch, work.seq);
    }
    true
}

/// Authentic packets whose numbers rise between the last reported edge and the floor, over some time, with nothing
/// authentic above: the peer lives there and cannot get above by itself. Captures sent again do not rise that far.
#[inline(always)]
fn evidence(env: &impl Env, work: &Work, reported_edge: u64) {
    let now_ms = millis(work.now_ns);
    let complete = env.window(work.cpu, work.index, |window| {
        let count = window.evidence_count;
        if work.seq <= reported_edge || work.seq <= window.evidence_seq || count & EVIDENCE_REPORTED != 0 {
            return false;
        }
        window.evidence_seq = work.seq;
        if count == 0 {
            window.evidence_first_ms = now_ms;
        }
        let count = if count < EVIDENCE_PACKETS {
            count + 1
        } else {
            count
        };
        let complete =
            count >= EVIDENCE_PACKETS && now_ms.saturating_sub(window.evidence_first_ms) >= EVIDENCE_SPAN_MS;
        window.evidence_count = if complete {
            count | EVIDENCE_REPORTED
        } else {
            count
        };
        complete
    });
    if complete == Some(true) {
        env.event(EVENT_EVIDENCE, work.slot, work.spi, work.epoch, work.seq);
    }
}

/// Puts the inner packet in place of the outer one and sends it on: by the routing table, or through the stack.
#[inline(always)]
pub fn forward(env: &impl Env, area: &mut Area) {
    let Area { cipher, work } = area;
    let ip = work.ip;
    let inner_len = (ip.total_len as usize).min(TEXT_MAX);
    let route = env.route(&RouteQuery {
        source: ip.source,
        destination: ip.destination,
        length: inner_len as u16,
        tos: ip.tos,
        protocol: ip.protocol,
        ports: [0; 2],
        own: false,
        device: work.port.device,
    });
    // Taken apart at once: a register that a missing route leaves undefined would be refused by the verifier.
    let known = matches!(route, Some(Route { mtu: 0, .. }));
    let route = route.unwrap_or(Route::NONE);
    // The kernel would drop it, and tell nobody.
    let to_stack = known && route.whole && work.in_pieces(env);
    let known = known && !to_stack;
    let link_len = if known {
        link::len(route.vlan)
    } else {
        work.link_len as usize
    };
    if known {
        if ip.ttl <= 1 {
            work.end(Verdict::TtlExceeded, ACTION_TTL);
            return;
        }
        decrement_ttl(cipher.text_mut(), &ip);
    }
    if let Some(field) = ecn::merged(ip.tos, work.outer_tos)
        && field != ip.tos & ecn::MASK
    {
        ecn::write(cipher.text_mut(), &ip, field);
    }
    let ethertype = if ip.version == 6 {
        ETHERTYPE_IPV6
    } else {
        ETHERTYPE_IPV4
    };
    if !work.resize(env, link_len + inner_len) || !env.store(link_len, cipher.text(), inner_len) {
        work.drop(Verdict::InternalError);
        return;
    }
    if known {
        if !link::write(env, route.destination, route.source, route.vlan, ethertype) {
            work.drop(Verdict::InternalError);
            return;
        }
        work.target = route.ifindex;
        work.end(opened(work, Verdict::EspOpened), ACTION_REDIRECT);
        return;
    }
    // The link header as it came, so that the stack sees a frame for itself.
    let tagged = link_len > link::len(NO_VLAN);
    let ok = if let Some(start) = work.front().read::<14>(0) {
        env.write(0, &start)
    } else {
        false
    };
    let ok = ok
        && match work.front().read::<4>(12) {
            Some(tag) if tagged => env.write(12, &tag) && env.write(16, &ethertype.to_be_bytes()),
            Some(_) => env.write(12, &ethertype.to_be_bytes()),
            None => false,
        };
    if !ok {
        work.drop(Verdict::InternalError);
        return;
    }
    let verdict = if to_stack {
        Verdict::PiecesToStack
    } else {
        Verdict::EspOpenedLocal
    };
    work.pass(opened(work, verdict));
}

/// How a packet that was opened is counted.
#[inline(always)]
pub(crate) fn opened(work: &Work, otherwise: Verdict) -> Verdict {
    if work.floor_rule == FLOOR_LENIENT {
        Verdict::OpenedLenient
    } else {
        otherwise
    }
}

/// Decrements the TTL or hop limit of the datagram in `text` whose header was parsed to `ip`, with IPv4's checksum.
#[inline(always)]
pub(crate) fn decrement_ttl(text: &mut [u8; TEXT_MAX], ip: &headers::Ip) {
    if ip.version == 6 {
        text[7] = ip.ttl.wrapping_sub(1);
        return;
    }
    let old = u16::from_be_bytes([ip.ttl, ip.protocol]);
    let new = old.wrapping_sub(0x0100);
    text[8] = (new >> 8) as u8;
    let [a, b] = checksum::updated(ip.checksum, old, new).to_be_bytes();
    text[10] = a;
    text[11] = b;
}
