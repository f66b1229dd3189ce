//! From the configuration to what the cores are configured with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ike::auth::certificate::Facts;
use ike::{Connection, EndpointConfig, EngineConfig, LocalAuth, Pool, Ppk, RemoteAuth, Resource};
use model::{MemberId, SecretBytes};
use sad::{Handling, Policy, PolicyAction};
use zeroize::Zeroizing;

use crate::config::{AfterLoss, AuthKind, Config, ConnectionConfig, PerResource, PoolConfig, Remote};
use crate::credentials;
use crate::credentials::signer::Keys;
use crate::credentials::tls::Settings;

/// The pre-shared key in a file: its octets without the end of the last line.
///
/// # Errors
/// The file cannot be read.
pub fn read_psk(path: &Path) -> Result<SecretBytes> {
    let octets = Zeroizing::new(
        std::fs::read(path).with_context(|| format!("cannot read the pre-shared key {}", path.display()))?,
    );
    let end = octets
        .iter()
        .rposition(|b| *b != b'\n' && *b != b'\r')
        .map_or(0, |at| at + 1);
    Ok(SecretBytes::new(octets[..end].to_vec()))
}

/// What a connection has Child SAs of its own for. Members may have other CPU counts: what a member does not offer is not used.
fn resources(wanted: PerResource, cpus: u32, members: &[MemberId]) -> Vec<Resource> {
    let cpus = (0..cpus.min(u32::from(Resource::ANY_CPU))).map(|cpu| cpu as u16);
    let mut all = Vec::new();
    if wanted.has_cpus() {
        all.extend(cpus.clone().map(Resource::of_owner));
    }
    for member in members.iter().copied().filter(|_| wanted.has_members()) {
        if wanted == PerResource::Both {
            all.extend(cpus.clone().map(|cpu| Resource { member, cpu }));
        } else {
            all.push(Resource::of_member(member));
        }
    }
    all
}

fn connection(
    config: &ConnectionConfig,
    cpus: u32,
    members: &[MemberId],
    made: &mut Made,
) -> Result<Connection> {
    let psk = config.psk_file.as_deref().map(read_psk).transpose()?;
    let own = config
        .certificate
        .as_ref()
        .map(|files| credentials::own(&config.name, files))
        .transpose()?;
    let local_id = credentials::own_id(config.local_id.as_deref(), own.as_ref().map(|own| &own.facts))?;
    let mut c = Connection::new(&config.name, config.local, local_id, psk.unwrap_or_default());
    c.remotes = config.remotes.iter().filter_map(Remote::address).collect();
    c.remotes_by_name = config.remotes.iter().any(|remote| remote.name().is_some());
    (c.remote_id, c.remote_pattern) = credentials::remote_id(config)?;
    let trust = config.authorities.as_ref().map(credentials::trust).transpose()?;
    let trust = trust.map(Arc::new);
    if let Some(own) = own {
        let key = Arc::new(own.key);
        if let (AuthKind::EapTls, Some(trust)) = (config.remote_auth, &trust) {
            let settings = credentials::tls::settings(&own.certificate, key.clone(), trust.clone())?;
            made.tls.insert(config.name.clone(), Arc::new(settings));
        }
        c.local_auth = LocalAuth::Certificate(own.certificate);
        made.certificates.insert(config.name.clone(), own.facts);
        made.keys.insert(config.name.clone(), key);
    }
    if let Some(path) = &config.eap_users {
        c.remote_auth = RemoteAuth::EapMsChapV2(Arc::new(credentials::users(path)?));
    }
    if let Some(trust) = trust {
        c.remote_auth = match config.remote_auth {
            AuthKind::EapTls => RemoteAuth::EapTls(trust),
            _ => RemoteAuth::Certificate(trust),
        };
    }
    // A peer that proves that it has lost everything is begun with again as after silence.
    c.start = config.dial.dpd_action == AfterLoss::Restart;
    c.ike_proposals = config.ike.clone();
    c.dpd_delay = config.dial.dpd_delay;
    c.retransmit = config.retransmit;
    c.ike_rekey_time = config.rekey_time;
    c.reauth_time = config.reauth_time;
    c.child_rekey_time = config.children.iter().filter_map(|child| child.rekey_time).min();
    // A jitter as long as the time itself would rekey at once.
    let times = [c.ike_rekey_time, c.child_rekey_time, c.reauth_time];
    let shortest = times.into_iter().flatten().min();
    c.rekey_jitter = shortest.map_or(config.rekey_jitter, |time| config.rekey_jitter.min(time / 10));
    c.force_encap = config.force_encap;
    c.ppk = match &config.ppk {
        Some(ppk) => Some(Ppk {
            id: ppk.id.clone(),
            secret: read_psk(&ppk.file)?,
            required: ppk.required,
        }),
        None => None,
    };
    c.crash_detection = config.extensions.crash_detection;
    c.resumption = config.extensions.resumption;
    c.cluster_sync = config.extensions.cluster_sync;
    c.mid_sync = config.extensions.mid_sync;
    c.childless = config.extensions.childless;
    c.window = config.extensions.window;
    c.redirect = config.extensions.redirect;
    c.follow_redirects = config.extensions.follow_redirects;
    c.resources = resources(config.extensions.per_resource, cpus, members);
    c.fragmentation = config.fragmentation;
    c.fragment_size = config.fragment_size;
    let pool = |p: &PoolConfig| Pool::of_network(&p.name, p.network.network(), p.network.prefix_len());
    c.pools = config.pools.iter().filter_map(pool).collect();
    c.mobike = config.mobike;
    c.further_locals.clone_from(&config.further_locals);
    c.dns = config.dns.clone();
    c.dns_domains = config.dns_domains.clone();
    for child in &config.children {
        let mut to = ike::ChildConfig::new(&child.name, child.local_ts.clone(), child.remote_ts.clone());
        to.esp_proposals = child.esp.clone();
        to.mode = child.mode;
        to.tfc_padding = child.tfc_padding;
        c.children.push(to);
    }
    Ok(c)
}

/// What the files of a configuration come to.
pub struct Made {
    /// For the IKE engine.
    pub engine: EngineConfig,
    /// Certificates that we prove ourselves by, by connection.
    pub certificates: BTreeMap<String, Facts>,
    /// Their private keys, for the signer.
    pub keys: Keys,
    /// TLS for EAP-TLS, by connection.
    pub tls: Settings,
}

/// Reads what the configuration names. `endpoint` has the secrets that all members share; `cpus` is how many of this one serve SAs.
///
/// # Errors
/// A pre-shared key, certificate or private key cannot be used.
pub fn make(config: &Config, endpoint: EndpointConfig, cpus: u32) -> Result<Made> {
    let mut made = Made {
        engine: EngineConfig {
            connections: Vec::new(),
            endpoint,
        },
        certificates: BTreeMap::new(),
        keys: Keys::new(),
        tls: Settings::new(),
    };
    let members = config
        .cluster
        .members
        .iter()
        .map(|member| member.id)
        .collect::<Vec<_>>();
    for c in &config.connections {
        let connection =
            connection(c, cpus, &members, &mut made).with_context(|| format!("connection {}", c.name))?;
        made.engine.connections.push(connection);
    }
    Ok(made)
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
                lenient: child.lenient,
                lifetimes: Some(child.lifetimes),
                handling: child.handling,
            });
        }
    }
    out
}
