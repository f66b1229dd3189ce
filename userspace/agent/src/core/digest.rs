//! What all members must have in common, as digests by name: a difference is shown as the names of the parts that differ.
//! A digest tells nothing to one who does not know the cluster's secret.

use anyhow::Result;
use cluster::message::Policy;

use super::convert;
use crate::config::{AuthKind, Config, Start};
use crate::credentials;
use crate::pki::ClusterSecret;

/// Digests of all parts.
///
/// # Errors
/// A pre-shared key cannot be read.
pub fn policy(config: &Config, secret: &ClusterSecret) -> Result<Policy> {
    let cluster = &config.cluster;
    let mut parts = vec![
        ("addresses".to_owned(), format!("{:?}", config.addresses)),
        (
            "cluster.groups".to_owned(),
            format!("{:?} {:?} {}", cluster.mode, cluster.engine, cluster.groups),
        ),
        (
            "interfaces.virtual_mac".to_owned(),
            format!("{:?}", config.interfaces.virtual_mac),
        ),
        ("policies".to_owned(), format!("{:?}", config.policies)),
        ("data_plane.slots".to_owned(), config.data_plane.slots.to_string()),
    ];
    let members = cluster.members.iter().map(|m| (m.id, &m.name, m.weight));
    let members = members.collect::<Vec<_>>();
    let preferred = cluster.preferred;
    parts.push(("cluster.members".to_owned(), format!("{members:?} {preferred}")));
    for (at, c) in config.connections.iter().enumerate() {
        let key = match &c.psk_file {
            Some(path) => secret.fingerprint("psk", &convert::read_psk(path)?),
            None => Default::default(),
        };
        // Members renew certificates one after the other: what they prove and whom they believe must be the same.
        let authorities = match &c.authorities {
            Some(files) => credentials::trust(files)?.digests().concat(),
            None => Vec::new(),
        };
        let shared = (
            // Counters and policies are by the place in the file.
            at,
            c.local,
            c.remotes.first(),
            c.local_id.as_deref().unwrap_or_default(),
            &c.remote_id,
            &c.ike,
            // "trap" is what "passive" was.
            match c.dial.start {
                Start::Initiate => Start::Initiate,
                Start::Trap | Start::Passive => Start::Passive,
            },
        );
        let mut text = format!("{shared:?} {key:02x?} {:?}", c.children);
        if !c.further_locals.is_empty() {
            text.push_str(&format!(" {:?}", c.further_locals));
        }
        if c.remotes.len() > 1 {
            text.push_str(&format!(" {:?}", c.remotes));
        }
        // Only where it says something: members that are still to be upgraded do not know these keys.
        text.push_str(&c.extensions.compared());
        if (c.local_auth, c.remote_auth) != (AuthKind::Psk, AuthKind::Psk) {
            text.push_str(&format!(
                " {:?} {:?} {authorities:02x?}",
                c.local_auth, c.remote_auth
            ));
        }
        if let Some(ppk) = &c.ppk {
            let key = secret.fingerprint("ppk", &convert::read_psk(&ppk.file)?);
            text.push_str(&format!(" {:?} {key:02x?} {}", ppk.id, ppk.required));
        }
        if !c.pools.is_empty() {
            text.push_str(&format!(" {:?} {:?} {:?}", c.pools, c.dns, c.dns_domains));
        }
        parts.push((format!("connection {}", c.name), text));
    }
    let digest = |(name, text): (String, String)| {
        let whole = secret.derive(&format!("policy {name} {text}"));
        let mut digest = [0; 16];
        digest.copy_from_slice(&whole[..16]);
        (name, digest)
    };
    Ok(parts.into_iter().map(digest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn members_with_another_key_of_a_peer_differ_in_that_connection_alone() {
        let dir = std::env::temp_dir().join(format!("esp-digest-{}", std::process::id()));
        crate::pki::init(&dir, "lab", 1).unwrap();
        let secret = crate::pki::Secrets::load(&dir).unwrap().active;
        let example = include_str!("../../../../docs/examples/espalier.toml");
        let mut config = Config::read_without_files(example, Path::new("/etc/espalier"))
            .ok()
            .unwrap();
        let path = dir.join("peer.psk");
        for connection in &mut config.connections {
            connection.psk_file = Some(path.clone());
        }
        let with = |config: &Config, key: &str| {
            std::fs::write(&path, key).unwrap();
            policy(config, &secret).unwrap()
        };
        let one = with(&config, "one key");
        assert_eq!(
            one,
            with(&config, "one key\n"),
            "the end of the line is not part of the key"
        );
        let differing = |other: &Policy| {
            let names = one
                .keys()
                .chain(other.keys())
                .filter(|name| one.get(*name) != other.get(*name));
            names.cloned().collect::<std::collections::BTreeSet<_>>()
        };
        let names = differing(&with(&config, "another key"));
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["connection site-a"]);
        let mut slots = config.clone();
        slots.data_plane.slots *= 2;
        let names = differing(&with(&slots, "one key"));
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["data_plane.slots"]);
        let mut no_tickets = config.clone();
        no_tickets.connections[0].extensions.resumption = false;
        let names = differing(&with(&no_tickets, "one key"));
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["connection site-a"]);
        let quantum = dir.join("quantum.ppk");
        let mut with_ppk = config.clone();
        with_ppk.connections[0].ppk = Some(crate::config::PpkConfig {
            id: "quantum".to_owned(),
            file: quantum.clone(),
            required: false,
        });
        let mut seen = vec![one.clone()];
        for (key, required) in [("a key", false), ("another key", false), ("another key", true)] {
            std::fs::write(&quantum, key).unwrap();
            if let Some(ppk) = &mut with_ppk.connections[0].ppk {
                ppk.required = required;
            }
            let other = with(&with_ppk, "one key");
            let names = differing(&other);
            assert_eq!(names.into_iter().collect::<Vec<_>>(), ["connection site-a"]);
            assert!(!seen.contains(&other), "{key} {required}");
            seen.push(other);
        }
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", policy(&config, &secret).unwrap_err());
        assert!(error.contains("peer.psk"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
