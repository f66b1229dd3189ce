//! Journal entries and snapshots of the simulated agent: what `userspace/agent` encodes, in the simulation's own form.

use ike::{Change, IkeSaChange};
use model::{ChildSaChange, EspSpi, IkeSpi, SecretBytes};
use sad::SnapshotSa;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A change in an entry.
#[derive(Clone, Serialize, Deserialize)]
pub enum EntryChange {
    /// Record of an IKE SA.
    IkePut(IkeSpi, SecretBytes),
    /// An IKE SA is gone.
    IkeRemove(IkeSpi),
    /// Change of a Child SA.
    Child(ChildSaChange),
    /// A peer began anew (INITIAL_CONTACT) by this IKE SA: owners of other groups forget what they have of it.
    Contact {
        /// Connection.
        connection: String,
        /// The peer's identity.
        remote_id: String,
        /// The IKE SA that stays.
        ike_spi: IkeSpi,
    },
    /// In the brief form of an entry: what differs from the record that an IKE SA (the second) had before.
    IkePatch(IkeSpi, IkeSpi, SecretBytes),
}

/// All of a group.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Committed records of IKE SAs.
    pub ike: BTreeMap<IkeSpi, SecretBytes>,
    /// Child SAs with their limits.
    pub children: Vec<SnapshotSa>,
    /// Child SAs whose numbers a lost standby may have used.
    pub suspects: Vec<EspSpi>,
    /// What SAs are to each other (RFC 9611).
    pub parts: Vec<ChildSaChange>,
}

impl From<Change> for EntryChange {
    fn from(change: Change) -> Self {
        match change {
            Change::IkeSa(IkeSaChange::Put { spi, record }) => Self::IkePut(spi, record),
            Change::IkeSa(IkeSaChange::Remove { spi }) => Self::IkeRemove(spi),
            Change::ChildSa(change) => Self::Child(change),
        }
    }
}

/// Inbound SPI that a change is about.
pub fn spi_of(change: &ChildSaChange) -> EspSpi {
    match change {
        ChildSaChange::Install { record, .. } => record.spi_in,
        ChildSaChange::UseOutbound { spi_in }
        | ChildSaChange::MovePeer { spi_in, .. }
        | ChildSaChange::MoveIkeSa { spi_in, .. }
        | ChildSaChange::Remove { spi_in }
        | ChildSaChange::Share { spi_in }
        | ChildSaChange::Bind { spi_in, .. } => *spi_in,
    }
}

/// The brief form: records against what is known of their IKE SA, or else of another one of the entry.
pub fn brief<'a>(
    changes: &[EntryChange],
    before: impl Fn(IkeSpi) -> Option<&'a SecretBytes>,
) -> Vec<EntryChange> {
    let puts = |change: &EntryChange| match change {
        EntryChange::IkePut(spi, _) => Some(*spi),
        _ => None,
    };
    let patched = |change: &EntryChange| {
        let EntryChange::IkePut(spi, record) = change else {
            return None;
        };
        let others = changes.iter().filter_map(puts).filter(|other| other != spi);
        let (base, old) = std::iter::once(*spi)
            .chain(others)
            .find_map(|base| Some((base, before(base)?)))?;
        let patch = cluster::patch::make(old.expose(), record.expose());
        Some(EntryChange::IkePatch(*spi, base, patch))
    };
    changes
        .iter()
        .map(|change| patched(change).unwrap_or_else(|| change.clone()))
        .collect()
}

/// The brief form made whole; `None` where it was written against something else than is here.
pub fn whole(changes: Vec<EntryChange>, before: &BTreeMap<IkeSpi, SecretBytes>) -> Option<Vec<EntryChange>> {
    let whole = |change| match change {
        EntryChange::IkePatch(spi, base, patch) => {
            let record = cluster::patch::apply(before.get(&base)?.expose(), patch.expose()).ok()?;
            Some(EntryChange::IkePut(spi, record))
        }
        other => Some(other),
    };
    changes.into_iter().map(whole).collect()
}

/// As octets.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, Vec::new()).expect("plain data always has a form")
}

/// From octets; `None` where they are damaged.
pub fn decode<'a, T: Deserialize<'a>>(octets: &'a [u8]) -> Option<T> {
    postcard::from_bytes(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ike::{
        ChildConfig, Command, Connection, EndpointConfig, Engine, EngineConfig, Identity, Input, Output,
        Proposal, Surroundings,
    };
    use model::{Epoch, InitialLimits, Instant, MemberId, TrafficSelector};
    use std::collections::VecDeque;
    use std::net::{IpAddr, SocketAddr};

    const CHILDREN: usize = 32;

    /// Octets that look random and are the same in every run.
    struct Around(u64);

    impl Around {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.0 ^ (self.0 >> 29)
        }
    }

    impl Surroundings for Around {
        fn random(&mut self, out: &mut [u8]) {
            out.fill_with(|| (self.next() >> 33) as u8);
        }
        fn ike_spi(&mut self, _peer: Option<IkeSpi>, _connection: &str) -> IkeSpi {
            IkeSpi(self.next() | 1)
        }
        fn successor_ike_spi(&mut self, _old: IkeSpi) -> IkeSpi {
            IkeSpi(self.next() | 1)
        }
        fn esp_spi(&mut self, _ike_spi: IkeSpi) -> Option<EspSpi> {
            Some(EspSpi((self.next() >> 32) as u32 | 0x100))
        }
        fn release_esp_spi(&mut self, _spi: EspSpi) {}
        fn initial_limits(&mut self) -> InitialLimits {
            InitialLimits {
                lease: 4096,
                lease_step: 4096,
                ceiling: 2,
                headroom: 2,
            }
        }
        fn iv_prefix(&self, _ike_spi: IkeSpi) -> (MemberId, Epoch) {
            (MemberId(1), Epoch(1))
        }
    }

    fn selector(address: [u8; 4], first_port: u16, last_port: u16) -> Vec<TrafficSelector> {
        vec![TrafficSelector {
            first: IpAddr::from(address),
            last: IpAddr::from(address),
            protocol: 17,
            first_port,
            last_port,
        }]
    }

    fn engine(side: u8) -> Engine {
        let address = |side: u8| IpAddr::from([192, 0, 2, side + 1]);
        let name = |side: u8| Identity::parse(&format!("side-{side}.example"));
        let psk = SecretBytes::new(vec![9; 32]);
        let mut connection = Connection::new("many", address(side), name(side), psk);
        connection.remotes = vec![address(1 - side)];
        connection.remote_id = Some(name(1 - side));
        connection.ike_proposals =
            vec![Proposal::parse_ike("aes256gcm16-prfsha256-x25519").expect("a proposal")];
        connection.dpd_delay = None;
        for n in 0..CHILDREN as u16 {
            let ports = selector([10, 0, 0, 1], 1000 * n + 1, 1000 * n + 1000);
            let all = selector([10, 0, 0, 2], 0, u16::MAX);
            let (own, remote) = if side == 0 { (ports, all) } else { (all, ports) };
            let mut child = ChildConfig::new(&format!("child-{n}"), own, remote);
            child.esp_proposals = vec![Proposal::parse_esp("aes256gcm16").expect("a proposal")];
            connection.children.push(child);
        }
        Engine::new(EngineConfig {
            connections: vec![connection],
            endpoint: EndpointConfig::new(SecretBytes::new(vec![7; 32])),
        })
    }

    /// A peer (side 0) and a gateway (side 1) that writes entries.
    struct Pair {
        sides: [(Engine, Around); 2],
        wire: VecDeque<(usize, SocketAddr, SocketAddr, Vec<u8>)>,
        mirror: BTreeMap<IkeSpi, SecretBytes>,
        /// Octets of each entry, whole and brief, and whether it installs a Child SA.
        entries: Vec<(usize, usize, bool)>,
    }

    impl Pair {
        fn input(&mut self, side: usize, input: Input<'_>) {
            let (engine, around) = &mut self.sides[side];
            engine.handle(input, around);
            let mut changes = Vec::new();
            while let Some(output) = self.sides[side].0.poll() {
                let sent = match output {
                    Output::Commit(commit) => {
                        changes.push(
                            commit
                                .changes
                                .into_iter()
                                .map(EntryChange::from)
                                .collect::<Vec<_>>(),
                        );
                        commit.transmits
                    }
                    Output::Transmit(transmit) => vec![transmit],
                    _ => Vec::new(),
                };
                let wire = sent.into_iter().map(|t| (1 - side, t.remote, t.local, t.bytes));
                self.wire.extend(wire);
            }
            for changes in changes.iter().filter(|_| side == 1) {
                self.write(changes);
            }
        }

        /// As owner and standby do it: the standby has what the owner has.
        fn write(&mut self, changes: &[EntryChange]) {
            let short = brief(changes, |spi| self.mirror.get(&spi));
            let installs =
                |change: &EntryChange| matches!(change, EntryChange::Child(ChildSaChange::Install { .. }));
            let installs = changes.iter().any(installs);
            let octets = (encode(&changes).len(), encode(&short).len());
            self.entries.push((octets.0, octets.1, installs));
            let again = whole(short, &self.mirror).expect("written against what is here");
            for (change, again) in changes.iter().zip(again) {
                match (change, again) {
                    (EntryChange::IkePut(spi, record), EntryChange::IkePut(other, again)) => {
                        assert!(*spi == other && record.expose() == again.expose());
                        self.mirror.insert(*spi, again);
                    }
                    (EntryChange::IkeRemove(spi), _) => drop(self.mirror.remove(spi)),
                    _ => {}
                }
            }
        }

        fn settle(&mut self) {
            while let Some((to, local, remote, bytes)) = self.wire.pop_front() {
                let now = Instant::from_millis(1000);
                let bytes = &bytes;
                self.input(
                    to,
                    Input::Datagram {
                        now,
                        local,
                        remote,
                        bytes,
                    },
                );
            }
        }

        /// What the entries of a command come to.
        fn command(&mut self, command: Command) -> Vec<(usize, usize, bool)> {
            self.entries.clear();
            let now = Instant::from_millis(1000);
            self.input(0, Input::Command { now, command });
            self.settle();
            std::mem::take(&mut self.entries)
        }
    }

    /// ADR 12: what the n-th Child SA of an IKE SA costs does not grow with n.
    #[test]
    fn an_entry_is_as_long_as_what_has_changed() {
        let mut pair = Pair {
            sides: [(engine(0), Around(1)), (engine(1), Around(2))],
            wire: VecDeque::new(),
            mirror: BTreeMap::new(),
            entries: Vec::new(),
        };
        let connection = "many".to_owned();
        let all = pair.command(Command::Initiate { connection });
        let set_ups: Vec<_> = all.into_iter().filter(|(.., installs)| *installs).collect();
        assert_eq!(set_ups.len(), CHILDREN);
        for n in [0, 1, 2, 4, 8, 16, 31] {
            let (whole, brief, _) = set_ups[n];
            println!("Child SA {:2}: {whole:5} octets whole, {brief:4} brief", n + 1);
        }
        let (second, last) = (set_ups[1], set_ups[CHILDREN - 1]);
        assert!(last.0 > 3 * second.0, "whole entries grow: {second:?} {last:?}");
        assert!(last.1 < second.1 + 100, "brief ones do not: {second:?} {last:?}");

        let sum = |entries: &[(usize, usize, bool)]| {
            let sum = |f: fn(&(usize, usize, bool)) -> usize| entries.iter().map(f).sum::<usize>();
            (sum(|e| e.0), sum(|e| e.1))
        };
        println!("all {CHILDREN} together: {:?}", sum(&set_ups));
        let sa = pair.sides[0].0.status().remove(0);
        let child = pair.command(Command::RekeyChild {
            spi_in: sa.children[5].spi_in,
        });
        println!("rekey of a Child SA, both exchanges: {:?}", sum(&child));
        let liveness = pair.command(Command::Liveness { spi: sa.spi });
        println!("liveness check: {:?}", sum(&liveness));
        let ike = pair.command(Command::RekeyIke { spi: sa.spi });
        println!("rekey of the IKE SA, both exchanges: {:?}", sum(&ike));
        for entries in [child, liveness, ike] {
            let (whole, brief) = sum(&entries);
            assert!(brief > 0 && brief < whole / 3, "{whole} {brief}");
        }
    }
}
