//! Addresses and name servers for a peer that asks for them in IKE_AUTH (RFC 7296 2.19, 3.15, RFC 8598).

use crate::config::Connection;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::outbox::Context;
use crate::pool::{Pool, PoolShare};
use ike_wire::{
    ConfigAttribute, ConfigAttributeType, ConfigType, Configuration, NotifyType, Payload, PayloadList,
};
use model::TrafficSelector;
use std::net::IpAddr;

/// What comes of the peer's wish.
pub(crate) enum Outcome {
    /// The connection has no pools.
    NotConcerned,
    /// CFG_REPLY.
    Given(Payload),
    /// A notification takes the place of the Child SA.
    Refused(NotifyType),
}

/// Addresses for the IKE SA; it remembers them.
pub(crate) fn answer(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    connection: &Connection,
    payloads: &PayloadList,
    share: PoolShare,
) -> Outcome {
    if connection.pools.is_empty() {
        return Outcome::NotConcerned;
    }
    let request = payloads
        .configuration()
        .filter(|cp| cp.kind == ConfigType::CFG_REQUEST);
    // RFC 7296 2.19: a responder that expects CP(CFG_REQUEST) answers its absence with FAILED_CP_REQUIRED.
    let Some(request) = request else {
        let text = "the peer asks for no virtual address, but the connection has pools: set vips = 0.0.0.0 (strongSwan) on the \
                    peer, or remove pools";
        ctx.event(sa, EventKind::ChildFailed, text);
        return Outcome::Refused(NotifyType::FAILED_CP_REQUIRED);
    };
    let mut given = Vec::new();
    let mut asked = 0;
    for kind in [
        ConfigAttributeType::INTERNAL_IP4_ADDRESS,
        ConfigAttributeType::INTERNAL_IP6_ADDRESS,
    ] {
        let Some(wish) = request.of(kind).next() else {
            continue;
        };
        asked += 1;
        let v4 = kind == ConfigAttributeType::INTERNAL_IP4_ADDRESS;
        let pools = connection.pools.iter().filter(|pool| pool.first.is_ipv4() == v4);
        given.extend(lease(sa, ctx, pools, share, wish.as_address()));
    }
    // RFC 7296 3.15.4: INTERNAL_ADDRESS_FAILURE; the IKE SA is created all the same, the Child SA is not.
    if given.is_empty() {
        let pools: Vec<_> = connection.pools.iter().map(|pool| pool.name.as_str()).collect();
        let text = match asked {
            0 => "the peer asks for a configuration without an address".to_owned(),
            _ => format!(
                "no address is free for the peer in {}: enlarge the network of the pool, or add one of the family that it \
                 asks for",
                pools.join(", ")
            ),
        };
        ctx.event(sa, EventKind::AddressFailure, text);
        return Outcome::Refused(NotifyType::INTERNAL_ADDRESS_FAILURE);
    }
    let shown: Vec<_> = given.iter().map(IpAddr::to_string).collect();
    let id = sa.remote_id.as_ref().map(ToString::to_string).unwrap_or_default();
    ctx.event(
        sa,
        EventKind::AddressGiven,
        format!("{} for {id}", shown.join(" and ")),
    );
    let mut attributes: Vec<_> = given.iter().copied().map(ConfigAttribute::address).collect();
    attributes.extend(connection.dns.iter().copied().map(ConfigAttribute::dns));
    // RFC 8598 3.1, 3.2: domains go to a peer that asked for them, and only together with name servers.
    if request
        .of(ConfigAttributeType::INTERNAL_DNS_DOMAIN)
        .next()
        .is_some()
        && !connection.dns.is_empty()
    {
        let domain = |name: &String| {
            ConfigAttribute::new(ConfigAttributeType::INTERNAL_DNS_DOMAIN, name.as_bytes().to_vec())
        };
        attributes.extend(connection.dns_domains.iter().map(domain));
    }
    sa.more.virtual_addresses = given.into();
    sa.dirty = true;
    Outcome::Given(Payload::Configuration(Configuration::new(
        ConfigType::CFG_REPLY,
        attributes,
    )))
}

fn lease<'p>(
    sa: &IkeSa,
    ctx: &Context<'_>,
    mut pools: impl Iterator<Item = &'p Pool>,
    share: PoolShare,
    wanted: Option<IpAddr>,
) -> Option<IpAddr> {
    let id = sa.remote_id.as_ref()?;
    // A peer that authenticates anew has its address already, in the IKE SA that it will delete: it asks for that one, or its messages
    // come from where they came from before. Another device with the same identity gets another address.
    let is_its_own = |holder: &IkeSa, address: IpAddr| {
        holder.connection == sa.connection
            && holder.remote_id == sa.remote_id
            && (wanted == Some(address) || holder.path.remote == sa.path.remote)
    };
    let free = |address| {
        ctx.table
            .holders(address)
            .all(|holder| is_its_own(holder, address))
    };
    pools.find_map(|pool| pool.choose(share, id, wanted, free))
}

/// What of the peer's side an IKE SA may have in a Child SA; `None`: whatever the child says.
pub(crate) fn selectors(sa: &IkeSa, connection: &Connection) -> Option<Vec<TrafficSelector>> {
    let one = |address: &IpAddr| TrafficSelector {
        first: *address,
        last: *address,
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    };
    (!connection.pools.is_empty()).then(|| sa.more.virtual_addresses.iter().map(one).collect())
}
