//! `[cluster]` and `[[cluster.members]]`.

use std::net::SocketAddr;

use model::MemberId;

use super::check::{self, Files};
use super::read::{Context, MS, SECOND};
use super::reader::Reader;
use super::{ClusterConfig, MemberConfig, Solo};

impl Context<'_> {
    pub(super) fn cluster(&self, mut t: Reader<'_>) -> Option<ClusterConfig> {
        let name = t.required_string("name", "a name, for example name = \"lab\"");
        if let Some(name) = &name
            && (name.value.is_empty()
                || !name
                    .value
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'))
        {
            self.problems.add(
                name.span.clone(),
                format!("the cluster's name '{}' cannot be part of a path", name.value),
                "use letters, digits, '-' and '_'",
            );
        }
        let member = t.integer("member", 1..=16);
        if !t.has("member") {
            t.missing("member", "the id of this host, for example member = 1");
        }
        let solo = t
            .word("solo", &[("continue", Solo::Continue), ("stop", Solo::Stop)])
            .unwrap_or(Solo::Continue);
        let heartbeat = t.duration("heartbeat", MS(1)..SECOND * 10).unwrap_or(MS(20));
        let floor = t
            .duration("suspicion_floor", MS(5)..SECOND * 60)
            .unwrap_or(MS(100));
        let dead_man = t.duration("dead_man", MS(5)..SECOND * 60).unwrap_or(MS(80));
        if floor < heartbeat * 2 {
            self.problems.add(
                t.span(),
                format!("suspicion_floor {floor:?} is less than two heartbeats of {heartbeat:?}"),
                "raise suspicion_floor or lower heartbeat",
            );
        }
        if dead_man < heartbeat * 2 {
            self.problems.add(
                t.span(),
                format!("dead_man {dead_man:?} is less than two heartbeats of {heartbeat:?}"),
                "raise dead_man or lower heartbeat",
            );
        }
        let preferred = t.integer("preferred", 1..=16);
        let pki = t.required_string("pki", "the folder that 'espalier cluster init' made");
        let tables = t.tables("members", "cluster.members");
        if tables.is_empty() {
            t.missing("members", "one [[cluster.members]] for every member");
        }
        let mut ids = Vec::new();
        let mut names = Vec::new();
        let mut endpoints = Vec::new();
        let mut members = Vec::new();
        for mut m in tables {
            let id = m.integer("id", 1..=16);
            if !m.has("id") {
                m.missing("id", "a number from 1 to 16");
            }
            let name = m.required_string("name", "a name for logs");
            let synch = m.parsed::<SocketAddr>("synch", "address and port, for example \"10.9.0.1:4700\"");
            if !m.has("synch") {
                m.missing("synch", "the address and port of its synch link");
            }
            let outside = m.parsed::<SocketAddr>("outside", "address and port on the outside network");
            for endpoint in [&synch, &outside].into_iter().flatten() {
                if endpoint.value.port() == 0 || endpoint.value.ip().is_unspecified() {
                    self.problems.add(
                        endpoint.span.clone(),
                        format!("{} is no address that others can reach", endpoint.value),
                        "give the member's own address and a port",
                    );
                }
                endpoints.push(endpoint.clone());
            }
            if let (Some(id), Some(name), Some(synch)) = (&id, &name, &synch) {
                members.push(MemberConfig {
                    id: MemberId(id.value as u8),
                    name: name.value.clone(),
                    synch: synch.value,
                    outside: outside.as_ref().map(|o| o.value),
                });
            }
            ids.extend(id);
            names.extend(name);
            m.finish();
        }
        check::unique(&self.problems, "member id", &ids);
        check::unique(&self.problems, "member name", &names);
        check::unique(&self.problems, "the address", &endpoints);
        if ids.len() > 2 {
            self.problems.add(
                ids[2].span.clone(),
                "the pair engine knows two members",
                "remove the others (a third member needs an external ownership engine)",
            );
        }
        for (what, wanted) in [("member", &member), ("preferred", &preferred)] {
            if let Some(wanted) = wanted
                && !ids.is_empty()
                && ids.iter().all(|id| id.value != wanted.value)
            {
                self.problems.add(
                    wanted.span.clone(),
                    format!("{what} {} is not among [[cluster.members]]", wanted.value),
                    "add the member, or name one of them",
                );
            }
        }
        if let (Some(pki), Some(member), Files::Check) = (&pki, &member, self.files) {
            let dir = self.path(&pki.value);
            let init = "run: espalier cluster init, and copy this member's files here";
            check::plain_file(&self.problems, &pki.span, &dir.join("ca.crt"), "cluster CA", init);
            let cert = dir.join(format!("member-{}.crt", member.value));
            check::plain_file(&self.problems, &pki.span, &cert, "member certificate", init);
            let key = dir.join(format!("member-{}.key", member.value));
            check::secret_file(&self.problems, &pki.span, &key, "member key");
            check::secret_file(
                &self.problems,
                &pki.span,
                &dir.join("cluster.secret"),
                "cluster secret",
            );
        }
        members.sort_by_key(|m| m.id);
        let lowest = members.first().map(|m| m.id);
        t.finish();
        Some(ClusterConfig {
            name: name?.value,
            member: MemberId(member?.value as u8),
            solo,
            heartbeat,
            suspicion_floor: floor,
            dead_man,
            preferred: preferred.map(|p| MemberId(p.value as u8)).or(lowest)?,
            pki: self.path(&pki?.value),
            members,
        })
    }
}
