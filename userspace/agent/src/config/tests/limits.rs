//! Values at the ends of what is taken, and what is said of those beyond.

use super::*;

#[test]
fn reauthentication_comes_at_least_ten_seconds_and_less_than_a_year_apart() {
    let of = |time: &str| {
        with(
            "dpd_delay = \"30s\"\n",
            &format!("dpd_delay = \"30s\"\nreauth_time = \"{time}\"\n"),
        )
    };
    for (time, seconds) in [("10s", 10), ("24h", 86_400), ("364days 86399s", 31_535_999)] {
        let config = Config::read_without_files(&of(time), Path::new("/etc/espalier"));
        let config = config.unwrap_or_else(|p| panic!("{p:?}"));
        assert_eq!(
            config.connections[0].reauth_time,
            Some(Duration::from_secs(seconds)),
            "{time}"
        );
    }
    for time in ["0s", "9s", "9999ms", "365days", "10000years"] {
        let source = of(time);
        let found = problems(&source);
        let line = line_of(&source, "\"30s\"") + 1;
        assert_eq!(
            found,
            [format!(
                "{line}:15: 'reauth_time' in [connections] is '{time}'; give at least 10s and less than 365days"
            )]
        );
    }
}

#[test]
fn names_are_neither_empty_nor_long_and_have_one_line() {
    for (from, place) in [
        ("name = \"site-a\"", "connections"),
        ("name = \"lan\"", "connections.children"),
        ("name = \"gw2\"", "cluster.members"),
    ] {
        for (name, shown) in [
            (String::new(), String::new()),
            ("a\\u001bb".to_owned(), "a\\u{1b}b".to_owned()),
            ("a\\nb".to_owned(), "a\\nb".to_owned()),
            ("n".repeat(129), "n".repeat(129)),
        ] {
            let found = problems(&with(from, &format!("name = \"{name}\"")));
            let words = format!("'name' in [{place}] is '{shown}'; give 1 to 128 octets");
            assert!(
                found.iter().any(|problem| problem.contains(&words)),
                "{words}: {found:?}"
            );
        }
        let longest = format!("name = \"{}\"", "n".repeat(128));
        assert_eq!(problems(&with(from, &longest)), [""; 0]);
    }
}

#[test]
fn a_problem_has_one_line_whatever_it_quotes() {
    for (from, to) in [
        ("solo = \"continue\"", "solo = \"a\\nb\""),
        ("tun = \"esp0\"", "tun = \"esp\\n0\""),
        ("ike = [\"aes256gcm16-prfsha256-x25519\"]", "\"a\\rb\" = 1"),
        (
            "remote_id = \"site-a.example\"",
            "remote_id = \"\"\"\nCN=\n\"\"\"",
        ),
    ] {
        let found = problems(&with(from, to));
        assert!(!found.is_empty(), "{to}");
        let all = found.concat();
        assert!(!all.contains(char::is_control), "{all:?}");
    }
}

#[test]
fn devices_are_named_as_the_kernel_takes_it() {
    for name in ["a b", "a/b", "a:b", "..", "", "sixteen-letters-"] {
        let found = problems(&with("outside = \"eth0\"", &format!("outside = \"{name}\"")));
        assert!(
            found.len() == 1 && found[0].contains("is no interface name"),
            "{name}: {found:?}"
        );
    }
}
