//! The engine: takes inputs to the IKE SAs they are for, and makes one commit of what comes of each.

mod receive;

use receive::{computed, datagram};

use crate::config::{EndpointConfig, EngineConfig};
use crate::endpoint::{self, Admission, Endpoint};
use crate::event::EventKind;
use crate::exchange::{self, Computed, Exchanges, GoesOn, Inner, Then};
use crate::forget::{self, Forgotten};
use crate::ike_sa::record::{self, AdoptError};
use crate::ike_sa::windows::{Order, Outstanding};
use crate::ike_sa::{IkeSa, fragments, message, phase::Phase};
use crate::io::{Change, Commit, IkeSaChange, Input, Output, Surroundings, Transmit};
use crate::outbox::{Context, Outbox};
use crate::status::{Agreed, ConnectionPhase, IkeSaPeer, IkeSaStatus, MessageIdWindows};
use crate::table::Table;
use crate::tasks::{
    self, Pending, eap_tls, ike_auth, ike_init, ike_init_answer, intermediate, message_id_sync, qcd,
    rebinding, redirect::Redirects, resume, ticket,
};
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
    exchanges: Exchanges,
    redirects: Redirects,
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
            exchanges: Exchanges::default(),
            redirects: Redirects::default(),
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

    /// Other secrets for cookies, tokens and tickets, from the next input on: those of this configuration, of which nothing else
    /// is taken. IKE SAs do not notice. Peers keep the tokens and tickets that they have: the secrets that these were made with
    /// are to be among [`EndpointConfig::also_honoured`].
    pub fn set_secrets(&mut self, from: EndpointConfig) {
        self.config.endpoint.take_secrets(from);
    }

    /// From now on records are written in this version, one of [`crate::RECORD_VERSIONS`] (others count as the newest): the
    /// highest that all members read, while they are upgraded one after the other. In version 1 a taker does not get what
    /// extensions remember: QCD tokens, tickets, RFC 6311 capabilities and RFC 9611 resources; nor does an older one read an IKE SA
    /// in the middle of an exchange that only extensions have.
    pub fn set_record_version(&mut self, version: u8) {
        let known = crate::RECORD_VERSIONS.contains(&version);
        self.record_version = if known { version } else { record::RECORD_VERSION };
    }

    /// Whether a request of ours is without an answer.
    pub fn awaits_answer(&self, spi: IkeSpi) -> bool {
        self.table.get(spi).is_some_and(|sa| !sa.our.is_idle())
    }

    /// Our SPIs of a connection's IKE SAs, rising; those that only wait to be forgotten too.
    pub fn spis_of(&self, connection: &str) -> Vec<IkeSpi> {
        self.table.of_connection(connection)
    }

    /// From now on key exchanges are not computed here but come out as [`Output::Compute`]: they may take milliseconds.
    pub fn exchange_beside(&mut self) {
        self.exchanges.beside = true;
    }

    /// Key exchanges that were computed here since [`Engine::exchange_beside`]; there should be none.
    pub fn computed_here(&self) -> u64 {
        self.exchanges.here
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
            Input::Tls {
                now,
                ike_spi,
                token,
                outcome,
            } => {
                self.now = now;
                self.run(around, |_, ctx| {
                    with_sa(ctx, ike_spi, |sa, ctx| eap_tls::outcome(sa, ctx, token, outcome));
                });
            }
            Input::Computed { now, computed: done } => {
                self.now = now;
                self.run(around, |engine, ctx| computed(ctx, &mut engine.endpoint, done));
            }
            Input::Remotes {
                connection,
                remotes,
                names,
            } => {
                let known = self.config.connections.iter_mut();
                for of in known.filter(|of| of.name == connection) {
                    of.remotes.clone_from(&remotes);
                    of.names.clone_from(&names);
                }
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
        // Its connection may be one that this member has not read yet, or no longer has: the IKE SA stays up as after
        // `set_config`, so that members may read their configuration again one after the other.
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
        self.exchanges.forget_first();
        self.adopted.clear();
        self.outputs.clear();
    }

    /// Forgets the IKE SAs of some segments without a word, and what came of them and was not fetched: another member
    /// serves them now. The answer only has to be dropped: where it holds many IKE SAs, that may be done elsewhere.
    pub fn remove_segments(&mut self, gone: impl Fn(SegmentId) -> bool) -> Forgotten {
        let forgotten = Forgotten::new(self.table.remove_where(|spi| gone(spi.segment())));
        self.adopted.retain(|spi| !gone(spi.segment()));
        self.exchanges.forget_first();
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

    /// Whose an IKE SA is: far less than [`Engine::status_of`], for whoever looks at all of them.
    pub fn peer_of(&self, spi: IkeSpi) -> Option<IkeSaPeer<'_>> {
        let sa = self.table.get(spi)?;
        Some(IkeSaPeer {
            connection: sa.connection.as_deref(),
            remote_id: sa.remote_id.as_ref().map(ToString::to_string),
            initiator: sa.initiator,
            phase: sa.phase.name(),
        })
    }

    /// Whether a connection is up beside an IKE SA of it: it is being authenticated anew, or has been.
    pub fn is_up_beside(&self, connection: &str, spi: Option<IkeSpi>) -> bool {
        let mut all = self.table.iter_connection(connection);
        all.any(|sa| {
            matches!(sa.phase, Phase::Established(_)) && sa.successor.is_none() && Some(sa.spi) != spi
        })
    }

    /// Whether an IKE SA has ended, and only waits to be forgotten.
    pub fn has_ended(&self, spi: IkeSpi) -> bool {
        let sa = self.table.get(spi);
        sa.is_some_and(|sa| matches!(sa.phase, Phase::Closed(_)))
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

    /// Children that come up with a connection which is up, and are neither up nor on their way.
    pub fn missing_children(&self, name: &str) -> Vec<String> {
        crate::command::missing_children(&self.config, &self.table, name)
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
            outstanding: !sa.our.is_idle(),
            next_receive: sa.their.next,
        })
    }

    /// Whether the peer of an IKE SA can be sent to another gateway (RFC 5685).
    pub fn is_redirectable(&self, spi: IkeSpi) -> bool {
        self.table.get(spi).is_some_and(|sa| sa.more.redirectable)
    }

    /// The IKE SA that a Child SA belongs to, by our inbound SPI.
    pub fn ike_spi_of_child(&self, spi_in: EspSpi) -> Option<IkeSpi> {
        self.table.by_child(spi_in)
    }

    /// Whether the peer of an IKE SA may turn up at another address without a word: its data plane is to say so
    /// ([`crate::Command::PeerSeen`]). It may change with each rekey of the IKE SA only.
    pub fn may_move(&self, spi: IkeSpi) -> bool {
        self.table.get(spi).is_some_and(rebinding::may_move)
    }

    /// The IKE SA that rekeys have put in place of this one, as far as they are remembered; itself, where none has.
    pub fn latest(&self, spi: IkeSpi) -> IkeSpi {
        self.table.latest(spi)
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

    /// Our inbound SPIs of an IKE SA's Child SAs.
    pub fn esp_spis_of(&self, spi: IkeSpi) -> impl Iterator<Item = EspSpi> {
        let children = self.table.get(spi).into_iter().flat_map(|sa| &sa.children);
        children.map(|child| child.spi_in)
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
            exchanges: &mut self.exchanges,
            redirects: &mut self.redirects,
            from: None,
            path_before: None,
        };
        work(&mut parts, &mut ctx);
        // IKE SAs whose window became free go on with what waits. Each starts one request at most.
        for spi in ctx.out.dirty.clone() {
            with_sa(&mut ctx, spi, tasks::start_next);
        }
        self.endpoint = parts.endpoint;
        self.exchanges.clear();
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
        self.outputs.extend(out.tls.into_iter().map(Output::Tls));
        self.outputs.extend(out.computes.into_iter().map(Output::Compute));
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
