//! Child SAs of a connection: mode, selectors, algorithms, and how their packets are carried.

use std::net::IpAddr;

use ike::Proposal;
use ike::proposal::default_esp;
use model::SaMode;

use super::ChildConfig;
use super::check::Policy;
use super::read::{Context, DAY, SECOND};
use super::read_policy::{self, Path as PathRules};
use super::reader::{At, Reader};

/// What the children of a connection have from it.
pub(super) struct ChildOf<'a> {
    /// Its name, for messages.
    pub connection: &'a str,
    /// Sizes and outer headers.
    pub path: PathRules,
    /// Selectors of its pools.
    pub pool_ts: &'a [model::TrafficSelector],
    /// Our address and the peer's, where both are known.
    pub ends: Option<(IpAddr, IpAddr)>,
}

impl Context<'_> {
    /// One of `[[connections.children]]`.
    pub(super) fn child(
        &self,
        mut t: Reader<'_>,
        of: &ChildOf<'_>,
        names: &mut Vec<At<String>>,
        policies: &mut Vec<Policy>,
    ) -> Option<ChildConfig> {
        let name = t.name("a name");
        names.extend(name.clone());
        let mode = t.word(
            "mode",
            &[("tunnel", SaMode::Tunnel), ("transport", SaMode::Transport)],
        );
        let mode = mode.unwrap_or_default();
        let (local_ts, remote_ts) = match (mode, of.ends) {
            (SaMode::Tunnel, _) => {
                let local_ts = self.selectors(&mut t, "local_ts");
                let remote_ts = match t.has("remote_ts") || of.pool_ts.is_empty() {
                    true => self.selectors(&mut t, "remote_ts"),
                    false => of.pool_ts.to_vec(),
                };
                (local_ts, remote_ts)
            }
            (SaMode::Transport, Some((local, remote))) if of.pool_ts.is_empty() => (
                self.end(&mut t, "local_ts", local),
                self.end(&mut t, "remote_ts", remote),
            ),
            (SaMode::Transport, _) => {
                self.problems.add(
                    t.span(),
                    "mode = \"transport\" is between two addresses, and the peer's is not known",
                    "give the connection one local and one remote address and no pools, or use tunnel mode",
                );
                return None;
            }
        };
        let esp = self.proposals(&mut t, "esp", Proposal::parse_esp);
        let rekey_time = t.duration("rekey_time", SECOND..DAY * 365);
        let lifetimes = read_policy::lifetimes(&mut t, &self.problems, rekey_time);
        let handling = of.path.handling(&mut t);
        let lenient = t.word("anti_replay", &[("strict", false), ("lenient", true)]);
        let tfc_padding = self.tfc_padding(&mut t, mode);
        if let Some(name) = &name {
            policies.push(Policy {
                name: format!("{}/{}", of.connection, name.value),
                span: name.span.clone(),
                local: local_ts.clone(),
                remote: remote_ts.clone(),
            });
        }
        t.finish();
        Some(ChildConfig {
            name: name?.value,
            local_ts,
            remote_ts,
            esp: if esp.is_empty() { default_esp() } else { esp },
            rekey_time: read_policy::rekey_time(rekey_time, &lifetimes),
            handling,
            lifetimes,
            mode,
            lenient: lenient.unwrap_or(false),
            tfc_padding,
        })
    }

    /// Whether the peer may pad: only where the end of what a packet carries can be told.
    fn tfc_padding(&self, t: &mut Reader<'_>, mode: SaMode) -> bool {
        let said = t.word("tfc_padding", &[("accept", true), ("refuse", false)]);
        if (said, mode) == (Some(true), SaMode::Transport) {
            self.problems.add(
                t.span(),
                "tfc_padding = \"accept\", and mode = \"transport\": not every protocol tells where a packet ends",
                "leave tfc_padding out, or use tunnel mode",
            );
        }
        said.unwrap_or(mode == SaMode::Tunnel)
    }

    /// One side's selectors of a child in transport mode: those of the connection's address alone, which need not be named.
    fn end(&self, t: &mut Reader<'_>, key: &'static str, address: IpAddr) -> Vec<model::TrafficSelector> {
        if !t.has(key) {
            return vec![model::TrafficSelector {
                first: address,
                last: address,
                protocol: 0,
                first_port: 0,
                last_port: u16::MAX,
            }];
        }
        let selectors = self.selectors(t, key);
        if selectors
            .iter()
            .any(|ts| (ts.first, ts.last) != (address, address))
        {
            self.problems.add(
                t.span(),
                format!("mode = \"transport\", and {key} holds other addresses than {address}"),
                format!("leave {key} out, or write for example \"{address}[gre]\" or \"{address}[tcp/179]\""),
            );
        }
        selectors
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use model::SaMode;

    use crate::config::{ChildConfig, Config};

    const EXAMPLE: &str = include_str!("../../../../docs/examples/espalier.toml");
    const SELECTORS: &str = "local_ts = [\"10.2.0.0/16\"]\nremote_ts = [\"10.1.0.0/16\"]\n";

    fn read(keys: &str, remote: &str) -> Result<ChildConfig, String> {
        assert!(EXAMPLE.contains(SELECTORS));
        let source = EXAMPLE
            .replace(SELECTORS, keys)
            .replace("remote = \"203.0.113.10\"", &format!("remote = \"{remote}\""));
        match Config::read_without_files(&source, Path::new("/etc/espalier")) {
            Ok(config) => Ok(config.connections[0].children[0].clone()),
            Err(problems) => Err(format!("{problems:?}")),
        }
    }

    #[test]
    fn transport_mode_is_between_the_two_addresses_of_the_connection() {
        let example = Config::read_without_files(EXAMPLE, Path::new("/etc/espalier"));
        let connection = &example.ok().unwrap().connections[0];
        let (local, remote) = (connection.local, connection.remotes[0].address().unwrap());
        assert_eq!(connection.children[0].mode, SaMode::Tunnel);
        assert!(!format!("{:?}", connection.children[0]).contains("mode"));

        let child = read("mode = \"transport\"\n", &remote.to_string()).unwrap();
        assert_eq!(child.mode, SaMode::Transport);
        assert!(
            format!("{child:?}").contains("mode: Transport"),
            "members compare it"
        );
        let ends = |child: &ChildConfig| {
            let of =
                |ts: &model::TrafficSelector| (ts.first, ts.last, ts.protocol, (ts.first_port, ts.last_port));
            (of(&child.local_ts[0]), of(&child.remote_ts[0]))
        };
        let any = (0, u16::MAX);
        assert_eq!(ends(&child), ((local, local, 0, any), (remote, remote, 0, any)));

        let keys = format!(
            "mode = \"transport\"\nlocal_ts = [\"{local}[tcp]\"]\nremote_ts = [\"{remote}[tcp/179]\"]\n"
        );
        let child = read(&keys, &remote.to_string()).unwrap();
        assert_eq!(
            ends(&child),
            ((local, local, 6, any), (remote, remote, 6, (179, 179)))
        );

        let keys = "mode = \"transport\"\nremote_ts = [\"10.1.0.0/16\"]\n";
        let problem = read(keys, &remote.to_string()).unwrap_err();
        assert!(
            problem.contains("remote_ts holds other addresses than"),
            "{problem}"
        );
        let keys = "mode = \"transport\"\ntfc_padding = \"accept\"\n";
        let problem = read(keys, &remote.to_string()).unwrap_err();
        assert!(problem.contains("where a packet ends"), "{problem}");
        let problem = read("mode = \"transport\"\n", "any").unwrap_err();
        assert!(problem.contains("the peer's is not known"), "{problem}");
        let problem = read("mode = \"transport\"\n", "gw.example").unwrap_err();
        assert!(
            problem.contains("the peer's is not known"),
            "a name leads elsewhere: {problem}"
        );
        let problem = read(&format!("{SELECTORS}mode = \"beet\"\n"), &remote.to_string()).unwrap_err();
        assert!(problem.contains("mode"), "{problem}");
    }
}
