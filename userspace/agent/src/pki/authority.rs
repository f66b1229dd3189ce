//! The folder with the CA's key: issues, replaces and revokes member certificates, and changes the CA itself.
//!
//! Nothing here reaches the members: the operator copies the files, and `espalier reload-pki` has the agent read them.
//! The order of the steps of a change is such that at every moment all members trust each other whichever of them has
//! the new files already:
//!
//! | step | afterwards every member | to be copied to every member |
//! |---|---|---|
//! | `rotate ca` | trusts the old and the new CA | `ca.crt`, `cluster.crl` |
//! | `rotate members` | has a new certificate; the replaced ones are still accepted | `member-N.crt`, `member-N.key` |
//! | `rotate finish` | refuses replaced certificates and the old CA | `ca.crt`, `cluster.crl` |
//! | `rotate secret make` | knows the next secret | `cluster-next.secret` |
//! | `rotate secret use` | uses it; honours what was made with the one before | `cluster.secret`, `cluster-old.secret` |
//! | `rotate secret forget` | no longer knows the one before | (to be removed: `cluster-old.secret`) |

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::MemberId;
use nix::fcntl::Flock;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SerialNumber};
use serde::Serialize;
use zeroize::Zeroizing;

use super::ca::{CLOCK_DIFFERENCE, Ca, DAY, ca_name, moment, now, random_serial};
use super::ledger::{Issued, Ledger, Standing};
use super::{
    CA_FILE, CRL_FILE, CertificateFacts, ClusterSecret, NEXT_SECRET_FILE, OLD_SECRET_FILE, SECRET_FILE,
    SECRET_LEN, certificate, certificate_file, files, key_file, ledger, member_name,
};

/// Days for which a member certificate is valid where nothing else is said.
pub const DAYS_DEFAULT: u32 = 730;
/// Most days for which a member certificate may be valid.
pub const DAYS_MAX: u32 = 3650;

/// A secret is honoured for so many seconds after it was replaced: a ticket is read for two periods of its key.
const SECRET_HONOURED: u64 = 2 * crypto::ticket::TICKET_KEY_PERIOD;

const CA_KEY: &str = "ca.key";
const OLD_CA_KEY: &str = "ca-old.key";

/// For how long a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    not_before: u64,
    not_after: u64,
}

impl Validity {
    /// From now on for so many days.
    ///
    /// # Errors
    /// Not 1 to [`DAYS_MAX`] days.
    pub fn days(days: u32) -> Result<Self> {
        if !(1..=DAYS_MAX).contains(&days) {
            bail!("a certificate is valid for 1 to {DAYS_MAX} days, not {days}");
        }
        let now = now();
        Ok(Self {
            not_before: now.saturating_sub(CLOCK_DIFFERENCE),
            not_after: now + u64::from(days) * DAY,
        })
    }

    /// Between two moments, seconds since 1970: for tests of what has expired.
    #[cfg(test)]
    pub fn between(not_before: u64, not_after: u64) -> Self {
        Self {
            not_before,
            not_after,
        }
    }
}

/// What a command did, and what the operator does next.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Change {
    /// Files made or replaced.
    pub written: Vec<PathBuf>,
    /// Files removed.
    pub removed: Vec<PathBuf>,
    /// Certificates revoked.
    pub revoked: usize,
    /// The operator's next step.
    pub next: String,
}

/// `espalier cluster show`.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// Name of the cluster.
    pub cluster: String,
    /// Trusted CAs, the one that signs first.
    pub authorities: Vec<CertificateFacts>,
    /// Whether the CA is being changed: `rotate finish` is still to come.
    pub changing: bool,
    /// Number of the revocation list.
    pub crl_number: u64,
    /// Cluster secrets, by name.
    pub secrets: Vec<SecretOverview>,
    /// Certificates, by member.
    pub members: Vec<MemberOverview>,
}

/// A cluster secret in the [`Overview`].
#[derive(Clone, Debug, Serialize)]
pub struct SecretOverview {
    /// `in use`, `next` or `before`.
    pub role: String,
    /// Its name, as `espalier status` shows it.
    pub id: String,
}

/// A certificate in the [`Overview`].
#[derive(Clone, Debug, Serialize)]
pub struct MemberOverview {
    /// Member.
    pub member: u8,
    /// `current`, `replaced` or `revoked`.
    pub standing: Standing,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Whether the CA that signs now has signed it.
    pub newest_ca: bool,
    /// Not valid after, seconds since 1970.
    pub not_after: u64,
    /// Days left; negative once it has expired.
    pub days_left: i64,
}

/// The folder, locked.
pub struct Authority {
    dir: PathBuf,
    ledger: Ledger,
    _lock: Flock<File>,
}

impl Authority {
    /// Makes the folder: a CA, its empty revocation list, a certificate and key for members 1 to `members`, the secret.
    ///
    /// # Errors
    /// The folder cannot be made, or any of the files is there already (then nothing is written).
    pub fn init(dir: &Path, cluster: &str, members: u8, validity: Validity) -> Result<Change> {
        if !(1..=16).contains(&members) {
            bail!("a cluster has 1 to 16 members, not {members}");
        }
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
        let lock = files::lock(dir)?;
        let mut wanted = [CA_FILE, CA_KEY, CRL_FILE, SECRET_FILE, ledger::FILE]
            .map(|f| dir.join(f))
            .to_vec();
        for id in (1..=members).map(MemberId) {
            wanted.push(dir.join(certificate_file(id)));
            wanted.push(dir.join(key_file(id)));
        }
        if let Some(there) = wanted.iter().find(|path| path.exists()) {
            bail!(
                "{} exists; name another folder, or remove the old cluster's files first",
                there.display()
            );
        }
        let ledger = Ledger {
            cluster: cluster.to_owned(),
            ca: 1,
            previous_ca: None,
            crl_number: 0,
            issued: Vec::new(),
            secret_replaced_at: None,
        };
        let mut this = Self {
            dir: dir.to_owned(),
            ledger,
            _lock: lock,
        };
        let (ca, key) = Ca::generate(cluster, 1)?;
        let mut change = Change::default();
        this.create(&mut change, CA_FILE, files::PUBLIC, ca.pem.as_bytes())?;
        this.create(&mut change, CA_KEY, files::SECRET, key.as_bytes())?;
        this.publish_revocations(&mut change, &ca)?;
        for id in (1..=members).map(MemberId) {
            this.issue(&mut change, &ca, id, validity)?;
        }
        let mut secret = Zeroizing::new([0_u8; SECRET_LEN]);
        getrandom::fill(&mut secret[..]).context("the system has no randomness")?;
        this.create(&mut change, SECRET_FILE, files::SECRET, &secret[..])?;
        change.next = format!(
            "Copy {CA_FILE}, {CRL_FILE}, {SECRET_FILE} and member-N.crt with member-N.key to member N, and name the folder there as `pki` in [cluster]."
        );
        Ok(change)
    }

    /// Opens the folder that [`Self::init`] made.
    ///
    /// # Errors
    /// It is not such a folder, or another command is at work in it.
    pub fn open(dir: &Path) -> Result<Self> {
        let lock = files::lock(dir)?;
        Ok(Self {
            ledger: Ledger::load(dir)?,
            dir: dir.to_owned(),
            _lock: lock,
        })
    }

    /// Issues a certificate for one more member.
    ///
    /// # Errors
    /// The member has one already.
    pub fn add(&mut self, member: MemberId, validity: Validity) -> Result<Change> {
        Ledger::check_member(member)?;
        let there = [certificate_file(member), key_file(member)].map(|name| self.dir.join(name));
        if self.ledger.current(member).is_some() || there.iter().any(|path| path.exists()) {
            bail!(
                "member {member} has a certificate; to replace it: espalier cluster rotate members --member {member}"
            );
        }
        let ca = self.newest()?;
        let mut change = Change::default();
        self.issue(&mut change, &ca, member, validity)?;
        change.next = format!(
            "Copy {CA_FILE}, {CRL_FILE}, {SECRET_FILE}, {} and {} to the new member, and add it to [[cluster.members]] on every member.",
            certificate_file(member),
            key_file(member)
        );
        Ok(change)
    }

    /// Revokes every certificate of a member, and removes its files.
    ///
    /// # Errors
    /// The member has none.
    pub fn remove(&mut self, member: MemberId) -> Result<Change> {
        Ledger::check_member(member)?;
        let mut change = Change {
            revoked: self.ledger.revoke(now(), |issued| issued.member == member.0),
            ..Change::default()
        };
        if change.revoked == 0 {
            bail!(
                "member {member} has no certificate here that could be revoked; see: espalier cluster show"
            );
        }
        let ca = self.newest()?;
        self.publish_revocations(&mut change, &ca)?;
        for name in [certificate_file(member), key_file(member)] {
            self.discard(&mut change, &name)?;
        }
        change.next = format!(
            "Copy {CRL_FILE} to every other member and run `espalier reload-pki` there: member {member}'s connections are closed at once. Then remove it from [[cluster.members]]. It knows {SECRET_FILE}: to replace that, too: espalier cluster rotate secret make"
        );
        Ok(change)
    }

    /// New certificates and keys for one member, or all. The replaced ones are accepted until [`Self::finish`].
    ///
    /// # Errors
    /// A named member has no certificate.
    pub fn rotate_members(&mut self, only: Option<MemberId>, validity: Validity) -> Result<Change> {
        let members = match only {
            Some(member) if self.ledger.current(member).is_none() => {
                bail!(
                    "member {member} has no certificate; to issue one: espalier cluster add --member {member}"
                )
            }
            Some(member) => vec![member],
            None => self.ledger.members(),
        };
        let ca = self.newest()?;
        let mut change = Change::default();
        // The new certificates' CA has a list, whatever was interrupted before.
        self.publish_revocations(&mut change, &ca)?;
        for member in members {
            self.issue(&mut change, &ca, member, validity)?;
        }
        change.next = "Copy each member-N.crt and member-N.key to member N and run `espalier reload-pki` there, one member after the other. When all have theirs: espalier cluster rotate finish".to_owned();
        Ok(change)
    }

    /// A new CA, trusted beside the old one until [`Self::finish`].
    ///
    /// # Errors
    /// The CA is being changed already.
    pub fn rotate_ca(&mut self) -> Result<Change> {
        let trusted = CertificateFacts::of_file(&self.dir.join(CA_FILE))?;
        let mut change = Change::default();
        match self.ledger.previous_ca {
            None => {
                // The old key is still needed, to revoke what the old CA has signed.
                let path = self.dir.join(CA_KEY);
                let key = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                self.replace(&mut change, OLD_CA_KEY, files::SECRET, &Zeroizing::new(key))?;
                self.ledger.previous_ca = Some(self.ledger.ca);
                self.ledger.ca += 1;
                self.save(&mut change)?;
            }
            // A command that was interrupted here is carried on by the next one.
            Some(previous)
                if trusted.len() == 1 && trusted[0].subject == ca_name(&self.ledger.cluster, previous) => {}
            Some(_) => bail!(
                "the CA is being changed already: espalier cluster rotate members, then espalier cluster rotate finish"
            ),
        }
        let old = Ca::load(&self.dir, 0, OLD_CA_KEY)?;
        let (ca, key) = Ca::generate(&self.ledger.cluster, self.ledger.ca)?;
        self.replace(&mut change, CA_KEY, files::SECRET, key.as_bytes())?;
        let both = format!("{}{}", ca.pem, old.pem);
        self.replace(&mut change, CA_FILE, files::PUBLIC, both.as_bytes())?;
        self.publish_revocations(&mut change, &ca)?;
        change.next = format!(
            "Copy {CA_FILE} and {CRL_FILE} to every member and run `espalier reload-pki` there. When all have them: espalier cluster rotate members"
        );
        Ok(change)
    }

    /// Ends a rotation: replaced certificates are revoked, and the old CA is no longer trusted.
    ///
    /// # Errors
    /// There is nothing to finish, or a member's certificate is still the old CA's.
    pub fn finish(&mut self) -> Result<Change> {
        for member in self.ledger.members() {
            let Some(current) = self.ledger.current(member) else {
                continue;
            };
            if current.ca != self.ledger.ca {
                bail!(
                    "member {member}'s certificate is still the old CA's; first: espalier cluster rotate members"
                );
            }
            let path = self.dir.join(certificate_file(member));
            let here = CertificateFacts::of_file(&path)?;
            if here.first().is_none_or(|facts| facts.serial != current.serial) {
                bail!(
                    "{} is not the certificate that was issued last; run espalier cluster rotate members --member {member}, copy it there, then finish",
                    path.display()
                );
            }
        }
        let mut change = Change {
            revoked: self
                .ledger
                .revoke(now(), |issued| issued.standing == Standing::Replaced),
            ..Change::default()
        };
        let ca = self.newest()?;
        if self.ledger.previous_ca.take().is_some() {
            self.replace(&mut change, CA_FILE, files::PUBLIC, ca.pem.as_bytes())?;
        } else if change.revoked == 0 {
            bail!("there is nothing to finish: no certificate was replaced since the last time");
        }
        self.publish_revocations(&mut change, &ca)?;
        self.discard(&mut change, OLD_CA_KEY)?;
        change.next =
            format!("Copy {CA_FILE} and {CRL_FILE} to every member and run `espalier reload-pki` there.");
        Ok(change)
    }

    /// Makes the secret that takes the place of the cluster secret.
    ///
    /// # Errors
    /// The secret is being replaced already.
    pub fn make_secret(&mut self) -> Result<Change> {
        if self.dir.join(OLD_SECRET_FILE).exists() {
            bail!(
                "{OLD_SECRET_FILE} is here still: end the last change first: espalier cluster rotate secret forget"
            );
        }
        if self.dir.join(NEXT_SECRET_FILE).exists() {
            bail!(
                "{NEXT_SECRET_FILE} is here already: copy it to every member, then: espalier cluster rotate secret use"
            );
        }
        let mut change = Change::default();
        let mut secret = Zeroizing::new([0_u8; SECRET_LEN]);
        getrandom::fill(&mut secret[..]).context("the system has no randomness")?;
        self.create(&mut change, NEXT_SECRET_FILE, files::SECRET, &secret[..])?;
        change.next = format!(
            "Copy {NEXT_SECRET_FILE} to every member and run `espalier reload-pki` there. When all have it (espalier status shows it): espalier cluster rotate secret use"
        );
        Ok(change)
    }

    /// Puts the next secret in place of the cluster secret. A command that was interrupted is carried on by the next one.
    ///
    /// # Errors
    /// There is no next secret.
    pub fn use_secret(&mut self) -> Result<Change> {
        let of = |name: &str| self.dir.join(name);
        let next = of(NEXT_SECRET_FILE);
        if !next.exists() {
            bail!("there is no {NEXT_SECRET_FILE}; first: espalier cluster rotate secret make");
        }
        let mut change = Change::default();
        let next = ClusterSecret::read(&next)?;
        let active = ClusterSecret::read(&of(SECRET_FILE))?;
        if active.id() != next.id() {
            self.replace(&mut change, OLD_SECRET_FILE, files::SECRET, active.expose())?;
            self.ledger.secret_replaced_at = Some(now());
            self.save(&mut change)?;
            self.replace(&mut change, SECRET_FILE, files::SECRET, next.expose())?;
        }
        self.discard(&mut change, NEXT_SECRET_FILE)?;
        change.next = format!(
            "Copy {SECRET_FILE} and {OLD_SECRET_FILE} to every member, remove {NEXT_SECRET_FILE} there, and run `espalier reload-pki`: with the first member that does so all go over to the new secret. After {} hours, when nobody comes back by what was made with the old one any more: espalier cluster rotate secret forget",
            SECRET_HONOURED / 3600
        );
        Ok(change)
    }

    /// Forgets the secret before. `now_already`: although peers may still hold what was made with it.
    ///
    /// # Errors
    /// There is none, or it is too early.
    pub fn forget_secret(&mut self, now_already: bool) -> Result<Change> {
        if !self.dir.join(OLD_SECRET_FILE).exists() {
            bail!("there is no {OLD_SECRET_FILE}: nothing is to be forgotten");
        }
        let since = self.ledger.secret_replaced_at.unwrap_or(0);
        let left = (since + SECRET_HONOURED).saturating_sub(now());
        if left > 0 && !now_already {
            bail!(
                "for {} hours more peers may come back by tickets that were made with the old secret; to forget it all the same: --now",
                left.div_ceil(3600)
            );
        }
        let mut change = Change::default();
        self.discard(&mut change, OLD_SECRET_FILE)?;
        self.ledger.secret_replaced_at = None;
        self.save(&mut change)?;
        change.next =
            format!("Remove {OLD_SECRET_FILE} on every member and run `espalier reload-pki` there.");
        Ok(change)
    }

    /// What there is.
    ///
    /// # Errors
    /// `ca.crt` cannot be read.
    pub fn show(&self) -> Result<Overview> {
        let now = now();
        let mut members = self
            .ledger
            .issued
            .iter()
            .map(|issued| MemberOverview {
                member: issued.member,
                standing: issued.standing,
                serial: issued.serial.clone(),
                newest_ca: issued.ca == self.ledger.ca,
                not_after: issued.not_after,
                days_left: (issued.not_after as i64 - now as i64).div_euclid(DAY as i64),
            })
            .collect::<Vec<_>>();
        members.sort_by_key(|m| (m.member, m.standing != Standing::Current));
        Ok(Overview {
            cluster: self.ledger.cluster.clone(),
            authorities: CertificateFacts::of_file(&self.dir.join(CA_FILE))?,
            changing: self.ledger.previous_ca.is_some(),
            crl_number: self.ledger.crl_number,
            secrets: [
                ("in use", SECRET_FILE),
                ("next", NEXT_SECRET_FILE),
                ("before", OLD_SECRET_FILE),
            ]
            .into_iter()
            .filter(|(_, name)| self.dir.join(name).exists())
            .map(|(role, name)| {
                let secret = ClusterSecret::read(&self.dir.join(name))?;
                Ok(SecretOverview {
                    role: role.to_owned(),
                    id: secret.id().to_string(),
                })
            })
            .collect::<Result<Vec<_>>>()?,
            members,
        })
    }

    fn newest(&self) -> Result<Ca> {
        Ca::load(&self.dir, 0, CA_KEY)
    }

    /// Issues a certificate. The ledger has it before anybody else can: what is not there could never be revoked.
    fn issue(&mut self, change: &mut Change, ca: &Ca, member: MemberId, validity: Validity) -> Result<()> {
        let name = member_name(&self.ledger.cluster, member);
        let key =
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a member key")?;
        let serial = random_serial()?;
        let mut params =
            CertificateParams::new(vec![name.clone()]).context("the cluster's name fits no certificate")?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = moment(validity.not_before)?;
        params.not_after = moment(validity.not_after)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(&key, &ca.issuer)
            .context("cannot sign a member certificate")?;
        for issued in &mut self.ledger.issued {
            if issued.member == member.0 && issued.standing == Standing::Current {
                issued.standing = Standing::Replaced;
            }
        }
        self.ledger.issued.push(Issued {
            member: member.0,
            serial: certificate::hex(&serial),
            ca: self.ledger.ca,
            not_after: validity.not_after,
            standing: Standing::Current,
            revoked_at: None,
        });
        self.save(change)?;
        let secret = Zeroizing::new(key.serialize_pem());
        self.replace(
            change,
            &certificate_file(member),
            files::PUBLIC,
            cert.pem().as_bytes(),
        )?;
        self.replace(change, &key_file(member), files::SECRET, secret.as_bytes())
    }

    /// Signs the revocation list of every CA that is trusted.
    fn publish_revocations(&mut self, change: &mut Change, newest: &Ca) -> Result<()> {
        self.ledger.crl_number += 1;
        let mut lists = newest.revocations(self.ledger.ca, &self.ledger)?;
        if let Some(previous) = self.ledger.previous_ca {
            lists += &Ca::load(&self.dir, 1, OLD_CA_KEY)?.revocations(previous, &self.ledger)?;
        }
        self.save(change)?;
        self.replace(change, CRL_FILE, files::PUBLIC, lists.as_bytes())
    }

    fn save(&self, change: &mut Change) -> Result<()> {
        let path = self.ledger.save(&self.dir)?;
        if !change.written.contains(&path) {
            change.written.push(path);
        }
        Ok(())
    }

    fn create(&self, change: &mut Change, name: &str, mode: u32, octets: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        files::create(&path, mode, octets)?;
        change.written.push(path);
        Ok(())
    }

    fn replace(&self, change: &mut Change, name: &str, mode: u32, octets: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        files::replace(&path, mode, octets)?;
        change.written.push(path);
        Ok(())
    }

    fn discard(&self, change: &mut Change, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        if files::remove(&path)? {
            change.removed.push(path);
        }
        Ok(())
    }
}
