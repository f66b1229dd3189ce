//! Proposals: what the configuration offers, how a peer's offer is matched against it, how both are shown.
//!
//! A proposal is written as in other IKE daemons: `aes256gcm16-prfsha384-x25519`, `chacha20poly1305-esn`. Several
//! algorithms of one kind are alternatives, the first is preferred.

use crate::io::Surroundings;
use model::EspSuite;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Transform types (RFC 7296 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TransformKind {
    /// Encryption (1).
    Encr,
    /// Pseudorandom function (2).
    Prf,
    /// Integrity (3).
    Integ,
    /// Key exchange (4).
    Dh,
    /// Extended sequence numbers (5).
    Esn,
    /// Additional Key Exchange 1 to 7 (6 to 12, RFC 9370): same numbers as key exchange.
    AddKe(u8),
}

impl TransformKind {
    /// Whether it is a key exchange, which the first Child SA has none of its own of (RFC 7296 1.2).
    const fn is_key_exchange(self) -> bool {
        matches!(self, Self::Dh | Self::AddKe(_))
    }
}

/// One algorithm: IANA number and, where the algorithm has it as an attribute, the key length in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Transform {
    /// What it is for.
    pub kind: TransformKind,
    /// IANA Transform ID.
    pub id: u16,
    /// Key Length attribute, bits.
    pub key_bits: Option<u16>,
}

/// A set of alternatives, one of each kind is to be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Proposal {
    /// In order of preference.
    pub transforms: Vec<Transform>,
}

/// Why a proposal of the configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// A keyword is not known.
    #[error("proposal {proposal:?}: {keyword:?} is not known; use for example {example}")]
    UnknownKeyword {
        /// The whole proposal.
        proposal: String,
        /// The part that is wrong.
        keyword: String,
        /// A proposal that would do.
        example: &'static str,
    },
    /// The combination is not usable.
    #[error("proposal {proposal:?}: {why}")]
    Unusable {
        /// The whole proposal.
        proposal: String,
        /// What to change.
        why: &'static str,
    },
}

pub(crate) const ENCR_AES_CBC: u16 = 12;
pub(crate) const ENCR_AES_GCM_16: u16 = 20;
pub(crate) const ENCR_CHACHA20_POLY1305: u16 = 28;
pub(crate) const DH_NONE: u16 = 0;
pub(crate) const DH_X25519: u16 = 31;
pub(crate) const DH_ECP256: u16 = 19;
const DH_ECP384: u16 = 20;
const DH_ECP521: u16 = 21;
const DH_MODP2048: u16 = 14;
const DH_MODP3072: u16 = 15;
const DH_MODP4096: u16 = 16;
const DH_MLKEM768: u16 = 36;
const DH_MLKEM1024: u16 = 37;
pub(crate) const INTEG_SHA256: u16 = 12;
pub(crate) const PRF_SHA256: u16 = 5;
pub(crate) const PRF_SHA384: u16 = 6;
pub(crate) const PRF_SHA512: u16 = 7;
pub(crate) const ESN_NO: u16 = 0;
pub(crate) const ESN_YES: u16 = 1;

const fn transform(kind: TransformKind, id: u16, key_bits: Option<u16>) -> Transform {
    Transform { kind, id, key_bits }
}

/// Keywords and what they stand for; the first keyword of a transform is the one that is shown.
const KEYWORDS: &[(&str, Transform)] = &[
    (
        "aes128gcm16",
        transform(TransformKind::Encr, ENCR_AES_GCM_16, Some(128)),
    ),
    (
        "aes128gcm",
        transform(TransformKind::Encr, ENCR_AES_GCM_16, Some(128)),
    ),
    (
        "aes256gcm16",
        transform(TransformKind::Encr, ENCR_AES_GCM_16, Some(256)),
    ),
    (
        "aes256gcm",
        transform(TransformKind::Encr, ENCR_AES_GCM_16, Some(256)),
    ),
    (
        "chacha20poly1305",
        transform(TransformKind::Encr, ENCR_CHACHA20_POLY1305, None),
    ),
    ("aes128", transform(TransformKind::Encr, ENCR_AES_CBC, Some(128))),
    ("aes256", transform(TransformKind::Encr, ENCR_AES_CBC, Some(256))),
    ("prfsha256", transform(TransformKind::Prf, PRF_SHA256, None)),
    ("prfsha384", transform(TransformKind::Prf, PRF_SHA384, None)),
    ("prfsha512", transform(TransformKind::Prf, PRF_SHA512, None)),
    ("sha256", transform(TransformKind::Integ, INTEG_SHA256, None)),
    ("sha384", transform(TransformKind::Integ, 13, None)),
    ("sha512", transform(TransformKind::Integ, 14, None)),
    ("x25519", transform(TransformKind::Dh, DH_X25519, None)),
    ("curve25519", transform(TransformKind::Dh, DH_X25519, None)),
    ("ecp256", transform(TransformKind::Dh, DH_ECP256, None)),
    ("ecp384", transform(TransformKind::Dh, DH_ECP384, None)),
    ("ecp521", transform(TransformKind::Dh, DH_ECP521, None)),
    ("modp2048", transform(TransformKind::Dh, DH_MODP2048, None)),
    ("modp3072", transform(TransformKind::Dh, DH_MODP3072, None)),
    ("modp4096", transform(TransformKind::Dh, DH_MODP4096, None)),
    ("mlkem768", transform(TransformKind::Dh, DH_MLKEM768, None)),
    ("mlkem1024", transform(TransformKind::Dh, DH_MLKEM1024, None)),
    ("noesn", transform(TransformKind::Esn, ESN_NO, None)),
    ("esn", transform(TransformKind::Esn, ESN_YES, None)),
];

impl fmt::Display for Transform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let TransformKind::AddKe(number) = self.kind {
            write!(f, "ke{number}_")?;
            if self.id == DH_NONE {
                return f.write_str("none");
            }
            return transform(TransformKind::Dh, self.id, None).fmt(f);
        }
        if let Some((word, _)) = KEYWORDS.iter().find(|(_, t)| t == self) {
            return f.write_str(word);
        }
        let kind = match self.kind {
            TransformKind::Encr => "encr",
            TransformKind::Prf => "prf",
            TransformKind::Integ => "integ",
            TransformKind::Dh | TransformKind::AddKe(_) => "group",
            TransformKind::Esn => "esn",
        };
        match self.key_bits {
            Some(bits) => write!(f, "{kind}#{}/{bits}", self.id),
            None => write!(f, "{kind}#{}", self.id),
        }
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // "noesn" goes without saying, unless it is an alternative.
        let alternative = self.of(TransformKind::Esn).any(|t| t.id == ESN_YES);
        let mut shown = self
            .transforms
            .iter()
            .filter(|t| alternative || !(t.kind == TransformKind::Esn && t.id == ESN_NO))
            .map(ToString::to_string);
        if let Some(first) = shown.next() {
            f.write_str(&first)?;
        }
        for word in shown {
            write!(f, "-{word}")?;
        }
        Ok(())
    }
}

/// Several proposals as one readable list.
pub fn list(proposals: &[Proposal]) -> String {
    proposals
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

const IKE_EXAMPLE: &str = "aes256gcm16-prfsha384-x25519";
const ESP_EXAMPLE: &str = "aes256gcm16 or chacha20poly1305-esn";

impl Proposal {
    /// Parses a proposal for IKE SAs, for example `aes256gcm16-prfsha384-x25519`.
    pub fn parse_ike(text: &str) -> Result<Self, ProposalError> {
        let mut proposal = parse_words(text, IKE_EXAMPLE)?;
        let unusable = |why| {
            Err(ProposalError::Unusable {
                proposal: text.to_owned(),
                why,
            })
        };
        if proposal.has(TransformKind::Esn) {
            return unusable("esn belongs into an ESP proposal");
        }
        if !proposal.has(TransformKind::Encr) {
            return unusable("no cipher; add one, for example aes256gcm16");
        }
        let aead = proposal.of(TransformKind::Encr).all(|t| t.id != ENCR_AES_CBC);
        let classic = proposal.of(TransformKind::Encr).all(|t| t.id == ENCR_AES_CBC);
        if !aead && !classic {
            return unusable("AEAD ciphers and AES-CBC cannot share one proposal (RFC 7296 3.3); write two");
        }
        if !proposal.has(TransformKind::Prf) {
            // As in other daemons: without a prf keyword the hash of the integrity algorithm serves as PRF.
            let prfs: Vec<_> = proposal
                .of(TransformKind::Integ)
                .map(|t| transform(TransformKind::Prf, t.id - INTEG_SHA256 + PRF_SHA256, None))
                .collect();
            proposal.transforms.extend(prfs);
        }
        if !proposal.has(TransformKind::Prf) {
            return unusable("no PRF; add one, for example prfsha256");
        }
        if aead && proposal.has(TransformKind::Integ) {
            return unusable("an AEAD cipher has its own integrity check; write prfsha256 for sha256");
        }
        if classic && !proposal.has(TransformKind::Integ) {
            return unusable("AES-CBC needs an integrity algorithm, for example sha256");
        }
        if !proposal.has(TransformKind::Dh) {
            return unusable("no key exchange group; add one, for example x25519");
        }
        if let Some(why) = proposal.unusable_key_exchange() {
            return unusable(why);
        }
        proposal.transforms.sort_by_key(|t| t.kind);
        Ok(proposal)
    }

    /// Parses a proposal for ESP, for example `aes256gcm16`, `chacha20poly1305-esn`, `aes128gcm16-x25519` (with
    /// perfect forward secrecy), or for old peers `aes256-sha256`. Without `esn` the peer may not choose it; with it, it is preferred and `noesn` accepted
    /// only where it stands there as well.
    pub fn parse_esp(text: &str) -> Result<Self, ProposalError> {
        let mut proposal = parse_words(text, ESP_EXAMPLE)?;
        let unusable = |why| {
            Err(ProposalError::Unusable {
                proposal: text.to_owned(),
                why,
            })
        };
        if proposal.has(TransformKind::Prf) {
            return unusable("a PRF belongs into an IKE proposal");
        }
        if !proposal.has(TransformKind::Encr) {
            return unusable("no cipher; add one, for example aes256gcm16");
        }
        let classic = proposal.has_cbc();
        if classic && proposal.of(TransformKind::Encr).any(|t| t.id != ENCR_AES_CBC) {
            return unusable("AEAD ciphers and AES-CBC cannot share one proposal (RFC 7296 3.3); write two");
        }
        if !classic && proposal.has(TransformKind::Integ) {
            return unusable("an AEAD cipher has its own integrity check; leave it out");
        }
        if classic && !proposal.has(TransformKind::Integ) {
            return unusable("AES-CBC needs an integrity algorithm: write aes256-sha256");
        }
        if proposal.of(TransformKind::Integ).any(|t| t.id != INTEG_SHA256) {
            return unusable("in ESP AES-CBC goes with sha256 only: write aes256-sha256");
        }
        if let Some(why) = proposal.unusable_key_exchange() {
            return unusable(why);
        }
        if !proposal.has(TransformKind::Esn) {
            proposal
                .transforms
                .push(transform(TransformKind::Esn, ESN_NO, None));
        }
        proposal.transforms.sort_by_key(|t| t.kind);
        Ok(proposal)
    }

    /// Whether there is a transform of this kind.
    pub fn has(&self, kind: TransformKind) -> bool {
        self.of(kind).next().is_some()
    }

    /// Transforms of this kind, preferred first.
    pub fn of(&self, kind: TransformKind) -> impl Iterator<Item = &Transform> {
        self.transforms.iter().filter(move |t| t.kind == kind)
    }

    /// The first transform of this kind.
    pub fn first(&self, kind: TransformKind) -> Option<Transform> {
        self.of(kind).next().copied()
    }

    /// The alternatives that lead to this suite, which is without key exchange; those of the key exchange stay. `None`: none do.
    pub(crate) fn narrowed_to(&self, suite: &Proposal) -> Option<Self> {
        let fits = |t: &&Transform| t.kind.is_key_exchange() || suite.transforms.contains(t);
        let transforms: Vec<_> = self.transforms.iter().filter(fits).copied().collect();
        let complete = suite.transforms.iter().all(|t| transforms.contains(t));
        complete.then_some(Self { transforms })
    }

    /// The same without key exchange groups: the first Child SA has none (RFC 7296 1.2).
    pub(crate) fn without_dh(&self) -> Self {
        Self {
            transforms: self
                .transforms
                .iter()
                .filter(|t| !t.kind.is_key_exchange())
                .copied()
                .collect(),
        }
    }

    /// Whether AES-CBC is offered.
    pub(crate) fn has_cbc(&self) -> bool {
        self.of(TransformKind::Encr).any(|t| t.id == ENCR_AES_CBC)
    }

    /// Whether a record of a Child SA with any of these ESP suites can be read by all members.
    pub(crate) fn is_known_to_members(&self, around: &dyn Surroundings) -> bool {
        let knows = |t: &Transform| match t.key_bits {
            _ if t.id != ENCR_AES_CBC => true,
            Some(128) => around.members_know(EspSuite::Aes128CbcSha256),
            _ => around.members_know(EspSuite::Aes256CbcSha256),
        };
        self.of(TransformKind::Encr).all(knows)
    }

    /// Whether key exchanges beside the first one are offered (RFC 9370).
    pub(crate) fn has_additional(&self) -> bool {
        self.transforms
            .iter()
            .any(|t| matches!(t.kind, TransformKind::AddKe(_)) && t.id != DH_NONE)
    }

    /// What is wrong with the key exchanges of a configured proposal.
    fn unusable_key_exchange(&self) -> Option<&'static str> {
        let kem = |t: &Transform| matches!(t.id, DH_MLKEM768 | DH_MLKEM1024);
        let additional = self
            .transforms
            .iter()
            .any(|t| matches!(t.kind, TransformKind::AddKe(_)));
        if self.of(TransformKind::Dh).any(kem) {
            // Alone it would stand or fall with a young algorithm, and IKE_SA_INIT cannot be fragmented.
            return Some("ML-KEM goes beside a classical group: write x25519-ke1_mlkem768");
        }
        if additional && !self.has(TransformKind::Dh) {
            return Some("an additional key exchange needs a first one: write x25519-ke1_mlkem768");
        }
        None
    }
}

fn parse_words(text: &str, example: &'static str) -> Result<Proposal, ProposalError> {
    let mut transforms = Vec::new();
    for word in text.trim().split('-') {
        if word.ends_with("iiv") {
            return Err(ProposalError::Unusable {
                proposal: text.to_owned(),
                why: "implicit-IV transforms (RFC 8750) are refused: the IV keeps members of a cluster apart",
            });
        }
        let Some(found) = keyword(word) else {
            return Err(ProposalError::UnknownKeyword {
                proposal: text.to_owned(),
                keyword: word.to_owned(),
                example,
            });
        };
        if !transforms.contains(&found) {
            transforms.push(found);
        }
    }
    Ok(Proposal { transforms })
}

/// What a keyword stands for. `ke1_` to `ke7_` make a group an additional one, as in strongSwan 6; `ke1_none` makes that optional.
fn keyword(word: &str) -> Option<Transform> {
    let plain = |word: &str| {
        let found = KEYWORDS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(word));
        found.map(|(_, transform)| *transform)
    };
    let lower = word.to_ascii_lowercase();
    let Some((number, group)) = lower.strip_prefix("ke").and_then(|rest| rest.split_once('_')) else {
        return plain(word);
    };
    let number: u8 = number.parse().ok().filter(|number| (1..=7).contains(number))?;
    let id = match group {
        "none" => DH_NONE,
        group => plain(group).filter(|t| t.kind == TransformKind::Dh)?.id,
    };
    Some(transform(TransformKind::AddKe(number), id, None))
}

/// Offers when the configuration names none: what RFC 8247 recommends, AEAD before AES-CBC for older peers. MODP groups are not
/// among them, since they would give strangers a lever: one costs as much time as twenty others.
pub fn default_ike() -> Vec<Proposal> {
    let all = [
        "aes256gcm16-aes128gcm16-chacha20poly1305-prfsha384-prfsha256-x25519-ecp256-ecp384",
        "aes256-aes128-sha384-sha256-prfsha384-prfsha256-x25519-ecp256-ecp384",
    ];
    all.iter()
        .filter_map(|text| Proposal::parse_ike(text).ok())
        .collect()
}

/// Offers when the configuration names none.
pub fn default_esp() -> Vec<Proposal> {
    let all = ["aes256gcm16-aes128gcm16-chacha20poly1305"];
    all.iter()
        .filter_map(|text| Proposal::parse_esp(text).ok())
        .collect()
}

/// Chooses one proposal: our order of proposals and of algorithms decides (RFC 7296 2.7). The result has exactly one
/// transform of each kind, and the number is the index of the peer's proposal.
///
/// A kind that only one side names fails the pair, except that a peer may offer "none" (0) for groups and
/// integrity.
pub(crate) fn choose(ours: &[Proposal], theirs: &[Proposal]) -> Option<(usize, Proposal)> {
    for our in ours {
        for (index, their) in theirs.iter().enumerate() {
            if let Some(chosen) = choose_one(our, their) {
                return Some((index, chosen));
            }
        }
    }
    None
}

fn choose_one(our: &Proposal, their: &Proposal) -> Option<Proposal> {
    let mut transforms = Vec::new();
    let kinds = [
        TransformKind::Encr,
        TransformKind::Prf,
        TransformKind::Integ,
        TransformKind::Dh,
        TransformKind::Esn,
    ];
    for kind in kinds {
        match (our.has(kind), their.has(kind)) {
            (false, false) => {}
            (true, true) => {
                let common = our.of(kind).find(|t| their.of(kind).any(|o| o == *t))?;
                transforms.push(*common);
            }
            (false, true) => {
                let none_is_offered = matches!(kind, TransformKind::Dh | TransformKind::Integ)
                    && their.of(kind).any(|t| t.id == DH_NONE);
                if !none_is_offered {
                    return None;
                }
            }
            // ESP without an ESN transform means "no ESN" for lenient peers.
            (true, false) => {
                if kind == TransformKind::Esn && our.of(kind).any(|t| t.id == ESN_NO) {
                    transforms.push(transform(TransformKind::Esn, ESN_NO, None));
                } else {
                    return None;
                }
            }
        }
    }
    let additional = choose_additional(our, their, 1, &mut Vec::new())?;
    if !additional.is_empty() && !transforms.iter().any(|t| t.kind == TransformKind::Dh) {
        return None;
    }
    transforms.extend(additional);
    Some(Proposal { transforms })
}

//= rfc9370#2.2.1
// for the ADDKE Transform Types, the responder's choice MUST NOT contain duplicated algorithms, except for the Transform ID of NONE.
/// One of each type that the peer names, from type `number` on; a type that only one side names counts as NONE for the other.
fn choose_additional(
    our: &Proposal,
    their: &Proposal,
    number: u8,
    chosen: &mut Vec<Transform>,
) -> Option<Vec<Transform>> {
    if number > 7 {
        return Some(chosen.clone());
    }
    let kind = TransformKind::AddKe(number);
    let none = transform(kind, DH_NONE, None);
    let candidates: Vec<Option<Transform>> = match (our.has(kind), their.has(kind)) {
        (false, false) => vec![None],
        (true, false) if our.of(kind).any(|t| *t == none) => vec![None],
        (false, true) if their.of(kind).any(|t| *t == none) => vec![Some(none)],
        (true, true) => our
            .of(kind)
            .filter(|t| their.of(kind).any(|o| o == *t))
            .map(|t| Some(*t))
            .collect(),
        _ => return None,
    };
    for candidate in candidates {
        let Some(candidate) = candidate else {
            return choose_additional(our, their, number + 1, chosen);
        };
        if candidate.id != DH_NONE && chosen.iter().any(|t| t.id == candidate.id) {
            continue;
        }
        chosen.push(candidate);
        if let Some(all) = choose_additional(our, their, number + 1, chosen) {
            return Some(all);
        }
        chosen.pop();
    }
    None
}

#[cfg(test)]
mod tests;
