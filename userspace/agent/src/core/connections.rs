//! Connections are brought up and taken down on command.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ike::Command;
use tokio::sync::oneshot;

use super::Core;
use super::around::segment_of_name;
use super::entry::EntryChange;
use super::orders::{Goal, Part};
use crate::api::{ConnectionRequest, RedirectRequest};
use crate::clock;
use crate::control::Outcome;

impl Core {
    /// `espalier connection start` and `stop`. A start waits until the peer's names have been looked up.
    pub(super) fn connection_wish(&mut self, wish: ConnectionRequest, answer: oneshot::Sender<Outcome>) {
        let config = self.config.connections.iter().find(|c| c.name == wish.connection);
        match config.cloned().filter(|_| wish.start) {
            Some(config) if !self.names.are_known(&config, clock::now()) => {
                self.names.wait_order(wish, answer);
            }
            _ => self.connection_order(&wish, answer),
        }
    }

    pub(super) fn connection_order(&mut self, wish: &ConnectionRequest, answer: oneshot::Sender<Outcome>) {
        match self.connection_parts(wish) {
            Ok((part, command)) => {
                let name = &wish.connection;
                if wish.start {
                    self.stops.start(name);
                    self.redial.remove(name);
                    self.wanted.remove(name);
                    self.children.forget(name);
                    let group = self.groups.layout.group_of(part.goal.segment());
                    self.tell_stop(group, EntryChange::Start(name.clone()));
                } else {
                    self.stop_connection(name);
                }
                let done = format!("connection {name} is {}", if wish.start { "up" } else { "down" });
                self.order(vec![(part, command)], done, answer);
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    /// Each group that IKE SAs of the connection are in hears of it, in front of their deletion.
    fn stop_connection(&mut self, name: &str) {
        let all = self.engine.status().into_iter();
        let ending = all
            .filter(|sa| sa.connection.as_deref() == Some(name))
            .map(|sa| sa.spi);
        let ending = ending.collect::<Vec<_>>();
        self.stops.stop(name, ending.iter().copied());
        let layout = self.groups.layout;
        let groups = ending.iter().map(|spi| layout.group_of(spi.segment()));
        for group in groups.collect::<BTreeSet<_>>() {
            let connection = name.to_owned();
            let of_group = ending
                .iter()
                .filter(|spi| layout.group_of(spi.segment()) == group);
            let ending = of_group.copied().collect();
            self.tell_stop(group, EntryChange::Stop { connection, ending });
        }
    }

    fn connection_parts(&self, wish: &ConnectionRequest) -> Result<(Part, Command), String> {
        let name = &wish.connection;
        let config = self.config.connections.iter().find(|c| c.name == *name);
        let config = config.ok_or_else(|| {
            let all = self.config.connections.iter().map(|c| c.name.as_str());
            let all = all.take(20).collect::<Vec<_>>().join(", ");
            format!("there is no connection '{name}' in the configuration; there are: {all}")
        })?;
        let segment = segment_of_name(self.steer_key, name);
        let here = self.ike_sas_here(name);
        let command = match wish.start {
            true if !self.groups.serves_segment(segment) => {
                return Err(
                    "another member is the one to initiate it; ask that one (espalier status)".to_owned(),
                );
            }
            true if config.remotes.is_empty() => {
                return Err(
                    "its peer has no address in the configuration, so only the peer can start it".to_owned(),
                );
            }
            true if self.names.addresses(config).is_empty() => return Err(self.names.why_nowhere(config)),
            true => Command::Initiate {
                connection: name.clone(),
            },
            false if here == 0 => {
                return Err(match self.served_elsewhere(name) {
                    true => "another member serves it; ask that one (espalier status)".to_owned(),
                    false => "it is down already".to_owned(),
                });
            }
            false => Command::Terminate {
                connection: name.clone(),
            },
        };
        let goal = match wish.start {
            true => Goal::Up(segment),
            false => Goal::Down(segment),
        };
        let known = self.names.addresses(config);
        let remote = known
            .first()
            .copied()
            .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let part = Part {
            goal,
            connection: name.clone(),
            peer: SocketAddr::new(remote, 500),
        };
        Ok((part, command))
    }

    /// `espalier connection redirect`.
    pub(super) fn redirect(&mut self, wish: &RedirectRequest, answer: oneshot::Sender<Outcome>) {
        match self.redirect_parts(wish) {
            Ok(parts) => {
                let peers = parts.iter().map(|(part, _)| part.peer.to_string());
                let peers = peers.collect::<Vec<_>>().join(", ");
                let done = format!("{}: {peers} told to go to {}", wish.connection, wish.to);
                self.order(parts, done, answer);
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    fn redirect_parts(&self, wish: &RedirectRequest) -> Result<Vec<(Part, Command)>, String> {
        let to: IpAddr = wish
            .to
            .parse()
            .map_err(|_| format!("'{}' is no address; give that of another gateway", wish.to))?;
        let name = &wish.connection;
        let part = |sa: ike::IkeSaStatus| {
            let ids = self.engine.message_ids(sa.spi)?;
            let part = Part {
                goal: Goal::sign_of_life(sa.spi, ids),
                connection: name.clone(),
                peer: sa.remote,
            };
            Some((part, Command::Redirect { spi: sa.spi, to }))
        };
        let all = self.ike_sas_of(name)?;
        let able = all.into_iter().filter(|sa| self.engine.is_redirectable(sa.spi));
        let parts = able.filter_map(part).collect::<Vec<_>>();
        if parts.is_empty() {
            return Err(format!(
                "no peer of connection '{name}' can be redirected: only one that initiated, and said then that it can (RFC 5685)"
            ));
        }
        Ok(parts)
    }

    fn ike_sas_here(&self, connection: &str) -> usize {
        let all = self.engine.status();
        all.iter()
            .filter(|sa| sa.connection.as_deref() == Some(connection))
            .count()
    }
}
