//! What a recorder remembers and what follows from it: the invariants of the whole run.

use crate::deliveries::Deliveries;
use crate::esp::{Headers, IKE_RESPONSE, Kind, parse};
use crate::replay::REPLAYER;
use crate::seen::Seen;
use crate::sightings::Sightings;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;

/// Source, destination and SPI: one direction of one SA.
pub type FlowKey = (Ipv4Addr, Ipv4Addr, u32);

/// One direction of one SA, as seen on the wire.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// Packets.
    pub packets: u64,
    /// Packets whose sequence number had been seen.
    pub dup_seq: u64,
    /// Packets whose IV had been seen.
    pub dup_iv: u64,
    /// Time of the first one.
    pub first_ns: u64,
    /// Time of the last one.
    pub last_ns: u64,
    /// Carried in UDP.
    pub encap: bool,
    /// Packets by the MAC address that sent them.
    pub senders: BTreeMap<[u8; 6], u64>,
    seqs: Seen,
    ivs: Seen,
}

/// An IKE message on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeMessage {
    /// When.
    pub at_ns: u64,
    /// Who sent it.
    pub src: Ipv4Addr,
    /// To whom.
    pub dst: Ipv4Addr,
    /// Initiator's SPI.
    pub spi_i: u64,
    /// Responder's SPI.
    pub spi_r: u64,
    /// Exchange type.
    pub exchange: u8,
    /// Flags.
    pub flags: u8,
    /// Message ID.
    pub message_id: u32,
}

/// Which addresses and MAC addresses mean what.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    /// MAC addresses of the members on this network. What goes from one of them to another is a second hop.
    pub member_macs: Vec<[u8; 6]>,
    /// The members' own addresses.
    pub member_addresses: Vec<Ipv4Addr>,
    /// What members send in clear is remembered packet by packet, so that one that comes twice is found.
    pub judge_deliveries: bool,
    /// The cluster's address: what is sent by it is judged, what is sent to it is kept for the replay.
    pub cluster: Option<Ipv4Addr>,
}

/// Octets of frames kept for the replay, at most.
const KEEP_OCTETS: usize = 1 << 30;

/// Everything that one recorder has seen.
#[derive(Debug, Default)]
pub struct Ledger {
    roles: Roles,
    /// ESP by SA direction.
    pub flows: HashMap<FlowKey, Flow>,
    /// IKE messages in order.
    pub ike: Vec<IkeMessage>,
    /// Gratuitous ARPs: time, sender, address.
    pub announcements: Vec<(u64, [u8; 6], Ipv4Addr)>,
    /// ESP packets that the cluster sent: time and the member's MAC address.
    pub esp_out: Vec<(u64, [u8; 6])>,
    /// ESP packets to the cluster: time and the router's MAC address.
    pub esp_in: Vec<(u64, [u8; 6])>,
    /// Packets in clear with a private address: time and the sender's MAC address.
    pub clear: Vec<(u64, [u8; 6])>,
    /// Frames from one member to another (second hop), heartbeats not counted.
    pub second_hops: u64,
    /// Packets with a private address in clear: a leak on the outside, the normal thing on the inside.
    pub plain: u64,
    /// Frames of the replayer: judged by what comes of them, not entered.
    pub replayed: u64,
    /// Packets that members delivered in clear, each of which may come once.
    pub deliveries: Deliveries,
    /// Where packets of the load were seen, while deliveries are judged.
    pub sightings: Sightings,
    /// Everything else by name.
    pub other: BTreeMap<String, u64>,
    kept: Vec<u8>,
    kept_index: Vec<(u64, usize, usize)>,
    keeps_no_more: bool,
    /// Frames that did not fit into the store for the replay.
    pub not_kept: u64,
}

impl Ledger {
    /// An empty one.
    pub fn new(roles: Roles) -> Self {
        Self {
            roles,
            ..Self::default()
        }
    }

    /// Enters a frame.
    pub fn enter(&mut self, at_ns: u64, frame: &[u8]) {
        let Some(headers) = parse(frame) else {
            self.count("unreadable");
            return;
        };
        if headers.from == REPLAYER {
            self.replayed += 1;
            return;
        }
        if self.roles.judge_deliveries {
            self.sightings.enter(at_ns, frame, &headers);
        }
        let member_to_member =
            self.roles.member_macs.contains(&headers.from) && self.roles.member_macs.contains(&headers.to);
        match headers.kind.clone() {
            Kind::Esp { .. } | Kind::Ike { .. } if member_to_member => self.second_hops += 1,
            Kind::Esp { spi, seq, iv, encap } => {
                self.enter_esp(at_ns, frame, &headers, (spi, seq, iv, encap))
            }
            Kind::Ike {
                spi_i,
                spi_r,
                exchange,
                flags,
                message_id,
            } => self.ike.push(IkeMessage {
                at_ns,
                src: headers.src,
                dst: headers.dst,
                spi_i,
                spi_r,
                exchange,
                flags,
                message_id,
            }),
            Kind::Arp => {
                self.count("arp");
                // A gratuitous ARP names one address as sender and as target.
                if let (Some(sender), Some(target)) = (frame.get(28..32), frame.get(38..42))
                    && sender == target
                {
                    let address = Ipv4Addr::new(sender[0], sender[1], sender[2], sender[3]);
                    self.announcements.push((at_ns, headers.from, address));
                }
            }
            Kind::NatKeepalive => self.count("nat_keepalive"),
            Kind::Other(ethertype) => self.count(&format!("ethertype_{ethertype:04x}")),
            _ if self.between_members(&headers) => self.count("between_members"),
            _ if member_to_member && (headers.src.is_private() || headers.dst.is_private()) => {
                self.second_hops += 1;
            }
            _ if headers.src.is_private() || headers.dst.is_private() => {
                self.plain += 1;
                self.clear.push((at_ns, headers.from));
                if self.roles.judge_deliveries && self.roles.member_macs.contains(&headers.from) {
                    self.deliveries.enter(at_ns, frame, &headers.kind);
                }
            }
            Kind::Icmp(kind) => self.count(&format!("icmp_{kind}")),
            Kind::Udp(_, port) => self.count(&format!("udp_{port}")),
            Kind::Fragment(_) => self.count("fragment"),
            Kind::Ip(protocol) => self.count(&format!("ip_{protocol}")),
        }
    }

    /// Packets that the cluster sent under a (SPI, sequence number), and a (SPI, IV), that it had already used.
    pub fn duplicates(&self) -> (u64, u64) {
        let sent = self
            .flows
            .iter()
            .filter(|(key, _)| Some(key.0) == self.roles.cluster);
        sent.fold((0, 0), |(seq, iv), (_, flow)| {
            (seq + flow.dup_seq, iv + flow.dup_iv)
        })
    }

    /// ESP packets sent by the cluster.
    pub fn sent_by_cluster(&self) -> u64 {
        self.flows
            .iter()
            .filter(|(key, _)| Some(key.0) == self.roles.cluster)
            .map(|(_, f)| f.packets)
            .sum()
    }

    /// Packets of one kind of request since a time; retransmissions count once.
    pub fn requests(&self, exchange: u8, since_ns: u64, until_ns: u64) -> usize {
        let mut seen = HashSet::new();
        for m in &self.ike {
            if m.exchange == exchange
                && m.flags & IKE_RESPONSE == 0
                && (since_ns..until_ns).contains(&m.at_ns)
            {
                seen.insert((m.spi_i, m.spi_r, m.src, m.message_id));
            }
        }
        seen.len()
    }

    /// Gaps and steps back in the Message IDs of requests, by IKE SA and requester (RFC 7296 2.2: they go up by one).
    /// Each complaint is a sentence.
    pub fn message_id_faults(&self) -> Vec<String> {
        let mut expected: HashMap<(u64, Ipv4Addr), u32> = HashMap::new();
        let mut responders: HashMap<(u64, u64), ()> = HashMap::new();
        let mut faults = Vec::new();
        for m in &self.ike {
            // A first message without the responder's SPI may be sent twice (cookie, INVALID_KE_PAYLOAD).
            if m.flags & IKE_RESPONSE != 0 || m.spi_r == 0 {
                continue;
            }
            responders.insert((m.spi_i, m.spi_r), ());
            let next = expected.entry((m.spi_i, m.src)).or_insert(m.message_id);
            if m.message_id == *next {
                *next += 1;
            } else if m.message_id + 1 != *next {
                faults.push(format!(
                    "IKE SA {:016x}: {} sent a request with Message ID {} where {} was due",
                    m.spi_i, m.src, m.message_id, *next
                ));
                *next = m.message_id + 1;
            }
        }
        faults
    }

    /// Requests that never got a response on the wire: (IKE SA, requester, Message ID).
    pub fn unanswered(&self, since_ns: u64) -> Vec<(u64, Ipv4Addr, u32)> {
        let mut open: Vec<(u64, Ipv4Addr, u32)> = Vec::new();
        for m in self.ike.iter().filter(|m| m.at_ns >= since_ns) {
            if m.flags & IKE_RESPONSE == 0 {
                let entry = (m.spi_i, m.src, m.message_id);
                if !open.contains(&entry) {
                    open.push(entry);
                }
            } else {
                open.retain(|o| *o != (m.spi_i, m.dst, m.message_id));
            }
        }
        open
    }

    /// ESP frames to the cluster that were captured before a time.
    pub fn frames_before(&self, until_ns: u64) -> Vec<Vec<u8>> {
        let early = self.kept_index.iter().filter(|(at, _, _)| *at < until_ns);
        early
            .map(|(_, start, end)| self.kept[*start..*end].to_vec())
            .collect()
    }

    /// From now on deliveries are judged ([`Roles::judge_deliveries`]).
    pub fn judge_deliveries(&mut self) {
        self.roles.judge_deliveries = true;
    }

    /// Forgets what long runs need not remember, as far as it is older than a time: frames for the replay, times of packets,
    /// deliveries. Sequence numbers and IVs are never forgotten.
    pub fn forget_before(&mut self, until_ns: u64) {
        for list in [&mut self.esp_out, &mut self.esp_in, &mut self.clear] {
            list.retain(|(at, _)| *at >= until_ns);
        }
        self.deliveries.forget_before(until_ns);
        self.sightings.forget_before(until_ns);
        let first = self.kept_index.partition_point(|(at, _, _)| *at < until_ns);
        let octets = self
            .kept_index
            .get(first)
            .map_or(self.kept.len(), |(_, start, _)| *start);
        self.kept.drain(..octets);
        self.kept_index.drain(..first);
        for (_, start, end) in &mut self.kept_index {
            *start -= octets;
            *end -= octets;
        }
    }

    /// Keeps no more frames, and forgets those that it has.
    pub fn forget_frames(&mut self) {
        self.keeps_no_more = true;
        self.kept = Vec::new();
        self.kept_index = Vec::new();
    }

    fn enter_esp(
        &mut self,
        at_ns: u64,
        frame: &[u8],
        headers: &Headers,
        (spi, seq, iv, encap): (u32, u32, u64, bool),
    ) {
        let flow = self.flows.entry((headers.src, headers.dst, spi)).or_default();
        if flow.packets == 0 {
            flow.first_ns = at_ns;
        }
        flow.packets += 1;
        flow.last_ns = at_ns;
        flow.encap = encap;
        *flow.senders.entry(headers.from).or_default() += 1;
        flow.dup_seq += u64::from(!flow.seqs.insert(u64::from(seq)));
        flow.dup_iv += u64::from(!flow.ivs.insert(iv));
        if Some(headers.src) == self.roles.cluster {
            self.esp_out.push((at_ns, headers.from));
        }
        if Some(headers.dst) == self.roles.cluster {
            self.esp_in.push((at_ns, headers.from));
            if self.keeps_no_more {
                return;
            }
            if self.kept.len() + frame.len() > KEEP_OCTETS {
                self.not_kept += 1;
            } else {
                let start = self.kept.len();
                self.kept.extend_from_slice(frame);
                self.kept_index.push((at_ns, start, self.kept.len()));
            }
        }
    }

    fn between_members(&self, headers: &Headers) -> bool {
        self.roles.member_addresses.contains(&headers.src)
            && self.roles.member_addresses.contains(&headers.dst)
    }

    fn count(&mut self, what: &str) {
        *self.other.entry(what.to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    const CLUSTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn ledger() -> Ledger {
        Ledger::new(Roles {
            member_macs: vec![A, B],
            member_addresses: vec![],
            judge_deliveries: true,
            cluster: Some(CLUSTER),
        })
    }

    fn frame(
        from: [u8; 6],
        to: [u8; 6],
        src: Ipv4Addr,
        dst: Ipv4Addr,
        protocol: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut f = [to, from].concat();
        f.extend([8, 0, 0x45, 0]);
        f.extend(((20 + payload.len()) as u16).to_be_bytes());
        f.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        f.extend(src.octets());
        f.extend(dst.octets());
        f.extend(payload);
        f
    }

    fn esp(spi: u32, seq: u32, iv: u64) -> Vec<u8> {
        [
            &spi.to_be_bytes()[..],
            &seq.to_be_bytes(),
            &iv.to_be_bytes(),
            &[0; 16],
        ]
        .concat()
    }

    fn ike(message_id: u32, flags: u8) -> Vec<u8> {
        let mut m = vec![0x01, 0xf4, 0x01, 0xf4, 0, 36, 0, 0];
        m.extend(7u64.to_be_bytes());
        m.extend(8u64.to_be_bytes());
        m.extend([46, 0x20, 37, flags]);
        m.extend(message_id.to_be_bytes());
        m.extend(28u32.to_be_bytes());
        m
    }

    #[test]
    fn a_number_used_by_both_members_is_a_duplicate_and_a_second_hop_is_none() {
        let mut l = ledger();
        l.enter(1, &frame(A, ROUTER, CLUSTER, PEER, 50, &esp(5, 1, 1)));
        l.enter(2, &frame(A, B, PEER, CLUSTER, 50, &esp(6, 1, 1)));
        l.enter(3, &frame(ROUTER, A, PEER, CLUSTER, 50, &esp(6, 1, 1)));
        assert_eq!((l.duplicates(), l.second_hops), ((0, 0), 1));
        l.enter(4, &frame(B, ROUTER, CLUSTER, PEER, 50, &esp(5, 1, 2)));
        l.enter(5, &frame(B, ROUTER, CLUSTER, PEER, 50, &esp(5, 2, 1)));
        assert_eq!(l.duplicates(), (1, 1));
    }

    #[test]
    fn a_private_address_in_clear_is_a_leak() {
        let mut l = ledger();
        let inner = Ipv4Addr::new(10, 20, 1, 100);
        l.enter(1, &frame(A, ROUTER, inner, PEER, 1, &[8, 0, 0, 0]));
        l.enter(2, &frame(A, ROUTER, CLUSTER, PEER, 1, &[3, 4, 0, 0]));
        assert_eq!((l.plain, l.other.get("icmp_3")), (1, Some(&1)));
    }

    #[test]
    fn message_ids_may_repeat_but_not_jump() {
        let mut l = ledger();
        for (at, id) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
            l.enter(at, &frame(A, ROUTER, CLUSTER, PEER, 17, &ike(id, 8)));
        }
        assert!(l.message_id_faults().is_empty());
        assert_eq!(l.unanswered(0).len(), 3);
        l.enter(5, &frame(ROUTER, A, PEER, CLUSTER, 17, &ike(2, 0x20)));
        assert_eq!(l.unanswered(0).len(), 2);
        l.enter(6, &frame(B, ROUTER, CLUSTER, PEER, 17, &ike(4, 8)));
        assert_eq!(l.message_id_faults().len(), 1);
    }

    #[test]
    fn only_frames_before_the_kill_are_replayed() {
        let mut l = ledger();
        l.enter(10, &frame(ROUTER, A, PEER, CLUSTER, 50, &esp(6, 1, 1)));
        l.enter(20, &frame(ROUTER, B, PEER, CLUSTER, 50, &esp(6, 2, 2)));
        assert_eq!(l.frames_before(15).len(), 1);
    }
}
