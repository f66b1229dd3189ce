//! What a run knows about a violation: verdicts that moved, packets that the load has lost and how far they came, what the kernel's
//! queues have dropped, and what the members say has happened. One log is to name the cause.

use super::scene::{Lost, Mark, Scene};
use lab::clock::now_ns;
use lab::member::{Member, label, macs, samples};
use lab::queues::Losses;
use lab::sightings::{Numbered, Sighting};
use lab::topology::Lab;
use std::collections::BTreeMap;

/// Verdicts that packets have when all is well, also in a planned move.
const NORMAL: [&str; 13] = [
    "esp_opened",
    "esp_opened_local",
    "esp_sealed",
    "other_cpu",
    "second_hop",
    "not_for_cluster",
    "ike_to_agent",
    "local_traffic",
    "arp_answered",
    "arp_not_owner",
    "no_policy",
    "nat_keepalive",
    "bypassed",
];

/// Lost packets that are shown with their way.
const LOST_SHOWN: usize = 16;
/// Events of one member that are shown, the newest.
const EVENTS_SHOWN: usize = 40;

/// Counters at the beginning of what is judged.
pub struct Before {
    at_ns: u64,
    queues: Option<Losses>,
    members: Vec<BTreeMap<String, u64>>,
}

impl Before {
    /// Reads them now. What is not to be had counts as nothing.
    pub fn of(scene: &Scene) -> Self {
        let lab = &scene.cluster.lab;
        Self {
            at_ns: now_ns(),
            queues: Losses::read(&lab.places()).ok(),
            members: scene.cluster.members.iter().map(counters).collect(),
        }
    }

    /// What has happened since, a line each; `marks`: between which the load's packets were judged.
    pub fn lines(&self, scene: &Scene, marks: Option<(&Mark, &Mark)>) -> Vec<String> {
        let until = now_ns();
        let mut lines = vec![format!(
            "evidence, times in ms since {} ns (CLOCK_MONOTONIC), {:.0} ms in all",
            self.at_ns,
            (until - self.at_ns) as f64 / 1e6
        )];
        if let Some((from, to)) = marks {
            lines.extend(self.lost(scene, &scene.load.lost(from, to)));
        }
        for (member, before) in scene.cluster.members.iter().zip(&self.members) {
            let moved = moved(before, &counters(member));
            lines.push(format!("member {}: {moved}", member.place.letter));
        }
        match (&self.queues, Losses::read(&scene.cluster.lab.places())) {
            (Some(before), Ok(now)) => {
                let lost = now.since(before);
                lines.push(format!("queues of the kernel: {}", joined(&lost, "nothing lost")));
            }
            _ => lines.push("queues of the kernel: not to be had".to_owned()),
        }
        let dropped = scene.trace.as_ref().map(|t| t.between(self.at_ns, until));
        match dropped {
            Some(Ok(dropped)) => lines.extend(dropped.iter().map(|d| format!("kernel: {d}"))),
            Some(Err(error)) => lines.push(format!("kernel: its trace was not read: {error:#}")),
            None => lines.push("kernel: it has no trace points, or they are not for this user".to_owned()),
        }
        for member in &scene.cluster.members {
            lines.extend(self.events(member, until));
        }
        lines
    }

    fn ms(&self, at_ns: u64) -> f64 {
        (at_ns as f64 - self.at_ns as f64) / 1e6
    }

    /// Packets that did not arrive, and where they were seen inside.
    fn lost(&self, scene: &Scene, lost: &[Lost]) -> Vec<String> {
        let names = names(&scene.cluster.lab);
        let packets: Vec<Numbered> = lost.iter().take(LOST_SHOWN).flat_map(|l| l.packets()).collect();
        let seen = scene.cluster.inside.read(|l| l.sightings.of(&packets));
        let mut lines = Vec::new();
        for lost in lost.iter().take(LOST_SHOWN) {
            let of = lost.packets();
            let own = seen.iter().filter(|s| of.contains(&s.packet));
            let own: Vec<String> = own.map(|s| self.sighting(s, &names)).collect();
            let refused = lost.sending.refused.as_ref();
            let refused = refused.map_or(String::new(), |why| {
                format!(", refused by the sender's stack ({why})")
            });
            lines.push(format!(
                "lost: {} number {}, sent at {:.1}{refused}; inside: {}",
                lost.source,
                lost.sending.number,
                self.ms(lost.sending.at_ns),
                joined(&own, "not seen")
            ));
        }
        if lost.len() > LOST_SHOWN {
            lines.push(format!("lost: {} more", lost.len() - LOST_SHOWN));
        }
        lines
    }

    fn sighting(&self, s: &Sighting, names: &BTreeMap<[u8; 6], String>) -> String {
        let what = match s.packet {
            Numbered::Request(..) => "request",
            Numbered::Answer(..) => "answer",
            Numbered::Flow(..) => "packet",
        };
        let name = |mac: &[u8; 6]| names.get(mac).cloned().unwrap_or_else(|| format!("{mac:02x?}"));
        format!(
            "{what} at {:.1} from {} to {}",
            self.ms(s.at_ns),
            name(&s.from),
            name(&s.to)
        )
    }

    fn events(&self, member: &Member, until: u64) -> Vec<String> {
        let letter = member.place.letter;
        let events = match member.events() {
            Ok(events) => events,
            Err(error) => return vec![format!("member {letter}: no events: {error:#}")],
        };
        let own = events
            .iter()
            .filter(|(at, ..)| (self.at_ns..=until).contains(at))
            .map(|(at, kind, text)| format!("member {letter} at {:.1}: {kind}: {text}", self.ms(*at)));
        let mut own: Vec<String> = own.collect();
        own.drain(..own.len().saturating_sub(EVENTS_SHOWN));
        own
    }
}

/// Packets by verdict and connection, frames of the slow path by reason, and datagrams that a member's own stack refused.
fn counters(member: &Member) -> BTreeMap<String, u64> {
    let Ok(text) = member.metrics() else {
        return BTreeMap::new();
    };
    let mut all = BTreeMap::new();
    for (name, labels, value) in samples(&text) {
        let key = match name.as_str() {
            "espalier_packets_total" => {
                let (Some(verdict), Some(connection)) =
                    (label(&labels, "verdict"), label(&labels, "connection"))
                else {
                    continue;
                };
                if NORMAL.contains(&verdict) {
                    continue;
                }
                format!("{verdict} ({connection})")
            }
            "espalier_slow_frames_total" => {
                format!("slow path: {}", label(&labels, "reason").unwrap_or_default())
            }
            "espalier_synch_datagrams_lost_total" => "synch datagrams lost".to_owned(),
            _ => continue,
        };
        *all.entry(key).or_insert(0) += value as u64;
    }
    all
}

/// Counters that are not what they were. A new life of the agent counts from the beginning.
fn moved(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> String {
    let more = now.iter().filter_map(|(name, count)| {
        let was = before.get(name).copied().unwrap_or(0);
        let more = if *count < was { *count } else { count - was };
        (more > 0).then(|| format!("{name} {more}"))
    });
    joined(
        &more.collect::<Vec<_>>(),
        "no counter moved but those of normal packets",
    )
}

fn joined(parts: &[String], nothing: &str) -> String {
    if parts.is_empty() {
        nothing.to_owned()
    } else {
        parts.join("; ")
    }
}

/// Who has which MAC address on the inside network.
fn names(lab: &Lab) -> BTreeMap<[u8; 6], String> {
    let members = macs(lab, "inside").unwrap_or_default();
    let letters = lab.members.iter().map(|m| format!("member {}", m.letter));
    let server = Lab::mac(&lab.server, "eth0")
        .ok()
        .map(|mac| (mac, "server".to_owned()));
    members.into_iter().zip(letters).chain(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_moved_are_named_and_a_new_life_counts_from_nothing() {
        let of = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
        };
        let before = of(&[("not_owner (none)", 4), ("icv_bad (a)", 9)]);
        let now = of(&[("not_owner (none)", 6), ("icv_bad (a)", 2), ("no_sa (b)", 1)]);
        assert_eq!(
            moved(&before, &now),
            "icv_bad (a) 2; no_sa (b) 1; not_owner (none) 2"
        );
        assert_eq!(moved(&now, &now), "no counter moved but those of normal packets");
    }
}
