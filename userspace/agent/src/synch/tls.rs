//! QUIC and TLS settings of the synch channel.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, ClientConfig, Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt,
};
use rustls::server::WebPkiClientVerifier;

use super::SynchConfig;
use crate::pki::Identity;

/// Version of the channel's framing.
const ALPN: &[u8] = b"espalier-synch/1";

fn transport(config: &SynchConfig) -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    // Members are neighbours: a first guess of the usual 333 ms would make the first loss cost a second.
    t.initial_rtt(Duration::from_millis(2));
    let mut ack = AckFrequencyConfig::default();
    ack.max_ack_delay(Some(Duration::from_millis(2)));
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

/// An endpoint that accepts members. `IP_FREEBIND`: the address may come later than the agent.
pub(super) fn endpoint(listen: SocketAddr, config: &SynchConfig, identity: &Identity) -> Result<Endpoint> {
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider())
        .build()
        .context("the cluster CA cannot verify members")?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .context("member certificate and key do not fit together")?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.max_early_data_size = 0;
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(transport(config));
    // Bounded work for strangers: few handshakes at a time, little buffered for each.
    server.max_incoming(64);
    server.incoming_buffer_size(64 << 10);
    server.incoming_buffer_size_total(1 << 20);

    let socket = socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::DGRAM, None)?;
    if listen.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into()).map_err(|error| {
        anyhow::anyhow!(
            "cannot bind UDP {listen}: {error}; stop the other agent that uses it (see: ss -ulpn)"
        )
    })?;
    // The reset key outlives the process: a restarted member tells its peer at once that the connection is gone.
    let key = identity.derive(&format!("quic reset {}", config.me));
    let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key);
    let endpoint = EndpointConfig::new(Arc::new(reset));
    let runtime = quinn::default_runtime().context("no async runtime")?;
    Ok(Endpoint::new(
        endpoint,
        Some(server),
        UdpSocket::from(socket),
        runtime,
    )?)
}

/// How to dial a member.
pub(super) fn client(config: &SynchConfig, identity: &Identity) -> Result<ClientConfig> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(identity.roots.clone())
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .context("member certificate and key do not fit together")?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(transport(config));
    Ok(client)
}
