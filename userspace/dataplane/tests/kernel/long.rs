//! Frames that are longer than a page: run once, and the caller does what the program says.

use super::{Lab, port};
use dataplane::{Entry, Plane, Ran};
use maps_schema::event::SLOW_LONG_MAX;
use maps_schema::sad::slot_place;
use maps_schema::segment::{OwnerWord, SideWord};
use maps_schema::steer::{AddressKey, ClusterAddress, Local, SLOW_PATH_MAC};

const CLUSTER: [u8; 4] = [203, 0, 113, 10];
const WIRE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// A plane of member 1, which owns every segment and has no SA.
fn plane(lab: &Lab) -> Plane {
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.attach().expect("attach");
    let local = Local {
        member: 1,
        cpus: lab.options().cpus,
        slots: lab.options().slots,
        ..Local::default()
    };
    plane.set_local(&local).expect("local");
    plane
        .set_ports(&[port(0, 1, lab.outside), port(8, 2, lab.inside)])
        .expect("ports");
    let mut address = [0; 16];
    address[10..12].fill(0xff);
    address[12..].copy_from_slice(&CLUSTER);
    let at = ClusterAddress {
        side: 1,
        segment: 0,
        ports: 1,
    };
    plane.put_address(&AddressKey { address }, &at).expect("address");
    let owner = OwnerWord {
        owner: 1,
        epoch: 1,
        valid_until_ms: (1 << 40) - 1,
    };
    for segment in 0..=255 {
        plane.segments().flip(segment, owner, SideWord::default());
    }
    plane
}

/// ESP for the cluster in a frame of so many octets.
fn frame(source: [u8; 6], spi: u32, octets: usize) -> Vec<u8> {
    let mut frame = vec![0; octets];
    frame[6..12].copy_from_slice(&source);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&((octets - 14) as u16).to_be_bytes());
    (frame[22], frame[23]) = (64, 50);
    frame[26..30].copy_from_slice(&[198, 51, 100, 1]);
    frame[30..34].copy_from_slice(&CLUSTER);
    frame[34..38].copy_from_slice(&spi.to_be_bytes());
    frame
}

#[test]
fn a_long_frame_is_judged_and_one_of_the_agents_waits_in_no_queue() {
    let Some(lab) = Lab::new() else { return };
    let plane = plane(&lab);
    let (runner, cpus) = (plane.runner(), lab.options().cpus);
    let unknown = |plane: &Plane| -> u64 {
        let all = plane.verdicts().expect("verdicts");
        let of = all
            .iter()
            .filter(|v| v.verdict == maps_schema::verdict::Verdict::UnknownSpi);
        of.map(|v| v.packets).sum()
    };
    // Slots of every CPU.
    for slot in 0..cpus {
        let (here, _) = slot_place(slot, cpus);
        let run = |source, cpu| {
            let frame = frame(source, slot, 9000);
            let ran = runner
                .run_long(Entry::Steer, cpu, lab.outside, &frame)
                .expect("runs");
            (ran == Ran::Sent(frame), ran == Ran::Gone)
        };
        for other in (0..cpus).filter(|cpu| *cpu != here) {
            assert_eq!(run(SLOW_PATH_MAC, other), (true, false), "to its CPU, unchanged");
            // What was moved there may still wait (ADR 3): a frame from the wire goes behind it.
            assert_eq!(run(WIRE_MAC, here), (true, false));
        }
        let before = unknown(&plane);
        assert_eq!(run(SLOW_PATH_MAC, here), (false, true));
        assert_eq!(unknown(&plane), before + 1);
    }
    let longest = frame(SLOW_PATH_MAC, 0, SLOW_LONG_MAX);
    let (here, _) = slot_place(0, cpus);
    assert_eq!(
        runner
            .run_long(Entry::Steer, here, lab.outside, &longest)
            .expect("runs"),
        Ran::Gone
    );
    let longer = frame(SLOW_PATH_MAC, 0, SLOW_LONG_MAX + 1);
    let error = runner
        .run_long(Entry::Steer, here, lab.outside, &longer)
        .unwrap_err();
    assert!(error.to_string().contains("16512 at most"), "{error}");
    plane.detach().expect("detach");
}
