//! Connections are brought up and taken down on command.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ike::Command;
use tokio::sync::oneshot;

use super::Core;
use super::around::segment_of_name;
use super::orders::{Goal, Part};
use crate::api::ConnectionRequest;
use crate::control::Outcome;

impl Core {
    /// `espalier connection start` and `stop`.
    pub(super) fn connection_wish(&mut self, wish: &ConnectionRequest, answer: oneshot::Sender<Outcome>) {
        match self.connection_parts(wish) {
            Ok((part, command)) => {
                let name = &wish.connection;
                if wish.start {
                    self.stopped.remove(name);
                    self.redial.remove(name);
                    self.wanted.remove(name);
                } else {
                    self.stopped.insert(name.clone());
                }
                let done = format!("connection {name} is {}", if wish.start { "up" } else { "down" });
                self.order(vec![(part, command)], done, answer);
            }
            Err(why) => drop(answer.send(Err(why))),
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
        let remote = config
            .remotes
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

    fn ike_sas_here(&self, connection: &str) -> usize {
        let all = self.engine.status();
        all.iter()
            .filter(|sa| sa.connection.as_deref() == Some(connection))
            .count()
    }
}
