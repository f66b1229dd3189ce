//! Where the lab's numbered packets were seen in clear: tells on which part of its way a packet was lost.

use crate::esp::{Headers, Kind};

/// One packet of the load, by what tells it from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbered {
    /// An echo request, by identifier and number.
    Request(u16, u32),
    /// The answer to it.
    Answer(u16, u32),
    /// A packet of a one-way flow, by port and number.
    Flow(u16, u64),
}

/// A packet on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// Who sent it there.
    pub from: [u8; 6],
    /// Whom to.
    pub to: [u8; 6],
    /// Which one.
    pub packet: Numbered,
}

/// All of a stretch of time, in order.
#[derive(Clone, Debug, Default)]
pub struct Sightings(Vec<Sighting>);

impl Sightings {
    /// Enters a frame, if it is one of the load's.
    pub fn enter(&mut self, at_ns: u64, frame: &[u8], headers: &Headers) {
        if let Some(packet) = numbered(frame, &headers.kind) {
            self.0.push(Sighting {
                at_ns,
                from: headers.from,
                to: headers.to,
                packet,
            });
        }
    }

    /// Everywhere that some packets were seen, in order of time.
    pub fn of(&self, packets: &[Numbered]) -> Vec<Sighting> {
        let wanted = |s: &&Sighting| packets.contains(&s.packet);
        self.0.iter().filter(wanted).copied().collect()
    }

    /// Forgets what is older.
    pub fn forget_before(&mut self, until_ns: u64) {
        self.0.retain(|s| s.at_ns >= until_ns);
    }
}

/// Which packet of the load a frame carries: [`crate::ping`] and [`crate::flow`] write the numbers.
fn numbered(frame: &[u8], kind: &Kind) -> Option<Numbered> {
    let packet = frame.get(14..)?;
    let payload = packet.get(usize::from(*packet.first()? & 0xf) * 4..)?;
    let echo = || -> Option<(u16, u32)> {
        let id = u16::from_be_bytes(payload.get(4..6)?.try_into().ok()?);
        let number = u32::from_be_bytes(payload.get(8..12)?.try_into().ok()?);
        Some((id, number))
    };
    match kind {
        Kind::Icmp(8) => echo().map(|(id, number)| Numbered::Request(id, number)),
        Kind::Icmp(0) => echo().map(|(id, number)| Numbered::Answer(id, number)),
        Kind::Udp(_, port) => {
            let number = payload.get(8..16)?.try_into().ok()?;
            Some(Numbered::Flow(*port, u64::from_be_bytes(number)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::esp::parse;

    fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        frame.extend(((20 + payload.len()) as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 10, 10, 1, 2, 10, 20, 1, 100]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn requests_answers_and_flows_are_told_apart_and_found_again() {
        let request = frame(1, &[8, 0, 0, 0, 0x45, 0, 0, 7, 0, 0, 0, 7]);
        let answer = frame(1, &[0, 0, 0, 0, 0x45, 0, 0, 7, 0, 0, 0, 7]);
        let flow = frame(17, &[0x9c, 0x40, 0x1b, 0x59, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        let mut seen = Sightings::default();
        for (at, frame) in [(10, &request), (20, &answer), (30, &flow)] {
            seen.enter(at, frame, &parse(frame).expect("a frame"));
        }
        let when = |packet| seen.of(&[packet]).iter().map(|s| s.at_ns).collect::<Vec<_>>();
        assert_eq!(when(Numbered::Request(0x4500, 7)), [10]);
        assert_eq!(when(Numbered::Answer(0x4500, 7)), [20]);
        assert_eq!(when(Numbered::Flow(7001, 7)), [30]);
        assert!(when(Numbered::Flow(7001, 8)).is_empty());
        seen.forget_before(25);
        assert_eq!(seen.of(&[Numbered::Answer(0x4500, 7)]), []);
    }
}
