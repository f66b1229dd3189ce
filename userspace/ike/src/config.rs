//! What the engine is configured with: plain data, built by the agent from its file.

use crate::auth::dn;
use crate::auth::pattern::IdPattern;
use crate::auth::{LocalAuth, RemoteAuth};
use crate::pool::Pool;
use crate::proposal::Proposal;
use ike_wire::{Notify, NotifyType};
use model::{MemberId, SaMode, SecretBytes, TrafficSelector};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Longest IP packets that IKE messages are sent in where no connection says otherwise: every IPv6 link carries them, and nearly
/// every path of IPv4.
pub const FRAGMENT_SIZE: u16 = 1280;

/// Everything the engine needs to know beforehand. No `Debug`: it holds secrets.
#[derive(Clone)]
pub struct EngineConfig {
    /// Connections, in order of precedence where several match a peer.
    pub connections: Vec<Connection>,
    /// Cookies and limits for peers that are not authenticated yet.
    pub endpoint: EndpointConfig,
}

impl EngineConfig {
    /// What a peer is told whom no connection suits. The name of another one may lead there by now: a refusal would be the last word,
    /// and without one the peer asks again.
    pub(crate) fn refusal(&self, local: IpAddr, remote: IpAddr) -> Option<Notify> {
        let may_come = |c: &Connection| c.remotes_by_name && c.takes_local(local) && !c.takes_remote(remote);
        let waits = self.connections.iter().any(may_come);
        (!waits).then_some(Notify::status(NotifyType::NO_PROPOSAL_CHOSEN))
    }
}

/// Protection against floods of first messages (RFC 7296 2.6).
#[derive(Clone)]
pub struct EndpointConfig {
    /// Secret for cookies; the same on all members. 32 octets are right.
    pub cookie_secret: SecretBytes,
    /// With this many half-open IKE SAs, first messages need a cookie. 0: always.
    pub cookie_threshold: usize,
    /// With this many half-open IKE SAs, further first messages are dropped.
    pub half_open_max: usize,
    /// A half-open IKE SA is forgotten after this time.
    pub half_open_timeout: Duration,
    /// Secret of our quick crash detection tokens (RFC 6290 5.1); the same on all members, and kept for ever: a member that
    /// has lost everything must be able to make the same tokens again. `None`: peers get no tokens (theirs are taken all
    /// the same). 32 octets are right.
    pub qcd_secret: Option<SecretBytes>,
    /// Secret that the keys of session resumption tickets are derived from (RFC 5723); the same on all members. `None`: no
    /// tickets are granted. 32 octets are right.
    pub ticket_secret: Option<SecretBytes>,
    /// Secrets that were in use before, or will be in a moment: what was made with them is honoured, nothing is made with them.
    /// Three at most, since RFC 6290 4.5 has peers try four tokens.
    pub also_honoured: Vec<OtherSecrets>,
}

/// Secrets beside those in use, while they are being replaced. No `Debug`.
#[derive(Clone)]
pub struct OtherSecrets {
    /// As [`EndpointConfig::cookie_secret`].
    pub cookie: SecretBytes,
    /// As [`EndpointConfig::qcd_secret`].
    pub qcd: SecretBytes,
    /// As [`EndpointConfig::ticket_secret`].
    pub ticket: SecretBytes,
}

impl EndpointConfig {
    /// Sane limits with this cookie secret, without the capabilities that need secrets of their own.
    pub fn new(cookie_secret: SecretBytes) -> Self {
        Self {
            cookie_secret,
            cookie_threshold: 64,
            half_open_max: 4096,
            half_open_timeout: Duration::from_secs(30),
            qcd_secret: None,
            ticket_secret: None,
            also_honoured: Vec::new(),
        }
    }

    /// Takes the secrets of another configuration, and nothing else of it.
    pub(crate) fn take_secrets(&mut self, from: Self) {
        self.cookie_secret = from.cookie_secret;
        self.qcd_secret = from.qcd_secret;
        self.ticket_secret = from.ticket_secret;
        self.also_honoured = from.also_honoured;
    }

    /// Secrets of tickets that are honoured, the one in use first.
    pub(crate) fn ticket_secrets(&self) -> impl Iterator<Item = &SecretBytes> {
        let others = self.also_honoured.iter().map(|other| &other.ticket);
        // Where no tickets are granted, none is honoured.
        let others = others.filter(|_| self.ticket_secret.is_some());
        self.ticket_secret.iter().chain(others)
    }
}

/// A peer and what to do with it. No `Debug`: it holds the pre-shared key.
#[derive(Clone)]
pub struct Connection {
    /// Name, unique among the connections.
    pub name: String,
    /// Our address.
    pub local: IpAddr,
    /// Further addresses of ours, between which an initiator may change while it is up (RFC 4555); empty: it stays with `local`.
    pub further_locals: Vec<IpAddr>,
    /// The peer's addresses; empty: any (then it cannot be initiated), or with `remotes_by_name` none yet. The first one is initiated to
    /// unless the agent names another.
    pub remotes: Vec<IpAddr>,
    /// Some of `remotes` come of names, which may lead elsewhere at any time ([`crate::Input::Remotes`]).
    pub remotes_by_name: bool,
    /// The peer's names, in lower case, with what each leads to: a gateway may send us to one of them (RFC 5685).
    pub names: Vec<(String, Vec<IpAddr>)>,
    /// Our identity.
    pub local_id: Identity,
    /// The peer's identity; `None`: see `remote_pattern`.
    pub remote_id: Option<Identity>,
    /// What the peer's identity has to look like where `remote_id` does not name one; `None`: any.
    pub remote_pattern: Option<IdPattern>,
    /// How we prove who we are.
    pub local_auth: LocalAuth,
    /// How the peer has to prove who it is.
    pub remote_auth: RemoteAuth,
    /// Pre-shared key; empty where no side uses one.
    pub psk: SecretBytes,
    /// Whether the agent is to initiate it (the engine itself never does unasked).
    pub start: bool,
    /// Proposals for the IKE SA, preferred first.
    pub ike_proposals: Vec<Proposal>,
    /// Child SAs.
    pub children: Vec<ChildConfig>,
    /// Liveness check after this time without an authentic message from the peer; `None`: never.
    pub dpd_delay: Option<Duration>,
    /// Retransmission of requests.
    pub retransmit: Retransmit,
    /// The IKE SA is rekeyed after this time; `None`: only by the peer.
    pub ike_rekey_time: Option<Duration>,
    /// A Child SA is rekeyed after this time; `None`: only by the peer or on command.
    pub child_rekey_time: Option<Duration>,
    /// The peers authenticate each other anew after this time (RFC 7296 2.8.3): as initiator we do so, as responder we say so
    /// (RFC 4478) and end the IKE SA some time later. `None`: as initiator when the peer says so, as responder never.
    pub reauth_time: Option<Duration>,
    /// Rekeys, and reauthentication, happen up to this much earlier, at random.
    pub rekey_jitter: Duration,
    /// UDP encapsulation even without a NAT.
    pub force_encap: bool,
    /// NAT keepalive interval while we are behind a NAT.
    pub keepalive: Duration,
    /// Quick crash detection (RFC 6290): the peer gets our token, and a token of its own that it shows is believed.
    pub crash_detection: bool,
    /// RFC 6311 is offered and agreed to: as a peer we follow the other side's cluster, and as a cluster we ask the peer to raise
    /// its sequence numbers.
    pub cluster_sync: bool,
    /// Whether we as a cluster ever ask the peer to synchronise Message IDs.
    pub mid_sync: MidSync,
    /// Members and their CPUs that children may have Child SAs of their own for (RFC 9611), the same on all members; empty (the
    /// default, as RFC 9611 7 wants): none. A peer may have up to twice as many of a child.
    pub resources: Vec<Resource>,
    /// Session resumption (RFC 5723): tickets are asked for, shown and (with [`EndpointConfig::ticket_secret`]) granted.
    pub resumption: bool,
    /// Whether IKE SAs are set up without a Child SA (RFC 6023).
    pub childless: Childless,
    /// Requests that may be under way at the same time, in each direction, with a peer that can do so as well.
    pub window: u32,
    /// New clients that can be redirected are sent to this gateway (RFC 5685).
    pub redirect: Option<IpAddr>,
    /// As a client we go where the gateway sends us (RFC 5685).
    pub follow_redirects: bool,
    /// IKE messages are fragmented where they are too long and the peer can do so as well (RFC 7383).
    pub fragmentation: bool,
    /// Longest IP packets of fragmented messages.
    pub fragment_size: u16,
    /// A peer that initiated may change its address (RFC 4555).
    pub mobike: bool,
    /// Post-quantum pre-shared key beside the proof of identity (RFC 8784).
    pub ppk: Option<Ppk>,
    /// Pools that the peer gets virtual addresses of; empty: it has addresses of its own. Then children's `remote_ts` are
    /// narrowed to the peer's address.
    pub pools: Vec<Pool>,
    /// Name servers for a peer with virtual addresses.
    pub dns: Vec<IpAddr>,
    /// Domains that these name servers are for (RFC 8598); empty: all.
    pub dns_domains: Vec<String>,
    /// UDP port on which the peer expects first messages; 500 unless there is a reason.
    pub remote_port: u16,
}

impl Connection {
    /// A passive connection with default algorithms and times, without children.
    pub fn new(name: &str, local: IpAddr, local_id: Identity, psk: SecretBytes) -> Self {
        Self {
            name: name.to_owned(),
            local,
            further_locals: Vec::new(),
            remotes: Vec::new(),
            remotes_by_name: false,
            names: Vec::new(),
            local_id,
            remote_id: None,
            remote_pattern: None,
            local_auth: LocalAuth::Psk,
            remote_auth: RemoteAuth::Psk,
            psk,
            start: false,
            ike_proposals: crate::proposal::default_ike(),
            children: Vec::new(),
            dpd_delay: Some(Duration::from_secs(30)),
            retransmit: Retransmit::default(),
            ike_rekey_time: Some(Duration::from_secs(4 * 3600)),
            child_rekey_time: Some(Duration::from_secs(3600)),
            reauth_time: None,
            rekey_jitter: Duration::from_secs(60),
            force_encap: false,
            keepalive: Duration::from_secs(20),
            crash_detection: true,
            cluster_sync: true,
            mid_sync: MidSync::Never,
            resources: Vec::new(),
            resumption: true,
            childless: Childless::Allow,
            window: 1,
            redirect: None,
            follow_redirects: true,
            fragmentation: true,
            fragment_size: FRAGMENT_SIZE,
            mobike: true,
            ppk: None,
            pools: Vec::new(),
            dns: Vec::new(),
            dns_domains: Vec::new(),
            remote_port: 500,
        }
    }

    /// Whether it is meant for these addresses.
    pub(crate) fn takes(&self, local: IpAddr, remote: IpAddr) -> bool {
        self.takes_local(local) && self.takes_remote(remote)
    }

    fn takes_local(&self, local: IpAddr) -> bool {
        self.local.is_unspecified() || self.local == local
    }

    fn takes_remote(&self, remote: IpAddr) -> bool {
        let any = self.remotes.is_empty() && !self.remotes_by_name;
        let is_it = |address: &IpAddr| address.is_unspecified() || *address == remote;
        any || self.remotes.iter().any(is_it)
    }

    pub(crate) fn child(&self, name: &str) -> Option<&ChildConfig> {
        self.children.iter().find(|child| child.name == name)
    }
}

/// A post-quantum pre-shared key (RFC 8784). No `Debug`: it holds the key.
#[derive(Clone)]
pub struct Ppk {
    /// Its name, which both sides know (PPK_ID_FIXED).
    pub id: String,
    /// The key; RFC 8784 6 asks for 256 bits of entropy.
    pub secret: SecretBytes,
    /// A peer that does not use it is refused.
    pub required: bool,
}

/// What a Child SA can be bound to: a member, or a CPU of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resource {
    /// The member; 0: whichever serves the IKE SA.
    pub member: MemberId,
    /// Its CPU, as the data plane counts them; [`Resource::ANY_CPU`]: the member as a whole.
    pub cpu: u16,
}

impl Resource {
    /// In [`Resource::cpu`]: whichever the member chooses.
    pub const ANY_CPU: u16 = u16::MAX;

    /// A member as a whole.
    pub const fn of_member(member: MemberId) -> Self {
        Self {
            member,
            cpu: Self::ANY_CPU,
        }
    }

    /// A CPU of whichever member serves the IKE SA.
    pub const fn of_owner(cpu: u16) -> Self {
        Self {
            member: MemberId(0),
            cpu,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.member == MemberId(0) {
            return write!(f, "CPU {}", self.cpu);
        }
        if self.cpu == Self::ANY_CPU {
            return write!(f, "member {}", self.member);
        }
        write!(f, "member {} CPU {}", self.member, self.cpu)
    }
}

/// Use of Message ID synchronisation (RFC 6311) by a cluster. A taker has the exact Message IDs by output commit, and
/// strongSwan (seen with 5.9.8 and AES-GCM) drops its IKE SA when it is asked, so the default is never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MidSync {
    /// Not even on command.
    #[default]
    Never,
    /// On [`crate::Command::SyncMessageIds`], which is for forks of a split pair that were discarded.
    OnFork,
}

/// IKE SAs whose IKE_AUTH brings up no Child SA (RFC 6023).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Childless {
    /// Taken from a peer; ours where there is no child to bring up.
    #[default]
    Allow,
    /// The only kind: every Child SA comes of an exchange of its own, with keys of its own where its proposals have a group.
    Force,
    /// Not announced, and refused.
    Never,
}

/// A Child SA of a connection.
#[derive(Clone, Debug)]
pub struct ChildConfig {
    /// Name, unique within the connection.
    pub name: String,
    /// Our side's selectors.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's side's selectors.
    pub remote_ts: Vec<TrafficSelector>,
    /// Proposals, preferred first. ESN and perfect forward secrecy are part of them (`-esn`, `-x25519`).
    pub esp_proposals: Vec<Proposal>,
    /// Whether it is brought up together with the connection when we initiate.
    pub start: bool,
    /// In transport mode the selectors are of our address and the peer's alone.
    pub mode: SaMode,
    /// Whether the peer may add octets behind the inner packet (RFC 4303 2.7). In transport mode it is told not to in any case.
    pub tfc_padding: bool,
}

impl ChildConfig {
    /// A child with default algorithms that is brought up with its connection.
    pub fn new(name: &str, local_ts: Vec<TrafficSelector>, remote_ts: Vec<TrafficSelector>) -> Self {
        Self {
            name: name.to_owned(),
            local_ts,
            remote_ts,
            esp_proposals: crate::proposal::default_esp(),
            start: true,
            mode: SaMode::Tunnel,
            tfc_padding: true,
        }
    }
}

/// Retransmission of a request: after `initial`, then after `factor_percent` % of the time before, `tries` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retransmit {
    /// Time until the first retransmission.
    pub initial: Duration,
    /// Growth per retransmission, per cent.
    pub factor_percent: u32,
    /// Retransmissions before the peer is given up.
    pub tries: u32,
}

impl Default for Retransmit {
    /// 1 s, 1.8 s, 3.2 s ... given up after about 41 s.
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            factor_percent: 180,
            tries: 5,
        }
    }
}

impl Retransmit {
    /// Time to wait after transmission number `sent` (0 is the first).
    pub fn wait(&self, sent: u32) -> Duration {
        let mut wait = self.initial;
        for _ in 0..sent.min(16) {
            wait = wait.saturating_mul(self.factor_percent.max(100)) / 100;
        }
        wait.min(Duration::from_secs(300))
    }
}

/// An identity (RFC 7296 3.5).
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Identity {
    /// ID_IPV4_ADDR or ID_IPV6_ADDR.
    Address(IpAddr),
    /// ID_FQDN.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Email(String),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
    /// Any other kind, as it came: type and octets. A distinguished name is one of them (type 9, DER).
    Other(u8, Vec<u8>),
}

impl Identity {
    /// As written in configurations: an address, `user@domain`, `keyid:text`, `@name` or `name`.
    pub fn parse(text: &str) -> Self {
        if let Ok(address) = text.parse() {
            return Self::Address(address);
        }
        if let Some(key_id) = text.strip_prefix("keyid:") {
            return Self::KeyId(key_id.as_bytes().to_vec());
        }
        if let Some(name) = text.strip_prefix('@') {
            return Self::Fqdn(name.to_owned());
        }
        if text.contains('@') {
            Self::Email(text.to_owned())
        } else {
            Self::Fqdn(text.to_owned())
        }
    }

    /// ID type and identification data as on the wire.
    pub fn to_wire(&self) -> (u8, Vec<u8>) {
        match self {
            Self::Address(IpAddr::V4(address)) => (1, address.octets().to_vec()),
            Self::Address(IpAddr::V6(address)) => (5, address.octets().to_vec()),
            Self::Fqdn(name) => (2, name.as_bytes().to_vec()),
            Self::Email(name) => (3, name.as_bytes().to_vec()),
            Self::KeyId(octets) => (11, octets.clone()),
            Self::Other(kind, octets) => (*kind, octets.clone()),
        }
    }

    /// From ID type and identification data; what cannot be read stays as it is.
    pub fn from_wire(kind: u8, data: &[u8]) -> Self {
        let text = || std::str::from_utf8(data).ok().map(str::to_owned);
        let parsed = match kind {
            1 => <[u8; 4]>::try_from(data)
                .ok()
                .map(|octets| Self::Address(IpAddr::from(octets))),
            5 => <[u8; 16]>::try_from(data)
                .ok()
                .map(|octets| Self::Address(IpAddr::from(octets))),
            2 => text().map(Self::Fqdn),
            3 => text().map(Self::Email),
            11 => Some(Self::KeyId(data.to_vec())),
            _ => None,
        };
        parsed.unwrap_or_else(|| Self::Other(kind, data.to_vec()))
    }
}

impl fmt::Display for Identity {
    /// Control characters of a peer's identity are escaped: it ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Fqdn(name) | Self::Email(name) => write!(f, "{}", name.escape_debug()),
            Self::KeyId(octets) => write!(f, "keyid:{}", octets.escape_ascii()),
            Self::Other(dn::ID_DER_ASN1_DN, der) if dn::show(der).is_some() => {
                f.write_str(&dn::show(der).unwrap_or_default())
            }
            Self::Other(kind, octets) => write!(f, "id#{kind}:{}", octets.escape_ascii()),
        }
    }
}
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_the_wire() {
        for text in [
            "192.0.2.1",
            "2001:db8::1",
            "gw.example",
            "@gw",
            "a@b.example",
            "keyid:x1",
        ] {
            let id = Identity::parse(text);
            let (kind, data) = id.to_wire();
            assert_eq!(Identity::from_wire(kind, &data), id);
        }
        assert_eq!(Identity::from_wire(1, &[1, 2]), Identity::Other(1, vec![1, 2]));
    }

    #[test]
    fn retransmissions_back_off() {
        let timing = Retransmit::default();
        assert_eq!(timing.wait(0), Duration::from_secs(1));
        assert_eq!(timing.wait(1), Duration::from_millis(1800));
        assert_eq!(timing.wait(2), Duration::from_millis(3240));
        assert_eq!(timing.wait(u32::MAX), Duration::from_secs(300));
    }
}
