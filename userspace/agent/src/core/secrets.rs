//! What the IKE engines of all members share, so that any of them can help a peer after everything was lost, and when this
//! member may be sure that something is lost.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use cluster::message::Policy;
use dataplane::Segments;
use ike::{EndpointConfig, OtherSecrets};
use maps_schema::segment::LEGACY_NONE;
use model::{IkeSpi, Instant, MemberId, SecretBytes, SegmentId};

use super::{Core, digest, setup};
use crate::api::SecretStatus;
use crate::clock;
use crate::config::Config;
use crate::pki::{ClusterSecret, Identity, SecretId, Secrets};

fn secret(cluster: &ClusterSecret, label: &str) -> SecretBytes {
    SecretBytes::new(cluster.derive(label).to_vec())
}

fn cookie(cluster: &ClusterSecret) -> SecretBytes {
    secret(cluster, "ike cookie")
}

fn qcd(cluster: &ClusterSecret) -> SecretBytes {
    secret(cluster, "ike quick crash detection")
}

fn ticket(cluster: &ClusterSecret) -> SecretBytes {
    secret(cluster, "ike session resumption")
}

/// What the engine gets that is derived from the cluster's secrets. A member that starts anew makes the same tokens as before.
pub fn endpoint(secrets: &Secrets) -> EndpointConfig {
    let mut endpoint = EndpointConfig::new(cookie(&secrets.active));
    endpoint.qcd_secret = Some(qcd(&secrets.active));
    endpoint.ticket_secret = Some(ticket(&secrets.active));
    endpoint.also_honoured = secrets
        .all()
        .skip(1)
        .map(|other| OtherSecrets {
            cookie: cookie(other),
            qcd: qcd(other),
            ticket: ticket(other),
        })
        .collect();
    endpoint
}

/// The key of the hash that steers first messages.
pub fn steer_key(secret: &ClusterSecret) -> [u64; 2] {
    let key = secret.derive("steering");
    let word = |at: usize| u64::from_le_bytes(key[at..at + 8].try_into().unwrap_or_default());
    [word(0), word(8)]
}

/// Digests of the policy that all members share, under each secret that this member knows.
pub struct Policies(BTreeMap<SecretId, Policy>);

impl Policies {
    /// Of all secrets.
    ///
    /// # Errors
    /// A pre-shared key cannot be read.
    pub fn of(config: &Config, secrets: &Secrets) -> Result<Self> {
        let of = |secret: &ClusterSecret| Ok((secret.id(), digest::policy(config, secret)?));
        Ok(Self(secrets.all().map(of).collect::<Result<_>>()?))
    }

    fn get(&self, secret: &ClusterSecret) -> Policy {
        self.0.get(&secret.id()).cloned().unwrap_or_default()
    }

    /// For the node: under the secret in use, and under the next one, of members that have gone over to it already.
    pub fn shared(&self, secrets: &Secrets) -> cluster::node::SharedPolicy {
        cluster::node::SharedPolicy {
            present: self.get(&secrets.active),
            next: secrets.next.as_ref().map(|next| self.get(next)),
        }
    }
}

impl Core {
    /// Reads the folder of the synch channel's files again: one sentence, or cause and remedy. Nothing changes unless all of it can.
    pub(super) fn reload_pki(&mut self) -> Result<String, String> {
        self.reload_files().map_err(|error| format!("{error:#}"))
    }

    fn reload_files(&mut self) -> Result<String> {
        let identity = Identity::load(&self.config.cluster.pki, self.me)?;
        let status = self.node.status();
        let heard = status.peers.iter().filter(|peer| peer.alive);
        let others = heard.map(|peer| {
            let facts = self.facts.get(&peer.member);
            (peer.member, facts.map(|f| f.secrets.clone()).unwrap_or_default())
        });
        let others = others.collect::<Vec<_>>();
        let secrets = self.secrets.with_files(identity.secrets.clone(), others.clone());
        let secrets = secrets.map_err(anyhow::Error::msg)?;
        let policies = Policies::of(&self.config, &secrets)?;
        if let Some(before) = policies.0.get(&self.secrets.active.id())
            && *before != self.policies.get(&self.secrets.active)
        {
            bail!(
                "keys of peers have changed in their files since this member was started: restart it (espalier drain, then stop and start), or put them back"
            );
        }
        let mut text = self.synch.reload(&identity)?;
        if let Some(change) = self.secrets_become(secrets, policies) {
            text = format!("{text}; {change}");
        }
        // This member comes late: the others use what it has just learned.
        for (member, theirs) in &others {
            self.follow_secret(*member, theirs);
        }
        Ok(text)
    }

    /// Another member says which secrets it knows, the one in use first: where that is our next one, we go over to it, too.
    pub(super) fn follow_secret(&mut self, member: MemberId, theirs: &[SecretId]) {
        let Some(used) = theirs.first() else { return };
        if let Some(secrets) = self.secrets.following(*used) {
            let policies = std::mem::replace(&mut self.policies, Policies(BTreeMap::new()));
            if let Some(change) = self.secrets_become(secrets, policies) {
                tracing::info!("as member {member} has: {change}");
            }
        } else if !self.secrets.ids().contains(used) {
            self.log.warn(
                "secret",
                format!(
                    "member {member} uses cluster secret {used}, which is not known here: copy cluster.secret and cluster-old.secret here, and run espalier reload-pki"
                ),
            );
        }
    }

    /// Takes secrets in use. What is said about it, if anything has changed.
    fn secrets_become(&mut self, secrets: Secrets, policies: Policies) -> Option<String> {
        let before = std::mem::replace(&mut self.secrets, secrets);
        self.policies = policies;
        if before.ids() == self.secrets.ids() {
            return None;
        }
        let (was, now) = (before.active.id(), self.secrets.active.id());
        if was != now {
            self.steer_key = steer_key(&self.secrets.active);
            let local = setup::local(&self.config, self.steer_key, &self.ports);
            if let Err(error) = self.plane.set_local(&local) {
                self.log.warn(
                    "data_plane",
                    format!("first messages are steered by the cluster secret before: {error}"),
                );
            }
        }
        self.engine.set_secrets(endpoint(&self.secrets));
        self.share();
        let others = |secret: &Option<ClusterSecret>| secret.as_ref().map(|s| s.id().to_string());
        let mut text = match was == now {
            true => format!("cluster secret {now} stays in use"),
            false => format!("cluster secret {now} is in use now, in place of {was}"),
        };
        if let Some(next) = others(&self.secrets.next) {
            text.push_str(&format!(", the next one {next} is known"));
        }
        if let Some(old) = others(&self.secrets.old) {
            text.push_str(&format!(", what was made with {old} is honoured"));
        }
        self.log.note("secret", text.clone());
        Some(text)
    }

    pub(super) fn secret_status(&self) -> SecretStatus {
        let name = |secret: &Option<ClusterSecret>| secret.as_ref().map(|s| s.id().to_string());
        SecretStatus {
            active: self.secrets.active.id().to_string(),
            next: name(&self.secrets.next),
            before: name(&self.secrets.old),
        }
    }
}

/// What this member can be sure of.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    me: MemberId,
    words: &'a Segments,
    mirror: &'a BTreeMap<IkeSpi, SecretBytes>,
}

impl<'a> Known<'a> {
    /// By the owner words that the programs obey, and the committed records.
    pub fn of(me: MemberId, words: &'a Segments, mirror: &'a BTreeMap<IkeSpi, SecretBytes>) -> Self {
        Self { me, words, mirror }
    }

    /// The owner words.
    pub fn words(&self) -> &'a Segments {
        self.words
    }

    /// Whether this member serves the segment now, alone and confirmed: not while a handover is under way, and not after its
    /// word has expired, when another member may have taken over without having been heard yet.
    pub fn serves(&self, segment: SegmentId) -> bool {
        let (owner, side) = self.words.get(segment.0);
        owner.owner == self.me.0
            && side.legacy_phase == LEGACY_NONE
            && clock::now() <= Instant::from_millis(owner.valid_until_ms)
    }

    /// Whether an IKE SA that the engine does not know is nowhere (RFC 6290 9.2). Who serves the segment took it over as a
    /// member of the in-sync set, so it has every committed record, or began when nobody else was heard, with nothing. A record
    /// that is there but not in the engine is not lost.
    ///
    /// In a pair that is split under `solo = "continue"` both members serve, and only one has the IKE SA; a peer whose packets reach
    /// the other one cannot reach it either, and is told so by the token.
    pub fn may_show_qcd(&self, spi: IkeSpi) -> bool {
        self.serves(spi.segment()) && !self.mirror.contains_key(&spi)
    }
}
