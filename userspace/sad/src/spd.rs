//! Outbound policy: configured policies and the rules of live SAs, as map entries per destination prefix.
//!
//! The programs look up the longest prefix and take its first matching rule, so the entry of a prefix holds the
//! rules of every prefix around it too. Precedence: longer own prefix, then the longer prefix of the source, then one protocol
//! before all, then fewer destination ports, then fewer source ports, then the order of the configuration, then the SA that carries the
//! policy (the one switched to last first), then the policy itself, which traps. So a configured policy without an SA
//! traps, and never falls through to a wider one or to plain text.

use crate::configure::Pairs;
use crate::handling::Handling;
use crate::lifetime::Lifetimes;
use crate::port::{MapOp, MapPlan};
use crate::prefix::{MAPPED_IPV4, Prefix, number, split};
use crate::siblings::Part;
use crate::store::SaEntry;
use maps_schema::spd::{
    ACTION_BYPASS, ACTION_DISCARD, ACTION_NONE, ACTION_PROTECT, ACTION_PROTECT_PER_CPU, ACTION_TRAP,
    ACTION_TRAP_HOLD, RULES_PER_PREFIX, SpdEntry, SpdKey, SpdRule,
};
use model::TrafficSelector;
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// What a policy wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyAction {
    /// ESP; traps while there is no SA.
    Protect,
    /// In clear.
    Bypass,
    /// Drop.
    Discard,
}

/// A configured policy: one child of one connection; or, without one, what bypasses or is discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Connection's name; empty for a policy that belongs to none.
    pub connection: String,
    /// Child's name, unique within the connection, or the policy's own.
    pub child: String,
    /// Our side.
    pub local: Vec<TrafficSelector>,
    /// The peer's side.
    pub remote: Vec<TrafficSelector>,
    /// What to do with matching packets.
    pub action: PolicyAction,
    /// Lenient anti-replay after a takeover.
    pub lenient: bool,
    /// Lifetimes of its SAs; `None` for the defaults.
    pub lifetimes: Option<Lifetimes>,
    /// How its packets are carried.
    pub handling: Handling,
}

impl Policy {
    /// For messages: the connection's name, or that of a policy which belongs to none.
    pub fn name(&self) -> &str {
        if self.connection.is_empty() {
            &self.child
        } else {
            &self.connection
        }
    }
}

/// Why policies cannot be put into the map.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpdError {
    /// Too many rules meet at one prefix.
    #[error(
        "{rules} rules apply to destination {destination}; the map holds {RULES_PER_PREFIX} per prefix: merge selectors of {connection}"
    )]
    TooManyRules {
        /// Distinct rules that would be needed.
        rules: usize,
        /// The prefix, for a reader.
        destination: String,
        /// The policy or connection whose rule is the last of them.
        connection: String,
    },
    /// No local selector fits a remote one.
    #[error("{connection}/{child}: no local and remote selector agree in address family and protocol")]
    NoSelectors {
        /// Connection's name.
        connection: String,
        /// Child's name.
        child: String,
    },
}

/// Where a rule stands under its prefix. The derived order is the precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// 128 - own prefix length: longer first.
    width: u8,
    /// The same of the shortest prefix around the source.
    source: u8,
    /// All protocols, destination ports, source ports: how many more than one.
    selectors: (bool, u16, u16),
    /// Position in the configuration.
    policy: u32,
    /// Counts down with every switch of an outbound SA; the policy itself has `u64::MAX`.
    recency: u64,
    /// Position among the selector pairs.
    pair: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ranked {
    rank: Rank,
    rule: SpdRule,
}

/// Who put a rule there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Holder {
    Policy(u32),
    Slot(u32),
}

/// Rules to be put: whose, what they do, their selectors.
pub(crate) type Staged<'a> = (Holder, Effect, &'a Pairs);

/// All rules, and what the map holds of them.
#[derive(Default)]
pub(crate) struct Spd {
    /// Rules by their own prefix.
    rules: BTreeMap<Prefix, Vec<(Holder, Ranked)>>,
    /// Prefixes of each holder, for removal.
    held: BTreeMap<Holder, Vec<Prefix>>,
    /// Number of prefixes of each length, so that only lengths in use are looked up.
    lengths: BTreeMap<u8, usize>,
    /// What the map holds.
    published: BTreeMap<Prefix, SpdEntry>,
}

/// What a set of rules does: everything but selectors.
#[derive(Clone, Copy)]
pub(crate) struct Effect {
    pub action: u8,
    pub slot: u32,
    pub connection: u16,
    pub policy: u32,
    pub recency: u64,
}

impl Effect {
    /// A configured policy: protection without an SA is a trap.
    pub(crate) fn of_policy(of: &Policy, connection: u16, policy: u32) -> Self {
        let action = match of.action {
            PolicyAction::Protect if of.handling.hold => ACTION_TRAP_HOLD,
            PolicyAction::Protect => ACTION_TRAP,
            PolicyAction::Bypass => ACTION_BYPASS,
            PolicyAction::Discard => ACTION_DISCARD,
        };
        Self {
            action,
            slot: 0,
            connection,
            policy,
            recency: u64::MAX,
        }
    }

    /// A live outbound SA.
    pub(crate) fn of_sa(entry: &SaEntry, connection: u16, policy: u32) -> Self {
        Self {
            action: if entry.part == Part::Shared {
                ACTION_PROTECT_PER_CPU
            } else {
                ACTION_PROTECT
            },
            slot: entry.slot(),
            connection,
            policy,
            recency: Self::recency(entry.switched),
        }
    }

    /// Switches are counted, so that the last one comes first.
    pub(crate) fn recency(switched: u64) -> u64 {
        u64::MAX - 1 - switched
    }
}

impl Spd {
    /// Puts the rules of `holder` in place of those that it had. On an error nothing has changed.
    pub(crate) fn put(
        &mut self,
        holder: Holder,
        effect: Effect,
        pairs: &[(TrafficSelector, TrafficSelector)],
        name: &str,
    ) -> Result<MapPlan, SpdError> {
        let before = self.take(holder);
        let mut touched: BTreeSet<Prefix> = before.iter().map(|(p, _)| *p).collect();
        self.stage(holder, effect, pairs, &mut touched);
        match self.publish(&touched, name) {
            Ok(plan) => Ok(plan),
            Err(error) => {
                self.take(holder);
                for (prefix, ranked) in before {
                    self.add(holder, prefix, ranked);
                }
                Err(error)
            }
        }
    }

    /// Takes the rules of some holders away and puts others in their place, all at once. On an error nothing has changed.
    pub(crate) fn exchange(
        &mut self,
        out: &[Holder],
        put: &[Staged<'_>],
        name: &str,
    ) -> Result<MapPlan, SpdError> {
        let mut touched = BTreeSet::new();
        let before: Vec<_> = out.iter().map(|holder| (*holder, self.take(*holder))).collect();
        touched.extend(before.iter().flat_map(|(_, rules)| rules.iter().map(|(p, _)| *p)));
        for (holder, effect, pairs) in put {
            self.stage(*holder, *effect, pairs, &mut touched);
        }
        let published = self.publish(&touched, name);
        if published.is_err() {
            for (holder, ..) in put {
                self.take(*holder);
            }
            for (holder, rules) in before {
                for (prefix, ranked) in rules {
                    self.add(holder, prefix, ranked);
                }
            }
        }
        published
    }

    /// Adds the rules of `holder`, which has none, without publishing them: [`Spd::publish`] does so for many holders at once.
    pub(crate) fn stage(
        &mut self,
        holder: Holder,
        effect: Effect,
        pairs: &[(TrafficSelector, TrafficSelector)],
        touched: &mut BTreeSet<Prefix>,
    ) {
        for (at, (local, remote)) in pairs.iter().enumerate() {
            let rule = rule_of(local, remote, effect);
            let ports = |ts: &TrafficSelector| ts.last_port.saturating_sub(ts.first_port);
            for prefix in split(number(remote.first), number(remote.last)) {
                let rank = Rank {
                    width: 128 - prefix.len,
                    source: (128 - (number(local.first) ^ number(local.last)).leading_zeros()) as u8,
                    selectors: (remote.protocol == 0, ports(remote), ports(local)),
                    policy: effect.policy,
                    recency: effect.recency,
                    pair: at as u32,
                };
                self.add(holder, prefix, Ranked { rank, rule });
                touched.insert(prefix);
            }
        }
    }

    /// Takes the rules of `holder` away without publishing that.
    pub(crate) fn unstage(&mut self, holder: Holder, touched: &mut BTreeSet<Prefix>) {
        touched.extend(self.take(holder).iter().map(|(p, _)| *p));
    }

    /// Removes the rules of `holder`. Removal can uncover rules but a prefix that was within bounds may then show
    /// more of them than fit; the surplus is of lower precedence and replaced by a discard, never by plain text.
    pub(crate) fn remove(&mut self, holder: Holder) -> MapPlan {
        let touched: BTreeSet<Prefix> = self.take(holder).iter().map(|(p, _)| *p).collect();
        match self.publish(&touched, "") {
            Ok(plan) => plan,
            Err(_) => self.publish_cut(&touched),
        }
    }

    /// From what the map holds by `before` to what it has to hold by `self`.
    pub(crate) fn difference(&self, before: &Spd) -> MapPlan {
        let mut at = Spd {
            published: before.published.clone(),
            ..Spd::default()
        };
        let gone = before
            .published
            .keys()
            .filter(|p| !self.published.contains_key(p))
            .map(|p| (*p, None));
        let here = self.published.iter().map(|(p, e)| (*p, Some(*e)));
        at.replace(here.chain(gone).collect())
    }

    /// Slots of the SAs that have a rule at exactly this prefix.
    pub(crate) fn slots_at(&self, prefix: Prefix) -> impl Iterator<Item = u32> {
        let rules = self.rules.get(&prefix).into_iter().flatten();
        rules.filter_map(|(holder, _)| match holder {
            Holder::Slot(slot) => Some(*slot),
            Holder::Policy(_) => None,
        })
    }

    /// Number of rules.
    pub(crate) fn len(&self) -> usize {
        self.held.values().map(Vec::len).sum()
    }

    /// Rules of the holders that are wanted, by precedence, each with its own prefix: among rules that match a packet, the first
    /// one decides.
    pub(crate) fn by_precedence(&self, wanted: impl Fn(Holder) -> bool) -> Vec<(Holder, Prefix, SpdRule)> {
        let mut all = Vec::new();
        for (prefix, rules) in &self.rules {
            let of_these = rules.iter().filter(|(holder, _)| wanted(*holder));
            all.extend(of_these.map(|(holder, ranked)| (ranked.rank, *prefix, *holder, ranked.rule)));
        }
        all.sort_by_key(|(rank, prefix, ..)| (*rank, *prefix));
        all.into_iter()
            .map(|(_, prefix, holder, rule)| (holder, prefix, rule))
            .collect()
    }

    /// Every entry.
    pub(crate) fn full_plan(&self) -> MapPlan {
        self.difference(&Spd::default())
    }

    fn add(&mut self, holder: Holder, prefix: Prefix, ranked: Ranked) {
        let rules = self.rules.entry(prefix).or_insert_with(|| {
            *self.lengths.entry(prefix.len).or_default() += 1;
            Vec::new()
        });
        rules.push((holder, ranked));
        self.held.entry(holder).or_default().push(prefix);
    }

    fn take(&mut self, holder: Holder) -> Vec<(Prefix, Ranked)> {
        let mut taken = Vec::new();
        for prefix in self.held.remove(&holder).unwrap_or_default() {
            let Some(rules) = self.rules.get_mut(&prefix) else {
                continue;
            };
            rules.retain(|(h, ranked)| {
                if *h == holder {
                    taken.push((prefix, *ranked));
                }
                *h != holder
            });
            if rules.is_empty() {
                self.rules.remove(&prefix);
                if let Some(count) = self.lengths.get_mut(&prefix.len) {
                    *count -= 1;
                    if *count == 0 {
                        self.lengths.remove(&prefix.len);
                    }
                }
            }
        }
        taken
    }

    /// Every prefix whose entry can change with rules of the `touched` ones: they and all within them. An IPv6
    /// prefix around the mapped IPv4 range brings a guard, so that IPv4 packets never meet IPv6 rules.
    fn affected(&self, touched: &BTreeSet<Prefix>) -> BTreeSet<Prefix> {
        let mut affected = BTreeSet::new();
        for prefix in touched {
            affected.insert(*prefix);
            let range = *prefix..=Prefix {
                first: prefix.last(),
                len: 128,
            };
            affected.extend(
                self.rules
                    .range(range.clone())
                    .map(|(p, _)| *p)
                    .filter(|p| prefix.contains(*p)),
            );
            affected.extend(
                self.published
                    .range(range)
                    .map(|(p, _)| *p)
                    .filter(|p| prefix.contains(*p)),
            );
            if prefix.contains(MAPPED_IPV4) {
                affected.insert(MAPPED_IPV4);
            }
        }
        affected
    }

    /// What the map needs to show the rules of these prefixes.
    pub(crate) fn publish(&mut self, touched: &BTreeSet<Prefix>, name: &str) -> Result<MapPlan, SpdError> {
        let mut wanted = Vec::new();
        for prefix in self.affected(touched) {
            let entry = match self.rules_at(prefix) {
                None => None,
                Some(rules) if rules.len() > RULES_PER_PREFIX => {
                    return Err(SpdError::TooManyRules {
                        rules: rules.len(),
                        destination: describe(prefix),
                        connection: name.to_owned(),
                    });
                }
                Some(rules) => Some(entry_of(&rules)),
            };
            wanted.push((prefix, entry));
        }
        Ok(self.replace(wanted))
    }

    fn publish_cut(&mut self, touched: &BTreeSet<Prefix>) -> MapPlan {
        let mut wanted = Vec::new();
        for prefix in self.affected(touched) {
            let entry = self.rules_at(prefix).map(|mut rules| {
                if rules.len() > RULES_PER_PREFIX {
                    rules.truncate(RULES_PER_PREFIX - 1);
                    rules.push(discard_all());
                }
                entry_of(&rules)
            });
            wanted.push((prefix, entry));
        }
        self.replace(wanted)
    }

    /// Rules at a prefix by precedence, without those that an earlier one hides; `None` where the map needs no entry.
    fn rules_at(&self, prefix: Prefix) -> Option<Vec<SpdRule>> {
        let mut ranked: Vec<Ranked> = Vec::new();
        for len in self.lengths.keys().copied().filter(|len| *len <= prefix.len) {
            let around = prefix.cut(len);
            if around.is_ipv4() == prefix.is_ipv4()
                && let Some(rules) = self.rules.get(&around)
            {
                ranked.extend(rules.iter().map(|(_, r)| *r));
            }
        }
        let guard = prefix == MAPPED_IPV4
            && self
                .rules
                .keys()
                .take_while(|p| p.first <= MAPPED_IPV4.first)
                .any(|p| !p.is_ipv4() && p.contains(prefix));
        if !self.rules.contains_key(&prefix) && !guard {
            return None;
        }
        ranked.sort_by_key(|r| r.rank);
        let mut rules: Vec<SpdRule> = Vec::new();
        for candidate in ranked {
            if !rules.iter().any(|earlier| hides(earlier, &candidate.rule)) {
                rules.push(candidate.rule);
            }
        }
        Some(rules)
    }

    /// Additions go first, widest last: while the plan runs, no destination falls to a wider entry than it will have.
    fn replace(&mut self, wanted: Vec<(Prefix, Option<SpdEntry>)>) -> MapPlan {
        let mut puts = Vec::new();
        let mut deletes = Vec::new();
        for (prefix, entry) in wanted {
            let (prefix_len, key) = (
                u32::from(prefix.len),
                SpdKey {
                    destination: prefix.octets(),
                },
            );
            match entry {
                Some(entry) if self.published.get(&prefix) != Some(&entry) => {
                    self.published.insert(prefix, entry);
                    puts.push((
                        prefix.len,
                        MapOp::PutSpd {
                            prefix_len,
                            key,
                            entry: Box::new(entry),
                        },
                    ));
                }
                None if self.published.remove(&prefix).is_some() => {
                    deletes.push((prefix.len, MapOp::DeleteSpd { prefix_len, key }));
                }
                _ => {}
            }
        }
        puts.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
        deletes.sort_by_key(|(len, _)| *len);
        MapPlan {
            ops: puts.into_iter().chain(deletes).map(|(_, op)| op).collect(),
        }
    }
}

/// Pairs of selectors of one family whose protocols agree (0 agrees with all), in their order. IPv6 ranges that
/// reach over the mapped IPv4 range are cut around it on the remote side: they mean IPv6 only.
pub fn selector_pairs(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> Vec<(TrafficSelector, TrafficSelector)> {
    let mut pairs = Vec::new();
    for r in remote {
        for l in local {
            let agree = l.protocol == 0 || r.protocol == 0 || l.protocol == r.protocol;
            if l.first.is_ipv4() != r.first.is_ipv4() || !agree {
                continue;
            }
            let protocol = l.protocol.max(r.protocol);
            for (first, last) in without_mapped(r) {
                let r = TrafficSelector {
                    first,
                    last,
                    protocol,
                    ..r.clone()
                };
                pairs.push((
                    TrafficSelector {
                        protocol,
                        ..l.clone()
                    },
                    r,
                ));
            }
        }
    }
    pairs
}

fn without_mapped(ts: &TrafficSelector) -> Vec<(std::net::IpAddr, std::net::IpAddr)> {
    use std::net::{IpAddr, Ipv6Addr};
    if ts.first.is_ipv4() {
        return vec![(ts.first, ts.last)];
    }
    let (first, last) = (number(ts.first), number(ts.last));
    let v6 = |n: u128| IpAddr::V6(Ipv6Addr::from(n));
    let mut ranges = Vec::new();
    if first < MAPPED_IPV4.first {
        ranges.push((v6(first), v6(last.min(MAPPED_IPV4.first - 1))));
    }
    if last > MAPPED_IPV4.last() {
        ranges.push((v6(first.max(MAPPED_IPV4.last() + 1)), v6(last)));
    }
    ranges
}

fn rule_of(local: &TrafficSelector, remote: &TrafficSelector, effect: Effect) -> SpdRule {
    SpdRule {
        source_first: model::address::mapped(local.first),
        source_last: model::address::mapped(local.last),
        source_ports: [local.first_port, local.last_port],
        destination_ports: [remote.first_port, remote.last_port],
        slot: effect.slot,
        connection: effect.connection,
        protocol: remote.protocol,
        action: effect.action,
    }
}

fn discard_all() -> SpdRule {
    SpdRule {
        source_first: [0; 16],
        source_last: [0xff; 16],
        source_ports: [0, u16::MAX],
        destination_ports: [0, u16::MAX],
        slot: 0,
        connection: 0,
        protocol: 0,
        action: ACTION_DISCARD,
    }
}

/// Whether nothing that `later` matches gets past `earlier`.
fn hides(earlier: &SpdRule, later: &SpdRule) -> bool {
    let within = |outer: [u16; 2], inner: [u16; 2]| outer[0] <= inner[0] && outer[1] >= inner[1];
    earlier.source_first <= later.source_first
        && earlier.source_last >= later.source_last
        && within(earlier.source_ports, later.source_ports)
        && within(earlier.destination_ports, later.destination_ports)
        && (earlier.protocol == 0 || earlier.protocol == later.protocol)
}

fn entry_of(rules: &[SpdRule]) -> SpdEntry {
    let mut entry = SpdEntry::default();
    for (to, from) in entry.rules.iter_mut().zip(rules) {
        *to = *from;
    }
    debug_assert!(rules.len() >= RULES_PER_PREFIX || entry.rules[rules.len()].action == ACTION_NONE);
    entry
}

pub(crate) fn describe(prefix: Prefix) -> String {
    let address = model::address::unmapped(prefix.octets());
    let len = if prefix.is_ipv4() {
        prefix.len - 96
    } else {
        prefix.len
    };
    format!("{address}/{len}")
}
