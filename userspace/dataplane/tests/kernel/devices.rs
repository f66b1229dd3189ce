//! Devices that run no program in their driver, or take nothing that is redirected: said by name, and told to the programs.

use super::*;
use maps_schema::steer::{PORT_NO_REDIRECT, PORT_REDIRECT_BACK, PORT_TAKES_PIECES};

/// The flags of the ports, in the order of their numbers.
fn flags(lab: &Lab) -> Vec<String> {
    let text = lab.bpftool("PORTS");
    let lines = text
        .lines()
        .map(|line| line.trim().trim_end_matches(','))
        .filter_map(|line| line.strip_prefix("\"flags\": "));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_device_without_xdp_is_refused_by_name_with_what_to_do() {
    let Some(lab) = Lab::new() else { return };
    run(&["ip", "link", "add", "esp-bridge", "type", "bridge"]);
    let mut options = lab.options();
    options.outside = vec![nix::net::if_::if_nametoindex("esp-bridge").expect("interface exists")];
    let mut plane = Plane::load(&options).expect("load");
    let error = plane.attach().expect_err("a bridge has no XDP").to_string();
    assert!(
        error.contains("esp-bridge (driver bridge, MTU 1500)") && error.contains("a bridge has none"),
        "{error}"
    );
    plane.detach().expect("detach");
    // The same device in generic mode, and the report says which mode it became.
    options.mode = Mode::DriverPreferred;
    let mut plane = Plane::load(&options).expect("load");
    let report = plane.attach().expect("attach");
    assert_eq!(report.mode(options.outside[0]), XdpModeUsed::Generic);
    plane.detach().expect("detach");
}

/// What the thread of an agent does.
fn look(plane: &mut Plane) -> Vec<dataplane::Ability> {
    let seen = plane.watch().look(&plane.devices().expect("devices"));
    assert_eq!(seen.attached, Ok(()));
    plane.tell_abilities(&seen).expect("told")
}

#[test]
fn what_a_device_takes_is_told_to_the_programs_and_told_again_when_it_changes() {
    let Some(lab) = Lab::new() else { return };
    let mut plane = Plane::load(&lab.options()).expect("load");
    plane.attach().expect("attach");
    plane
        .set_ports(&[port(0, 1, lab.outside), port(8, 2, lab.inside)])
        .expect("ports");
    let Some(features) = dataplane::xdp_features(lab.outside).expect("netlink") else {
        // Linux before 6.3 does not say: whole frames are redirected, others not.
        assert_eq!(look(&mut plane), []);
        let back = PORT_REDIRECT_BACK.to_string();
        let seen = flags(&lab);
        assert_eq!([&seen[0], &seen[8]], [&back, &back], "{seen:?}");
        plane.detach().expect("detach");
        return;
    };
    assert!(
        features.native && features.gives_pieces && !features.takes,
        "{features:?}"
    );
    let changed = look(&mut plane);
    assert_eq!(changed.len(), 2);
    assert!(changed.iter().all(|a| !a.takes), "{changed:?}");
    assert_eq!(look(&mut plane), [], "said once");
    run(&["ethtool", "-K", "esp-outfar", "gro", "on"]);
    let changed = look(&mut plane);
    let outside = changed.iter().map(|a| (a.ifindex, a.takes, a.takes_pieces));
    assert_eq!(outside.collect::<Vec<_>>(), [(lab.outside, true, true)]);
    // Both are veths, whose far ends `XDP_TX` does not reach without a program.
    let told = [
        PORT_TAKES_PIECES | PORT_REDIRECT_BACK,
        PORT_NO_REDIRECT | PORT_REDIRECT_BACK,
    ];
    let seen = flags(&lab);
    assert_eq!(
        [&seen[0], &seen[8]],
        [&told[0].to_string(), &told[1].to_string()],
        "{seen:?}"
    );
    plane.detach().expect("detach");
}
