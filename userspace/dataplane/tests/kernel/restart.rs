//! What a restart finds: programs in service and pinned maps.

use super::*;

#[test]
fn a_restart_replaces_programs_in_place_and_adopts_the_maps() {
    let Some(lab) = Lab::new() else { return };
    let mut first = Plane::load(&lab.options()).expect("load");
    first.execute(&install(5, 0x0100_0005)).expect("execute");
    first.attach().expect("attach");
    let entry = SpdEntry::default();
    let key = SpdKey { destination: [0; 16] };
    let mut entry_discard = entry;
    entry_discard.rules[0].action = ACTION_DISCARD;
    let put = MapOp::PutSpd {
        prefix_len: 0,
        key,
        entry: Box::new(entry_discard),
    };
    first
        .execute(&MapPlan {
            ops: vec![put, MapOp::DeleteSpd { prefix_len: 7, key }],
        })
        .expect("policy");
    drop(first);
    assert!(
        run(&["bpftool", "net"]).contains("esp-out"),
        "programs stay attached without the process"
    );

    let mut options = lab.options();
    options.adopt = true;
    let mut second = Plane::load(&options).expect("adopt");
    assert!(second.attach().expect("attach").replaced);
    assert_eq!(
        second.records(5).expect("slot exists").0.spi,
        0x0100_0005,
        "the SA is still there"
    );
    drop(second);

    options.slots = SLOTS * 2;
    let refused = Plane::load(&options)
        .err()
        .expect("another size is not adopted")
        .to_string();
    assert!(refused.contains("start without adopting"), "{refused}");

    options.adopt = false;
    let mut third = Plane::load(&options).expect("load fresh");
    assert!(
        lab.bpftool("SPD").contains("\"action\": 4"),
        "old maps are in service until the attach"
    );
    assert!(third.attach().expect("attach").replaced);
    assert_eq!(third.records(5).expect("slot exists").0.spi, 0);
    assert!(
        !lab.bpftool("SPD").contains("\"action\": 4"),
        "new maps are pinned"
    );
    third.detach().expect("detach");
    free_of_programs("esp-out");
}

#[test]
fn adopted_maps_are_reconciled_under_the_same_counters_and_a_token_counts_once() {
    let Some(lab) = Lab::new() else { return };
    let mut first = Plane::load(&lab.options()).expect("load");
    first.execute(&install(5, 0x0100_0005)).expect("execute");
    first.execute(&install(6, 0x0100_0006)).expect("execute");
    let rule = |n: u8| {
        let mut entry = SpdEntry::default();
        entry.rules[0].action = ACTION_DISCARD;
        let mut destination = [0; 16];
        destination[0] = n;
        MapOp::PutSpd {
            prefix_len: 128,
            key: SpdKey { destination },
            entry: Box::new(entry),
        }
    };
    let rules = MapPlan {
        ops: vec![rule(1), rule(2)],
    };
    first.execute(&rules).expect("execute");
    first.attach().expect("attach");
    first.keep([9; 16]).expect("token");
    first.keep([7; 16]).expect("the last word counts");
    drop(first);

    assert_eq!(dataplane::take_kept(&lab.pin_dir).expect("pin"), Some([7; 16]));
    assert_eq!(dataplane::take_kept(&lab.pin_dir).expect("gone"), None, "once");
    let mut options = lab.options();
    options.adopt = true;
    let mut second = Plane::load(&options).expect("adopt");
    let before = second.counters(5).expect("slot exists");
    assert_eq!(before.inbound.spi, 0x0100_0005);
    // The next life knows slot 5, another SA in slot 8, and the second rule.
    let mut plan = install(5, 0x0100_0005);
    plan.extend(install(8, 0x0100_0008));
    plan.ops.push(rule(2));
    second.reconcile(&plan).expect("reconciled");
    let spi = |plane: &Plane, slot: u32| plane.records(slot).expect("slot exists").0.spi;
    assert_eq!(spi(&second, 5), 0x0100_0005);
    assert_eq!(spi(&second, 6), 0, "nobody knows it any more");
    assert_eq!(spi(&second, 8), 0x0100_0008);
    assert_eq!(second.counters(5), Some(before), "live counters stay");
    assert_eq!(second.counters(8).map(|c| c.inbound.spi), Some(0x0100_0008));
    assert_eq!(lab.bpftool("SPD").matches("\"action\": 4").count(), 1);
    assert!(second.attach().expect("attach").replaced);
    second.detach().expect("detach");
}
