//! Frames of the slow path that are longer than a page, or than what the outside network carries. The kernel takes no live frame of the
//! former and drops the latter where they are to be sent on, so it is the agent that does what the programs say of them; in generic mode
//! of all (ADR 33). Windows, counters, sealing and opening are the programs', as ever.

use dataplane::{Entry, Ran};
use maps_schema::steer::SLOW_PATH_MAC;

use super::Core;
use crate::net::frame;
use crate::net::own::is_ipsec;

impl Core {
    /// Runs a long frame on the CPU of its SA, and then does what the programs want done.
    pub(super) fn run_long(&mut self, entry: Entry, cpu: u32, ifindex: u32, octets: &[u8]) {
        // On the right CPU the programs must not ask for the queue of that CPU: nobody would carry the frame there.
        let mut octets = octets.to_vec();
        if let Some(source) = octets.get_mut(6..12) {
            source.copy_from_slice(&SLOW_PATH_MAC);
        }
        // Of a packet that has waited for an SA it is not known whose CPU it is: then the program says "another one", and leaves it as it is.
        let others = (0..self.runner.cpus()).filter(|other| *other != cpu);
        for cpu in std::iter::once(cpu).chain(others) {
            match self.runner.run_long(entry, cpu, ifindex, &octets) {
                Ok(Ran::Sent(unchanged)) if unchanged == octets => {}
                Ok(Ran::Sent(frame)) => return self.send_long(&frame),
                Ok(Ran::Passed(frame)) => return self.give_to_stack(&frame),
                Ok(Ran::Gone) => return,
                Err(error) => {
                    tracing::debug!(%error, "a long frame was not run");
                    break;
                }
            }
        }
        self.slow.lost();
    }

    /// Sends a frame that the programs have addressed. One that bears no MAC address of ours is none of theirs.
    fn send_long(&mut self, octets: &[u8]) {
        let at = frame::link_len(octets);
        let (Some(tag), Some(packet)) = (frame::vlan(octets), octets.get(at..)) else {
            return self.slow.lost();
        };
        let source = &octets[6..12];
        let port = self
            .ports
            .all()
            .find(|port| port.vlan == tag && port.mac[..] == *source);
        let (Some(port), Some(to)) = (port, octets.first_chunk::<6>()) else {
            return self.slow.lost();
        };
        let (index, to) = (port.index, *to);
        if !self.send_to(index, to, packet) {
            self.slow.lost();
        }
    }

    /// Gives the packet in a frame to the host's stack, which routes it, and cuts it where it may. A sealed one is this host's own, and the
    /// stack would not take it for one that has arrived.
    pub(super) fn give_to_stack(&mut self, octets: &[u8]) {
        let packet = octets.get(frame::link_len(octets)..).unwrap_or_default();
        let given = match is_ipsec(packet) {
            true => self.paths.send(packet),
            false => self.tun.try_send(packet).map(drop),
        };
        if let Err(error) = given {
            tracing::debug!(%error, "a packet did not reach the stack");
            self.slow.lost();
        }
    }
}
