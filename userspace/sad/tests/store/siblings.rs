//! Child SAs per CPU beside a shared one (RFC 9611): what each CPU is told to use.

use crate::world::*;
use maps_schema::sad::{slot_place, spi_slot};
use maps_schema::spd::{ACTION_PROTECT, ACTION_PROTECT_PER_CPU};
use model::{ChildSaChange, EspSpi, IkeSpi, Instant, OutboundUse, SegmentId};
use sad::{DataPlane, MapOp};

const REMOTE: &str = "10.2.0.0-10.2.0.255";
const CPUS: u32 = 2;

fn cpu_of(spi: EspSpi) -> u32 {
    slot_place(spi_slot(spi.0), CPUS).0
}

impl World {
    fn shared(&mut self, replaces: Option<EspSpi>) -> EspSpi {
        let spi_in = self.install(REMOTE, OutboundUse::Now, replaces);
        self.apply(ChildSaChange::Share { spi_in });
        spi_in
    }

    fn bound(&mut self, cpu: u32, now: bool) -> EspSpi {
        let spi_in = self.sad.reserve_spi_on(SEGMENT, cpu).expect("slots are free");
        assert_eq!((cpu_of(spi_in), spi_in.segment()), (cpu, SEGMENT));
        self.apply(ChildSaChange::Install {
            record: Box::new(record(spi_in, REMOTE)),
            outbound: OutboundUse::Later,
            replaces: None,
        });
        self.apply(ChildSaChange::Bind { spi_in, now });
        spi_in
    }

    /// An SA on another segment, beside the shared one.
    fn guest(&mut self, segment: SegmentId, cpu: u32) -> EspSpi {
        let spi_in = self.sad.reserve_spi_on(segment, cpu).expect("slots are free");
        self.apply(ChildSaChange::Install {
            record: Box::new(record(spi_in, REMOTE)),
            outbound: OutboundUse::Later,
            replaces: None,
        });
        self.apply(ChildSaChange::Bind { spi_in, now: false });
        self.apply(ChildSaChange::UseOutbound { spi_in });
        spi_in
    }

    fn serve(&mut self, segments: &[SegmentId], served: bool) {
        self.sad.set_served(segments.iter().copied(), served);
        while self.sad.is_stale() {
            let plan = self.sad.republish(1);
            self.run(plan);
        }
    }

    /// What CPUs 0 and 1 use for a packet to the peer's network.
    fn used(&self) -> [u32; 2] {
        let (action, slot) = self.lookup("10.2.0.9").expect("a rule");
        [0, 1].map(|cpu| match action {
            ACTION_PROTECT => slot,
            ACTION_PROTECT_PER_CPU => *self.plane.cpu_slots.get(&(cpu, slot)).unwrap_or(&slot),
            other => panic!("action {other}"),
        })
    }
}

fn slots(spis: [EspSpi; 2]) -> [u32; 2] {
    spis.map(|spi| spi_slot(spi.0))
}

fn world() -> World {
    let mut world = World::new(1);
    world.configure(vec![policy("net", REMOTE)]);
    world
}

#[test]
fn a_cpu_uses_its_own_sa_and_without_one_the_shared_one() {
    let mut world = world();
    let shared = world.shared(None);
    assert_eq!(world.used(), slots([shared, shared]));
    let one = world.bound(1, true);
    assert_eq!(world.used(), slots([shared, one]));
    let zero = world.bound(0, true);
    assert_eq!(world.used(), slots([zero, one]));
    assert!(world.sad.has_own(spi_slot(shared.0), 0) && world.sad.has_own(spi_slot(shared.0), 1));
    let names = world.apply(ChildSaChange::Remove { spi_in: one });
    assert_eq!(
        names,
        ["put a CPU's own SA", "clear slot"],
        "no CPU is led to an empty slot"
    );
    assert_eq!(world.used(), slots([zero, shared]));
    // Policies follow the shared one only.
    assert_eq!(
        world.lookup("10.2.0.9"),
        Some((ACTION_PROTECT_PER_CPU, spi_slot(shared.0)))
    );
}

#[test]
fn the_peers_rekey_is_used_when_the_old_one_goes_and_the_latest_of_several_is_used() {
    let mut world = world();
    let shared = world.shared(None);
    let old = world.bound(1, true);
    let new = world.bound(1, false);
    assert_eq!(world.used(), slots([shared, old]));
    world.apply(ChildSaChange::UseOutbound { spi_in: new });
    assert_eq!(world.used(), slots([shared, new]));
    world.apply(ChildSaChange::Remove { spi_in: old });
    assert_eq!(world.used(), slots([shared, new]));
    let second = world.bound(1, true);
    assert_eq!(world.used(), slots([shared, second]));
    world.apply(ChildSaChange::Remove { spi_in: second });
    assert_eq!(
        world.used(),
        slots([shared, new]),
        "the earlier one is used again"
    );
}

#[test]
fn own_sas_stay_over_a_rekey_of_the_shared_one_and_of_the_ike_sa() {
    let mut world = world();
    let old = world.shared(None);
    let one = world.bound(1, true);
    let new = world.shared(Some(old));
    assert_eq!(world.used(), slots([new, one]));
    world.apply(ChildSaChange::Remove { spi_in: old });
    assert_eq!(world.used(), slots([new, one]));
    assert!(!world.plane.cpu_slots.contains_key(&(1, spi_slot(old.0))));
    let ike_spi = IkeSpi(0x0401_0000_0000_0002);
    for spi_in in [one, new] {
        world.apply(ChildSaChange::MoveIkeSa { spi_in, ike_spi });
    }
    assert_eq!(world.used(), slots([new, one]));
    world.apply(ChildSaChange::Remove { spi_in: one });
    assert_eq!(world.used(), slots([new, new]));
}

#[test]
fn other_peers_of_the_connection_have_families_of_their_own() {
    let mut world = world();
    let shared = world.shared(None);
    let other = world.sad.reserve_spi(SEGMENT).expect("slots are free");
    let mut its = record(other, REMOTE);
    its.ike_spi = IkeSpi(0x0401_0000_0000_0009);
    world.apply(ChildSaChange::Install {
        record: Box::new(its),
        outbound: OutboundUse::Later,
        replaces: None,
    });
    world.apply(ChildSaChange::Bind {
        spi_in: other,
        now: true,
    });
    assert_eq!(world.used(), slots([shared, shared]));
}

#[test]
fn without_further_sas_nothing_is_different() {
    let mut world = world();
    let spi = world.install(REMOTE, OutboundUse::Now, None);
    assert_eq!(world.lookup("10.2.0.9"), Some((ACTION_PROTECT, spi_slot(spi.0))));
    assert!(world.plane.cpu_slots.is_empty());
}

#[test]
fn a_joiner_and_an_empty_data_plane_get_to_know_all_of_it() {
    let mut world = world();
    world.shared(None);
    let zero = world.bound(0, true);
    let old = world.bound(1, true);
    let new = world.bound(1, true);
    let waiting = world.bound(1, false);
    let snapshot = world.sad.snapshot(Instant::from_millis(5000));
    let parts = world.sad.parts_where(|segment| segment == SEGMENT);
    assert_eq!(parts.len(), 5);
    assert!(world.sad.parts_where(|segment| segment != SEGMENT).is_empty());

    let mut joiner = self::world();
    for _ in 0..2 {
        // A second time it has all that already.
        let plan = joiner
            .sad
            .restore(snapshot.clone(), Instant::from_millis(6000))
            .expect("restores");
        joiner.run(plan);
        for part in &parts {
            joiner.apply(part.clone());
        }
        assert_eq!(joiner.used(), slots([zero, new]));
    }
    joiner.apply(ChildSaChange::Remove { spi_in: new });
    assert_eq!(joiner.used(), slots([zero, old]));
    joiner.apply(ChildSaChange::UseOutbound { spi_in: waiting });
    assert_eq!(joiner.used(), slots([zero, waiting]));

    let mut empty = sad::memory::MemoryPlane::new(4096);
    empty
        .execute(&joiner.sad.full_plan().expect("a plan"))
        .expect("the plan fits");
    assert_eq!(empty.cpu_slots, joiner.plane.cpu_slots);
    // Configured anew, rules go on to say that CPUs have their own.
    joiner.configure(vec![policy("net", REMOTE)]);
    assert_eq!(joiner.used(), slots([zero, waiting]));
    let plan = joiner.sad.clear();
    assert!(
        plan.ops
            .iter()
            .all(|op| !matches!(op, MapOp::PutCpuSlot { own: Some(_), .. }))
    );
    joiner.run(plan);
    assert!(joiner.plane.cpu_slots.is_empty());
}

#[test]
fn every_cpu_has_slots_in_every_segment_and_they_are_used_again() {
    let mut world = World::new(1);
    // 4096 slots: 16 of each segment, 8 for each of the two CPUs.
    let mut taken: Vec<EspSpi> = (0..8)
        .map(|_| world.sad.reserve_spi_on(SEGMENT, 1).expect("eight are there"))
        .collect();
    assert!(taken.iter().all(|spi| cpu_of(*spi) == 1));
    assert_eq!(world.sad.reserve_spi_on(SEGMENT, 1), None);
    // A CPU that this member does not have is one that it has.
    taken.push(world.sad.reserve_spi_on(SEGMENT, 2).expect("CPU 0"));
    assert_eq!(cpu_of(taken[8]), 0);
    let rest = (0..7).map(|_| world.sad.reserve_spi(SEGMENT).expect("the others are free"));
    let rest = rest.collect::<Vec<_>>();
    assert!(rest.iter().all(|spi| cpu_of(*spi) == 0));
    assert_eq!(world.sad.reserve_spi(SEGMENT), None);
    let freed = taken[3];
    world.sad.release_spi(freed);
    assert_eq!(world.sad.reserve_spi_on(SEGMENT, 0), None);
    let again = world.sad.reserve_spi_on(SEGMENT, 1).expect("the freed one");
    assert_eq!(spi_slot(again.0), spi_slot(freed.0));
    assert_ne!(again, freed, "under the next generation");
}

const OTHERS: SegmentId = SegmentId(5);

#[test]
fn a_member_uses_its_guest_on_all_cpus_where_the_shared_sa_is_another_members() {
    let mut world = world();
    let shared = world.shared(None);
    let guest = world.guest(OTHERS, 1);
    assert!(world.sad.get(guest).is_some_and(|e| e.is_guest() && e.is_bound()));
    assert_eq!(
        world.used(),
        slots([shared, shared]),
        "another member serves both"
    );
    world.serve(&[OTHERS], true);
    assert_eq!(
        world.used(),
        slots([guest, guest]),
        "the guest's CPU serves for both"
    );
    let second = world.guest(OTHERS, 0);
    assert_eq!(world.used(), slots([second, guest]), "each CPU its own");
    world.serve(&[SEGMENT], true);
    assert_eq!(
        world.used(),
        slots([shared, shared]),
        "the shared one is served here as well"
    );
    world.serve(&[SEGMENT], false);
    assert_eq!(world.used(), slots([second, guest]));
    world.apply(ChildSaChange::Remove { spi_in: guest });
    assert_eq!(world.used(), slots([second, second]));
    world.serve(&[OTHERS], false);
    assert_eq!(world.used(), slots([shared, shared]));
    assert_eq!(world.sad.guests().count(), 1);
}

#[test]
fn a_guest_moves_to_the_new_ike_sa_before_or_after_the_shared_one() {
    for guest_first in [false, true] {
        let mut world = world();
        let shared = world.shared(None);
        let guest = world.guest(OTHERS, 0);
        world.serve(&[OTHERS], true);
        let ike_spi = IkeSpi(0x0401_0000_0000_0002);
        let order = if guest_first {
            [guest, shared]
        } else {
            [shared, guest]
        };
        for spi_in in order {
            world.apply(ChildSaChange::MoveIkeSa { spi_in, ike_spi });
        }
        // Nothing is lost meanwhile; the next change says what is.
        world.apply(ChildSaChange::UseOutbound { spi_in: guest });
        assert_eq!(world.used(), slots([guest, guest]), "guest first: {guest_first}");
        world.apply(ChildSaChange::Remove { spi_in: guest });
        assert_eq!(world.used(), slots([shared, shared]));
        assert_eq!(world.sad.guests().count(), 0);
    }
}

#[test]
fn a_connections_sas_are_counted_where_its_ike_sa_is() {
    let mut world = world();
    world.shared(None);
    world.guest(OTHERS, 0);
    let counted: Vec<_> = world.sad.children_of("branch").collect();
    assert_eq!(counted, [(SEGMENT, 2)]);
}
