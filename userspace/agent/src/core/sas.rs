//! `GET /v1/sas`: the list of all SAs, put together in turns, so that a hundred thousand of them delay no heartbeat.

use std::collections::HashMap;
use std::time::Duration;

use model::{IkeSpi, Instant, SaMode, TrafficSelector};
use sad::SaEntry;
use tokio::sync::oneshot;

use super::Core;
use crate::api::{ChildSa, IkeSa, LifeStatus, Policies, PolicyRule};
use crate::clock;

/// A list is worked at for this long before the core does something else.
const TURN: Duration = Duration::from_millis(2);

/// A list that is being put together.
pub struct Listing {
    answer: oneshot::Sender<Vec<IkeSa>>,
    /// Next slot to look at; `None`: all were.
    slot: Option<u32>,
    children: HashMap<IkeSpi, Mirrored>,
    /// IKE SAs that are still to be listed.
    spis: Vec<IkeSpi>,
    out: Vec<IkeSa>,
}

/// Child SAs of an IKE SA, and what they say of it where the engine does not know it.
#[derive(Default)]
struct Mirrored {
    connection: String,
    local: String,
    remote: String,
    children: Vec<ChildSa>,
}

/// A selector as an operator writes it.
fn selector(ts: &TrafficSelector) -> String {
    let mut text = crate::config::prefixes(ts)
        .iter()
        .map(|(network, length)| format!("{network}/{length}"))
        .collect::<Vec<_>>()
        .join("+");
    if ts.protocol != 0 || (ts.first_port, ts.last_port) != (0, u16::MAX) {
        let ports = match (ts.first_port, ts.last_port) {
            (0, u16::MAX) => String::new(),
            (first, last) if first == last => format!("/{first}"),
            (first, last) => format!("/{first}-{last}"),
        };
        text.push_str(&format!("[{}{ports}]", ts.protocol));
    }
    text
}

fn suite(entry: &SaEntry) -> String {
    match entry.record.suite {
        model::EspSuite::Aes128Gcm16 => "aes128gcm16",
        model::EspSuite::Aes256Gcm16 => "aes256gcm16",
        model::EspSuite::ChaCha20Poly1305 => "chacha20poly1305",
        model::EspSuite::Aes128CbcSha256 => "aes128-sha256",
        model::EspSuite::Aes256CbcSha256 => "aes256-sha256",
    }
    .to_owned()
}

impl Core {
    pub(super) fn list_sas(&mut self, answer: oneshot::Sender<Vec<IkeSa>>) {
        self.listings.push(Listing {
            answer,
            slot: Some(0),
            children: HashMap::new(),
            spis: Vec::new(),
            out: Vec::new(),
        });
        self.list_turn(clock::now());
    }

    /// Works at the lists for as long as a turn may take.
    pub(super) fn list_turn(&mut self, now: Instant) {
        let until = now + TURN;
        while let Some(mut listing) = self.listings.pop() {
            if listing.answer.is_closed() {
                continue;
            }
            while clock::now() <= until {
                if self.list_some(&mut listing) {
                    // Whoever asked may be gone: then nobody reads the answer.
                    let _ = listing.answer.send(listing.out);
                    return;
                }
            }
            self.listings.push(listing);
            return;
        }
    }

    /// Returns whether the list is complete.
    fn list_some(&self, listing: &mut Listing) -> bool {
        const SOME: usize = 64;
        if let Some(slot) = listing.slot {
            let mut last = None;
            for entry in self.sad.range(slot..).take(SOME) {
                last = Some(entry.slot());
                let of = listing
                    .children
                    .entry(entry.record.ike_spi)
                    .or_insert_with(|| Mirrored {
                        connection: entry.record.connection.clone(),
                        local: entry.record.local.to_string(),
                        remote: entry.record.remote.to_string(),
                        children: Vec::new(),
                    });
                of.children.push(self.child(entry));
            }
            listing.slot = last.and_then(|slot| slot.checked_add(1));
            if listing.slot.is_none() {
                // The engine's first, then what is mirrored only; from the end.
                let engine = self.engine.spis();
                let mirrored = self.mirror.keys().chain(listing.children.keys());
                let mut rest = mirrored.copied().filter(|spi| !self.engine.contains(*spi));
                let mut all = rest.by_ref().collect::<Vec<_>>();
                all.sort_unstable();
                all.dedup();
                all.reverse();
                all.extend(engine.into_iter().rev());
                listing.spis = all;
            }
            return false;
        }
        for _ in 0..SOME {
            let Some(spi) = listing.spis.pop() else {
                return true;
            };
            let of = listing.children.remove(&spi);
            listing.out.extend(self.listed(spi, of));
        }
        false
    }

    fn listed(&self, spi: IkeSpi, of: Option<Mirrored>) -> Option<IkeSa> {
        if let Some(sa) = self.engine.status_of(spi) {
            return Some(IkeSa {
                connection: sa.connection.unwrap_or_default(),
                state: sa.phase.to_owned(),
                spi_local: sa.spi.to_string(),
                spi_remote: sa.peer_spi.to_string(),
                segment: spi.segment().0,
                initiator: sa.initiator,
                local: sa.local.to_string(),
                remote: sa.remote.to_string(),
                remote_id: sa.remote_id.unwrap_or_default(),
                virtual_addresses: sa.virtual_addresses.iter().map(ToString::to_string).collect(),
                suite: sa.suite,
                agreed: super::answer::words(sa.agreed),
                age_s: Some(sa.age.as_secs()),
                authenticated_s: sa.authenticated.map(|age| age.as_secs()),
                reauth_in_s: sa.reauth_in.map(|left| left.as_secs()),
                next_request_id: sa.next_send,
                expected_request_id: sa.next_receive,
                children: of.map(|of| of.children).unwrap_or_default(),
            });
        }
        // An owner's record without an SA waits only for the end of a deletion, or to be adopted.
        if of.is_none() && self.groups.owns_segment(spi.segment()) {
            return None;
        }
        let of = of.unwrap_or_default();
        Some(IkeSa {
            connection: of.connection,
            state: "mirrored".to_owned(),
            spi_local: spi.to_string(),
            segment: spi.segment().0,
            local: of.local,
            remote: of.remote,
            children: of.children,
            ..IkeSa::default()
        })
    }

    fn child(&self, entry: &SaEntry) -> ChildSa {
        let counters = self.counters.counters(entry.slot()).unwrap_or_default();
        ChildSa {
            name: entry.record.child.clone(),
            spi_in: entry.record.spi_in.to_string(),
            spi_out: entry.record.spi_out.to_string(),
            suite: suite(entry),
            esn: entry.record.form.esn,
            transport: entry.record.form.mode == SaMode::Transport,
            udp_encap: entry.record.udp_encap,
            ts_local: entry.record.ts_local.iter().map(selector).collect(),
            ts_remote: entry.record.ts_remote.iter().map(selector).collect(),
            segment: entry.segment().0,
            cpu: self.plane.cpu_of(entry.slot()),
            member: self.groups.of(entry.segment()).ownership.owner.map_or(0, |m| m.0),
            guest: entry.is_guest(),
            bound: entry.is_bound(),
            packets_in: counters.inbound.packets,
            bytes_in: counters.inbound.bytes,
            packets_out: counters.outbound.packets,
            bytes_out: counters.outbound.bytes,
            edge: counters.inbound.edge,
            ceiling: self.ceiling_in(entry).unwrap_or(0),
            seq: counters.outbound.seq,
            lease: self.lease_in(entry).unwrap_or(0),
            path_mtu: self.sad.path_mtu(entry.slot()).unwrap_or(0),
            life: life(entry, &counters),
        }
    }

    /// The policies by precedence. Beyond a few thousand rules those of SAs are left out: sorting them would delay heartbeats.
    pub(super) fn policies(&self) -> Policies {
        const MOST: usize = 4096;
        let (lines, left_out) = self.sad.policy_lines(MOST);
        Policies {
            rules: lines.into_iter().map(rule).collect(),
            left_out,
        }
    }
}

fn life(entry: &SaEntry, counters: &sad::SaCounters) -> Option<LifeStatus> {
    let limits = entry.lifetimes();
    limits.counts_use().then(|| {
        let usage = entry.usage(counters);
        LifeStatus {
            bytes_in: usage.inbound.bytes,
            bytes_out: usage.outbound.bytes,
            packets_in: usage.inbound.packets,
            packets_out: usage.outbound.packets,
            rekey_bytes: limits.soft_bytes,
            life_bytes: limits.hard_bytes,
            rekey_packets: limits.soft_packets,
            life_packets: limits.hard_packets,
        }
    })
}

fn rule(line: sad::PolicyLine) -> PolicyRule {
    let ports = |(first, last)| ((first, last) != (0, u16::MAX)).then_some((first, last));
    let (first, last) = line.source;
    let range = model::TrafficSelector {
        first,
        last,
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    };
    let source = match crate::config::prefixes(&range)[..] {
        [(network, len)] => format!("{network}/{len}"),
        _ => format!("{first}-{last}"),
    };
    PolicyRule {
        destination: line.destination,
        source,
        protocol: (line.protocol != 0).then_some(line.protocol),
        source_ports: ports(line.source_ports),
        destination_ports: ports(line.destination_ports),
        action: line.action.to_owned(),
        name: line.name,
        spi_in: line.spi_in.map(|spi| spi.to_string()),
    }
}
