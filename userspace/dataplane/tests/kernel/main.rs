//! The loader against a real kernel: load, attach to a veth, plans, counters, flips, live frames, restart.
//!
//! Needs root, bpffs and the program object, named by `ESPALIER_OBJECT`: `cargo xtask test` sets it. Without it the
//! tests say that they were skipped.

mod devices;
mod long;
mod restart;

use dataplane::{Entry, Mode, ObjectSource, Options, Plane, XdpModeUsed};
use maps_schema::sad::{InboundSa, InboundSaRuntime, Limits, LimitsCell, OutboundSa, SaKey};
use maps_schema::segment::{OwnerWord, SideWord};
use maps_schema::spd::{ACTION_DISCARD, SpdEntry, SpdKey};
use maps_schema::steer::{AddressKey, ClusterAddress, Local, Member, Port};
use sad::port::{DataPlane, Direction, MapOp, MapPlan};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

const SLOTS: u32 = 64;

/// A namespace with two veth pairs, and a pin folder; all of it is gone when the test ends.
struct Lab {
    object: PathBuf,
    name: String,
    pin_dir: PathBuf,
    outside: u32,
    inside: u32,
}

impl Lab {
    fn new() -> Option<Self> {
        let Some(object) = std::env::var_os("ESPALIER_OBJECT") else {
            eprintln!("skipped: ESPALIER_OBJECT names no program object (run `cargo xtask test`)");
            return None;
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "esp-dp{}x{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let mut lab = Self {
            object: PathBuf::from(object),
            pin_dir: Path::new("/sys/fs/bpf").join(&name),
            name: name.clone(),
            outside: 0,
            inside: 0,
        };
        run(&["ip", "netns", "add", &name]);
        for (here, there) in [("esp-out", "esp-outfar"), ("esp-in", "esp-infar")] {
            run(&[
                "ip", "-n", &name, "link", "add", here, "type", "veth", "peer", "name", there,
            ]);
            for side in [here, there] {
                run(&["ip", "-n", &name, "link", "set", side, "up"]);
            }
        }
        // This thread, and the workers that the plane starts from it, live in the namespace.
        let file = std::fs::File::open(Path::new("/run/netns").join(&name)).expect("namespace exists");
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter namespace");
        lab.outside = nix::net::if_::if_nametoindex("esp-out").expect("interface exists");
        lab.inside = nix::net::if_::if_nametoindex("esp-in").expect("interface exists");
        Some(lab)
    }

    fn options(&self) -> Options {
        let mut options = Options::new(
            ObjectSource::Path(self.object.clone()),
            &self.pin_dir,
            self.outside,
            self.inside,
        );
        (options.slots, options.mode) = (SLOTS, Mode::Driver);
        options
    }

    fn bpftool(&self, map: &str) -> String {
        run(&[
            "bpftool",
            "map",
            "dump",
            "pinned",
            &self.pin_dir.join(map).to_string_lossy(),
        ])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = dataplane::remove_pins(&self.pin_dir);
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &[&str]) -> String {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .expect("command runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The kernel lets go of a link some time after its last pin is gone.
fn free_of_programs(interface: &str) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while run(&["bpftool", "net"]).contains(interface) {
        assert!(std::time::Instant::now() < end, "{interface} still has a program");
        std::thread::yield_now();
    }
}

fn port(index: u8, side: u8, ifindex: u32) -> Port {
    Port {
        ifindex,
        device: ifindex,
        side,
        index,
        ..Port::default()
    }
}

fn limits(limit: u64, epoch: u32) -> Limits {
    Limits {
        limit,
        step: 100,
        floor: 0,
        epoch,
        reserved: 0,
    }
}

/// Key, runtime and records of one SA pair with the inbound SPI `spi`.
fn install(slot: u32, spi: u32) -> MapPlan {
    let cell = |l| LimitsCell {
        version: 0,
        slots: [l, Limits::default()],
    };
    let inbound = InboundSa {
        spi,
        connection: 3,
        suite: 3,
        limits: cell(limits(7, 1)),
        ..InboundSa::default()
    };
    let outbound = OutboundSa {
        spi: 0xabc,
        connection: 3,
        limits: cell(limits(4096, 1)),
        ..OutboundSa::default()
    };
    let key = |spi| {
        Box::new(SaKey {
            spi,
            suite: 3,
            ..SaKey::EMPTY
        })
    };
    MapPlan {
        ops: vec![
            MapOp::ResetRuntime { slot, spi },
            MapOp::PutKeyIn { slot, key: key(spi) },
            MapOp::PutKeyOut {
                slot,
                key: key(0xabc),
            },
            MapOp::PutOutbound {
                slot,
                record: Box::new(outbound),
            },
            MapOp::PutInbound {
                slot,
                record: Box::new(inbound),
            },
        ],
    }
}

#[test]
fn programs_attach_in_driver_mode_and_maps_show_named_fields() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.execute(&install(5, 0x0100_0005)).expect("execute");
    let report = plane.attach().expect("attach");
    assert_eq!(
        (report.mode(lab.outside), report.mode(lab.inside), report.replaced),
        (XdpModeUsed::Driver, XdpModeUsed::Driver, false)
    );
    for program in plane.programs() {
        assert!(program.jited_bytes > 0, "{program:?}");
    }

    let inner = lab.bpftool(&format!("SA_IN_{}", plane.cpu_of(5)));
    for field in [
        "\"spi\": 16777221",
        "\"connection\": 3",
        "\"limit\": 7",
        "\"reported_edge\": 0",
        "\"remote_first\"",
    ] {
        assert!(inner.contains(field), "no {field} in {inner}");
    }
    assert!(lab.bpftool("SEGMENTS").contains("\"owner\""));
    assert!(lab.bpftool("SA_OUT_RT_0").contains("\"seq\": 0"));
    assert!(lab.bpftool("SA_IN").contains("value"), "the outer map is pinned");
    assert!(lab.bpftool("LOCAL").contains("\"own_device\""));
    plane.detach().expect("detach");
    assert!(!lab.pin_dir.exists());
}

#[test]
fn an_awaited_spi_stands_beside_what_is_in_the_slot() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.execute(&install(6, 0x0100_0006)).expect("execute");
    let mut seen = |op| {
        plane.execute(&MapPlan { ops: vec![op] }).expect("execute");
        let (inbound, _) = plane.records(6).expect("slot exists");
        (inbound.spi, inbound.selector_count, inbound.awaited)
    };
    let (slot, spi) = (6, 0x0200_0006);
    let there = |awaited| (0x0100_0006, 0, awaited);
    assert_eq!(seen(MapOp::PutAwaited { slot, spi }), there(spi));
    assert_eq!(
        seen(MapOp::ClearAwaited {
            slot,
            spi: 0x0100_0006
        }),
        there(spi)
    );
    assert_eq!(seen(MapOp::ClearAwaited { slot, spi }), there(0));
    assert_eq!(seen(MapOp::PutAwaited { slot, spi }), there(spi));
    assert_eq!(seen(MapOp::ClearSlot { slot }), (0, 0, 0));
    let slot = 1 << 19;
    let beyond = plane.execute(&MapPlan {
        ops: vec![MapOp::PutAwaited { slot, spi }],
    });
    assert!(beyond.is_err_and(|error| error.cause.contains("slots")));
}

#[test]
fn limits_are_published_by_version_and_live_counters_are_never_reset() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    let spi = 0x0100_0007;
    plane.execute(&install(7, spi)).expect("execute");
    let publish = |limit| MapPlan {
        ops: vec![MapOp::PublishLimits {
            direction: Direction::Inbound,
            slot: 7,
            spi,
            limits: limits(limit, 2),
        }],
    };
    for (version, limit) in [(1u64, 50), (2, 60), (3, 70)] {
        plane.execute(&publish(limit)).expect("publish");
        let (inbound, _) = plane.records(7).expect("slot exists");
        assert_eq!(inbound.limits.version, version);
        assert_eq!(
            datapath::limits::read(&inbound.limits).expect("quiet").0,
            limits(limit, 2)
        );
    }
    // Limits for an SPI that is not there any more go nowhere.
    let stale = MapOp::PublishLimits {
        direction: Direction::Inbound,
        slot: 7,
        spi: 1,
        limits: limits(999, 2),
    };
    plane.execute(&MapPlan { ops: vec![stale] }).expect("skipped");
    assert_eq!(plane.records(7).expect("slot exists").0.limits.version, 3);

    // The plan again: the window's SPI stays, the limits become the record's by publication, not by going back.
    plane.execute(&install(7, spi)).expect("execute again");
    let (inbound, _) = plane.records(7).expect("slot exists");
    assert_eq!(inbound.limits.version, 4);
    assert_eq!(
        plane.counters(7).expect("slot exists").inbound,
        InboundSaRuntime {
            spi,
            ..InboundSaRuntime::default()
        }
    );

    plane
        .execute(&MapPlan {
            ops: vec![MapOp::ClearSlot { slot: 7 }],
        })
        .expect("clear");
    let (inbound, outbound) = plane.records(7).expect("slot exists");
    assert_eq!((inbound, outbound), (InboundSa::default(), OutboundSa::default()));

    let error = plane
        .execute(&install(SLOTS + 1000, spi))
        .expect_err("beyond the maps");
    assert!(error.cause.contains("raise `slots`"), "{error}");
    plane.detach().expect("detach");
}

#[test]
fn owner_words_flip_at_once_and_are_extended_by_compare_and_swap_only() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.attach().expect("attach");
    let segments = plane.segments();
    let word = OwnerWord {
        owner: 2,
        epoch: 9,
        valid_until_ms: 1000,
    };
    let side = SideWord {
        successor: 1,
        ..SideWord::default()
    };
    segments.flip(200, word, side);
    assert_eq!(segments.get(200), (word, side));
    let seen = run(&[
        "bpftool",
        "map",
        "lookup",
        "pinned",
        &lab.pin_dir.join("SEGMENTS").to_string_lossy(),
        "key",
        "200",
        "0",
        "0",
        "0",
    ]);
    assert!(seen.contains(&format!("\"owner\": {}", word.pack())), "{seen}");

    assert_eq!(segments.extend_validity(200, 2, 9, 5000), Ok(()));
    assert_eq!(segments.get(200).0.valid_until_ms, 5000);
    assert_eq!(
        segments.extend_validity(200, 2, 9, 4000),
        Ok(()),
        "never shortened"
    );
    assert_eq!(segments.get(200).0.valid_until_ms, 5000);
    let other = OwnerWord {
        owner: 1,
        epoch: 10,
        valid_until_ms: 1,
    };
    segments.flip(200, other, SideWord::default());
    assert_eq!(segments.extend_validity(200, 2, 9, 6000), Err(other));
    assert_eq!(segments.get(200).0, other);
    assert_eq!(segments.get(199), (OwnerWord::default(), SideWord::default()));
    plane.detach().expect("detach");
}

#[test]
fn a_live_frame_runs_on_every_cpu_and_is_counted() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.attach().expect("attach");
    let local = Local {
        member: 1,
        ..Local::default()
    };
    plane.set_local(&local).expect("local");
    plane
        .set_ports(&[port(0, 1, lab.outside), port(8, 2, lab.inside)])
        .expect("ports");
    assert!(
        plane.set_ports(&[port(16, 1, lab.outside)]).is_err(),
        "no such port"
    );
    let twice = [port(0, 1, lab.outside), port(1, 1, lab.outside)];
    assert!(plane.set_ports(&twice).is_err(), "one device, two ports");
    plane.set_member(2, &Member::default()).expect("member");
    assert!(plane.set_member(0, &Member::default()).is_err());
    plane.put_member_mac([2, 0, 0, 0, 0, 9], 2).expect("mac");
    plane.delete_member_mac([2, 0, 0, 0, 0, 9]).expect("mac");
    let address = AddressKey { address: [9; 16] };
    plane
        .put_address(
            &address,
            &ClusterAddress {
                side: 1,
                segment: 5,
                ports: 1,
            },
        )
        .expect("address");
    plane.clear_tables(&[]).expect("tables");
    plane.segments().flip(
        5,
        OwnerWord {
            owner: 1,
            epoch: 1,
            valid_until_ms: (1 << 40) - 1,
        },
        SideWord::default(),
    );
    let total = |plane: &Plane| {
        plane
            .verdicts()
            .expect("verdicts")
            .iter()
            .map(|v| v.packets)
            .sum::<u64>()
    };

    // An IPv4 packet that is for nobody here: some verdict counts it.
    let mut frame = [0u8; 64];
    frame[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&50u16.to_be_bytes());
    (frame[22], frame[23]) = (64, 17);
    frame[26..30].copy_from_slice(&[192, 0, 2, 1]);
    frame[30..34].copy_from_slice(&[192, 0, 2, 2]);
    let runner = plane.runner();
    let before = total(&plane);
    let cpus = lab.options().cpus;
    for cpu in 0..cpus {
        runner
            .run_frame(Entry::Steer, cpu, lab.outside, &frame)
            .expect("runs");
    }
    assert!(
        total(&plane) >= before + u64::from(cpus),
        "verdicts {:?}",
        plane.verdicts()
    );
    runner.drain_cpus().expect("drained");
    assert!(
        runner.run_frame(Entry::Steer, cpus, lab.outside, &frame).is_err(),
        "no such CPU"
    );
    assert!(
        runner.run_frame(Entry::Steer, 0, 0x7fff_fff0, &frame).is_err(),
        "no such interface"
    );
    assert!(
        runner
            .run_frame(Entry::Steer, 0, lab.outside, &[0; 4000])
            .is_err(),
        "too long"
    );
    let mut events = plane.take_events().expect("first take");
    assert!(plane.take_events().is_none());
    events.drain(|_| {});
    plane.detach().expect("detach");
}

#[test]
fn many_keys_and_rules_of_one_plan_are_all_in_the_maps() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.attach().expect("attach");
    let key = |slot: u32| MapOp::PutKeyIn {
        slot,
        key: Box::new(SaKey {
            spi: 0x0100_0000 | slot,
            suite: 3,
            ..SaKey::EMPTY
        }),
    };
    let rule = |n: u8| {
        let mut entry = SpdEntry::default();
        entry.rules[0].action = ACTION_DISCARD;
        entry.rules[0].connection = u16::from(n);
        let mut destination = [0; 16];
        destination[0] = n;
        MapOp::PutSpd {
            prefix_len: 128,
            key: SpdKey { destination },
            entry: Box::new(entry),
        }
    };
    // More than one batch of each, and two of the same slot and prefix: the last one counts.
    let mut ops: Vec<MapOp> = (0..SLOTS).map(key).collect();
    ops.push(MapOp::PutKeyIn {
        slot: 7,
        key: Box::new(SaKey {
            spi: 0x0200_0007,
            suite: 3,
            ..SaKey::EMPTY
        }),
    });
    ops.extend((0..100).map(rule));
    plane.execute(&MapPlan { ops }).expect("execute");
    let spd = lab.bpftool("SPD");
    assert_eq!(spd.matches("\"length\": 128").count(), 100, "{spd}");
    for n in 0..100 {
        assert!(spd.contains(&format!("\"connection\": {n},")), "rule {n}");
    }
    let outer = run(&[
        "bpftool",
        "map",
        "dump",
        "pinned",
        &lab.pin_dir.join("KEY_IN").to_string_lossy(),
    ]);
    let cpu = plane.cpu_of(7);
    // Keys have no types in the outer map: `key: 00 00 00 00  value: 1d 35 00 00`.
    let ids: Vec<u32> = outer
        .lines()
        .filter_map(|line| line.split_once("value: "))
        .map(|(_, id)| {
            let octets = id.split_whitespace().map(|o| u8::from_str_radix(o, 16));
            let octets = octets.collect::<Result<Vec<_>, _>>().expect("octets");
            u32::from_le_bytes(octets.try_into().expect("an id"))
        })
        .collect();
    assert!(ids.len() > cpu as usize, "{outer}");
    let id = ids[cpu as usize].to_string();
    let keys = run(&["bpftool", "map", "dump", "id", &id]);
    assert!(
        keys.contains(&format!("\"spi\": {}", 0x0200_0007)),
        "the last one of a slot counts"
    );
    for slot in (0..SLOTS).filter(|slot| plane.cpu_of(*slot) == cpu && *slot != 7) {
        assert!(
            keys.contains(&format!("\"spi\": {}", 0x0100_0000 | slot)),
            "key of slot {slot}"
        );
    }
    let beyond = plane.execute(&MapPlan {
        ops: vec![key(1), key(SLOTS * 9)],
    });
    let error = beyond.expect_err("no such slot");
    assert_eq!((error.done, error.operation), (0, "put inbound key"));
    plane.detach().expect("detach");
}

#[test]
fn several_outside_interfaces_are_attached_and_one_that_is_gone_from_the_configuration_is_let_go() {
    let Some(lab) = Lab::new() else { return };
    let second = nix::net::if_::if_nametoindex("esp-outfar").expect("interface exists");
    let mut options = lab.options();
    // As with two VLANs of one device: it is named twice and gets one program.
    options.outside = vec![lab.outside, second, second];
    let mut first = Plane::load(&options).expect("load");
    let report = first.attach().expect("attach");
    assert_eq!(report.modes.len(), 3);
    assert_eq!(report.mode(second), XdpModeUsed::Driver);
    assert!(run(&["bpftool", "net"]).contains("esp-outfar"));
    drop(first);

    options.outside = vec![lab.outside];
    let mut after = Plane::load(&options).expect("load");
    let report = after.attach().expect("attach");
    assert!(report.replaced);
    assert_eq!(report.mode(second), XdpModeUsed::None);
    free_of_programs("esp-outfar");
    after.detach().expect("detach");
    free_of_programs("esp-out");

    options.inside = vec![lab.outside];
    let refused = Plane::load(&options)
        .err()
        .expect("one device, two sides")
        .to_string();
    assert!(refused.contains("two devices"), "{refused}");
}

/// A program in a cpumap's entry that refers to that map keeps it, and is kept by it: with them every map of an agent that was
/// killed stays in the kernel, until the host has no memory left.
#[test]
fn programs_of_cpumap_entries_do_not_hold_the_map_that_holds_them() {
    let Some(lab) = Lab::new() else { return };
    let _plane = Plane::load(&lab.options()).expect("load");
    let ids = |text: &str| -> Vec<u64> {
        text.split([',', ' '])
            .filter_map(|id| id.trim().parse().ok())
            .collect()
    };
    let maps = run(&["bpftool", "map", "show"]);
    let cpumaps: Vec<u64> = maps
        .lines()
        .filter_map(|line| line.split_once(": cpumap"))
        .flat_map(|(id, _)| ids(id))
        .collect();
    assert!(cpumaps.len() >= 2, "{maps}");
    let programs = run(&["bpftool", "prog", "show"]);
    let mut name = String::new();
    let mut seen = 0;
    for line in programs.lines() {
        if let Some((_, rest)) = line.split_once(" name ") {
            name = rest.split(' ').next().unwrap_or_default().to_owned();
        }
        if let Some((_, list)) = line.split_once("map_ids ")
            && ["esp_in", "esp_out"].contains(&name.as_str())
        {
            seen += 1;
            let held: Vec<u64> = ids(list).into_iter().filter(|id| cpumaps.contains(id)).collect();
            assert_eq!(held, [], "{name} refers to a cpumap");
        }
    }
    assert!(seen >= 2, "{programs}");
}

#[test]
fn the_verifier_report_names_every_program() {
    let Some(lab) = Lab::new() else { return };
    let report = dataplane::verifier_report(&lab.object).expect("loads");
    let names: Vec<_> = report.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["steer", "esp_in", "inside", "esp_out", "sa_ctl", "pass"]);
    assert!(
        report
            .iter()
            .all(|r| r.instructions > 0 && r.verified_instructions > 0 && r.jited_bytes > 0),
        "{report:?}"
    );
    let error = dataplane::verifier_report(Path::new("/nonexistent"))
        .expect_err("no file")
        .to_string();
    assert!(error.contains("cargo xtask build"), "{error}");
}

#[test]
fn a_missing_interface_is_named() {
    let Some(lab) = Lab::new() else { return };
    let mut options = lab.options();
    options.outside = vec![0x7fff_fff0];
    let mut plane = Plane::load(&options).expect("load");
    let error = plane.attach().expect_err("no such interface").to_string();
    assert!(
        error.contains("does not exist in this network namespace"),
        "{error}"
    );
    plane.detach().expect("detach");
}
