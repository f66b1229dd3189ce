//! New files while the agent runs: checked as a whole, then used for new connections; present connections are renewed
//! one link after the other, and each old one is left only when its successor has been greeted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};

use super::link::code;
use super::refusal::Refusal;
use super::tls::Credentials;
use super::{Inner, LinkId, Synch};
use crate::clock;
use crate::pki::Identity;

/// A renewal that takes longer is tried again later; the old connection stays.
const RENEWAL: Duration = Duration::from_secs(5);
/// Pause between two attempts to renew what could not be renewed, for example since a peer lacks the new CA.
const AGAIN: Duration = Duration::from_secs(10);
/// The expiry of the certificate is looked at this often.
const LOOK: Duration = Duration::from_secs(3600);
/// It is said every day, from so many days before the end on.
pub(super) const WARN_DAYS: i64 = 30;

impl Synch {
    /// Takes new files in use: for new connections at once, present ones are renewed in the background. Connections of
    /// members that are no longer accepted are closed.
    ///
    /// # Errors
    /// The files do not fit together or to what runs; then nothing has changed.
    pub fn reload(&self, identity: &Identity) -> Result<String> {
        self.inner.reload(identity)
    }
}

impl Inner {
    fn reload(&self, identity: &Identity) -> Result<String> {
        let before = self.credentials.borrow().clone();
        if before.revocation && identity.revoked.is_empty() {
            bail!(
                "cluster.crl is gone: without it revoked members would be accepted again; copy it from the CA's folder"
            );
        }
        let own = before.certificate != identity.certificate;
        let version = before.version + u64::from(own);
        let next = Credentials::new(&self.config, identity, version)?;
        next.check_own(&self.config)?;
        let mut closed = Vec::new();
        for ((peer, link), slot) in &self.slots {
            if let Some(certificate) = slot.certificate()
                && let Err(error) = next.accepts(&certificate)
            {
                let why = Refusal::NoLongerTrusted;
                let who = format_args!("member {peer}");
                self.refusals.note(why, &who, link.name(), &error.to_string());
                closed.push((slot, format!("{} link to member {peer}", link.name())));
            }
        }
        let text = format!(
            "certificate {} is valid for {} days{}{}",
            next.facts.serial,
            next.facts.days_left(clock::wall_ns() / 1_000_000_000),
            if own {
                "; links are being renewed"
            } else {
                ", unchanged"
            },
            if closed.is_empty() {
                String::new()
            } else {
                let links = closed.iter().map(|(_, link)| link.as_str()).collect::<Vec<_>>();
                format!("; no longer accepted, closed: {}", links.join(", "))
            }
        );
        // First the new rules, then the end of what they forbid: it cannot come back.
        self.credentials.send_replace(Arc::new(next));
        for (slot, _) in closed {
            slot.close(code::REFUSED, Refusal::NoLongerTrusted.text());
        }
        self.renew.notify_one();
        Ok(text)
    }

    fn stale(&self) -> bool {
        let version = self.credentials.borrow().version;
        self.slots.values().any(|slot| slot.is_stale(version))
    }

    /// Renews every connection of one link that was made under older credentials. All peers at once, since each pair has
    /// its other link meanwhile.
    async fn renew_link(&self, link: LinkId) {
        let version = self.credentials.borrow().version;
        let stale = self
            .slots
            .iter()
            .filter(|((_, of), slot)| *of == link && slot.is_stale(version))
            .map(|((peer, _), slot)| (*peer, slot.clone(), slot.installed.subscribe()))
            .collect::<Vec<_>>();
        for (peer, slot, _) in &stale {
            if self.config.me < *peer {
                slot.renew.notify_one();
            } else {
                slot.ask_to_renew();
            }
        }
        let all = async {
            for (_, slot, mut installed) in stale {
                while slot.is_stale(version) && installed.changed().await.is_ok() {}
            }
        };
        // What is not renewed in time stays as it is.
        let _ = tokio::time::timeout(RENEWAL, all).await;
    }
}

/// Renews links after every reload, until none is left that was made under older credentials.
pub(super) async fn renew(inner: std::sync::Weak<Inner>, wake: Arc<tokio::sync::Notify>) {
    loop {
        wake.notified().await;
        loop {
            let Some(inner) = inner.upgrade() else { return };
            for link in LinkId::ALL {
                inner.renew_link(link).await;
            }
            if !inner.stale() {
                break;
            }
            tracing::warn!(
                "not every link could be renewed with the new certificate; the old connections stay, and it is tried again"
            );
            drop(inner);
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Says every day that the certificate is about to expire.
pub(super) async fn watch_expiry(inner: std::sync::Weak<Inner>) {
    let mut said = None;
    loop {
        {
            let Some(inner) = inner.upgrade() else { return };
            let now = clock::wall_ns() / 1_000_000_000;
            let facts = inner.credentials.borrow().facts.clone();
            let day = (facts.serial.clone(), now / 86_400);
            let left = facts.days_left(now);
            if left <= WARN_DAYS && said.as_ref() != Some(&day) {
                said = Some(day);
                let member = inner.config.me;
                if left < 0 {
                    tracing::warn!(
                        "the certificate of member {member} has expired: a link that is lost does not come back; issue another one: espalier cluster rotate members --member {member}"
                    );
                } else {
                    tracing::warn!(
                        "the certificate of member {member} expires in {left} days; issue another one: espalier cluster rotate members --member {member}"
                    );
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
