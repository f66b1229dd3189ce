//! The engine: takes inputs to the IKE SAs they are for, and makes one commit of what comes of each.

use crate::config::EngineConfig;
use crate::endpoint::{self, Admission, Endpoint};
use crate::event::EventKind;
use crate::forget::{self, Forgotten};
use crate::ike_sa::record::{self, AdoptError};
use crate::ike_sa::windows::{Order, Outstanding};
use crate::ike_sa::{IkeSa, fragments, message, phase::Phase};
use crate::io::{Change, Commit, IkeSaChange, Input, Output, Surroundings, Transmit};
use crate::outbox::{Context, Outbox};
use crate::status::{Agreed, ConnectionPhase, IkeSaStatus, MessageIdWindows};
use crate::table::Table;
use crate::tasks::{self, Pending, ike_auth, ike_init, intermediate, message_id_sync, qcd, resume, ticket};
use crate::tickets::Tickets;
use ike_wire::{ExchangeType, Flags, Header, Message, Notify, NotifyType, Protected, WireError, parse_chain};
use model::{EspSpi, IkeSpi, Instant, SecretBytes, SegmentId};
use std::collections::VecDeque;
use std::net::SocketAddr;

/// IKE SAs that one `Timeout` serves; the rest is due at once again. Few, so that the caller gets to its other work.
const DUE_MAX: usize = 64;

/// Where the exchange type stands in a message.
const EXCHANGE_AT: usize = 18;

/// The IKEv2 engine of one member.
pub struct Engine {
    config: EngineConfig,
    table: Table,
    tickets: Tickets,
    endpoint: Endpoint,
    outputs: VecDeque<Output>,
    /// Adopted, and not resumed yet.
    adopted: Vec<IkeSpi>,
    /// Latest time that any input brought.
    now: Instant,
    /// Version of the records that are written.
    record_version: u8,
}

impl Engine {
    /// An engine without IKE SAs.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config,
            table: Table::default(),
            tickets: Tickets::default(),
            endpoint: Endpoint::default(),
            outputs: VecDeque::new(),
            adopted: Vec::new(),
            now: Instant::default(),
            record_version: record::RECORD_VERSION,
        }
    }

    /// Another configuration, from the next input on. IKE SAs of connections that are gone stay up but are not
    /// rekeyed any more; [`crate::Command::Terminate`] ends them.
    pub fn set_config(&mut self, config: EngineConfig) {
        self.tickets.forget_held();
        self.config = config;
    }

    /// From now on records are written in this version, one of [`crate::RECORD_VERSIONS`] (others count as the newest): the
    /// highest that all members read, while they are upgraded one after the other. In version 1 a taker does not get what
    /// extensions remember: QCD tokens, tickets, RFC 6311 capabilities and RFC 9611 resources; nor does an older one read an IKE SA
    /// in the middle of an exchange that only extensions have.
    pub fn set_record_version(&mut self, version: u8) {
        let known = crate::RECORD_VERSIONS.contains(&version);
        self.record_version = if known { version } else { record::RECORD_VERSION };
    }

    /// The configuration in use.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Handles one input. Its outcome is fetched by [`Engine::poll`].
    pub fn handle(&mut self, input: Input<'_>, around: &mut dyn Surroundings) {
        match input {
            Input::Datagram {
                now,
                local,
                remote,
                bytes,
            } => {
                self.now = now;
                self.run(around, |engine, ctx| {
                    datagram(ctx, &mut engine.endpoint, local, remote, bytes)
                });
            }
            Input::Timeout { now } => {
                self.now = now;
                for spi in self.table.due(now, DUE_MAX) {
                    // A commit for each, so that one IKE SA never waits for another.
                    self.run(around, |_, ctx| with_sa(ctx, spi, crate::timers::expired));
                }
            }
            Input::Signed {
                now,
                ike_spi,
                token,
                signature,
            } => {
                self.now = now;
                self.run(around, |_, ctx| {
                    with_sa(ctx, ike_spi, |sa, ctx| {
                        ike_auth::signed(sa, ctx, token, signature)
                    });
                });
            }
            Input::Command { now, command } => {
                self.now = now;
                self.run(around, |_, ctx| crate::command::run(ctx, command));
            }
        }
    }

    /// The next output, in order.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due. It may have passed already.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.table.next_wake()
    }

    /// Takes over an IKE SA from its record. Nothing is sent before [`Engine::resume`].
    ///
    /// # Errors
    /// [`AdoptError`]; the IKE SA is then unknown here.
    pub fn adopt(&mut self, now: Instant, spi: IkeSpi, record: &SecretBytes) -> Result<(), AdoptError> {
        let mut sa = record::read(record)?;
        if sa.spi != spi {
            return Err(AdoptError::WrongSpi {
                found: sa.spi,
                asked: spi,
            });
        }
        if let Some(name) = sa.connection.as_deref()
            && sa.connection(&self.config).is_none()
        {
            return Err(AdoptError::UnknownConnection(name.to_owned()));
        }
        sa.committed = true;
        sa.dirty = false;
        sa.timers.since = now;
        for child in &mut sa.children {
            child.since = now;
        }
        if let Some(old) = self.table.take(spi) {
            self.table.forget(&old);
        }
        if let Some((id, expires)) = sa.extras.resumed.as_ref().and_then(|resumed| resumed.ticket)
            && !sa.is_half_open()
        {
            // Time is not known here; it only bounds how long this is remembered.
            self.tickets.spend(id, expires, 0);
        }
        self.table.put(sa);
        self.adopted.push(spi);
        Ok(())
    }

    /// After [`Engine::adopt`]: outstanding requests are sent again, timers start from now.
    pub fn resume(&mut self, now: Instant, around: &mut dyn Surroundings) {
        self.now = now;
        for spi in std::mem::take(&mut self.adopted) {
            self.run(around, |_, ctx| with_sa(ctx, spi, crate::timers::restart));
        }
    }

    /// The records of all IKE SAs, by SPI.
    pub fn export(&self) -> Vec<(IkeSpi, SecretBytes)> {
        let written = |sa| record::write(sa, self.record_version);
        let record_of = |spi| self.table.get(spi).map(|sa| (spi, written(sa)));
        self.table.spis().into_iter().filter_map(record_of).collect()
    }

    /// Forgets all IKE SAs without a word: this member is no longer their owner.
    pub fn clear(&mut self) {
        self.table = Table::default();
        self.adopted.clear();
        self.outputs.clear();
    }

    /// Forgets the IKE SAs of some segments without a word, and what came of them and was not fetched: another member
    /// serves them now. The answer only has to be dropped: where it holds many IKE SAs, that may be done elsewhere.
    pub fn remove_segments(&mut self, gone: impl Fn(SegmentId) -> bool) -> Forgotten {
        let forgotten = Forgotten::new(self.table.remove_where(|spi| gone(spi.segment())));
        self.adopted.retain(|spi| !gone(spi.segment()));
        let all = std::mem::take(&mut self.outputs);
        self.outputs = all
            .into_iter()
            .filter_map(|output| forget::keep(output, &gone))
            .collect();
        forgotten
    }

    /// Whether the IKE SA is here.
    pub fn contains(&self, spi: IkeSpi) -> bool {
        self.table.contains(spi)
    }

    /// SPIs of all IKE SAs, rising.
    pub fn spis(&self) -> Vec<IkeSpi> {
        self.table.spis()
    }

    /// One IKE SA, unless it only waits to be forgotten.
    pub fn status_of(&self, spi: IkeSpi) -> Option<IkeSaStatus> {
        let sa = self.table.get(spi)?;
        (!matches!(sa.phase, Phase::Closed(_))).then(|| sa.status(self.now))
    }

    /// Forgets one IKE SA without a word: its segment went to another member.
    pub fn release(&mut self, spi: IkeSpi) {
        if let Some(sa) = self.table.take(spi) {
            self.table.forget(&sa);
        }
        self.adopted.retain(|adopted| *adopted != spi);
    }

    /// All IKE SAs but those that only wait to be forgotten, by SPI. Ages are as of the latest input.
    pub fn status(&self) -> Vec<IkeSaStatus> {
        let shown = |spi| {
            self.table
                .get(spi)
                .filter(|sa| !matches!(sa.phase, Phase::Closed(_)))
        };
        self.table
            .spis()
            .into_iter()
            .filter_map(shown)
            .map(|sa| sa.status(self.now))
            .collect()
    }

    /// How far a connection is.
    pub fn connection_phase(&self, name: &str) -> ConnectionPhase {
        crate::command::connection_phase(&self.config, &self.table, name)
    }

    /// What was agreed with the peer of a connection that is up: of the IKE SA that new children go to.
    pub fn agreed(&self, name: &str) -> Option<Agreed> {
        let sa = self.table.get(crate::command::usable(&self.table, name)?)?;
        matches!(sa.phase, Phase::Established(_)).then(|| sa.agreed())
    }

    /// Message IDs of an IKE SA.
    pub fn message_ids(&self, spi: IkeSpi) -> Option<MessageIdWindows> {
        let sa = self.table.get(spi)?;
        Some(MessageIdWindows {
            next_send: sa.our.next,
            outstanding: sa.our.outstanding.is_some(),
            next_receive: sa.their.next,
        })
    }

    /// The IKE SA that a Child SA belongs to, by our inbound SPI.
    pub fn ike_spi_of_child(&self, spi_in: EspSpi) -> Option<IkeSpi> {
        self.table.by_child(spi_in)
    }

    /// Inbound SPIs that are promised to peers in unfinished exchanges but not installed: after [`Engine::adopt`] the
    /// allocator must not give their slots to others. They end with an `Install` or with
    /// [`Surroundings::release_esp_spi`].
    pub fn pending_esp_spis(&self) -> Vec<EspSpi> {
        let mut spis: Vec<_> = self.table.iter().flat_map(tasks::promised_spis).collect();
        spis.sort_unstable();
        spis
    }

    /// [`Engine::pending_esp_spis`] of one IKE SA: there is one unfinished exchange of each side at most.
    pub fn pending_esp_spis_of(&self, spi: IkeSpi) -> impl Iterator<Item = EspSpi> {
        self.table.get(spi).into_iter().flat_map(tasks::promised_spis)
    }

    /// Addresses out of pools that peers of this engine use.
    pub fn leases(&self) -> impl Iterator<Item = std::net::IpAddr> {
        self.table.leases()
    }

    /// Number of IKE SAs, half-open ones included.
    pub fn ike_sa_count(&self) -> usize {
        self.table.iter().count()
    }

    fn run(&mut self, around: &mut dyn Surroundings, work: impl FnOnce(&mut EngineParts, &mut Context<'_>)) {
        let mut out = Outbox::default();
        let mut parts = EngineParts {
            endpoint: std::mem::take(&mut self.endpoint),
        };
        let mut ctx = Context {
            now: self.now,
            config: &self.config,
            around,
            out: &mut out,
            table: &mut self.table,
            tickets: &mut self.tickets,
            from: None,
            path_before: None,
        };
        work(&mut parts, &mut ctx);
        // IKE SAs whose window became free go on with what waits. Each starts one request at most.
        for spi in ctx.out.dirty.clone() {
            with_sa(&mut ctx, spi, tasks::start_next);
        }
        self.endpoint = parts.endpoint;
        self.flush(out);
    }

    /// Makes outputs of what one input brought about.
    fn flush(&mut self, out: Outbox) {
        let mut commit = Commit::default();
        for spi in out.dirty {
            if let Some(sa) = self.table.get(spi) {
                commit.changes.push(Change::IkeSa(IkeSaChange::Put {
                    spi,
                    record: record::write(sa, self.record_version),
                }));
            }
        }
        commit
            .changes
            .extend(out.child_changes.into_iter().map(Change::ChildSa));
        for spi in out.removed {
            commit.changes.push(Change::IkeSa(IkeSaChange::Remove { spi }));
        }
        self.outputs.extend(out.events.into_iter().map(Output::Event));
        self.outputs.extend(out.plain.into_iter().map(Output::Transmit));
        self.outputs.extend(out.signs.into_iter().map(Output::Sign));
        if commit.changes.is_empty() {
            // Nothing to commit: a final word about an IKE SA that no standby ever knew.
            self.outputs.extend(
                commit
                    .transmits
                    .drain(..)
                    .chain(out.transmits)
                    .map(Output::Transmit),
            );
        } else {
            commit.transmits = out.transmits;
            self.outputs.push_back(Output::Commit(commit));
        }
    }
}

/// What [`Engine::run`] lends out beside the context.
struct EngineParts {
    endpoint: Endpoint,
}

/// Takes an IKE SA out, works on it, puts it back.
fn with_sa(ctx: &mut Context<'_>, spi: IkeSpi, work: impl FnOnce(&mut IkeSa, &mut Context<'_>)) {
    if let Some(mut sa) = ctx.table.take(spi) {
        work(&mut sa, ctx);
        ctx.put_back(sa);
    }
}

/// Finds out what a datagram is and whose.
fn datagram(
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
        && let Some(token) = qcd::token(&ctx.config.endpoint, header.spi_i, header.spi_r)
    {
        return endpoint
            .may_show_token(ctx.now)
            .then(|| endpoint::crashed(header, len, &token))
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
    if let Some(spi) = ctx.table.by_first(header.spi_i, remote) {
        return with_sa(ctx, spi, |sa, ctx| {
            // A repetition is the same octet for octet (RFC 7296 2.1); anything else from there is none of ours.
            let same =
                matches!(&sa.phase, Phase::AwaitAuthRequest(phase) if phase.transcript.request == bytes);
            // After IKE_INTERMEDIATE another response is the last one.
            if same && sa.their.next == 1 {
                repeat_response(sa, ctx);
            }
        });
    }
    let Some(nonce) = message.payloads.nonce() else {
        return;
    };
    let shown = message.payloads.notifies().find_map(Notify::as_cookie);
    let (was_cookie, was_flooded) = (endpoint.cookie_mode, endpoint.flooded);
    let config = ctx.config;
    let half_open = ctx.table.half_open();
    let admission = endpoint.admit(&config.endpoint, half_open, remote, header.spi_i, nonce, shown);
    report_load(ctx, endpoint, half_open, was_cookie, was_flooded);
    let mut refused = None;
    let refusal = match admission {
        Admission::Drop => return,
        Admission::Cookie(cookie) => Notify::new(NotifyType::COOKIE, cookie),
        Admission::Admit if header.exchange == ExchangeType::IKE_SESSION_RESUME => {
            match resume::respond(ctx, message, bytes, local, remote) {
                Ok(sa) => return ctx.put_back(sa),
                Err(why) => {
                    refused = Some(why);
                    Notify::status(NotifyType::TICKET_NACK)
                }
            }
        }
        Admission::Admit => match ike_init::respond(ctx, message, bytes, local, remote) {
            Ok(sa) => return ctx.put_back(sa),
            Err(None) => return,
            Err(Some(notify)) => notify,
        },
    };
    if refusal.kind != NotifyType::COOKIE && !endpoint.may_answer(ctx.now) {
        return;
    }
    if let Some(why) = refused {
        ticket::refused(ctx, remote, &why);
    }
    if let Some(answer) = endpoint::stateless(&header, bytes.len(), refusal) {
        ctx.out.plain.push(Transmit {
            local,
            remote,
            ike_spi: None,
            bytes: answer,
        });
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
    if order == Order::OutOfWindow {
        return;
    }
    if order == Order::Repeated && sa.is_half_open() && intermediate::is_answered(sa, bytes) {
        return repeat_response(sa, ctx);
    }
    let Ok(inner) = message::open(sa, bytes, sealed) else {
        return;
    };
    if order == Order::Repeated {
        // RFC 7383 2.6.1: of a fragmented request the first fragment alone is answered again.
        if sealed.fragment.is_none_or(|fragment| fragment.number == 1) {
            repeat_response(sa, ctx);
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
    let parsed = parse_chain(first, &inner);
    if header.exchange == ExchangeType::IKE_INTERMEDIATE {
        intermediate::cover(sa, &header, first, &inner);
    }
    if header.flags.response {
        tasks::on_response(sa, ctx, parsed);
    } else {
        tasks::on_request(sa, ctx, header.exchange, header.message_id, parsed);
        if header.exchange == ExchangeType::IKE_INTERMEDIATE {
            intermediate::answered(sa, digest.unwrap_or_else(|| crypto::sha256(&[bytes])));
        }
    }
}

/// Where a message stands in its window. Cheap checks first: only the awaited response is worth a decryption.
fn order(sa: &IkeSa, header: &Header) -> Order {
    if !header.flags.response {
        return sa.their.order(header.message_id);
    }
    let awaited = |outstanding: &Outstanding| {
        let exchange = outstanding.bytes.get(EXCHANGE_AT) == Some(&header.exchange.0);
        exchange && outstanding.id == header.message_id && !matches!(outstanding.pending, Pending::Init)
    };
    match &sa.our.outstanding {
        Some(outstanding) if awaited(outstanding) => Order::New,
        _ => Order::OutOfWindow,
    }
}

fn repeat_response(sa: &IkeSa, ctx: &mut Context<'_>) {
    if let Some(response) = &sa.their.last_response {
        message::repeat(sa, ctx, response);
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
    // RFC 7296 2.23: only a peer behind a NAT may move, and an initiator changes to port 4500 in IKE_AUTH.
    let may_move = authenticating || sa.path.nat_remote || remote.ip() == sa.path.remote.ip();
    if !may_move {
        return;
    }
    let moved = remote != sa.path.remote;
    let old = sa.path.remote;
    sa.path.local = local;
    sa.path.remote = remote;
    sa.dirty = true;
    if moved && !authenticating {
        for child in &sa.children {
            let change = model::ChildSaChange::MovePeer {
                spi_in: child.spi_in,
                remote,
            };
            ctx.out.child_changes.push(change);
        }
        ctx.event(
            sa,
            EventKind::PeerMoved,
            format!("the peer moved from {old} to {remote}"),
        );
    }
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
    if hint
        && deleting
        && sa
            .our
            .outstanding
            .as_ref()
            .is_some_and(|outstanding| outstanding.id == id)
    {
        return tasks::delete::finish_ike(sa, ctx);
    }
    let idle = matches!(sa.phase, Phase::Established(_)) && sa.our.outstanding.is_none();
    // One check per second at most, whoever sends what.
    let recently = ctx.now.since(sa.timers.hinted).as_secs() < 1 && sa.timers.hinted != Instant::default();
    if hint && idle && !recently {
        sa.timers.hinted = ctx.now;
        sa.our.push(crate::ike_sa::windows::Task::Liveness);
        tasks::start_next(sa, ctx);
    }
}
