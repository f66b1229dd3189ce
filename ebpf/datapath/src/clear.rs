//! What arrives in clear on the outside interface and is on its way to the host's stack: a policy that wants it protected drops it
//! here, so that nobody outside can speak as a host behind a peer (RFC 4301 5.2).

use maps_schema::event::SLOW_PATH_ERROR;
use maps_schema::spd::{ACTION_BYPASS, ACTION_DISCARD, ACTION_NONE, RULES_PER_PREFIX};
use maps_schema::verdict::Verdict;

use crate::bytes::{Bounded, PacketRead};
use crate::env::{ACTION_CLEAR, Env, Work};
use crate::esp::inbound;
use crate::headers::{self, IPV6_LEN, PROTOCOL_ESP, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_UDP};
use crate::icmp::{FRAGMENTATION_NEEDED, PACKET_TOO_BIG, V6_LEN};
use crate::limits::volatile;
use crate::nd;
use crate::selectors;

/// The packet is left to the stack with this verdict, unless a policy minds. Ends the packet.
#[inline(always)]
pub fn unless_protected(work: &mut Work, verdict: Verdict) {
    work.end(verdict, ACTION_CLEAR);
}

/// Judges a packet whose header is in `work.ip` and whose verdict is that of a packet without policy. Always ends the packet. A
/// stage of its own: what is opened never comes here.
#[inline(always)]
pub fn judge(env: &impl Env, work: &mut Work) -> bool {
    let passed = work.verdict;
    by_policy(env, work);
    if work.verdict == passed && passed == Verdict::LocalTraffic as u32 && is_path_error(env, work) {
        // The SA may be another member's (RFC 4301 8.2): this one hears the router because the cluster address is here. A frame that
        // came from a member went round already. A few a second are enough, since every large packet brings one about.
        if !env.is_member_mac(work.source_mac)
            && env.acquire_due(0, work.now_ns)
            && env.slow(SLOW_PATH_ERROR, 0, 0, 0).is_ok()
        {
            work.verdict = Verdict::PathError as u32;
        }
    }
    false
}

/// Whether the packet is "fragmentation needed" or Packet Too Big about ESP that a cluster address sent.
#[inline(always)]
fn is_path_error(env: &impl Env, work: &Work) -> bool {
    let front = work.front();
    let at = work.link_len as usize + work.ip.header_len as usize;
    let quote_at = at + V6_LEN;
    let v6 = work.ip.version == 6;
    let (protocol, kind, too_big, source, esp_at) = if v6 {
        let source = (front.u64(quote_at + 8), front.u64(quote_at + 16));
        let (Some(high), Some(low)) = source else {
            return false;
        };
        (
            PROTOCOL_ICMPV6,
            front.u8(quote_at + 6),
            PACKET_TOO_BIG,
            [high, low],
            quote_at + IPV6_LEN,
        )
    } else {
        let (Some(first), Some(source)) = (front.u8(quote_at), front.u32(quote_at + 12)) else {
            return false;
        };
        let esp_at = quote_at + (first & 0xf) as usize * 4;
        (
            PROTOCOL_ICMP,
            front.u8(quote_at + 9),
            FRAGMENTATION_NEEDED,
            headers::v4(source),
            esp_at,
        )
    };
    if work.ip.protocol != protocol || work.ip.is_fragment() || front.u16(at) != Some(too_big) {
        return false;
    }
    let sealed = match kind {
        Some(PROTOCOL_ESP) => true,
        Some(PROTOCOL_UDP) => match (front.u16(esp_at), env.local()) {
            (Some(port), Some(local)) => port == local.nat_t_port,
            _ => false,
        },
        _ => false,
    };
    sealed && env.address(headers::octets(source)).is_some()
}

/// What the policies say of a packet in clear. Always ends the packet.
///
/// The SPD is looked up by the source, since its rules are written from our side: the remote address is the destination there.
#[inline(always)]
fn by_policy(env: &impl Env, work: &mut Work) -> bool {
    let passed = work.verdict;
    work.pass(Verdict::NotForCluster);
    work.verdict = passed;
    let policy = match env.policy(work.ip.source) {
        Ok(Some(policy)) => policy,
        Ok(None) => return false,
        Err(_) => return work.drop(Verdict::Contended),
    };
    let Some(local) = env.local() else {
        return false;
    };
    let at = work.link_len as usize;
    if work.ip.version == 6 {
        // What concerns this link only is never protected, as on the way out.
        if headers::is_of_link(work.ip.source)
            || headers::is_of_link(work.ip.destination)
            || nd::is_discovery(work)
        {
            return false;
        }
        let front = Bounded {
            octets: &work.head,
            len: work.head_len as usize,
        };
        // The policy may be about what is behind: nobody hides there.
        if headers::skip_extensions(&front, at, &mut work.ip).is_none() {
            return work.drop(Verdict::InnerExtension);
        }
    }
    if passed == Verdict::OuterFragment as u32 || passed == Verdict::OuterExtension as u32 {
        // Pieces of ESP and IKE, which no policy is about, come together in the stack of a cluster address.
        let ours = match work.ip.protocol {
            PROTOCOL_ESP => true,
            // Only the first piece says what it is a piece of. Without it the others come to nothing.
            PROTOCOL_UDP if work.ip.is_later_fragment() => true,
            PROTOCOL_UDP => match work.front().u16(at + work.ip.header_len as usize + 2) {
                Some(port) => port == local.nat_t_port || port == local.ike_port,
                None => false,
            },
            _ => false,
        };
        if ours {
            return false;
        }
    }
    let seen = inbound::flow(&work.front(), &work.ip, at);
    work.flow = seen;
    work.flow.source = seen.destination;
    work.flow.destination = seen.source;
    work.flow.ports = [seen.ports[1], seen.ports[0]];
    let mut found = (ACTION_NONE, 0);
    let mut i = 0;
    while i < RULES_PER_PREFIX {
        let rule = &policy.entry.rules[i];
        let action = volatile(&rule.action);
        if action == ACTION_NONE {
            break;
        }
        if selectors::rule_matches(rule, &work.flow) {
            found = (action, volatile(&rule.connection));
            break;
        }
        i += 1;
    }
    if !env.policy_holds(&policy) {
        return work.drop(Verdict::Contended);
    }
    let (action, connection) = found;
    if action == ACTION_NONE {
        return false;
    }
    work.connection = connection as u32;
    match action {
        ACTION_BYPASS => work.pass(Verdict::Bypassed),
        ACTION_DISCARD => work.drop(Verdict::Discarded),
        // With an SA or without one at the moment.
        _ => work.drop(Verdict::ClearText),
    }
}
