//! Who serves a packet: this member, another one, nobody; and on the outside interface, what the packet is.

use maps_schema::sad::{slot_place, spi_segment, spi_slot};
use maps_schema::segment::{LEGACY_GIVEN, LEGACY_HOLDING, LEGACY_OPEN, OwnerWord, SEGMENT_ALONE, SideWord};
use maps_schema::steer::{Local, MAX_PORTS, PORT_NO_REDIRECT, PORT_TAKES_PIECES, Port, SIDE_OUTSIDE};
use maps_schema::verdict::Verdict;

use crate::arp;
use crate::bytes::PacketRead;
use crate::clear;
use crate::env::{
    ACTION_CLEAR, ACTION_CPU, ACTION_NEIGHBOUR, ACTION_PASS, ACTION_REDIRECT, ACTION_TRANSMIT, Env, Work,
    must_hop,
};
use crate::esp::header::ESP_LEN;
use crate::headers::{
    self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ip, Link, PROTOCOL_ESP, PROTOCOL_FRAGMENT,
    PROTOCOL_UDP, UDP_LEN,
};
use crate::link;
use crate::nd;

/// No planned handover concerns this member.
pub const ROLE_NONE: u8 = 0;
/// This member is the owner; the old owner still serves numbers up to its ceiling.
pub const ROLE_TAKER_OPEN: u8 = 1;
/// This member is the owner; the old owner has closed, its final window is awaited.
pub const ROLE_TAKER_HOLDING: u8 = 2;
/// This member is the old owner: it serves inbound numbers up to its ceiling.
pub const ROLE_OLD_OWNER: u8 = 3;

/// Who serves a segment's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serve {
    /// This member.
    Here {
        /// Epoch in which it serves.
        epoch: u16,
        /// Its in-sync set is itself alone.
        alone: bool,
        /// `ROLE_*`.
        role: u8,
        /// The other member of a planned handover, 0 for none.
        other: u8,
    },
    /// Another member.
    Member(u8),
    /// The member to which this one gave the segment in a planned handover.
    Given(u8),
    /// Nobody that is known: no owner, or the word expired and there is no successor.
    Nobody,
}

/// Decides who serves. Another member's word is believed without looking at its validity: only that member's own clock
/// and confirmations count there.
#[inline(always)]
pub const fn decide(owner: u64, side: u64, me: u8, now_ms: u64) -> Serve {
    let word = OwnerWord::unpack(owner);
    let side = SideWord::unpack(side);
    if word.owner == me && me != 0 {
        if now_ms <= word.valid_until_ms {
            let role = if side.legacy_owner == 0 || side.legacy_owner == me {
                ROLE_NONE
            } else if side.legacy_phase == LEGACY_OPEN {
                ROLE_TAKER_OPEN
            } else if side.legacy_phase == LEGACY_HOLDING {
                ROLE_TAKER_HOLDING
            } else {
                ROLE_NONE
            };
            let alone = side.flags & SEGMENT_ALONE != 0;
            return Serve::Here {
                epoch: word.epoch,
                alone,
                role,
                other: side.legacy_owner,
            };
        }
        return if side.successor != 0 && side.successor != me {
            Serve::Member(side.successor)
        } else {
            Serve::Nobody
        };
    }
    if word.owner == 0 {
        return Serve::Nobody;
    }
    let gave = side.legacy_owner == me && me != 0;
    if gave && side.legacy_phase == LEGACY_GIVEN {
        return Serve::Given(word.owner);
    }
    if gave && side.legacy_phase == LEGACY_OPEN {
        // The old owner's rights end with its ceiling, not with a clock: the taker accepts nothing up to there
        // before it has the final window.
        return Serve::Here {
            epoch: side.legacy_epoch,
            alone: false,
            role: ROLE_OLD_OWNER,
            other: word.owner,
        };
    }
    Serve::Member(word.owner)
}

/// Segment of a first IKE message: SipHash-2-4 (Aumasson, Bernstein) of the initiator's SPI under the cluster's key.
/// Address and port have no part in it, so a NAT that rebinds changes nothing.
#[inline(always)]
pub const fn first_message_segment(key: [u64; 2], spi_i: u64) -> u8 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The message is the SPI's eight octets as they are on the wire.
    let message = spi_i.swap_bytes();
    v[3] ^= message;
    v = sip_round(sip_round(v));
    v[0] ^= message;
    // The last block holds nothing but the length, 8, in its top octet.
    v[3] ^= 8 << 56;
    v = sip_round(sip_round(v));
    v[0] ^= 8 << 56;
    v[2] ^= 0xff;
    v = sip_round(sip_round(sip_round(sip_round(v))));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u8
}

#[inline(always)]
const fn sip_round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// Milliseconds as owner words count them.
#[inline(always)]
pub const fn millis(now_ns: u64) -> u64 {
    now_ns / 1_000_000
}

/// Sends the frame to `member` by rewriting both MAC addresses (a bridge must not learn the peer's address on this
/// member's port), through the port where it arrived or, where the member is not reached there, another one of that side. A
/// frame that came from a member is never forwarded again, unless by a member that gave the segment away. Always ends the packet.
#[inline(always)]
pub fn second_hop(env: &impl Env, work: &mut Work, member: u8) -> bool {
    hop(env, work, member, false)
}

/// As [`second_hop`], by a member that gives the segment to `member` in a planned handover, or has given it: also for what came
/// from a member, which sent it before it knew. No frame goes in a circle: the taker's words are of the handover's epoch before this
/// member's are, it keeps or serves what a member sent, and whoever it gives the segment to is of a later epoch again.
#[inline(always)]
pub fn pass_on(env: &impl Env, work: &mut Work, member: u8) -> bool {
    hop(env, work, member, true)
}

#[inline(always)]
fn hop(env: &impl Env, work: &mut Work, member: u8, given: bool) -> bool {
    if !given && env.is_member_mac(work.source_mac) {
        return work.drop(Verdict::NotOwner);
    }
    let Some(next) = env.member(member) else {
        return work.drop(Verdict::SecondHopUnknown);
    };
    let index = work.port.index as usize & (MAX_PORTS - 1);
    let via = next.via[index];
    if via as usize >= MAX_PORTS {
        return work.drop(Verdict::SecondHopUnknown);
    }
    let to = next.macs[via as usize & (MAX_PORTS - 1)];
    // A member that was never heard of has a table of zeros.
    if to == [0; 6] {
        return work.drop(Verdict::SecondHopUnknown);
    }
    if via == work.port.index {
        if !link::write_addresses(env, to, work.port.mac) {
            return work.drop(Verdict::InternalError);
        }
        return work.end(Verdict::SecondHop, ACTION_TRANSMIT);
    }
    let Some(exit) = env.port(via) else {
        return work.drop(Verdict::SecondHopUnknown);
    };
    let flags = exit.flags;
    if flags & PORT_NO_REDIRECT != 0 || (flags & PORT_TAKES_PIECES == 0 && work.in_pieces(env)) {
        return work.drop(Verdict::ExitRefuses);
    }
    if !env.cut_head(work.link_len as i32 - link::len(exit.vlan) as i32)
        || !link::write(env, to, exit.mac, exit.vlan, work.ethertype)
    {
        return work.drop(Verdict::InternalError);
    }
    work.target = exit.ifindex;
    work.end(Verdict::SecondHop, ACTION_REDIRECT)
}

/// Ends the packet unless this member serves the segment; then `true`, with epoch and role in `work`.
#[inline(always)]
pub fn serve_here(env: &impl Env, work: &mut Work, local: &Local, segment: u8) -> bool {
    let Some((owner, side)) = env.segment(segment) else {
        return work.drop(Verdict::InternalError);
    };
    let (member, given) = match decide(owner, side, local.member as u8, millis(work.now_ns)) {
        Serve::Here {
            epoch,
            alone,
            role,
            other,
        } => {
            work.epoch = epoch;
            work.alone = alone as u8;
            work.role = role;
            work.other = other;
            return true;
        }
        Serve::Member(member) => (member, false),
        Serve::Given(member) => (member, true),
        Serve::Nobody => return work.drop(Verdict::OwnerExpired),
    };
    hop(env, work, member, given)
}

/// What the first stage found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    /// The outcome is in `work`.
    End = 0,
    /// ESP: `spi`, `slot`, `esp_at` and `esp_len` are in `work`.
    Esp = 1,
    /// IKE, or a fragment, for the segment in `slot`: passed if this member serves it.
    Pass = 2,
}

/// Finds the link layer and the port of a new frame; `None` where it is not of a port on `side`, and passed. A frame to a
/// virtual MAC address of this member's is one to the port's own from here on: the stack takes no other.
#[inline(always)]
pub fn arrive(env: &impl Env, work: &mut Work, local: &Local, side: u8) -> Option<Link> {
    let Some(mut link) = headers::link(&work.front()) else {
        work.pass(Verdict::NotForCluster);
        return None;
    };
    if link.is_stacked() {
        work.pass(Verdict::StackedVlan);
        return None;
    }
    let port = match env.arrived_at(link.vlan) {
        Some(port) if port.side == side => port,
        _ => {
            work.pass(Verdict::NotForCluster);
            return None;
        }
    };
    work.port = *port;
    work.link_len = link.len as u32;
    work.source_mac = link.source;
    work.ethertype = link.ethertype;
    if is_virtual(local, link.destination) {
        let [.., segment] = link.destination;
        if !owned(env, local, segment) {
            work.pass(Verdict::NotForCluster);
            return None;
        }
        link.destination = work.port.mac;
        work.head[..6].copy_from_slice(&link.destination);
        if !env.write(0, &link.destination) {
            work.drop(Verdict::InternalError);
            return None;
        }
    }
    Some(link)
}

#[inline(always)]
fn is_virtual(local: &Local, mac: [u8; 6]) -> bool {
    let ([a, b, c, d, e, _], [p, q, r, s, t, _]) = (mac, local.virtual_mac);
    // The first octet of a virtual address is never zero: it is locally administered.
    p != 0 && (a ^ p) | (b ^ q) | (c ^ r) | (d ^ s) | (e ^ t) == 0
}

/// Whether a frame to a segment's virtual MAC address is this member's business: it owns the segment, or gave it away in a
/// planned handover that is not over, so that the switch may not know yet. What a switch floods, or sends to a member that
/// lost the segment otherwise, is not: another member has the frame too, and would carry it twice.
#[inline(always)]
fn owned(env: &impl Env, local: &Local, segment: u8) -> bool {
    let Some((owner, side)) = env.segment(segment) else {
        return false;
    };
    let me = local.member as u8;
    let side = SideWord::unpack(side);
    let gives = side.legacy_owner == me && side.legacy_phase != LEGACY_GIVEN;
    me != 0 && (OwnerWord::unpack(owner).owner == me || gives)
}

/// The IP header behind the link header.
#[inline(always)]
pub fn ip(work: &Work, link: &Link) -> Option<Ip> {
    let available = (work.frame_len as usize).saturating_sub(link.len);
    match link.ethertype {
        ETHERTYPE_IPV4 => headers::ipv4(&work.front(), link.len, available),
        ETHERTYPE_IPV6 => headers::ipv6(&work.front(), link.len, available),
        _ => None,
    }
}

/// Whether a frame is for this port: by its own address, or to many.
#[inline(always)]
pub fn reaches(link: &Link, port: &Port) -> bool {
    link.destination[0] & 1 != 0 || link.destination == port.mac
}

/// Whether this member answers for a cluster address: it serves the address's segment.
#[inline(always)]
pub(crate) fn answers(env: &impl Env, work: &Work, local: &Local, segment: u8) -> Option<bool> {
    let (owner, side) = env.segment(segment)?;
    Some(matches!(
        decide(owner, side, local.member as u8, millis(work.now_ns)),
        Serve::Here { role, .. } if role != ROLE_OLD_OWNER
    ))
}

/// Answers an ARP request for a cluster address of this port while this member serves the address's segment.
#[inline(always)]
pub fn answer_arp(env: &impl Env, work: &mut Work, local: &Local) -> bool {
    let at = work.link_len as usize;
    let Some(request) = arp::request(&work.front(), at) else {
        return work.pass(Verdict::NotForCluster);
    };
    let Some(address) = env.address(headers::mapped(request.target)) else {
        return work.pass(Verdict::NotForCluster);
    };
    if address.side != work.port.side || address.ports >> (work.port.index as u32 & 15) & 1 == 0 {
        return work.pass(Verdict::NotForCluster);
    }
    match answers(env, work, local, address.segment) {
        Some(true) => {}
        Some(false) => return work.drop(Verdict::ArpNotOwner),
        None => return work.drop(Verdict::InternalError),
    }
    let mac = local.mac_of(address.segment, &work.port);
    if !link::write_addresses(env, request.sender_mac, mac) || !env.write(at, &arp::reply(&request, mac)) {
        return work.drop(Verdict::InternalError);
    }
    work.end(Verdict::ArpAnswered, ACTION_TRANSMIT)
}

/// First stage on the outside interface: what is this frame?
#[inline(always)]
pub fn classify(env: &impl Env, work: &mut Work, local: &Local) -> Found {
    let Some(link) = arrive(env, work, local, SIDE_OUTSIDE) else {
        return Found::End;
    };
    if link.ethertype == ETHERTYPE_ARP {
        answer_arp(env, work, local);
        return Found::End;
    }
    let Some(ip) = ip(work, &link) else {
        // The stack counts malformed datagrams, and drops them.
        work.pass(Verdict::NotForCluster);
        return Found::End;
    };
    work.ip = ip;
    if ip.version == 6 && nd::is_solicitation(work) && reaches(&link, &work.port) {
        work.end(Verdict::InternalError, ACTION_NEIGHBOUR);
        return Found::End;
    }
    // A frame that a bridge floods to every port belongs to the host whose address it bears.
    if !reaches(&link, &work.port) {
        work.pass(Verdict::NotForCluster);
        return Found::End;
    }
    let address = match env.address(headers::octets(ip.destination)) {
        Some(address) if address.side == SIDE_OUTSIDE && link.destination == work.port.mac => address,
        _ => {
            clear::unless_protected(work, Verdict::NotForCluster);
            return Found::End;
        }
    };
    if ip.version == 6 && headers::is_extension(ip.protocol) {
        // The stack of the address's owner looks behind them, puts fragments together, and the agent gets what is there.
        work.slot = address.segment as u32;
        work.verdict = if ip.protocol == PROTOCOL_FRAGMENT {
            Verdict::OuterFragment
        } else {
            Verdict::OuterExtension
        } as u32;
        return Found::Pass;
    }
    if ip.is_fragment() {
        // The pieces of one datagram meet at the owner of the address's segment.
        work.slot = address.segment as u32;
        work.verdict = Verdict::OuterFragment as u32;
        return Found::Pass;
    }
    let at = link.len + ip.header_len as usize;
    let len = (ip.total_len - ip.header_len) as usize;
    if ip.protocol == PROTOCOL_ESP {
        return esp(work, local, at, len);
    }
    if ip.protocol == PROTOCOL_UDP {
        return udp(work, local, at, len);
    }
    clear::unless_protected(work, Verdict::LocalTraffic);
    Found::End
}

#[inline(always)]
fn udp(work: &mut Work, local: &Local, at: usize, available: usize) -> Found {
    let front = work.front();
    // What an Ethernet frame is filled up with is not the datagram's.
    let (true, Some(port), Some(length)) = (available >= UDP_LEN, front.u16(at + 2), front.u16(at + 4))
    else {
        work.drop(Verdict::Malformed);
        return Found::End;
    };
    let nat_t = port == local.nat_t_port;
    if !nat_t && port != local.ike_port {
        clear::unless_protected(work, Verdict::LocalTraffic);
        return Found::End;
    }
    let length = length as usize;
    if length < UDP_LEN || length > available {
        work.drop(Verdict::Malformed);
        return Found::End;
    }
    let (at, len) = (at + UDP_LEN, length - UDP_LEN);
    if !nat_t {
        return ike(work, local, at, len);
    }
    if len == 1 {
        // RFC 3948 2.3: one octet 0xff; another one is nothing that is known.
        let keepalive = front.u8(at) == Some(0xff);
        work.drop(if keepalive {
            Verdict::NatKeepalive
        } else {
            Verdict::Malformed
        });
        return Found::End;
    }
    // RFC 3948 2.2: four zero octets where an SPI would be say IKE.
    match front.u32(at) {
        Some(0) if len >= 4 => ike(work, local, at + 4, len - 4),
        Some(_) if len >= 4 => esp(work, local, at, len),
        _ => {
            work.drop(Verdict::Malformed);
            Found::End
        }
    }
}

/// IKE goes to the member that serves the segment in our SPI (RFC 7296 3.1: the Initiator flag says which one is ours),
/// a first message, which has no SPI of ours yet, to that of a keyed hash of the initiator's.
#[inline(always)]
fn ike(work: &mut Work, local: &Local, at: usize, len: usize) -> Found {
    const INITIATOR: u8 = 0x08;
    /// Octets of an IKE header.
    const HEADER: usize = 28;
    let front = work.front();
    let (true, Some(spi_i), Some(spi_r), Some(flags)) =
        (len >= HEADER, front.u64(at), front.u64(at + 8), front.u8(at + 19))
    else {
        work.drop(Verdict::Malformed);
        return Found::End;
    };
    let ours = if flags & INITIATOR != 0 { spi_r } else { spi_i };
    let segment = if ours == 0 {
        first_message_segment(local.steer_key, spi_i)
    } else {
        (ours >> 56) as u8
    };
    work.slot = segment as u32;
    work.verdict = Verdict::IkeToAgent as u32;
    Found::Pass
}

#[inline(always)]
fn esp(work: &mut Work, local: &Local, at: usize, len: usize) -> Found {
    let front = work.front();
    let (true, Some(spi), Some(seq)) = (len >= ESP_LEN, front.u32(at), front.u32(at + 4)) else {
        work.drop(Verdict::EspTruncated);
        return Found::End;
    };
    work.spi = spi;
    work.seq_low = seq;
    work.esp_at = at as u32;
    work.esp_len = len as u32;
    work.slot = spi_slot(spi);
    if work.slot >= local.slots {
        work.drop(Verdict::UnknownSpi);
        return Found::End;
    }
    let (cpu, index) = slot_place(work.slot, local.cpus);
    work.cpu = cpu;
    work.index = index;
    Found::Esp
}

/// On the outside interface, up to the SA's CPU: `true` where ESP is to be opened right here. `ACTION_NEIGHBOUR` and
/// `ACTION_CLEAR` ask for one more stage.
///
/// `may_move` is false in the cpumap program: there the packet has arrived.
#[inline(always)]
pub fn steer(env: &impl Env, work: &mut Work, may_move: bool) -> bool {
    let Some(local) = env.local() else {
        return work.pass(Verdict::NotForCluster);
    };
    match classify(env, work, local) {
        Found::End => false,
        Found::Pass => {
            let verdict = work.verdict;
            if !serve_here(env, work, local, work.slot as u8) {
                // The member that has the address has put a datagram together which is another one's, cut it again and sent it there.
                if verdict == Verdict::OuterFragment as u32 && work.verdict == Verdict::NotOwner as u32 {
                    return work.end(Verdict::OuterFragment, ACTION_CLEAR);
                }
                return false;
            }
            if work.role == ROLE_OLD_OWNER {
                return pass_on(env, work, work.other);
            }
            // IKE is for the agent whatever the policy says; what the pieces are of, the next stage looks at.
            let action = if verdict == Verdict::IkeToAgent as u32 {
                ACTION_PASS
            } else {
                ACTION_CLEAR
            };
            work.end(Verdict::OuterFragment, action);
            work.verdict = verdict;
            false
        }
        Found::Esp => {
            if !serve_here(env, work, local, spi_segment(work.spi)) {
                return false;
            }
            if !may_move {
                // A window is changed on its SA's CPU only.
                return local.cpus <= 1 || env.cpu() == work.cpu || work.drop(Verdict::InternalError);
            }
            if local.cpus > 1 && must_hop(env, work, work.cpu, false) {
                work.target = work.cpu;
                return work.end(Verdict::OtherCpu, ACTION_CPU);
            }
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash_2_4() {
        // Reference vector: key 00..0f, message 00..07, output 0x93f5f5799a932462.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(first_message_segment(key, 0x0001_0203_0405_0607), 0x62);
    }

    fn word(owner: u8, valid_until_ms: u64) -> u64 {
        OwnerWord {
            owner,
            epoch: 5,
            valid_until_ms,
        }
        .pack()
    }

    #[test]
    fn an_owner_serves_until_its_word_expires_and_then_hands_to_the_successor() {
        let side = SideWord {
            successor: 2,
            ..SideWord::default()
        }
        .pack();
        assert_eq!(
            decide(word(1, 100), side, 1, 100),
            Serve::Here {
                epoch: 5,
                alone: false,
                role: ROLE_NONE,
                other: 0
            }
        );
        assert_eq!(decide(word(1, 100), side, 1, 101), Serve::Member(2));
        assert_eq!(decide(word(1, 100), 0, 1, 101), Serve::Nobody);
    }

    #[test]
    fn another_members_segment_is_its_own() {
        assert_eq!(decide(word(2, 0), 0, 1, 1000), Serve::Member(2));
        assert_eq!(decide(0, 0, 1, 0), Serve::Nobody);
    }

    #[test]
    fn an_old_owner_serves_while_the_handover_is_open_and_not_after() {
        let side = |phase| {
            SideWord {
                legacy_owner: 1,
                legacy_phase: phase,
                legacy_epoch: 4,
                ..SideWord::default()
            }
            .pack()
        };
        let here = Serve::Here {
            epoch: 4,
            alone: false,
            role: ROLE_OLD_OWNER,
            other: 2,
        };
        assert_eq!(decide(word(2, 0), side(LEGACY_OPEN), 1, 50), here);
        assert_eq!(decide(word(2, 0), side(LEGACY_HOLDING), 1, 50), Serve::Member(2));
        assert_eq!(decide(word(2, 0), side(LEGACY_GIVEN), 1, 50), Serve::Given(2));
        assert_eq!(decide(word(2, 0), side(LEGACY_GIVEN), 3, 50), Serve::Member(2));
        let taker = |role| Serve::Here {
            epoch: 5,
            alone: false,
            role,
            other: 1,
        };
        assert_eq!(
            decide(word(2, 90), side(LEGACY_OPEN), 2, 50),
            taker(ROLE_TAKER_OPEN)
        );
        assert_eq!(
            decide(word(2, 90), side(LEGACY_HOLDING), 2, 50),
            taker(ROLE_TAKER_HOLDING)
        );
    }
}
