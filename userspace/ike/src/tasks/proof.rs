//! Proofs in IKE_AUTH: ours, by a key or a signature, and the peer's (RFC 7296 2.15, RFC 7427).

use super::ike_auth::{identity_of, wire_identity};
use super::intermediate::int_auth;
use crate::auth::signing::{self, Choice};
use crate::auth::{LocalAuth, LocalCertificate, RemoteAuth};
use crate::config::{Connection, Identity};
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::{InitTranscript, Phase, Protected};
use crate::io::SignRequest;
use crate::outbox::Context;
use crate::proposal;
use crypto::{AuthInput, Prf, psk_auth, resumption_auth, signed_octets, verify_psk_auth};
use ike_wire::{AuthMethod, Authentication, CertEncoding, Message, Notify, PayloadList};

/// A proof that needs no signature.
pub(crate) fn prove(sa: &IkeSa, connection: &Connection, prf: Prf, input: AuthInput<'_>) -> Authentication {
    Authentication {
        method: AuthMethod::SHARED_KEY_MIC,
        data: match sa.extras.resumed {
            Some(_) => resumption_auth(prf, input),
            None => psk_auth(prf, &connection.psk, input),
        },
    }
}

/// A signature that was asked for, and what is to be done with it.
pub(crate) struct Signing {
    pub token: u64,
    pub choice: Choice,
    pub then: Then,
}

pub(crate) enum Then {
    /// Initiator: the phase holds the rest.
    Send,
    /// Responder: the initiator has proved who it is, or wants to after us.
    Answer {
        message_id: u32,
        payloads: PayloadList,
        connection: String,
        /// `None`: it wants to do so by EAP.
        remote_id: Option<Identity>,
    },
}

/// The certificate that we prove ourselves by; `None`: something else.
pub(crate) fn own_certificate<'c>(sa: &IkeSa, connection: &'c Connection) -> Option<&'c LocalCertificate> {
    match &connection.local_auth {
        LocalAuth::Certificate(own) if sa.extras.resumed.is_none() => Some(own),
        _ => None,
    }
}

/// What one side signs; `initiator`: the original initiator's.
pub(crate) fn auth_input<'a>(
    protected: &'a Protected,
    transcript: &'a InitTranscript,
    initiator: bool,
    id_body: &'a [u8],
    intermediate: &'a [u8],
) -> AuthInput<'a> {
    let (message, nonce, sk_p) = match initiator {
        true => (&transcript.request, &transcript.nonce_r, &protected.keys.sk_pi),
        false => (&transcript.response, &transcript.nonce_i, &protected.keys.sk_pr),
    };
    AuthInput {
        message,
        nonce,
        sk_p,
        id_body,
        intermediate,
    }
}

/// The hash algorithms that the peer named in its IKE_SA_INIT message.
fn peer_hashes(transcript: &InitTranscript, initiator: bool) -> Option<Vec<u16>> {
    let theirs = match initiator {
        true => &transcript.response,
        false => &transcript.request,
    };
    let message = Message::parse(theirs).ok()?;
    message.payloads.notifies().find_map(Notify::as_signature_hashes)
}

/// Asks for our signature. `Err`: why it cannot be made.
pub(crate) fn ask_signature(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    connection: &Connection,
    own: &LocalCertificate,
    (protected, transcript): (&Protected, &InitTranscript),
    then: Then,
) -> Result<(), String> {
    let hashes = peer_hashes(transcript, sa.initiator);
    let choice = signing::choose(own, hashes.as_deref())?;
    let id_body = wire_identity(&connection.local_id).body();
    let intermediate = int_auth(sa);
    let input = auth_input(protected, transcript, sa.initiator, &id_body, &intermediate);
    let token = ctx.random_u64();
    ctx.out.signs.push(SignRequest {
        ike_spi: sa.spi,
        token,
        key: own.key.clone(),
        scheme: choice.scheme,
        octets: signed_octets(protected.keys.prf, input),
    });
    sa.signing = Some(Box::new(Signing { token, choice, then }));
    Ok(())
}

/// Whether the peer proves, in the way that the connection wants, that it is this one.
pub(crate) fn check_proof(
    ctx: &Context<'_>,
    connection: &Connection,
    remote_id: &Identity,
    payloads: &PayloadList,
    auth: &Authentication,
    prf: Prf,
    input: AuthInput<'_>,
) -> Result<(), String> {
    if !connection.remote_auth.takes(auth.method) {
        return Err(wrong_method(connection, remote_id, auth.method));
    }
    match &connection.remote_auth {
        RemoteAuth::Psk => match verify_psk_auth(prf, &connection.psk, input, &auth.data) {
            true => Ok(()),
            false => Err(format!(
                "{remote_id} has another pre-shared key than connection {}: compare the keys of both sides",
                connection.name
            )),
        },
        RemoteAuth::EapMsChapV2(_) | RemoteAuth::EapTls(_) => {
            Err(wrong_method(connection, remote_id, auth.method))
        }
        RemoteAuth::Certificate(trust) => {
            let refused = |why: String| {
                format!(
                    "{remote_id} is not believed (connection {}): {why}",
                    connection.name
                )
            };
            let of = |encoding: CertEncoding| {
                let found = payloads.certificates().filter(move |c| c.encoding == encoding);
                found.map(|c| c.data.as_slice()).collect::<Vec<_>>()
            };
            let certificates = of(CertEncoding::X509_SIGNATURE);
            let responses = of(CertEncoding::OCSP_CONTENT);
            let now = ctx
                .around
                .unix_time()
                .ok_or_else(|| refused("this member does not know what day it is".to_owned()))?;
            let facts = trust.verify(&certificates, &responses, now).map_err(refused)?;
            if !facts.is_of(remote_id) {
                let own: Vec<_> = facts.identities().iter().map(ToString::to_string).collect();
                return Err(refused(format!(
                    "its certificate is of {}: set one of these as its identity and as remote_id, or issue a certificate \
                     with {remote_id} in subjectAltName",
                    own.join(" or ")
                )));
            }
            let leaf = certificates.first().copied().unwrap_or_default();
            signing::verify(leaf, &facts, auth, &signed_octets(prf, input)).map_err(refused)?;
            Ok(())
        }
    }
}

fn wrong_method(connection: &Connection, remote_id: &Identity, method: AuthMethod) -> String {
    let wanted = match connection.remote_auth {
        RemoteAuth::Psk => "a pre-shared key",
        RemoteAuth::Certificate(_) => "a certificate",
        RemoteAuth::EapMsChapV2(_) => "EAP-MSCHAPv2",
        RemoteAuth::EapTls(_) => "EAP-TLS",
    };
    format!(
        "{remote_id} authenticates by {method}, but connection {} wants {wanted}: align auth of both sides",
        connection.name
    )
}

/// What an operator should look at where the peer does not say why it refuses us.
pub(crate) fn what_to_compare(connection: &Connection) -> String {
    let proof = match connection.local_auth {
        LocalAuth::Psk => "that both sides have the same pre-shared key",
        LocalAuth::Certificate(_) => {
            "that the peer believes the authority of our certificate, that it is neither expired nor revoked"
        }
    };
    format!(
        "check {proof}, and that it knows us as {} (we expect it as {})",
        connection.local_id,
        connection.expected_id()
    )
}

/// Finds the connection and checks the proof.
pub(crate) fn authenticate<'c>(
    sa: &IkeSa,
    ctx: &Context<'c>,
    payloads: &PayloadList,
) -> Result<(&'c Connection, Option<Identity>), String> {
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Err("not expected".to_owned());
    };
    let id = payloads.id_i().ok_or("IKE_AUTH request without IDi")?;
    let remote_id = identity_of(id);
    let auth = payloads.auth();
    let asked = payloads.id_r().map(identity_of);
    let suite = std::slice::from_ref(&phase.protected.suite);
    let config = ctx.config;
    let mut by_address = config
        .connections
        .iter()
        .filter(|connection| connection.takes(sa.path.local.ip(), sa.path.remote.ip()))
        .filter(|connection| proposal::choose(&connection.ike_proposals, suite).is_some())
        .peekable();
    if by_address.peek().is_none() {
        return Err(format!(
            "{remote_id}: no connection has these addresses and {}",
            phase.protected.suite
        ));
    }
    // RFC 7296 2.16: who wants EAP leaves AUTH out. Its name comes by EAP, so IDi says nothing yet.
    let takes = |connection: &Connection| match (auth, &connection.remote_auth) {
        (None, RemoteAuth::EapMsChapV2(_) | RemoteAuth::EapTls(_)) => true,
        (None, _) => false,
        (Some(auth), remote_auth) => remote_auth.takes(auth.method),
    };
    let by_ids: Vec<&Connection> = by_address
        .filter(|connection| match auth {
            None => takes(connection) || connection.expects(&remote_id),
            Some(_) => connection.expects(&remote_id),
        })
        .filter(|connection| asked.as_ref().is_none_or(|asked| *asked == connection.local_id))
        .collect();
    // A connection for this very identity goes before one for many, that before one for anyone; of these, one that takes the
    // proof that is offered goes first.
    let rank = |connection: &&&Connection| {
        let particular = match (&connection.remote_id, &connection.remote_pattern) {
            (Some(_), _) => 0,
            (None, Some(_)) => 1,
            (None, None) => 2,
        };
        (!takes(connection), particular)
    };
    let connection = by_ids.iter().min_by_key(rank).copied().ok_or_else(|| {
        format!(
            "the peer says it is {remote_id} and asks for {}, but no connection at these addresses has these identities: \
             compare local_id and remote_id of both sides",
            asked.map_or("anyone".to_owned(), |asked| asked.to_string())
        )
    })?;
    let Some(auth) = auth else {
        return match takes(connection) {
            true => Ok((connection, None)),
            false => Err(format!(
                "{remote_id} wants to authenticate by EAP, but connection {} wants {}: align auth of both sides",
                connection.name,
                connection.remote_auth.name()
            )),
        };
    };
    let id_body = id.body();
    let intermediate = int_auth(sa);
    let input = auth_input(&phase.protected, &phase.transcript, true, &id_body, &intermediate);
    let prf = phase.protected.keys.prf;
    check_proof(ctx, connection, &remote_id, payloads, auth, prf, input)?;
    Ok((connection, Some(remote_id)))
}
