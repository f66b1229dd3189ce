//! QUIC and TLS settings of the synch channel.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt,
};
use rustls::client::WebPkiServerVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::gate::{self, Gate, Shutter};
use super::refusal::Refusals;
use super::{LinkId, SynchConfig};
use crate::pki::{self, CertificateFacts, Identity};

/// Version of the channel's framing. Versions of records are not part of it: members tell each other in their greeting.
const ALPN: &[u8] = b"espalier-synch/1";
/// Octets that may wait in the socket: bursts of a snapshot, and whoever forges a member's address.
const RECEIVE_BUFFER: usize = 4 << 20;

fn transport(config: &SynchConfig) -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    // Members are neighbours: a first guess of the usual 333 ms would make the first loss cost a second.
    t.initial_rtt(Duration::from_millis(2));
    let mut ack = AckFrequencyConfig::default();
    ack.max_ack_delay(Some(Duration::from_millis(2)));
    // An entry of the journal under load is several packets, and its receiver answers with a record that carries the acknowledgement
    // of them along: packets with nothing else are work for both.
    ack.ack_eliciting_threshold(VarInt::from_u32(9));
    t.ack_frequency_config(Some(ack));
    t.max_idle_timeout(Some(
        config.idle.try_into().unwrap_or(VarInt::from_u32(1000).into()),
    ));
    t.keep_alive_interval(Some(config.idle / 4));
    t.max_concurrent_bidi_streams(VarInt::from_u32(0));
    t.max_concurrent_uni_streams(VarInt::from_u32(1));
    // Old heartbeats are worth nothing: the queue drops them.
    t.datagram_send_buffer_size(64 << 10);
    t.datagram_receive_buffer_size(Some(256 << 10));
    // Segmentation offload meets virtual interfaces that do not do it.
    t.enable_segmentation_offload(false);
    Arc::new(t)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What a reading of the files comes to: who this member is, and whom it believes.
pub(super) struct Credentials {
    /// Rises with every certificate of this member's own; links under an older one are renewed.
    pub version: u64,
    pub certificate: CertificateDer<'static>,
    pub facts: CertificateFacts,
    pub server: Arc<ServerConfig>,
    pub client: ClientConfig,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Whether there are revocation lists.
    pub revocation: bool,
}

impl Credentials {
    /// # Errors
    /// Certificate, key, authorities and revocation lists do not fit together.
    pub fn new(config: &SynchConfig, identity: &Identity, version: u64) -> Result<Self> {
        let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider())
            .with_crls(identity.revoked.iter().cloned())
            .only_check_end_entity_revocation()
            .build()
            .context("the cluster CA cannot verify members")?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .context("member certificate and key do not fit together")?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.max_early_data_size = 0;
        // A resumed session would not look at the revocation list again.
        tls.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
        server.transport_config(transport(config));
        // Members do not move.
        server.migration(false);
        // Bounded work for strangers: few handshakes at a time, little buffered for each.
        server.max_incoming(64);
        server.incoming_buffer_size(64 << 10);
        server.incoming_buffer_size_total(1 << 20);

        let trusted = WebPkiServerVerifier::builder_with_provider(identity.roots.clone(), provider())
            .with_crls(identity.revoked.iter().cloned())
            .only_check_end_entity_revocation()
            .build()
            .context("the cluster CA cannot verify members")?;
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(trusted)
            .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
            .context("member certificate and key do not fit together")?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        client.transport_config(transport(config));
        Ok(Self {
            version,
            certificate: identity.certificate.clone(),
            facts: identity.facts.clone(),
            server: Arc::new(server),
            client,
            verifier,
            revocation: !identity.revoked.is_empty(),
        })
    }

    /// Whether a certificate is (still) accepted.
    pub fn accepts(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        self.verifier
            .verify_client_cert(certificate, &[], UnixTime::now())
            .map(drop)
    }

    /// Whether other members that have the same files would accept this member.
    ///
    /// # Errors
    /// They would not: cause and remedy.
    pub fn check_own(&self, config: &SynchConfig) -> Result<()> {
        let name = pki::member_name(&config.cluster, config.me);
        if pki::member_of(&self.certificate, &config.cluster, &[config.me]).is_none() {
            bail!(
                "the certificate is {}'s, not {name}'s; copy member-{}.crt of this cluster",
                self.facts.subject,
                config.me
            );
        }
        self.accepts(&self.certificate).with_context(|| {
            format!(
                "the other members would refuse the certificate {} of {}; issue another one: espalier cluster rotate members --member {}",
                self.facts.serial, self.facts.subject, config.me
            )
        })
    }
}

/// An endpoint that accepts members. `IP_FREEBIND`: the address may come later than the agent.
pub(super) fn endpoint(
    (link, listen): (LinkId, SocketAddr),
    peers: &[SocketAddr],
    identity: &Identity,
    credentials: &Credentials,
    refusals: Arc<Refusals>,
) -> Result<Endpoint> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::DGRAM, None)?;
    if listen.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // Before it is bound: there is no moment without the filter.
    let secret = identity.own_key("connection ids");
    let mut token = [0; gate::TOKEN];
    token.copy_from_slice(&secret[..gate::TOKEN]);
    let shutter =
        Shutter::attach(&socket, peers, token).context("cannot attach the filter for members' addresses")?;
    // Above the system's limit where this process may (CAP_NET_ADMIN), else up to it.
    let force = nix::sys::socket::sockopt::RcvBufForce;
    if nix::sys::socket::setsockopt(&socket, force, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&listen.into()).map_err(|error| {
        anyhow::anyhow!(
            "cannot bind UDP {listen}: {error}; stop the other agent that uses it (see: ss -ulpn)"
        )
    })?;
    // The reset key outlives the process: a restarted member tells its peer at once that the connection is gone. It is
    // this member's alone, so that no other member, present or past, can forge its resets.
    let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &identity.own_key("quic reset"));
    let mut endpoint = EndpointConfig::new(Arc::new(reset));
    endpoint.cid_generator(move || Box::new(gate::Ids { token }));
    let runtime = quinn::default_runtime().context("no async runtime")?;
    let socket = runtime.wrap_udp_socket(UdpSocket::from(socket))?;
    let gate = Gate::new(socket, shutter, refusals, link.name());
    Ok(Endpoint::new_with_abstract_socket(
        endpoint,
        Some((*credentials.server).clone()),
        Arc::new(gate),
        runtime,
    )?)
}
