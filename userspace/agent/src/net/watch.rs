//! Watches the interfaces: the kernel tells at once when one goes down, loses its carrier, or is removed.

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup};
use std::time::Duration;
use tokio::sync::mpsc;

/// The kernel drops what it cannot queue: the state is asked for this often as well.
const ASK: Duration = Duration::from_secs(1);

/// How an interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkNews {
    /// Kernel index.
    pub index: u32,
    /// Why it does not work; `None`: it does.
    pub trouble: Option<&'static str>,
}

fn trouble(flags: LinkFlags) -> Option<&'static str> {
    if !flags.contains(LinkFlags::Up) {
        Some("is down")
    } else if !flags.contains(LinkFlags::LowerUp) {
        Some("has no carrier")
    } else {
        None
    }
}

fn news(link: &LinkMessage) -> LinkNews {
    LinkNews {
        index: link.header.index,
        trouble: trouble(link.header.flags),
    }
}

async fn ask(handle: &Handle, index: u32) -> LinkNews {
    let found = handle.link().get().match_index(index).execute().try_next().await;
    match found {
        Ok(Some(link)) => news(&link),
        _ => LinkNews {
            index,
            trouble: Some("is gone"),
        },
    }
}

/// Watches interfaces in a task of its own, for as long as somebody listens. What there is at the start is told as well.
///
/// # Errors
/// No netlink socket.
pub fn start(interfaces: Vec<u32>, told: mpsc::Sender<LinkNews>) -> Result<()> {
    let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .context("cannot watch the interfaces")?;
    tokio::spawn(connection);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(ASK);
        let mut known: Vec<LinkNews> = Vec::new();
        loop {
            let found = tokio::select! {
                message = messages.next() => {
                    let Some((message, _)) = message else { return };
                    match message.payload {
                        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => vec![news(&link)],
                        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => vec![LinkNews {
                            index: link.header.index,
                            trouble: Some("is gone"),
                        }],
                        _ => Vec::new(),
                    }
                }
                _ = tick.tick() => {
                    let mut all = Vec::new();
                    for index in &interfaces {
                        all.push(ask(&handle, *index).await);
                    }
                    all
                }
            };
            for news in found.into_iter().filter(|news| interfaces.contains(&news.index)) {
                if known.contains(&news) {
                    continue;
                }
                known.retain(|old| old.index != news.index);
                known.push(news);
                if told.send(news).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_works_only_with_carrier() {
        assert_eq!(trouble(LinkFlags::empty()), Some("is down"));
        assert_eq!(trouble(LinkFlags::LowerUp), Some("is down"));
        assert_eq!(trouble(LinkFlags::Up), Some("has no carrier"));
        assert_eq!(trouble(LinkFlags::Up | LinkFlags::LowerUp), None);
    }
}
