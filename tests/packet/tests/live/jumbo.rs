//! MTUs of 9000 octets on every link.

use super::*;

/// A veth device hands a frame of more than some 3500 octets to the programs in several buffers.
#[test]
fn jumbo_frames_are_carried_in_several_buffers() {
    if std::env::var_os("ESPALIER_BPF_OBJECT")
        .or_else(|| std::env::var_os("ESPALIER_OBJECT"))
        .is_none()
    {
        eprintln!("skipped: neither ESPALIER_BPF_OBJECT nor ESPALIER_OBJECT names a program object");
        return;
    }
    let how = How {
        suite: SUITE_AES256_GCM,
        esn: true,
        encap: false,
        v6: false,
        clamp: true,
        mtu: 9000,
    };
    let lab = Lab::new("j");
    for (name, devices) in [
        ("near", &["e"][..]),
        ("west", &["in", "out"]),
        ("east", &["in", "out"]),
        ("far", &["e"]),
    ] {
        for device in devices {
            lab.ip(name, &format!("link set {device} mtu {}", how.mtu));
        }
    }
    let mut west = gateway(&lab, &WEST, &EAST, how);
    let mut east = gateway(&lab, &EAST, &WEST, how);
    // Now that there is a program at every far end.
    let mut pieces = true;
    for (name, plane) in [("west", &mut west), ("east", &mut east)] {
        lab.within(name, || {
            let seen = plane.watch().look(&plane.devices().expect("devices"));
            plane.tell_abilities(&seen).expect("told");
            let index = nix::net::if_::if_nametoindex("out").expect("the interface");
            let features = dataplane::xdp_features(index).expect("netlink");
            pieces &= features.is_some_and(|f| f.takes_pieces);
        });
    }
    let report = |what: &str| format!("{what}\nwest {:?}\neast {:?}", west.verdicts(), east.verdicts());
    let far = Ipv4Addr::from(EAST.inside_net + 5);
    let far_v6 = Ipv6Addr::from(v6(EAST.inside_v6, 5));
    for far in [far.to_string(), far_v6.to_string()] {
        let line = [
            "ping", "-n", "-c", "6", "-i", "0.05", "-W", "2", "-M", "do", "-s", "8800", &far,
        ];
        let ping = lab.exec("near", &line);
        let text = String::from_utf8_lossy(&[ping.stdout, ping.stderr].concat()).into_owned();
        assert!(
            text.contains(" 6 received") || text.contains(" 5 received"),
            "{}",
            report(&text)
        );
    }
    tcp(&lab, far.into(), &report);
    tcp(&lab, far_v6.into(), &report);
    for plane in [&west, &east] {
        for verdict in [
            Verdict::IcvBad,
            Verdict::InternalError,
            Verdict::TooBig,
            Verdict::ExitRefuses,
        ] {
            assert_eq!(
                count(plane, CONNECTION, verdict),
                0,
                "{verdict:?}\n{}",
                report("")
            );
        }
        // Kernels before 6.3 redirect no such frames: they go through the stack.
        let around = count(plane, CONNECTION, Verdict::PiecesToStack);
        assert_eq!(around == 0, pieces, "{around} through the stack\n{}", report(""));
    }
}
