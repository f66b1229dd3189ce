//! Two engines with a hostile middle, which sees all messages, and may hold back, repeat, change, cut and invent them; members
//! die and are taken over. Afterwards the network heals, and the two sides come together again.

use crate::choices::Choices;
use crate::world::{A, B, Packet, World, esp, ike, net};
use ike::Command;
use std::time::Duration;

/// Steps of one run at most: each costs up to some 100 microseconds.
const STEPS: usize = 96;

/// The first octet says which configuration it is; each further one is a step, some with operands behind them.
pub fn exchange(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let Some(shape) = choices.next() else { return };
    let mut world = World::with(u64::from(shape), |side, connection| {
        connection.retransmit.initial = Duration::from_millis(500);
        if shape & 1 != 0 {
            connection.ike_proposals = ike("aes128gcm16-prfsha256-x25519-ke1_mlkem768");
            connection.children[0].esp_proposals = esp("aes128gcm16-x25519-ke1_mlkem768");
        } else {
            connection.ike_proposals = ike("aes128-sha256-x25519");
            connection.children[0].esp_proposals = esp("aes128gcm16-x25519");
        }
        if shape & 2 != 0 {
            connection.fragment_size = 200;
        }
        let nets = [net([10, 1, 9]), net([10, 2, 9])];
        let mut child = ike::ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
        child.start = false;
        connection.children.push(child);
    });
    world.initiate(usize::from(shape >> 2 & 1));
    // Held back by the middle, to be sent at any time.
    let mut held: Vec<Packet> = Vec::new();
    for _ in 0..STEPS {
        let Some(step) = choices.next() else { break };
        one_step(&mut world, &mut held, step, &mut choices);
    }
    // What was changed or invented has no part in what follows.
    world.net.clear();
    world.pass(Duration::from_secs(400));
    for side in [A, B] {
        let leftovers = world.sides[side].engine.pending_esp_spis();
        assert!(
            leftovers.is_empty(),
            "promises are kept: {leftovers:?}\n{}",
            world.story()
        );
    }
    // Whatever happened, a new handshake works.
    if world.status(A).is_empty() || world.status(B).is_empty() {
        for side in [A, B] {
            let connection = "t".to_owned();
            world.command(side, Command::Terminate { connection });
        }
        world.pass(Duration::from_secs(200));
        world.initiate(A);
        world.pass(Duration::from_secs(30));
        assert!(
            !world.status(B).is_empty(),
            "no handshake any more\n{}",
            world.story()
        );
    }
}

fn one_step(world: &mut World, held: &mut Vec<Packet>, step: u8, choices: &mut Choices<'_>) {
    let side = usize::from(step >> 7);
    let at = |len: usize, choices: &mut Choices<'_>| {
        (len > 0).then(|| usize::from(choices.next().unwrap_or(0)) % len)
    };
    match step & 0x0f {
        0..=4 => drop(world.step()),
        5 => drop(world.net.pop_front()),
        6 => {
            if let Some(index) = at(world.net.len(), choices) {
                held.push(world.net[index].clone());
            }
        }
        7 => {
            if let Some(index) = at(held.len(), choices) {
                world.deliver(held[index].clone());
            }
        }
        8 => {
            // A changed copy; the original stays where it is.
            if let Some(index) = at(world.net.len(), choices) {
                let mut packet = world.net[index].clone();
                if let Some(position) = at(packet.bytes.len(), choices) {
                    packet.bytes[position] ^= choices.next().unwrap_or(1) | 1;
                    world.deliver(packet);
                }
            }
        }
        9 => {
            if let Some(index) = at(world.net.len(), choices) {
                let mut packet = world.net[index].clone();
                let keep = at(packet.bytes.len(), choices).unwrap_or(0);
                packet.bytes.truncate(keep);
                world.deliver(packet);
            }
        }
        10 => {
            // The other side's message comes back to its sender, or its middle is replaced by invention.
            if let Some(index) = at(world.net.len(), choices) {
                let mut packet = world.net[index].clone();
                packet.to = 1 - packet.to;
                std::mem::swap(&mut packet.local, &mut packet.remote);
                world.deliver(packet);
            }
        }
        11 => {
            world.now = world.now + Duration::from_millis(u64::from(choices.next().unwrap_or(1)) * 100);
            world.timeout();
        }
        12 => world.take_over(side),
        13 => {
            let child = world
                .status(side)
                .first()
                .and_then(|sa| sa.children.first())
                .map(|child| child.spi_in);
            if let Some(spi_in) = child {
                world.command(side, Command::RekeyChild { spi_in });
            }
        }
        14 => {
            if let Some(spi) = world.status(side).first().map(|sa| sa.spi) {
                let command = match choices.next().unwrap_or(0) % 4 {
                    0 => Command::Liveness { spi },
                    1 => Command::DeleteIke { spi },
                    _ => Command::RekeyIke { spi },
                };
                world.command(side, command);
            }
        }
        _ => {
            let (connection, child) = ("t".to_owned(), "d".to_owned());
            world.command(side, Command::CreateChild { connection, child });
        }
    }
}
