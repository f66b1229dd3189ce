//! `espalier reload` and SIGHUP: another configuration while the agent runs.
//!
//! What takes time (reading files, certificates, digests) happens beside the core loop and changes nothing. Then the core takes the whole
//! in one step, or refuses it. SAs whose connection did not change are not touched; those that have to go, go in turns.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ike::Command;
use model::{EspSpi, IkeSpi, Instant};
use rtnetlink::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::Core;
use super::certificates::Certificates;
use super::convert::{self, Made};
use super::secrets::{self, Policies};
use crate::api::{ConfigChange, ReloadReport, ReloadRequest};
use crate::clock;
use crate::config::Config;
use crate::config::diff::{self, Difference, Effect, Files};
use crate::net::{self, sysctl};
use crate::pki::{SecretId, Secrets};

/// SAs are deleted, or get other timers, for this long before the core does something else.
const TURN: Duration = Duration::from_millis(2);

/// Where the outcome goes; nobody waits for that of a signal.
pub type Answer = oneshot::Sender<Result<ReloadReport, String>>;

/// A prefix of a protected network.
type Prefix = (IpAddr, u8);

/// The file as it was last taken, and what runs by it.
#[derive(Clone)]
struct Taken {
    table: toml::Table,
    files: Files,
}

/// What was made of a file, ready to be used.
pub struct Prepared {
    /// The cluster secrets that it was made with.
    secrets: Vec<SecretId>,
    config: Config,
    made: Made,
    policies: Policies,
    taken: Taken,
    difference: Difference,
}

/// What comes back from beside the core loop.
pub enum Told {
    /// The file was read.
    Prepared {
        prepared: Result<Box<Prepared>, String>,
        dry_run: bool,
        answer: Option<Answer>,
    },
    /// A route could not be made or removed.
    Route(String),
}

/// Something that is to be done with an SA.
enum Work {
    DeleteIke(IkeSpi),
    DeleteChild(EspSpi),
    RestartTimers(IkeSpi),
}

/// What reloads need and leave to be done.
pub struct Reload {
    file: PathBuf,
    taken: Taken,
    told: mpsc::UnboundedSender<Told>,
    netlink: Handle,
    tun: u32,
    /// CPUs that serve SAs here.
    cpus: u32,
    /// Peers' addresses, for those who look after the ways to them.
    peers: watch::Sender<Vec<IpAddr>>,
    under_way: bool,
    work: VecDeque<Work>,
    /// Children that are to come up again once their old SAs are gone: connection and child.
    again: BTreeSet<(String, String)>,
    /// Connections that were removed in this life: a member that has not reloaded yet may still bring one up.
    removed: BTreeSet<String>,
}

impl Reload {
    /// `file` is what `config` was read from; `tun` is the device for what this host sends itself.
    ///
    /// # Errors
    /// It can no longer be read.
    pub fn new(
        file: &Path,
        config: &Config,
        told: mpsc::UnboundedSender<Told>,
        netlink: Handle,
        tun: u32,
        cpus: u32,
    ) -> Result<Self> {
        let (peers, _) = watch::channel(config.peers().into_iter().collect());
        Ok(Self {
            file: file.to_owned(),
            taken: Taken {
                table: read(file)?.1,
                files: diff::files(config),
            },
            told,
            netlink,
            tun,
            cpus,
            peers,
            under_way: false,
            work: VecDeque::new(),
            again: BTreeSet::new(),
            removed: BTreeSet::new(),
        })
    }

    /// Addresses of the peers, now and later.
    pub fn peers(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.peers.subscribe()
    }

    /// They are at these now.
    pub fn follow_peers(&self, peers: Vec<IpAddr>) {
        self.peers.send_if_modified(|known| {
            let other = *known != peers;
            *known = peers;
            other
        });
    }

    /// Whether SAs wait for their turn.
    pub fn is_busy(&self) -> bool {
        !self.work.is_empty()
    }
}

fn read(file: &Path) -> Result<(String, toml::Table)> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the configuration {}", file.display()))?;
    let table = text
        .parse()
        .with_context(|| format!("{} is no TOML", file.display()))?;
    Ok((text, table))
}

/// Reads the file and makes all that it takes to run by it. Nothing changes.
fn prepare(file: &Path, running: Config, taken: Taken, cpus: u32, known: &Secrets) -> Result<Prepared> {
    let new = Config::load(file)?;
    let (_, table) = read(file)?;
    // What needs a restart stays as it runs.
    let config = Config {
        connections: new.connections,
        policies: new.policies,
        pools: new.pools,
        ..running
    };
    for connection in &config.connections {
        let ours = [connection.local]
            .into_iter()
            .chain(connection.further_locals.iter().copied());
        for local in ours {
            ensure!(
                config.addresses.outside.contains(&local),
                "connection {}: {local} is no outside cluster address of this agent as it runs; start it again to add the address",
                connection.name
            );
        }
    }
    let policies = Policies::of(&config, known)?;
    let made = convert::make(&config, secrets::endpoint(known), cpus)?;
    let files = diff::files(&config);
    let mut difference = diff::between(&taken.table, &table);
    diff::add_files(&mut difference, &taken.files, &files);
    let mut now_taken = taken.table;
    diff::take_over(&mut now_taken, &table);
    Ok(Prepared {
        secrets: known.ids(),
        config,
        made,
        policies,
        taken: Taken {
            table: now_taken,
            files,
        },
        difference,
    })
}

fn report(difference: &Difference, dry_run: bool, text: String) -> ReloadReport {
    let change = |change: &diff::Change| ConfigChange {
        path: diff::show(&change.place),
        old: change.old.clone(),
        new: change.new.clone(),
        effect: change.effect,
    };
    let (restart, changed): (Vec<_>, Vec<_>) = difference
        .changed
        .iter()
        .map(change)
        .partition(|change| change.effect == Effect::Restart);
    ReloadReport {
        dry_run,
        added: difference.added.iter().map(|place| diff::show(place)).collect(),
        removed: difference.removed.iter().map(|place| diff::show(place)).collect(),
        changed,
        needs_restart: restart,
        text,
    }
}

/// What this host itself sends into the TUN device. A whole family stays on its default route.
fn routed(config: &Config) -> BTreeSet<Prefix> {
    let children = config.connections.iter().flat_map(|c| &c.children);
    children
        .flat_map(|c| &c.remote_ts)
        .flat_map(crate::config::prefixes)
        .filter(|(_, length)| *length > 0)
        .collect()
}

impl Core {
    /// An operator has the file read again.
    pub(super) fn reload(&mut self, wish: &ReloadRequest, answer: Answer) {
        self.begin_reload(wish.dry_run, Some(answer));
    }

    /// SIGHUP.
    pub(super) fn hangup(&mut self) {
        self.begin_reload(false, None);
    }

    fn begin_reload(&mut self, dry_run: bool, answer: Option<Answer>) {
        if self.reload.under_way {
            let why = "another reload is under way".to_owned();
            return self.refuse_reload(&why, dry_run, answer);
        }
        self.reload.under_way = true;
        let (file, told) = (self.reload.file.clone(), self.reload.told.clone());
        let (running, taken) = (self.config.clone(), self.reload.taken.clone());
        let (cpus, known) = (self.reload.cpus, self.secrets.clone());
        tokio::task::spawn_blocking(move || {
            let prepared = prepare(&file, running, taken, cpus, &known);
            let prepared = prepared.map(Box::new).map_err(|error| format!("{error:#}"));
            // Whoever stops does not reload.
            let _ = told.send(Told::Prepared {
                prepared,
                dry_run,
                answer,
            });
        });
    }

    fn refuse_reload(&mut self, why: &str, dry_run: bool, answer: Option<Answer>) {
        if !dry_run {
            let text = format!("the configuration stays as it was: {why}");
            self.log.warn("reload_refused", text);
        }
        if let Some(answer) = answer {
            let _ = answer.send(Err(why.to_owned()));
        }
    }

    /// Something has come back from beside the core loop.
    pub(super) fn reload_told(&mut self, told: Told) {
        let (prepared, dry_run, answer) = match told {
            Told::Route(problem) => return self.log.warn("route", problem),
            Told::Prepared {
                prepared,
                dry_run,
                answer,
            } => (prepared, dry_run, answer),
        };
        self.reload.under_way = false;
        let prepared = match prepared {
            // The cluster secret was replaced meanwhile: tokens, tickets and digests would be of the one before.
            Ok(prepared) if prepared.secrets != self.secrets.ids() => {
                return self.begin_reload(dry_run, answer);
            }
            Ok(prepared) => prepared,
            Err(why) => return self.refuse_reload(&why, dry_run, answer),
        };
        let difference = prepared.difference.clone();
        let text = if dry_run {
            "nothing was changed: this was a look only".to_owned()
        } else if difference.is_empty() {
            "nothing has changed".to_owned()
        } else {
            match self.take_configuration(*prepared) {
                Ok(text) => text,
                Err(why) => return self.refuse_reload(&why, dry_run, answer),
            }
        };
        if !dry_run {
            self.log.note("reload", text.clone());
        }
        if let Some(answer) = answer {
            let _ = answer.send(Ok(report(&difference, dry_run, text)));
        }
    }

    /// Everything, or nothing.
    fn take_configuration(&mut self, prepared: Prepared) -> Result<String, String> {
        let Prepared {
            secrets: _,
            config,
            made,
            policies,
            taken,
            difference,
        } = prepared;
        let plan = self
            .sad
            .configure(convert::policies(&config))
            .map_err(|error| format!("the policies do not fit beside the SAs that are up: {error}"))?;
        if let Err(error) = self.execute(&plan) {
            // Back to what was; a map that takes nothing is told by the health of the data plane.
            if let Ok(plan) = self.sad.configure(convert::policies(&self.config)) {
                self.execute_or_log(&plan);
            }
            return Err(format!("the policies were not written: {error}"));
        }
        let before = std::mem::replace(&mut self.config, config);
        self.reload.taken = taken;
        self.engine.set_config(made.engine);
        self.signer.replace(made.keys, made.tls);
        self.certificates = Certificates::new(made.certificates);
        self.policies = policies;
        self.share();
        self.settle();
        self.follow_routes(&before);
        let sas = self.plan_work(&difference, &before);
        self.redial(clock::now());
        let restart = difference
            .changed
            .iter()
            .filter(|change| change.effect == Effect::Restart)
            .count();
        let mut text = format!(
            "{} added, {} removed, {} changed",
            difference.added.len(),
            difference.removed.len(),
            difference.changed.len() - restart
        );
        if sas > 0 {
            text.push_str(&format!("; {sas} SA(s) are deleted for it"));
        }
        if restart > 0 {
            text.push_str(&format!(
                "; {restart} value(s) stay as they were until the agent is started again"
            ));
        }
        Ok(text)
    }

    /// Routes of this host, and the ways to the peers.
    fn follow_routes(&mut self, before: &Config) {
        self.follow_names(None);
        if self.config.carries_v6()
            && !before.carries_v6()
            && let Err(error) = sysctl::prepare_v6()
        {
            self.log.warn("sysctl", format!("{error:#}"));
        }
        let (was, is) = (routed(before), routed(&self.config));
        let add: Vec<Prefix> = is.difference(&was).copied().collect();
        let remove: Vec<Prefix> = was.difference(&is).copied().collect();
        if add.is_empty() && remove.is_empty() {
            return;
        }
        let (netlink, tun, told) = (
            self.reload.netlink.clone(),
            self.reload.tun,
            self.reload.told.clone(),
        );
        let sources = self.config.addresses.inside.clone();
        tokio::spawn(async move {
            for prefix in add {
                if let Err(error) = net::route_to_tun(&netlink, tun, prefix, &sources).await {
                    let _ = told.send(Told::Route(format!("{error:#}")));
                }
            }
            for prefix in remove {
                if let Err(error) = net::unroute_from_tun(&netlink, tun, prefix, &sources).await {
                    let _ = told.send(Told::Route(format!("{error:#}")));
                }
            }
        });
    }

    /// Notes what has to be done with SAs of this member; returns how many go.
    fn plan_work(&mut self, difference: &Difference, before: &Config) -> usize {
        let with = |effect: Effect| {
            let of = difference
                .changed
                .iter()
                .filter(move |change| change.effect == effect);
            of.filter_map(|change| change.connection().map(str::to_owned))
        };
        let mut gone: BTreeSet<String> = difference.connections_removed().map(str::to_owned).collect();
        for name in &gone {
            self.redial.remove(name);
            self.reasons.remove(name);
            self.stops.start(name);
            self.wanted.remove(name);
            self.children.forget(name);
        }
        self.reload.removed.extend(gone.iter().cloned());
        let configured = |name: &str| self.config.connections.iter().any(|c| c.name == name);
        self.reload.removed.retain(|name| !configured(name));
        let again: BTreeSet<String> = with(Effect::NewIkeSas)
            .filter(|name| self.is_to_go(name, difference))
            .collect();
        for name in &again {
            self.redial.remove(name);
            self.wanted.remove(name);
        }
        gone.extend(again);
        let mut count = 0;
        for name in &gone {
            let spis = self.engine.spis_of(name);
            count += spis.len();
            self.reload.work.extend(spis.into_iter().map(Work::DeleteIke));
        }
        let timed: BTreeSet<String> = with(Effect::AtOnce).filter(|name| !gone.contains(name)).collect();
        for name in &timed {
            // `start` and its like: what they say holds from now on.
            self.redial.remove(name);
            self.wanted.remove(name);
            self.children.forget(name);
            let spis = self.engine.spis_of(name).into_iter();
            self.reload.work.extend(spis.map(Work::RestartTimers));
        }
        let changed = difference
            .changed
            .iter()
            .filter(|change| change.effect == Effect::NewChildSas);
        let changed: BTreeSet<_> = changed
            .filter_map(|change| change.child())
            .filter(|(name, _)| !gone.contains(*name))
            .collect();
        let removed: BTreeSet<_> = difference.children_removed().collect();
        let doomed = |connection: &str, child: &str| {
            changed.contains(&(connection, child)) || removed.contains(&(connection, child))
        };
        if !changed.is_empty() || !removed.is_empty() {
            for entry in self.sad.iter() {
                let record = &entry.record;
                if doomed(&record.connection, &record.child) && self.groups.owns_segment(entry.segment()) {
                    self.reload.work.push_back(Work::DeleteChild(record.spi_in));
                    count += 1;
                }
            }
        }
        // Children that are new come up beside those that are there, where their connection is up.
        let known = |name: &str, child: &str| {
            let of = before.connections.iter().find(|c| c.name == name);
            of.is_none_or(|c| c.children.iter().any(|c| c.name == child))
        };
        for connection in self.config.connections.iter().filter(|c| !c.remotes.is_empty()) {
            for child in &connection.children {
                let (name, child) = (connection.name.as_str(), child.name.as_str());
                if changed.contains(&(name, child)) || !known(name, child) {
                    self.reload.again.insert((name.to_owned(), child.to_owned()));
                }
            }
        }
        count
    }

    /// Another list of addresses needs no other IKE SA where the peer is at one of them, nor, as long as nobody knows where a name leads,
    /// where it is there.
    fn is_to_go(&self, name: &str, difference: &Difference) -> bool {
        let of_this = difference
            .changed
            .iter()
            .filter(|change| change.connection() == Some(name) && change.effect == Effect::NewIkeSas);
        let only_remote = of_this
            .clone()
            .all(|change| change.place.last().is_some_and(|key| key == "remote"));
        let config = self.config.connections.iter().find(|c| c.name == name);
        let (true, Some(config)) = (only_remote, config) else {
            return true;
        };
        let remotes = self.names.addresses(config);
        if config.remotes.is_empty() || self.names.lacks_any(config) {
            return false;
        }
        let spis = self.engine.spis_of(name);
        let elsewhere = |spi: &IkeSpi| {
            let sa = self.engine.status_of(*spi);
            sa.is_some_and(|sa| !remotes.contains(&sa.remote.ip()))
        };
        spis.iter().any(elsewhere)
    }

    /// SAs that a reload is about, in turns.
    pub(super) fn reload_turn(&mut self, now: Instant) {
        let until = now + TURN;
        while let Some(work) = self.reload.work.pop_front() {
            match work {
                Work::DeleteIke(spi) if self.engine.contains(spi) => {
                    self.engine_command(Command::DeleteIke { spi });
                }
                Work::DeleteChild(spi_in) if self.engine.ike_spi_of_child(spi_in).is_some() => {
                    self.engine_command(Command::DeleteChild { spi_in });
                }
                Work::RestartTimers(spi) => self.engine_command(Command::RestartTimers { spi }),
                // It is gone already.
                Work::DeleteIke(_) | Work::DeleteChild(_) => {}
            }
            if clock::now() > until {
                return;
            }
        }
    }

    /// Once a second: children whose old SAs are gone come up again.
    pub(super) fn reload_children(&mut self) {
        if self.reload.again.is_empty() || !self.reload.work.is_empty() {
            return;
        }
        for (connection, child) in std::mem::take(&mut self.reload.again) {
            let of_it = |e: &sad::SaEntry| e.record.connection == connection && e.record.child == child;
            if self.sad.iter().any(of_it) {
                self.reload.again.insert((connection, child));
                continue;
            }
            let up = self.engine.connection_phase(&connection) > ike::ConnectionPhase::Connecting;
            if up && !self.stops.contains(&connection) {
                self.engine_command(Command::CreateChild { connection, child });
            }
        }
    }

    /// This member has taken over IKE SAs of a member that had not read the file again yet: what it says is gone, goes.
    pub(super) fn reload_adopted(&mut self) {
        for name in &self.reload.removed {
            let spis = self.engine.spis_of(name).into_iter();
            self.reload.work.extend(spis.map(Work::DeleteIke));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_waits_for_a_restart_apart() {
        let change = |key: &str, effect| diff::Change {
            place: vec!["a".to_owned(), key.to_owned()],
            old: None,
            new: Some("1".to_owned()),
            effect,
        };
        let difference = Difference {
            changed: vec![change("now", Effect::AtOnce), change("later", Effect::Restart)],
            ..Difference::default()
        };
        let report = report(&difference, true, String::new());
        assert_eq!(report.changed[0].path, "a.now");
        assert_eq!(report.needs_restart[0].path, "a.later");
        assert_eq!((report.changed.len(), report.needs_restart.len()), (1, 1));
    }
}
