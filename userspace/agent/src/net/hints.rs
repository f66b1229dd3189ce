//! What happens to this host's network, as hints for the detection of failures: interfaces, cluster addresses, routes.
//!
//! A hint only: loss of carrier never triggers a takeover by itself. Events are told when something *changes*, and at the
//! start for what is not as it ought to be, so a kernel that repeats itself causes none.

use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::{mpsc, watch};

use super::picture::{Facts, Picture};
pub use super::picture::{NetEvent, Watch};

/// Events that may wait. A reader that is slower misses what was undone meanwhile, never the last word on anything.
const QUEUE: usize = 64;

/// Asks the kernel for everything.
async fn take(handle: &Handle) -> Result<Picture> {
    let mut picture = Picture::default();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
        picture.link(&link, true);
    }
    let mut addresses = handle.address().get().execute();
    while let Some(address) = addresses.try_next().await.context("cannot list addresses")? {
        picture.address(&address, true);
    }
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for query in [v4, v6] {
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await.context("cannot list routes")? {
            picture.route(&route, true);
        }
    }
    Ok(picture)
}

/// Watches the network of this process' namespace. The stream ends when the receiver is dropped (at the next event) or
/// the netlink socket is lost.
///
/// # Errors
/// No netlink socket, or the kernel does not answer.
pub async fn watch(what: Watch) -> Result<mpsc::Receiver<NetEvent>> {
    let (_, never) = watch::channel(Vec::new());
    watch_changing(what, never).await
}

/// [`watch`], with destinations that change.
///
/// # Errors
/// As for [`watch`].
pub async fn watch_changing(
    what: Watch,
    destinations: watch::Receiver<Vec<IpAddr>>,
) -> Result<mpsc::Receiver<NetEvent>> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    let driver = tokio::spawn(connection);
    // Subscribed before asked: what happens in between is heard, and what is told twice changes nothing.
    let picture = take(&handle).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        follow((what, destinations), picture, &handle, messages, &sender).await;
        driver.abort();
    });
    Ok(receiver)
}

async fn follow<S>(
    (mut what, mut destinations): (Watch, watch::Receiver<Vec<IpAddr>>),
    mut picture: Picture,
    handle: &Handle,
    messages: S,
    sender: &mpsc::Sender<NetEvent>,
) where
    S: Stream<
            Item = (
                rtnetlink::packet_core::NetlinkMessage<RouteNetlinkMessage>,
                rtnetlink::sys::SocketAddr,
            ),
        > + Unpin,
{
    use rtnetlink::packet_core::NetlinkPayload;
    let mut messages = messages;
    let mut told = Facts::as_it_ought_to_be(&what);
    let mut facts = picture.facts(&what);
    let mut anew = false;
    let mut settled = false;
    loop {
        let event = if anew {
            Some(NetEvent::Resynchronised)
        } else {
            facts.since(&told).into_iter().next()
        };
        let message = tokio::select! {
            biased;
            () = sender.closed() => return,
            permit = sender.reserve(), if event.is_some() => {
                let (Ok(permit), Some(event)) = (permit, event) else { return };
                told.note(&event);
                anew &= event != NetEvent::Resynchronised;
                permit.send(event);
                continue;
            }
            changed = destinations.changed(), if !settled => {
                // Whoever could change them may be gone.
                settled = changed.is_err();
                if !settled {
                    what.destinations.clone_from(&destinations.borrow_and_update());
                    told.destinations(&what);
                    facts = picture.facts(&what);
                }
                continue;
            }
            message = messages.next() => message,
        };
        match message.map(|(message, _)| message.payload) {
            None => return,
            Some(NetlinkPayload::InnerMessage(message)) => picture.message(&message),
            Some(NetlinkPayload::Overrun(_)) => match take(handle).await {
                Ok(whole) => {
                    picture = whole;
                    anew = true;
                }
                Err(error) => {
                    tracing::warn!("the network is no longer watched: {error:#}");
                    return;
                }
            },
            Some(_) => {}
        }
        facts = picture.facts(&what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    /// `ip ...` in the namespace of this thread.
    fn ip(line: &str) {
        let status = Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(status.success(), "ip {line}");
    }

    async fn next(events: &mut mpsc::Receiver<NetEvent>) -> NetEvent {
        tokio::time::timeout(Duration::from_secs(10), events.recv())
            .await
            .expect("an event in time")
            .expect("open")
    }

    /// Waits for an event among others that belong to the same change.
    async fn all(events: &mut mpsc::Receiver<NetEvent>, mut wanted: Vec<NetEvent>) {
        while !wanted.is_empty() {
            let event = next(events).await;
            let at = wanted.iter().position(|w| *w == event);
            wanted.remove(at.unwrap_or_else(|| panic!("{event:?} among {wanted:?}")));
        }
    }

    #[test]
    fn interfaces_addresses_and_routes_of_a_namespace_are_watched() {
        // A namespace of this thread alone; children inherit it. It ends with the thread.
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            panic!("this test needs root for a network namespace: {error}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            ip("link set lo up");
            ip("link add esp-a type veth peer name esp-b");
            ip("address add 192.0.2.1/24 dev esp-a");
            ip("link set esp-a up");
            let cluster: IpAddr = "203.0.113.7".parse().unwrap();
            let peer: IpAddr = "198.51.100.9".parse().unwrap();
            ip("address add 203.0.113.7/32 dev lo");
            let mut events = watch(Watch {
                interfaces: vec!["esp-a".to_owned(), "esp-none".to_owned()],
                addresses: vec![cluster],
                destinations: vec![peer],
            })
            .await
            .unwrap();
            let name = || "esp-a".to_owned();
            // What is missing at the start.
            all(
                &mut events,
                vec![
                    NetEvent::LinkDown(name()),
                    NetEvent::LinkDown("esp-none".to_owned()),
                    NetEvent::RouteRemoved(peer),
                ],
            )
            .await;

            // The other end brings the carrier.
            ip("link set esp-b up");
            all(&mut events, vec![NetEvent::LinkUp(name())]).await;
            ip("route add default via 192.0.2.254 dev esp-a");
            assert_eq!(next(&mut events).await, NetEvent::RouteAdded(peer));
            // A second, better one, and its end: the first one covers the peer still.
            ip("route add 198.51.100.0/24 via 192.0.2.253 dev esp-a");
            ip("route del 198.51.100.0/24 via 192.0.2.253 dev esp-a");
            ip("route del default");
            assert_eq!(next(&mut events).await, NetEvent::RouteRemoved(peer));
            ip("route add 198.51.100.0/24 via 192.0.2.253 dev esp-a");
            assert_eq!(next(&mut events).await, NetEvent::RouteAdded(peer));

            ip("address del 203.0.113.7/32 dev lo");
            assert_eq!(next(&mut events).await, NetEvent::AddressRemoved(cluster));
            ip("address add 203.0.113.7/32 dev lo");
            assert_eq!(next(&mut events).await, NetEvent::AddressAdded(cluster));

            // Carrier alone: the kernel keeps the route, but it leads nowhere.
            ip("link set esp-b down");
            all(
                &mut events,
                vec![NetEvent::LinkDown(name()), NetEvent::RouteRemoved(peer)],
            )
            .await;
            ip("link set esp-b up");
            all(
                &mut events,
                vec![NetEvent::LinkUp(name()), NetEvent::RouteAdded(peer)],
            )
            .await;
            // Switched off and on: the kernel has forgotten the route.
            ip("link set esp-a down");
            all(
                &mut events,
                vec![NetEvent::LinkDown(name()), NetEvent::RouteRemoved(peer)],
            )
            .await;
            ip("link set esp-a up");
            assert_eq!(next(&mut events).await, NetEvent::LinkUp(name()));
            ip("link del esp-a");
            assert_eq!(next(&mut events).await, NetEvent::LinkDown(name()));
        });
    }
}
