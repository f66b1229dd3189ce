use super::*;

mod auth;
mod limits;

const EXAMPLE: &str = include_str!("../../../../docs/examples/espalier.toml");

fn problems(source: &str) -> Vec<String> {
    match Config::read_without_files(source, Path::new("/etc/espalier")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// The example with one piece of text replaced; the piece must be there.
fn with(from: &str, to: &str) -> String {
    assert!(EXAMPLE.contains(from), "the example has no {from:?}");
    EXAMPLE.replacen(from, to, 1)
}

fn line_of(source: &str, text: &str) -> usize {
    source
        .lines()
        .position(|l| l.contains(text))
        .expect("the text is there")
        + 1
}

#[test]
fn the_example_in_the_docs_is_a_configuration() {
    let config = Config::read_without_files(EXAMPLE, Path::new("/etc/espalier")).unwrap_or_else(|p| {
        panic!(
            "{}",
            p.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        )
    });
    assert_eq!(config.me().id, MemberId(1));
    assert_eq!(config.others().count(), 1);
    assert_eq!(config.cluster.heartbeat, Duration::from_millis(20));
    assert_eq!(config.cluster.record_format, cluster::message::VERSION);
    let psk = config.connections[0].psk_file.as_ref().unwrap();
    assert!(psk.starts_with("/etc/espalier"));
    assert_eq!(config.connection_index(&config.connections[0].name), 1);
    assert_eq!(config.connection_index("nobody"), 0);
}

#[test]
fn addresses_remotes_and_selectors_may_be_ipv6() {
    let source = EXAMPLE
        .replace("[\"192.0.2.1\"]", "[\"192.0.2.1\", \"2001:db8:a::1\"]")
        .replace("remote = \"203.0.113.10\"", "remote = \"2001:db8:b::10\"")
        .replace(
            "[\"10.1.0.0/16\"]",
            "[\"10.1.0.0/16\", \"2001:db8:1::/48[tcp/443]\"]",
        );
    let v4_only = Config::read_without_files(EXAMPLE, Path::new("/etc/espalier"))
        .ok()
        .unwrap();
    assert!(!v4_only.carries_v6());
    let found = problems(&source);
    assert!(
        found.len() == 1 && found[0].contains("are not of one family"),
        "{found:?}"
    );
    let source = source.replace("\nlocal = \"192.0.2.1\"", "\n");
    let config = Config::read_without_files(&source, Path::new("/etc/espalier"))
        .ok()
        .unwrap();
    assert!(config.carries_v6());
    assert_eq!(
        config.connections[0].local,
        "2001:db8:a::1".parse::<IpAddr>().unwrap(),
        "the first address that can reach the peer"
    );
}

#[test]
fn a_virtual_mac_address_is_given_or_made_from_the_clusters_name() {
    let of = |text: &str| {
        let source = with(
            "tun = \"esp0\"",
            &format!("tun = \"esp0\"\nvirtual_mac = \"{text}\""),
        );
        Config::read_without_files(&source, Path::new("/etc/espalier"))
            .ok()
            .unwrap()
            .interfaces
            .virtual_mac
            .unwrap()
    };
    assert_eq!(of("02:00:5E:10:20:30"), [2, 0, 0x5e, 0x10, 0x20, 0]);
    let auto = of("auto");
    assert_eq!((auto[0], auto[5], auto), (2, 0, of("auto")));
    assert_ne!(auto, [2, 0, 0, 0, 0, 0]);
}

#[test]
fn interfaces_are_one_name_or_a_list_of_names() {
    let several = with("outside = \"eth0\"", "outside = [\"eth0\", \"eth2\"]");
    for (source, names) in [(EXAMPLE, &["eth0"][..]), (&several, &["eth0", "eth2"])] {
        let config = Config::read_without_files(source, Path::new("/etc/espalier"))
            .ok()
            .unwrap();
        assert_eq!(config.interfaces.outside, names);
        assert_eq!(config.interfaces.inside, ["eth1"]);
    }
}

#[test]
fn extensions_have_the_defaults_of_the_docs_and_each_can_be_switched() {
    let of = |keys: &str| {
        let source = with("dpd_delay = \"30s\"\n", &format!("dpd_delay = \"30s\"\n{keys}\n"));
        let config = Config::read_without_files(&source, Path::new("/etc/espalier"));
        config.unwrap_or_else(|p| panic!("{p:?}")).connections[0].extensions
    };
    let usual = Extensions::default();
    assert_eq!(of(""), usual);
    let off = of("crash_detection = false\nresumption = false\ncluster_sync = false");
    assert_eq!(
        off,
        Extensions {
            crash_detection: false,
            resumption: false,
            cluster_sync: false,
            ..usual
        }
    );
    assert_eq!(usual.per_resource, PerResource::None);
    for (keys, wanted) in [
        ("per_cpu = true", PerResource::Cpu),
        ("per_cpu = false", PerResource::None),
        ("per_resource = \"cpu\"", PerResource::Cpu),
        ("per_cpu = true\nper_resource = \"cpu\"", PerResource::Cpu),
    ] {
        assert_eq!(of(keys).per_resource, wanted, "{keys}");
    }
    assert_eq!(of("mid_sync = \"on-fork\"").mid_sync, ike::MidSync::OnFork);
    assert_eq!(of("childless = \"force\"").childless, ike::Childless::Force);
    assert_eq!(of("window = 8").window, 8);
    let elsewhere = of("redirect = \"192.0.2.9\"\nfollow_redirects = false");
    assert_eq!(elsewhere.redirect, "192.0.2.9".parse().ok());
    assert!(!elsewhere.follow_redirects && usual.follow_redirects);
    assert_eq!(of("childless = \"never\"").childless, ike::Childless::Never);
    // What the example says behind '#' are the defaults.
    let shown = EXAMPLE
        .lines()
        .filter(|line| {
            let keys = [
                "crash_detection",
                "resumption",
                "cluster_sync",
                "mid_sync",
                "per_resource",
                "childless",
                "window",
                "follow_redirects",
            ];
            keys.iter().any(|key| line.starts_with(&format!("# {key} = ")))
        })
        .map(|line| format!("{}\n", &line[2..]))
        .collect::<Vec<_>>();
    assert_eq!(shown.len(), 8);
    assert_eq!(of(&shown.concat()), usual);
}

#[test]
fn mistakes_with_extensions_are_reported_at_their_line() {
    for (keys, words) in [
        ("crash_detection = \"yes\"", "give true or false"),
        ("mid_sync = \"always\"", "give \"never\" or \"on-fork\""),
        ("window = 0", "give a number from 1 to 64"),
        ("redirect = \"there\"", "give the address of another gateway"),
        ("childless = \"yes\"", "give \"allow\" or \"force\" or \"never\""),
        (
            "cluster_sync = false\nmid_sync = \"on-fork\"",
            "needs what cluster_sync = false forbids",
        ),
        (
            "per_resource = \"all\"",
            "give \"none\" or \"cpu\" or \"member\" or \"both\"",
        ),
        ("per_cpu = false\nper_resource = \"cpu\"", "remove per_cpu"),
        ("per_resource = \"member\"", "set engine = \"etcd\""),
    ] {
        let source = with("dpd_delay = \"30s\"\n", &format!("dpd_delay = \"30s\"\n{keys}\n"));
        let found = problems(&source);
        let line = line_of(&source, keys.lines().last().unwrap());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{line}:")), "{}", found[0]);
        assert!(found[0].contains(words), "{}", found[0]);
    }
}

#[test]
fn an_unknown_key_is_reported_with_line_and_column() {
    let source = with("member = 1", "member = 1\n  hartbeat = \"20ms\"");
    let found = problems(&source);
    assert_eq!(found.len(), 1, "{found:?}");
    let line = line_of(&source, "hartbeat");
    assert!(
        found[0].starts_with(&format!("{line}:3: [cluster] has an unknown key 'hartbeat'")),
        "{}",
        found[0]
    );
    assert!(
        found[0].contains("heartbeat"),
        "the remedy names the key that was meant: {}",
        found[0]
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let source =
        with("member = 1", "member = 7\nunknown = 1").replace("aes256gcm16-prfsha256-x25519", "3des-sha1");
    let found = problems(&source);
    assert!(
        found.iter().any(|p| p.contains("member 7 is not among")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|p| p.contains("unknown key 'unknown'")),
        "{found:?}"
    );
    assert!(
        found.iter().any(|p| p.contains("'3des-sha1' is no ike proposal")),
        "{found:?}"
    );
}

#[test]
fn each_mistake_has_its_own_words() {
    let cases = [
        ("id = 2", "id = 1", "member id 1 is used twice"),
        (
            "outside = [\"192.0.2.1\"]",
            "outside = [\"192.0.2.1\", \"192.0.2.1\"]",
            "cluster address 192.0.2.1 is used twice",
        ),
        (
            "local = \"192.0.2.1\"",
            "local = \"192.0.2.9\"",
            "192.0.2.9 is no outside cluster address",
        ),
        ("\"10.2.0.0/16\"", "\"10.2.0.1/16\"", "has host bits"),
        (
            "heartbeat = \"20ms\"",
            "heartbeat = \"80ms\"",
            "less than two heartbeats",
        ),
        ("heartbeat = \"20ms\"", "heartbeat = \"soon\"", "is no duration"),
        ("heartbeat = \"20ms\"", "heartbeat = 20", "is a integer"),
        ("preferred = 1", "record_format = 1", "give a number from 2 to 5"),
        (
            "solo = \"continue\"",
            "solo = \"maybe\"",
            "give \"continue\" or \"stop\"",
        ),
        (
            "outside = \"eth0\"",
            "outside = []",
            "'outside' names 0 interfaces",
        ),
        (
            "outside = \"eth0\"",
            "outside = [\"eth0\", \"eth1\"]",
            "interface eth1 is used twice",
        ),
        (
            "outside = \"eth0\"",
            "outside = 7",
            "give a string or a list of strings",
        ),
        (
            "outside = \"eth0\"",
            "outside = [\"eth0\", \"a name of many words\"]",
            "is no interface name",
        ),
        (
            "outside = [\"192.0.2.1\"]",
            "outside = [\"192.0.2.1\", \"fe80::1\"]",
            "fe80::1 cannot be a cluster address",
        ),
        (
            "outside = [\"192.0.2.1\"]",
            "outside = [\"192.0.2.1\", \"::ffff:192.0.2.2\"]",
            "cannot be a cluster address",
        ),
        (
            "tun = \"esp0\"",
            "tun = \"esp0\"\nvirtual_mac = \"00:00:5e:00:01:01\"",
            "is not a locally administered address",
        ),
        (
            "tun = \"esp0\"",
            "tun = \"esp0\"\nvirtual_mac = \"02:00:5e:00:01\"",
            "is no MAC address",
        ),
        ("\"10.1.0.0/16\"", "\"2001:db8::1/48\"", "has host bits"),
        (
            "\"203.0.113.10\"",
            "\"ff02::1\"",
            "is no address and no name of a host",
        ),
        ("slots = 16384", "slots = 16000", "no power of two"),
        ("[interfaces]", "[interfaces", "this is no TOML"),
        (
            "inside = [\"10.2.0.1\"]",
            "inside = [\"10.9.0.1\"]",
            "is a cluster address, which moves",
        ),
    ];
    for (from, to, want) in cases {
        let found = problems(&with(from, to));
        assert!(
            found.iter().any(|p| p.contains(want)),
            "{to}: wanted {want:?} in {found:?}"
        );
    }
}

#[test]
fn policies_may_overlap_but_not_say_the_same() {
    let child = |name: &str, remote: &str| {
        format!(
            "{EXAMPLE}\n[[connections.children]]\nname = \"{name}\"\nlocal_ts = [\"10.2.0.0/16\"]\nremote_ts = [\"{remote}\"]\n"
        )
    };
    assert_eq!(problems(&child("more", "10.77.0.0/16")), Vec::<String>::new());
    assert_eq!(problems(&child("more", "10.1.0.0/24")), Vec::<String>::new());
    assert_eq!(problems(&child("more", "10.1.0.0/16[tcp]")), Vec::<String>::new());
    let found = problems(&child("more", "10.1.0.0/16"));
    assert!(
        found.len() == 1 && found[0].contains("site-a/more") && found[0].contains("site-a/lan"),
        "{found:?}"
    );
}

fn policy(name: &str, rest: &str) -> String {
    format!("[[policies]]\nname = \"{name}\"\n{rest}\n")
}

#[test]
fn policies_of_no_connection_bypass_or_discard() {
    let dns = policy(
        "dns",
        "action = \"bypass\"\nsource = [\"10.2.0.0/16\"]\ndestination = [\"10.1.0.53[udp/53]\"]",
    );
    let source = format!("{EXAMPLE}\n{dns}");
    let config = Config::read_without_files(&source, Path::new("/etc/espalier"))
        .ok()
        .unwrap();
    assert_eq!(config.policies.len(), 1);
    assert_eq!(config.policies[0].action, PolicyAction::Bypass);
    assert_eq!(config.policies[0].destination[0].first_port, 53);
    assert_eq!(config.connection_index("site-a"), 1);
    let six = "action = \"discard\"\nsource = [\"10.2.0.0/16\"]\ndestination = [\"2001:db8::/32\"]";
    let protect = "action = \"protect\"\nsource = [\"10.2.0.0/16\"]\ndestination = [\"10.9.0.0/16\"]";
    for (text, want) in [
        (policy("a", six), "agree in address family"),
        (policy("a", protect), "\"bypass\" or \"discard\""),
        (policy("a", "action = \"bypass\""), "has no 'source'"),
        (format!("{dns}{dns}"), "policy name dns is used twice"),
        (
            policy(
                "a",
                "action = \"discard\"\nsource = [\"10.2.0.0/16\"]\ndestination = [\"10.1.0.0/16\"]",
            ),
            "no packet gets to the later one",
        ),
    ] {
        let found = problems(&format!("{EXAMPLE}\n{text}"));
        assert!(found.iter().any(|p| p.contains(want)), "{want:?} in {found:?}");
    }
}

#[test]
fn more_rules_than_the_maps_hold_are_named() {
    let many = (0..9)
        .map(|i| {
            policy(
                &format!("p{i}"),
                &format!(
                    "action = \"discard\"\nsource = [\"10.2.{i}.0/24\"]\ndestination = [\"10.1.0.0/16\"]"
                ),
            )
        })
        .collect::<String>();
    let found = problems(&format!("{EXAMPLE}\n{many}"));
    assert!(
        found.len() == 1 && found[0].contains("rules apply to destination 10.1.0.0/16"),
        "{found:?}"
    );
}

#[test]
fn headers_sizes_and_lifetimes_are_read_with_their_defaults() {
    let read = |source: &str| {
        Config::read_without_files(source, Path::new("/etc/espalier"))
            .ok()
            .unwrap()
    };
    let plain = &read(EXAMPLE).connections[0].children[0];
    assert_eq!(plain.handling.mss_clamp, maps_schema::sad::MSS_AUTO);
    assert_eq!(plain.lifetimes, Lifetimes::NONE);
    assert!(!plain.lenient, "strict anti-replay is the default");
    let lenient = read(&format!("{EXAMPLE}\nanti_replay = \"lenient\"\n"));
    assert!(lenient.connections[0].children[0].lenient);
    let said = |config: &Config| format!("{:?}", config.connections[0].children[0]);
    assert!(
        !said(&read(EXAMPLE)).contains("anti_replay"),
        "older members say nothing of it"
    );
    assert!(
        said(&lenient).contains("anti_replay"),
        "members that differ in it must hear so"
    );
    assert!(plain.tfc_padding && !said(&read(EXAMPLE)).contains("tfc_padding"));
    let refused = read(&format!("{EXAMPLE}\ntfc_padding = \"refuse\"\n"));
    assert!(!refused.connections[0].children[0].tfc_padding);
    assert!(said(&refused).contains("tfc_padding"));
    let source = format!(
        "{}\ndscp = \"ef\"\nmss_clamp = 1300\non_miss = \"hold\"\nlife_time = \"70m\"\nlife_bytes = \"50GB\"\nrekey_packets = 1000000\n",
        with(
            "start = \"passive\"",
            "mtu = 1400\ndf = \"clear\"\nstart = \"passive\""
        )
    );
    let config = read(&source);
    let child = &config.connections[0].children[0];
    let want = Handling {
        mtu: Some(1400),
        df: sad::DontFragment::Clear,
        dscp: Some(46),
        mss_clamp: 1300,
        hold: true,
    };
    assert_eq!(child.handling, want);
    let want = Lifetimes {
        hard: Duration::from_secs(4200),
        soft_bytes: 40_000_000_000,
        hard_bytes: 50_000_000_000,
        soft_packets: 1_000_000,
        ..Lifetimes::NONE
    };
    assert_eq!(child.lifetimes, want);
    for (line, want) in [
        ("dscp = \"af99\"", "'dscp'"),
        ("mss_clamp = 10", "'mss_clamp'"),
        ("on_miss = \"wait\"", "'on_miss'"),
        ("anti_replay = \"off\"", "'anti_replay'"),
        ("life_time = \"30m\"", "is not longer than rekey_time"),
        (
            "rekey_bytes = 10\nlife_bytes = 10",
            "let the rekey come before the end",
        ),
        ("life_packets = true", "'life_packets'"),
    ] {
        let found = problems(&format!("{EXAMPLE}\n{line}\n"));
        assert!(found.len() == 1 && found[0].contains(want), "{line}: {found:?}");
    }
    let found = problems(&with("start = \"passive\"", "mtu = 500\nstart = \"passive\""));
    assert!(found.len() == 1 && found[0].contains("576"), "{found:?}");
}

#[test]
fn secret_files_must_exist_and_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("esp-config-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("pki")).unwrap();
    let source = EXAMPLE.replace(
        "pki = \"pki\"",
        &format!("pki = \"{}\"", dir.join("pki").display()),
    );
    let read = || match Config::read(&source, &dir) {
        Ok(_) => Vec::new(),
        Err(p) => p.iter().map(ToString::to_string).collect::<Vec<_>>(),
    };
    let found = read();
    assert!(
        found
            .iter()
            .any(|p| p.contains("pre-shared key file") && p.contains("cannot be read")),
        "{found:?}"
    );
    let psk = dir.join("site-a.psk");
    std::fs::write(&psk, "secret").unwrap();
    std::fs::set_permissions(&psk, std::fs::Permissions::from_mode(0o644)).unwrap();
    let found = read();
    assert!(
        found
            .iter()
            .any(|p| p.contains("mode 0644") && p.contains("chmod 0600")),
        "{found:?}"
    );
    std::fs::set_permissions(&psk, std::fs::Permissions::from_mode(0o600)).unwrap();
    let found = read();
    assert!(
        !found.iter().any(|p| p.contains("pre-shared key file")),
        "{found:?}"
    );
    std::fs::remove_dir_all(&dir).unwrap();
}

const THREE: &str = include_str!("../../../../docs/examples/three-members.toml");

#[test]
fn the_example_with_three_members_shares_the_load_by_etcd() {
    let config = Config::read_without_files(THREE, Path::new("/etc/espalier"))
        .ok()
        .unwrap();
    let cluster = &config.cluster;
    assert_eq!(
        (cluster.mode, cluster.engine),
        (ClusterMode::LoadSharing, Engine::Etcd)
    );
    assert_eq!((cluster.groups, cluster.rebalance), (16, None));
    let weights = cluster.members.iter().map(|m| m.weight).collect::<Vec<_>>();
    assert_eq!(weights, [2, 2, 0]);
    for (word, wanted) in [("member", PerResource::Member), ("both", PerResource::Both)] {
        let keys = format!("\nper_resource = \"{word}\"\nstart = ");
        let source = THREE.replacen("\nstart = ", &keys, 1);
        assert_ne!(source, THREE);
        let config = Config::read_without_files(&source, Path::new("/etc/espalier"));
        let found = config.unwrap_or_else(|p| panic!("{p:?}")).connections[0].extensions;
        assert_eq!(found.per_resource, wanted);
    }
    let etcd = cluster.etcd.as_ref().unwrap();
    assert_eq!(etcd.endpoints.len(), 3);
    assert_eq!(etcd.timeout, Duration::from_millis(500));
    let tls = etcd.tls.as_ref().unwrap();
    assert!(tls.key.ends_with("etcd.key") && tls.key.starts_with("/etc/espalier"));
}

#[test]
fn a_pair_is_one_group_and_needs_no_engine() {
    let config = Config::read_without_files(EXAMPLE, Path::new("/")).ok().unwrap();
    let cluster = &config.cluster;
    assert_eq!(
        (cluster.mode, cluster.engine),
        (ClusterMode::HotStandby, Engine::Pair)
    );
    assert!(cluster.groups == 1 && cluster.etcd.is_none());
}

#[test]
fn mistakes_about_groups_and_engines_have_their_own_words() {
    let cases = [
        (
            "engine = \"etcd\" ",
            "engine = \"pair\" ",
            "the pair engine knows two members",
        ),
        (
            "engine = \"etcd\" ",
            "engine = \"pair\" ",
            "but the ownership engine is the pair",
        ),
        (
            "mode = \"load-sharing\"",
            "mode = \"hot-standby\"",
            "all segments are one group",
        ),
        (
            "mode = \"load-sharing\"",
            "mode = \"hot-standby\"",
            "'weight' is a share in load sharing",
        ),
        ("groups = 16 ", "groups = 65 ", "give a number from 2 to 64"),
        ("groups = 16 ", "groups = 1 ", "give a number from 2 to 64"),
        (
            "rebalance = \"manual\"",
            "rebalance = \"never\"",
            "is no duration",
        ),
        (
            "https://10.9.0.11:2379",
            "10.9.0.11:2379",
            "is no URL of an etcd server",
        ),
        (
            "https://10.9.0.11:2379",
            "https://10.9.0.11",
            "is no URL of an etcd server",
        ),
        (
            "https://10.9.0.11:2379",
            "https://10.9.0.12:2379",
            "is used twice",
        ),
        ("cert = \"etcd.crt\"", "", "2 of 'ca', 'cert' and 'key' are given"),
        (
            "prefix = \"/espalier\"",
            "prefix = \"espalier/\"",
            "begin it with '/'",
        ),
        ("timeout = \"500ms\"", "timeout = \"1ms\"", "give at least 50ms"),
    ];
    for (from, to, want) in cases {
        assert!(THREE.contains(from), "the example has no {from:?}");
        let found = problems(&THREE.replacen(from, to, 1));
        assert!(
            found.iter().any(|p| p.contains(want)),
            "{to}: wanted {want:?} in {found:?}"
        );
    }
    let nobody = THREE.replace("weight = 2", "weight = 0");
    let found = problems(&nobody);
    assert!(
        found.iter().any(|p| p.contains("every member has weight 0")),
        "{found:?}"
    );
    let plain = THREE.replace("https://", "http://");
    let found = problems(&plain);
    assert!(
        found.iter().any(|p| p.contains("no endpoint is https")),
        "{found:?}"
    );
    let start = THREE.find("\n[cluster.etcd]").unwrap();
    let end = THREE.find("[interfaces]").unwrap();
    let found = problems(&[&THREE[..start], &THREE[end..]].concat());
    assert!(
        found.iter().any(|p| p.contains("needs a section [cluster.etcd]")),
        "{found:?}"
    );
}

#[test]
fn pools_are_networks_apart_and_give_a_child_its_remote_selectors() {
    let pools = "\n[[pools]]\nname = \"rw\"\nnetwork = \"10.99.0.0/16\"\n\n[[pools]]\nname = \"rw6\"\nnetwork = \"fd99::/112\"\n";
    let keys = "pools = [\"rw\", \"rw6\"]\ndns = \"10.2.0.53\"\ndns_domains = [\"corp.example\"]\n";
    let psk = "psk_file = \"site-a.psk\"";
    let source = with(psk, &format!("{keys}{psk}")).replace("remote_ts = [\"10.1.0.0/16\"]\n", "") + pools;
    let config =
        Config::read_without_files(&source, Path::new("/etc/espalier")).unwrap_or_else(|p| panic!("{p:?}"));
    let c = &config.connections[0];
    assert_eq!((c.pools.len(), c.dns.len(), c.dns_domains.len()), (2, 1, 1));
    let remote = &c.children[0].remote_ts;
    assert_eq!(remote[0].last, "10.99.255.255".parse::<IpAddr>().unwrap());
    assert_eq!(remote[1].first, "fd99::".parse::<IpAddr>().unwrap());
    for (from, to, word) in [
        ("\"fd99::/112\"", "\"10.99.7.0/24\"", "overlaps that of 'rw'"),
        ("\"fd99::/112\"", "\"fd99::5/112\"", "has host bits"),
        ("name = \"rw6\"", "name = \"other\"", "no pool 'rw6'"),
        ("dns = \"10.2.0.53\"", "", "there are none"),
        ("\"corp.example\"", "\"corp..example\"", "no domain name"),
        ("pools = [\"rw\", \"rw6\"]\n", "", "has no pools"),
    ] {
        assert!(source.contains(from), "{from}");
        let found = problems(&source.replacen(from, to, 1));
        assert!(found.iter().any(|p| p.contains(word)), "{word}: {found:?}");
    }
}
