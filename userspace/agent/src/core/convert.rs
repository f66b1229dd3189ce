//! From the configuration to what the cores are configured with.

use anyhow::{Context, Result};
use ike::{Connection, EndpointConfig, EngineConfig, Identity, Resource};
use model::SecretBytes;
use sad::{Handling, Policy, PolicyAction};
use zeroize::Zeroizing;

use crate::config::{Config, ConnectionConfig, Start};

/// The pre-shared key in a file: its octets without the end of the last line.
///
/// # Errors
/// The file cannot be read.
pub fn read_psk(connection: &ConnectionConfig) -> Result<SecretBytes> {
    let path = &connection.psk_file;
    let octets = Zeroizing::new(
        std::fs::read(path).with_context(|| format!("cannot read the pre-shared key {}", path.display()))?,
    );
    let end = octets
        .iter()
        .rposition(|b| *b != b'\n' && *b != b'\r')
        .map_or(0, |at| at + 1);
    Ok(SecretBytes::new(octets[..end].to_vec()))
}

fn connection(config: &ConnectionConfig, cpus: u32) -> Result<Connection> {
    let mut c = Connection::new(
        &config.name,
        config.local,
        Identity::parse(&config.local_id),
        read_psk(config)?,
    );
    c.remotes = config.remote.into_iter().collect();
    c.remote_id = Some(Identity::parse(&config.remote_id));
    c.start = config.start == Start::Initiate;
    c.ike_proposals = config.ike.clone();
    c.dpd_delay = config.dpd_delay;
    c.retransmit = config.retransmit;
    c.ike_rekey_time = config.rekey_time;
    c.child_rekey_time = config.children.iter().filter_map(|child| child.rekey_time).min();
    // A jitter as long as the time itself would rekey at once.
    let shortest = [c.ike_rekey_time, c.child_rekey_time].into_iter().flatten().min();
    c.rekey_jitter = shortest.map_or(config.rekey_jitter, |time| config.rekey_jitter.min(time / 10));
    c.force_encap = config.force_encap;
    c.crash_detection = config.extensions.crash_detection;
    c.resumption = config.extensions.resumption;
    c.cluster_sync = config.extensions.cluster_sync;
    c.mid_sync = config.extensions.mid_sync;
    if config.extensions.per_cpu {
        c.resources = (0..cpus.min(u32::from(u16::MAX)))
            .map(|cpu| Resource::of_owner(cpu as u16))
            .collect();
    }
    c.fragmentation = config.fragmentation;
    c.fragment_size = config.fragment_size;
    for child in &config.children {
        let mut to = ike::ChildConfig::new(&child.name, child.local_ts.clone(), child.remote_ts.clone());
        to.esp_proposals = child.esp.clone();
        c.children.push(to);
    }
    Ok(c)
}

/// For the IKE engine. `cookie_secret` is the same on all members; `cpus` is how many of this one serve SAs.
///
/// # Errors
/// A pre-shared key cannot be read.
pub fn engine(config: &Config, cookie_secret: SecretBytes, cpus: u32) -> Result<EngineConfig> {
    let connections = config
        .connections
        .iter()
        .map(|c| connection(c, cpus))
        .collect::<Result<Vec<_>>>()?;
    Ok(EngineConfig {
        connections,
        endpoint: EndpointConfig::new(cookie_secret),
    })
}

/// Outbound policies, those of no connection first: of two that are equally narrow, they win. Rekeys by age are the engine's;
/// the SA database watches numbers, octets, packets, and the end by age.
pub fn policies(config: &Config) -> Vec<Policy> {
    let mut out = Vec::new();
    for policy in &config.policies {
        out.push(Policy {
            connection: String::new(),
            child: policy.name.clone(),
            local: policy.source.clone(),
            remote: policy.destination.clone(),
            action: policy.action,
            lenient: false,
            lifetimes: None,
            handling: Handling::default(),
        });
    }
    for connection in &config.connections {
        for child in &connection.children {
            out.push(Policy {
                connection: connection.name.clone(),
                child: child.name.clone(),
                local: child.local_ts.clone(),
                remote: child.remote_ts.clone(),
                action: PolicyAction::Protect,
                lenient: false,
                lifetimes: Some(child.lifetimes),
                handling: child.handling,
            });
        }
    }
    out
}
