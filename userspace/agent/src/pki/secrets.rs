//! The cluster secret, and how members go from one to the next while they run.
//!
//! | file | what a member does with the secret in it |
//! |---|---|
//! | `cluster.secret` | makes cookies, tokens and tickets with it, and steers first messages by it |
//! | `cluster-next.secret` | honours what others have made with it; goes over to it as soon as one of them has |
//! | `cluster-old.secret` | honours what was made with it before |
//!
//! One that goes over first, because its files say so, asks that every member it hears knows the new secret. The others
//! follow within a round trip: they hear of it in its hello.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::{MemberId, SecretBytes};
use serde::{Deserialize, Serialize};

use super::{NEXT_SECRET_FILE, OLD_SECRET_FILE, SECRET_FILE, SECRET_LEN, hmac};

/// Names a secret, without saying anything of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretId([u8; 4]);

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// A cluster secret. No `Debug`.
#[derive(Clone)]
pub struct ClusterSecret(SecretBytes);

impl ClusterSecret {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self> {
        let secret =
            SecretBytes::new(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
        if secret.len() != SECRET_LEN {
            bail!(
                "{} has {} octets instead of {SECRET_LEN}; copy it from the folder of 'cluster init'",
                path.display(),
                secret.len()
            );
        }
        Ok(Self(secret))
    }

    fn read_if_there(path: &Path) -> Result<Option<Self>> {
        path.exists().then(|| Self::read(path)).transpose()
    }

    /// Its octets, for a file.
    pub(super) fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// A key for one purpose.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        hmac(self.0.expose(), purpose.as_bytes())
    }

    /// A digest of something secret, for comparison between members: without the cluster secret not even a guess can be
    /// checked against it.
    pub fn fingerprint(&self, purpose: &str, secret: &SecretBytes) -> [u8; 32] {
        let key = zeroize::Zeroizing::new(self.derive(purpose));
        hmac(&key[..], secret.expose())
    }

    /// Its name.
    pub fn id(&self) -> SecretId {
        let digest = self.derive("name of the secret");
        SecretId(std::array::from_fn(|at| digest[at]))
    }
}

/// The secrets that a member knows. No `Debug`.
#[derive(Clone)]
pub struct Secrets {
    /// In use.
    pub active: ClusterSecret,
    /// To be used soon.
    pub next: Option<ClusterSecret>,
    /// Used before.
    pub old: Option<ClusterSecret>,
}

impl Secrets {
    /// Reads the files in `dir`.
    ///
    /// # Errors
    /// `cluster.secret` is missing, or a file is no secret.
    pub fn load(dir: &Path) -> Result<Self> {
        let active = ClusterSecret::read(&dir.join(SECRET_FILE))?;
        let other = |name: &str| {
            let other = ClusterSecret::read_if_there(&dir.join(name))?;
            // In the middle of a change two files hold the same.
            anyhow::Ok(other.filter(|other| other.id() != active.id()))
        };
        Ok(Self {
            next: other(NEXT_SECRET_FILE)?,
            old: other(OLD_SECRET_FILE)?,
            active,
        })
    }

    /// All of them, the one in use first.
    pub fn all(&self) -> impl Iterator<Item = &ClusterSecret> {
        std::iter::once(&self.active).chain(&self.next).chain(&self.old)
    }

    /// Their names, the one in use first.
    pub fn ids(&self) -> Vec<SecretId> {
        self.all().map(ClusterSecret::id).collect()
    }

    /// A member uses this secret: where it is our next one, we go over to it, too.
    pub fn following(&self, used: SecretId) -> Option<Self> {
        let next = self.next.as_ref().filter(|next| next.id() == used)?;
        Some(Self {
            active: next.clone(),
            next: None,
            old: Some(self.active.clone()),
        })
    }

    /// What becomes of these, which are in use, when there are new files. `others`: members that are heard, and which secrets each
    /// one knows.
    ///
    /// # Errors
    /// That would leave a member behind, or the files are of another cluster: cause and remedy.
    pub fn with_files(
        &self,
        files: Self,
        others: impl IntoIterator<Item = (MemberId, Vec<SecretId>)>,
    ) -> Result<Self, String> {
        let (running, new) = (self.active.id(), files.active.id());
        if new == running {
            return Ok(files);
        }
        if files.next.as_ref().is_some_and(|next| next.id() == running) {
            // Another member has gone over already, and we with it; these files are of before.
            return Ok(Self {
                active: self.active.clone(),
                next: None,
                old: Some(files.active),
            });
        }
        if files.old.as_ref().is_none_or(|old| old.id() != running) {
            return Err(format!(
                "{SECRET_FILE} is another one, and {OLD_SECRET_FILE} is not the one in use: put the old {SECRET_FILE} back, or \
                 replace it by: espalier cluster rotate secret make"
            ));
        }
        let behind = others.into_iter().filter(|(_, known)| !known.contains(&new));
        let behind = behind.map(|(member, _)| member.to_string()).collect::<Vec<_>>();
        if behind.is_empty() {
            return Ok(files);
        }
        Err(format!(
            "member {} does not know the new secret yet: copy it there as {NEXT_SECRET_FILE} and run espalier reload-pki there, \
             then here again",
            behind.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(octet: u8) -> ClusterSecret {
        ClusterSecret(SecretBytes::new(vec![octet; SECRET_LEN]))
    }

    fn secrets(active: u8, next: Option<u8>, old: Option<u8>) -> Secrets {
        Secrets {
            active: secret(active),
            next: next.map(secret),
            old: old.map(secret),
        }
    }

    fn named(secrets: &Secrets) -> (SecretId, Option<SecretId>, Option<SecretId>) {
        let id = |secret: &Option<ClusterSecret>| secret.as_ref().map(ClusterSecret::id);
        (secrets.active.id(), id(&secrets.next), id(&secrets.old))
    }

    /// Every member takes every step at a time of its own; `knows` is what the other one says.
    #[test]
    fn whichever_member_takes_a_step_first_the_other_understands_it() {
        let (start, makes, uses, end) = (
            secrets(1, None, None),
            secrets(1, Some(2), None),
            secrets(2, None, Some(1)),
            secrets(2, None, None),
        );
        let other = |of: &Secrets| [(MemberId(2), of.ids())];
        let step = |from: &Secrets, files: &Secrets, knows: &Secrets| {
            from.with_files(files.clone(), other(knows))
                .map(|secrets| named(&secrets))
        };
        assert_eq!(step(&start, &makes, &start), Ok(named(&makes)));
        let why = step(&makes, &uses, &start).unwrap_err();
        assert!(
            why.contains("member 2") && why.contains(NEXT_SECRET_FILE),
            "{why}"
        );
        assert_eq!(step(&makes, &uses, &makes), Ok(named(&uses)));
        // The other one follows, and gets its files later, or reads the older ones once more.
        let followed = makes.following(secret(2).id()).expect("its next one");
        assert_eq!(named(&followed), named(&uses));
        assert_eq!(step(&followed, &uses, &uses), Ok(named(&uses)));
        assert_eq!(step(&followed, &makes, &uses), Ok(named(&uses)));
        assert_eq!(step(&uses, &end, &uses), Ok(named(&end)));
        // Without the step in between: it comes late, and the others have gone over.
        assert_eq!(step(&start, &uses, &uses), Ok(named(&uses)));
        // Nobody goes back, or over to what it does not know.
        for used in [1, 3] {
            assert!(uses.following(secret(used).id()).is_none());
            assert!(start.following(secret(used + 1).id()).is_none());
        }
    }

    #[test]
    fn files_of_another_cluster_are_refused() {
        let running = secrets(1, Some(2), None);
        for files in [
            secrets(7, None, None),
            secrets(2, None, None),
            secrets(2, None, Some(7)),
        ] {
            let why = running.with_files(files, []).err().expect("refused");
            assert!(why.contains("put the old cluster.secret back"), "{why}");
        }
    }
}
