//! A datagram on its way: whose it is, whether it is in order, which task takes it.

use super::*;
use std::time::Duration;

/// When nobody has the time for a task's private key, it is tried again after this time.
const PAUSE: Duration = Duration::from_secs(1);

/// Finds out what a datagram is and whose.
pub(super) fn datagram(
    ctx: &mut Context<'_>,
    endpoint: &mut Endpoint,
    local: SocketAddr,
    remote: SocketAddr,
    bytes: &[u8],
) {
    let message = match Message::parse(bytes) {
        Ok(message) => message,
        Err(error) => return unreadable(ctx, endpoint, local, remote, bytes, &error),
    };
    let header = message.header;
    let begins = matches!(
        header.exchange,
        ExchangeType::IKE_SA_INIT | ExchangeType::IKE_SESSION_RESUME
    );
    if begins && !header.flags.response {
        return first_message(ctx, endpoint, local, remote, bytes, &message);
    }
    // The I flag says whose SPI stands where: the original initiator sets it in all its messages.
    let ours = if header.flags.initiator {
        header.spi_r
    } else {
        header.spi_i
    };
    if !ctx.table.contains(ours) {
        if let Some(answer) = unknown_spi(ctx, endpoint, ours, bytes.len(), &message) {
            ctx.out.plain.push(Transmit {
                local,
                remote,
                ike_spi: None,
                bytes: answer,
            });
        }
        return;
    }
    with_sa(ctx, ours, |sa, ctx| {
        if begins {
            init_response(sa, ctx, remote, bytes, &message);
        } else {
            protected(sa, ctx, local, remote, bytes, &message);
        }
    });
}

/// The answer to a message for an IKE SA that is not here, if it gets one: with the proof that it is nowhere, where that
/// is certain (RFC 6290 4.5).
fn unknown_spi(
    ctx: &Context<'_>,
    endpoint: &mut Endpoint,
    ours: IkeSpi,
    len: usize,
    message: &Message,
) -> Option<Vec<u8>> {
    let header = &message.header;
    if header.flags.response {
        return None;
    }
    if message.protected.is_some()
        && ctx.around.may_show_qcd(ours)
        && ctx.config.endpoint.qcd_secret.is_some()
    {
        let tokens = qcd::tokens(&ctx.config.endpoint, header.spi_i, header.spi_r);
        return endpoint
            .may_show_token(ctx.now)
            .then(|| endpoint::crashed(header, len, &tokens))
            .flatten();
    }
    endpoint
        .may_answer(ctx.now)
        .then(|| endpoint::unknown_spi(header, len))
        .flatten()
}

fn unreadable(
    ctx: &mut Context<'_>,
    endpoint: &mut Endpoint,
    local: SocketAddr,
    remote: SocketAddr,
    bytes: &[u8],
    error: &WireError,
) {
    // Only what a well-meaning peer could learn from is answered, and only its requests.
    if !matches!(
        error,
        WireError::MajorVersion(_) | WireError::UnsupportedCritical(_)
    ) {
        return;
    }
    let Ok(header) = Header::parse_lenient(bytes) else {
        return;
    };
    let known = ctx.table.contains(header.spi_i) || ctx.table.contains(header.spi_r);
    if header.flags.response || known || !endpoint.may_answer(ctx.now) {
        return;
    }
    if let Some(answer) = endpoint::stateless(&header, bytes.len(), error.notify()) {
        ctx.out.plain.push(Transmit {
            local,
            remote,
            ike_spi: None,
            bytes: answer,
        });
    }
}

fn first_message(
    ctx: &mut Context<'_>,
    endpoint: &mut Endpoint,
    local: SocketAddr,
    remote: SocketAddr,
    bytes: &[u8],
    message: &Message,
) {
    let header = message.header;
    let flags = Flags {
        initiator: true,
        version: header.flags.version,
        response: false,
    };
    if header.spi_i.0 == 0 || header.spi_r.0 != 0 || header.message_id != 0 || header.flags != flags {
        return;
    }
    if ctx.exchanges.is_waiting(header.spi_i, remote) {
        return;
    }
    if let Some(spi) = ctx.table.by_first(header.spi_i, remote) {
        return with_sa(ctx, spi, |sa, ctx| {
            // A repetition is the same octet for octet (RFC 7296 2.1); anything else from there is none of ours.
            let same =
                matches!(&sa.phase, Phase::AwaitAuthRequest(phase) if phase.transcript.request == bytes);
            // After IKE_INTERMEDIATE another response is the last one.
            if same && sa.their.next == 1 {
                repeat_response(sa, ctx, 0);
            }
        });
    }
    // RFC 7296 2.1: it belongs to an existing IKE SA where the IKE_AUTH request has been already received (in which case the responder
    // ignores it).
    if ctx.table.has_begun(header.spi_i, remote.ip()) {
        return;
    }
    let Some(nonce) = message.payloads.nonce() else {
        return;
    };
    let shown = message.payloads.notifies().find_map(Notify::as_cookie);
    let (was_cookie, was_flooded) = (endpoint.cookie_mode, endpoint.flooded);
    let config = ctx.config;
    let half_open = ctx.table.half_open() + ctx.exchanges.firsts();
    let load = (half_open, ctx.exchanges.is_busy());
    let admission = endpoint.admit(&config.endpoint, load, remote, header.spi_i, nonce, shown);
    report_load(ctx, endpoint, half_open, was_cookie, was_flooded);
    match admission {
        Admission::Drop => {}
        Admission::Cookie(cookie) => {
            let cookie = Notify::new(NotifyType::COOKIE, cookie);
            refuse_first(ctx, local, remote, bytes, &header, cookie);
        }
        Admission::Admit if ctx.exchanges.is_full() => {}
        Admission::Admit => admitted(ctx, endpoint, local, remote, bytes, message),
    }
}

/// The stateless answer to a first message.
fn refuse_first(
    ctx: &mut Context<'_>,
    local: SocketAddr,
    remote: SocketAddr,
    bytes: &[u8],
    header: &Header,
    refusal: Notify,
) {
    if let Some(answer) = endpoint::stateless(header, bytes.len(), refusal) {
        ctx.out.plain.push(Transmit {
            local,
            remote,
            ike_spi: None,
            bytes: answer,
        });
    }
}

/// A first message that has passed the endpoint: an IKE SA begins, or its key exchange.
fn admitted(
    ctx: &mut Context<'_>,
    endpoint: &mut Endpoint,
    local: SocketAddr,
    remote: SocketAddr,
    bytes: &[u8],
    message: &Message,
) {
    let header = message.header;
    let mut refused = None;
    let told = ctx.out.events.len();
    let refusal = match header.exchange {
        ExchangeType::IKE_SESSION_RESUME => match resume::respond(ctx, message, bytes, local, remote) {
            Ok(sa) => return ctx.put_back(sa),
            Err(why) => {
                refused = Some(why);
                Notify::status(NotifyType::TICKET_NACK)
            }
        },
        _ => match ike_init_answer::respond(ctx, message, bytes, local, remote) {
            Ok(sa) => return ctx.put_back(sa),
            Err(_) if ctx.exchanges.is_wanting() => {
                let work = ctx.take_wanted();
                return exchange::wait_first(ctx, work, header.spi_i, bytes, local, remote);
            }
            Err(None) => {
                if !endpoint.may_answer(ctx.now) {
                    ctx.out.events.truncate(told);
                }
                return;
            }
            Err(Some(notify)) => notify,
        },
    };
    if !endpoint.may_answer(ctx.now) {
        // A flood of strangers is not told of one by one either: the events would cost more than what they are about.
        ctx.out.events.truncate(told);
        return;
    }
    if let Some(why) = refused {
        ticket::refused(ctx, remote, &why);
    }
    refuse_first(ctx, local, remote, bytes, &header, refusal);
}

/// A key exchange was computed: what waits for it goes on.
pub(super) fn computed(ctx: &mut Context<'_>, endpoint: &mut Endpoint, computed: Computed) {
    match exchange::take(ctx, computed) {
        GoesOn::First(first) => {
            if let Ok(message) = Message::parse(&first.bytes) {
                admitted(ctx, endpoint, first.local, first.remote, &first.bytes, &message);
            }
        }
        GoesOn::Sa(spi, token) => with_sa(ctx, spi, |sa, ctx| go_on(sa, ctx, token)),
        GoesOn::Nobody => {}
    }
}

fn go_on(sa: &mut IkeSa, ctx: &mut Context<'_>, token: u64) {
    let Some(then) = sa.take_computing(token) else {
        return;
    };
    let refused = !ctx.exchanges.has_any();
    match then {
        Then::Begin if matches!(sa.phase, Phase::AwaitKey) => {
            if refused {
                let text = "there is no time to make a private key";
                ctx.event(sa, EventKind::Trouble, text);
                return tasks::delete::vanish(sa, ctx, text);
            }
            ike_init::begin_or_vanish(sa, ctx);
        }
        Then::Start => {
            if refused {
                sa.our.pause(ctx.now, ctx.now + PAUSE);
            }
            tasks::start_next(sa, ctx);
        }
        // What is dropped comes again.
        _ if refused => {}
        Then::Init(bytes) => {
            if let Ok(message) = Message::parse(&bytes)
                && matches!(sa.phase, Phase::AwaitInitResponse(_))
            {
                ike_init::on_response(sa, ctx, &message, &bytes);
            }
        }
        // Meanwhile the window may have moved on, or the IKE SA have ended.
        Then::Inner(inner) => {
            let expected = order(sa, &inner.header) == Order::New;
            if expected && !matches!(sa.phase, Phase::Closed(_)) {
                ctx.from = inner.from;
                ctx.path_before = inner.path_before;
                inside(sa, ctx, *inner, false);
            }
        }
        Then::Begin => {}
    }
}

fn report_load(
    ctx: &mut Context<'_>,
    endpoint: &Endpoint,
    half_open: usize,
    was_cookie: bool,
    was_flooded: bool,
) {
    if endpoint.cookie_mode != was_cookie {
        let text = match endpoint.cookie_mode {
            true => format!("{half_open} half-open IKE SAs: first messages need a cookie now"),
            false => format!("{half_open} half-open IKE SAs: cookies are not needed any more"),
        };
        ctx.event_without_sa(EventKind::CookieMode, None, None, text);
    }
    if endpoint.flooded && !was_flooded {
        let text = format!("{half_open} half-open IKE SAs: further first messages are dropped");
        ctx.event_without_sa(EventKind::Flooded, None, None, text);
    }
}

fn init_response(sa: &mut IkeSa, ctx: &mut Context<'_>, remote: SocketAddr, bytes: &[u8], message: &Message) {
    let expected =
        message.header.message_id == 0 && message.protected.is_none() && remote.ip() == sa.path.remote.ip();
    match (&sa.phase, message.header.exchange) {
        (Phase::AwaitInitResponse(_), ExchangeType::IKE_SA_INIT) if expected => {
            if sa.awaits_init() {
                return;
            }
            let work = ike_init::wanted(sa, ctx, message);
            if !work.is_empty() {
                return exchange::wait(sa, ctx, work, Then::Init(bytes.to_vec()));
            }
            ike_init::on_response(sa, ctx, message, bytes);
        }
        (Phase::AwaitResumeResponse(_), ExchangeType::IKE_SESSION_RESUME) if expected => {
            resume::on_response(sa, ctx, message, bytes);
        }
        _ => {}
    }
}

/// A message under the protection of an IKE SA.
fn protected(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    local: SocketAddr,
    remote: SocketAddr,
    bytes: &[u8],
    message: &Message,
) {
    let header = message.header;
    let Some(sealed) = &message.protected else {
        return unprotected_hint(sa, ctx, message);
    };
    if sealed.fragment.is_some() && sa.more.fragment_size.is_none() {
        return;
    }
    if header.flags.initiator == sa.initiator || sa.header_spis() != (header.spi_i, header.spi_r) {
        return;
    }
    if message_id_sync::may_be_request(sa, &header) && synchronisation(sa, ctx, bytes, sealed) {
        return;
    }
    let order = order(sa, &header);
    if order == Order::OutOfWindow || sa.awaits_message(&header) {
        return;
    }
    if order == Order::Repeated && sa.is_half_open() && intermediate::is_answered(sa, bytes) {
        return repeat_response(sa, ctx, header.message_id);
    }
    let Ok(inner) = message::open(sa, bytes, sealed) else {
        return;
    };
    if order == Order::Repeated {
        // RFC 7383 2.6.1: of a fragmented request the first fragment alone is answered again.
        if sealed.fragment.is_none_or(|fragment| fragment.number == 1) {
            ctx.from = Some((local, remote));
            repeat_response(sa, ctx, header.message_id);
        }
        return;
    }
    if matches!(sa.phase, Phase::Closed(_)) {
        return;
    }
    let (first, inner, digest) = match sealed.fragment {
        None => (sealed.first, inner, None),
        Some(fragment) => {
            let limit = if sa.is_half_open() {
                fragments::HALF_OPEN_MAX
            } else {
                fragments::AUTHENTIC_MAX
            };
            let kept = &mut sa.fragments;
            match fragments::add(kept, &header, fragment, sealed.first, inner, bytes, limit) {
                Some(whole) => (whole.first, whole.inner, Some(whole.digest)),
                None => return,
            }
        }
    };
    sa.fragments = None;
    ctx.from = Some((local, remote));
    ctx.path_before = Some(sa.path);
    heard(sa, ctx, local, remote);
    let digest = (header.exchange == ExchangeType::IKE_INTERMEDIATE)
        .then(|| digest.unwrap_or_else(|| crypto::sha256(&[bytes])));
    let inner = Inner {
        header,
        first,
        octets: inner,
        digest,
        from: ctx.from,
        path_before: ctx.path_before,
    };
    inside(sa, ctx, inner, true);
}

/// An authentic message in its order. `ask`: key exchanges that its use needs are to be asked for; else they have come.
fn inside(sa: &mut IkeSa, ctx: &mut Context<'_>, inner: Inner, ask: bool) {
    let parsed = parse_chain(inner.first, &inner.octets);
    if inner.header.flags.response {
        if let Ok(payloads) = &parsed
            && ask
        {
            let work = tasks::wanted::by_response(sa, ctx, inner.header.message_id, payloads);
            if !work.is_empty() {
                return exchange::wait(sa, ctx, work, Then::Inner(Box::new(inner)));
            }
        }
        if inner.header.exchange == ExchangeType::IKE_INTERMEDIATE {
            intermediate::cover(sa, &inner);
        }
        return tasks::on_response(sa, ctx, inner.header.message_id, parsed);
    }
    tasks::on_request(sa, ctx, &inner, parsed);
    if ctx.exchanges.is_wanting() {
        let work = ctx.take_wanted();
        return exchange::wait(sa, ctx, work, Then::Inner(Box::new(inner)));
    }
    if let Some(digest) = inner.digest {
        intermediate::answered(sa, digest);
    }
}

/// Where a message stands in its window. Cheap checks first: only the awaited response is worth a decryption.
fn order(sa: &IkeSa, header: &Header) -> Order {
    if !header.flags.response {
        return sa.their.order(header.message_id, sa.receive_window());
    }
    let awaited = |outstanding: &Outstanding| {
        let exchange = outstanding.bytes.get(EXCHANGE_AT) == Some(&header.exchange.0);
        exchange && outstanding.id == header.message_id && !matches!(outstanding.pending, Pending::Init)
    };
    match sa.our.all().any(awaited) {
        true => Order::New,
        false => Order::OutOfWindow,
    }
}

fn repeat_response(sa: &IkeSa, ctx: &mut Context<'_>, id: u32) {
    if let Some(response) = sa.their.response(id) {
        message::repeat_answer(sa, ctx, response);
    }
}

/// A request of the peer's cluster with Message ID 0 (RFC 6311). `false`: it is none, or not authentic.
fn synchronisation(sa: &mut IkeSa, ctx: &mut Context<'_>, bytes: &[u8], sealed: &Protected) -> bool {
    if message_id_sync::repeated(sa, ctx, bytes) {
        return true;
    }
    let inner = message::open(sa, bytes, sealed);
    let parsed = inner
        .ok()
        .and_then(|inner| parse_chain(sealed.first, &inner).ok());
    parsed.is_some_and(|payloads| message_id_sync::respond(sa, ctx, bytes, &payloads))
}

/// The peer lives, and this is where.
fn heard(sa: &mut IkeSa, ctx: &mut Context<'_>, local: SocketAddr, remote: SocketAddr) {
    if sa.timers.liveness.is_some() {
        let delay = sa
            .connection(ctx.config)
            .and_then(|connection| connection.dpd_delay);
        sa.timers.liveness = delay.map(|delay| ctx.now + delay);
    }
    let authenticating = sa.is_half_open();
    if (local, remote) == (sa.path.local, sa.path.remote) {
        return;
    }
    //= rfc4555#3.5
    // the responder never updates any IPsec SAs without receiving an UPDATE_SA_ADDRESSES request
    if sa.more.mobike && !authenticating {
        return;
    }
    // RFC 7296 2.23: only a peer behind a NAT may move, and an initiator changes to port 4500 in IKE_AUTH.
    let may_move = authenticating || sa.path.nat_remote || remote.ip() == sa.path.remote.ip();
    if !may_move {
        return;
    }
    let moved = remote != sa.path.remote;
    sa.path.local = local;
    sa.dirty = true;
    if moved && !authenticating {
        return rebinding::move_to(sa, ctx, remote, "IKE");
    }
    sa.path.remote = remote;
}

/// Something unprotected for an IKE SA: it proves nothing, but may be a reason to ask the peer (RFC 7296 2.21.4).
fn unprotected_hint(sa: &mut IkeSa, ctx: &mut Context<'_>, message: &Message) {
    if qcd::shown(sa, ctx, message) {
        return;
    }
    let hint = message
        .payloads
        .notifies()
        .any(|notify| matches!(notify.kind, NotifyType::INVALID_IKE_SPI | NotifyType::INVALID_SPI));
    // Our Delete came too late: the peer has forgotten the IKE SA. Believing it harms nobody.
    let id = message.header.message_id;
    let deleting = matches!(sa.phase, Phase::Deleting(_))
        && sa.header_spis() == (message.header.spi_i, message.header.spi_r);
    if hint && deleting && sa.our.all().any(|outstanding| outstanding.id == id) {
        return tasks::delete::finish_ike(sa, ctx);
    }
    let idle = matches!(sa.phase, Phase::Established(_)) && sa.our.is_idle();
    // One check per second at most, whoever sends what.
    let recently = ctx.now.since(sa.timers.hinted).as_secs() < 1 && sa.timers.hinted != Instant::default();
    if hint && idle && !recently {
        sa.timers.hinted = ctx.now;
        sa.our.push(crate::ike_sa::windows::Task::Liveness);
        tasks::start_next(sa, ctx);
    }
}
