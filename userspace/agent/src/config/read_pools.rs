//! `[[pools]]`, and what connections say about them.

use std::net::IpAddr;

use ipnet::IpNet;
use model::TrafficSelector;

use super::PoolConfig;
use super::check;
use super::read::Context;
use super::reader::{At, Reader};

/// What a connection gives to peers without addresses of their own.
#[derive(Default)]
pub(super) struct Given {
    pub pools: Vec<PoolConfig>,
    pub dns: Vec<IpAddr>,
    pub dns_domains: Vec<String>,
}

impl Given {
    /// The networks of the pools: where a child does not say what is behind the peer.
    pub fn selectors(&self) -> Vec<TrafficSelector> {
        self.pools.iter().map(PoolConfig::selector).collect()
    }
}

impl Context<'_> {
    pub(super) fn pools(&self, root: &mut Reader<'_>) -> Vec<PoolConfig> {
        let mut names = Vec::new();
        let mut pools: Vec<PoolConfig> = Vec::new();
        for mut t in root.tables("pools", "pools") {
            let name = t.name("a name");
            names.extend(name.clone());
            if !t.has("network") {
                t.missing("network", "a network, for example \"10.99.0.0/16\"");
            }
            let network = t.parsed::<IpNet>("network", "a network, for example \"10.99.0.0/16\"");
            t.finish();
            let (Some(name), Some(network)) = (name, network) else {
                continue;
            };
            let pool = PoolConfig {
                name: name.value,
                network: network.value.trunc(),
            };
            if network.value.trunc() != network.value {
                self.problems.add(
                    network.span.clone(),
                    format!("'{}' has host bits", network.value),
                    format!("write {}", pool.network),
                );
            }
            for other in &pools {
                if other.network.contains(&pool.network) || pool.network.contains(&other.network) {
                    self.problems.add(
                        network.span.clone(),
                        format!(
                            "the network of pool '{}' overlaps that of '{}'",
                            pool.name, other.name
                        ),
                        "give each pool a network of its own",
                    );
                }
            }
            pools.push(pool);
        }
        check::unique(&self.problems, "pool name", &names);
        pools
    }

    /// Keys `pools`, `dns` and `dns_domains` of a connection.
    pub(super) fn given(&self, t: &mut Reader<'_>, pools: &[PoolConfig]) -> Given {
        let mut given = Given::default();
        let list = |t: &mut Reader<'_>, key| {
            t.string_or_strings(key)
                .map(|list| list.value)
                .unwrap_or_default()
        };
        for name in list(t, "pools") {
            match pools.iter().find(|pool| pool.name == name.value) {
                Some(pool) => given.pools.push(pool.clone()),
                None => self.problems.add(
                    name.span,
                    format!("there is no pool '{}'", name.value),
                    "add it: [[pools]] with name and network",
                ),
            }
        }
        let (dns, domains) = (list(t, "dns"), list(t, "dns_domains"));
        if let (Some(first), true) = (dns.first().or(domains.first()), given.pools.is_empty()) {
            self.problems.add(
                first.span.clone(),
                "name servers are given to peers with virtual addresses, and the connection has no pools",
                "add pools, or remove dns and dns_domains",
            );
        }
        for server in dns {
            match server.value.parse() {
                Ok(address) => given.dns.push(address),
                Err(_) => self.problems.add(
                    server.span,
                    format!("'{}' is no IP address", server.value),
                    "give the addresses of name servers",
                ),
            }
        }
        if let (Some(first), true) = (domains.first(), given.dns.is_empty()) {
            self.problems.add(
                first.span.clone(),
                "dns_domains says what the name servers are for, and there are none",
                "add dns",
            );
        }
        for At { value, span } in domains {
            let fits = |label: &str| !label.is_empty() && label.len() <= 63;
            if value.len() > 253 || !value.split('.').all(fits) {
                self.problems.add(
                    span,
                    format!("'{value}' is no domain name"),
                    "write for example \"corp.example\"",
                );
            } else {
                given.dns_domains.push(value);
            }
        }
        given
    }
}
