//! `[cluster]` and `[[cluster.members]]`.

use std::net::SocketAddr;
use std::time::Duration;

use cluster::message::{OLDEST, VERSION};
use model::MemberId;

use super::check::{self, Files};
use super::read::{Context, MS, SECOND};
use super::reader::Reader;
use super::{ClusterConfig, ClusterMode, Engine, EtcdConfig, EtcdTls, MemberConfig, Solo};

/// Groups of segments in load sharing, where none are given.
const GROUPS: u8 = 16;

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
        let mode = t
            .word(
                "mode",
                &[
                    ("hot-standby", ClusterMode::HotStandby),
                    ("load-sharing", ClusterMode::LoadSharing),
                ],
            )
            .unwrap_or(ClusterMode::HotStandby);
        let engine = t
            .word("engine", &[("pair", Engine::Pair), ("etcd", Engine::Etcd)])
            .unwrap_or(Engine::Pair);
        let groups = self.groups(&mut t, mode);
        let rebalance = Self::rebalance(&mut t);
        let etcd = self.ownership_engine(&mut t, engine);
        let preferred = t.integer("preferred", 1..=16);
        let record_format = t.integer("record_format", u64::from(OLDEST)..=u64::from(VERSION));
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
            let name = m.name("a name for logs");
            let synch = m.parsed::<SocketAddr>("synch", "address and port, for example \"10.9.0.1:4700\"");
            if !m.has("synch") {
                m.missing("synch", "the address and port of its synch link");
            }
            let outside = m.parsed::<SocketAddr>("outside", "address and port on the outside network");
            let weight = m.integer("weight", 0..=1000);
            if let Some(weight) = weight.as_ref().filter(|_| mode == ClusterMode::HotStandby) {
                self.problems.add(
                    weight.span.clone(),
                    "'weight' is a share in load sharing",
                    "remove it (preferred = N names the member that is to be active), or set mode = \"load-sharing\"",
                );
            }
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
                    weight: weight.map_or(1, |w| w.value as u32),
                });
            }
            ids.extend(id);
            names.extend(name);
            m.finish();
        }
        check::unique(&self.problems, "member id", &ids);
        check::unique(&self.problems, "member name", &names);
        check::unique(&self.problems, "the address", &endpoints);
        if ids.len() > 2 && engine == Engine::Pair {
            self.problems.add(
                ids[2].span.clone(),
                "the pair engine knows two members",
                "set engine = \"etcd\" and add [cluster.etcd], or remove the others",
            );
        }
        if mode == ClusterMode::LoadSharing && !members.is_empty() && members.iter().all(|m| m.weight == 0) {
            self.problems.add(
                t.span(),
                "every member has weight 0: nobody is to own anything",
                "give at least one of [[cluster.members]] a weight of 1 or more",
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
            // While it is being replaced.
            for (name, what) in [
                ("cluster-next.secret", "next cluster secret"),
                ("cluster-old.secret", "cluster secret before"),
            ] {
                let path = dir.join(name);
                if path.exists() {
                    check::secret_file(&self.problems, &pki.span, &path, what);
                }
            }
        }
        members.sort_by_key(|m| m.id);
        let lowest = members.first().map(|m| m.id);
        t.finish();
        Some(ClusterConfig {
            name: name?.value,
            member: MemberId(member?.value as u8),
            mode,
            engine,
            groups,
            rebalance,
            etcd,
            solo,
            heartbeat,
            suspicion_floor: floor,
            dead_man,
            record_format: record_format.map_or(VERSION, |format| format.value as u8),
            preferred: preferred.map(|p| MemberId(p.value as u8)).or(lowest)?,
            pki: self.path(&pki?.value),
            members,
        })
    }

    fn groups(&self, t: &mut Reader<'_>, mode: ClusterMode) -> u8 {
        let groups = t.integer("groups", 2..=u64::from(cluster::layout::GROUPS_MAX));
        match (mode, groups) {
            (ClusterMode::LoadSharing, groups) => groups.map_or(GROUPS, |g| g.value as u8),
            (ClusterMode::HotStandby, None) => 1,
            (ClusterMode::HotStandby, Some(groups)) => {
                self.problems.add(
                    groups.span,
                    "in a hot-standby cluster all segments are one group",
                    "remove 'groups', or set mode = \"load-sharing\"",
                );
                1
            }
        }
    }

    fn rebalance(t: &mut Reader<'_>) -> Option<Duration> {
        if t.is_text("rebalance", "manual") {
            return None;
        }
        t.duration("rebalance", SECOND..SECOND * 86_400)
    }

    fn ownership_engine(&self, t: &mut Reader<'_>, engine: Engine) -> Option<EtcdConfig> {
        let span = t.span();
        let table = t.table("etcd", "cluster.etcd");
        match (engine, table) {
            (Engine::Pair, None) => None,
            (Engine::Pair, Some(table)) => {
                self.problems.add(
                    table.span(),
                    "[cluster.etcd] is there, but the ownership engine is the pair",
                    "set engine = \"etcd\" in [cluster], or remove the section",
                );
                None
            }
            (Engine::Etcd, None) => {
                self.problems.add(
                    span,
                    "engine = \"etcd\" needs a section [cluster.etcd]",
                    "add it, with endpoints = [\"https://10.9.0.11:2379\"]",
                );
                None
            }
            (Engine::Etcd, Some(table)) => self.etcd(table),
        }
    }

    fn etcd(&self, mut t: Reader<'_>) -> Option<EtcdConfig> {
        let endpoints = t.strings("endpoints");
        if endpoints.as_ref().is_none_or(|list| list.value.is_empty()) {
            t.missing(
                "endpoints",
                "the URLs of the etcd servers, for example [\"https://10.9.0.11:2379\"]",
            );
        }
        let endpoints = endpoints.map(|list| list.value).unwrap_or_default();
        let mut secure = false;
        for endpoint in &endpoints {
            let rest = match endpoint.value.split_once("://") {
                Some(("https", rest)) => {
                    secure = true;
                    Some(rest)
                }
                Some(("http", rest)) => Some(rest),
                _ => None,
            };
            let authority = rest.and_then(|rest| rest.rsplit_once(':'));
            let good = authority.is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
            });
            if !good {
                self.problems.add(
                    endpoint.span.clone(),
                    format!("'{}' is no URL of an etcd server", endpoint.value),
                    "write for example \"https://10.9.0.11:2379\", with the port and without a path",
                );
            }
        }
        check::unique(&self.problems, "the endpoint", &endpoints);
        let (ca, cert, key) = (t.string("ca"), t.string("cert"), t.string("key"));
        let given = [&ca, &cert, &key].into_iter().flatten().count();
        if given != 0 && given != 3 || secure && given == 0 {
            self.problems.add(
                t.span(),
                match given {
                    0 => "https needs certificates".to_owned(),
                    _ => format!("{given} of 'ca', 'cert' and 'key' are given"),
                },
                "give all three: the CA of the etcd servers, this member's certificate and its key",
            );
        }
        if let Some(ca) = ca.as_ref().filter(|_| !secure && !endpoints.is_empty()) {
            self.problems.add(
                ca.span.clone(),
                "certificates are given, but no endpoint is https",
                "write https:// in the endpoints, or remove 'ca', 'cert' and 'key'",
            );
        }
        if self.files == Files::Check {
            for (file, what) in [(&ca, "etcd CA"), (&cert, "etcd certificate")] {
                if let Some(file) = file {
                    let path = self.path(&file.value);
                    check::plain_file(&self.problems, &file.span, &path, what, "copy it here");
                }
            }
            if let Some(key) = &key {
                check::secret_file(&self.problems, &key.span, &self.path(&key.value), "etcd key");
            }
        }
        let prefix = t.string("prefix");
        if let Some(prefix) = &prefix
            && (!prefix.value.starts_with('/') || prefix.value.ends_with('/'))
        {
            self.problems.add(
                prefix.span.clone(),
                format!("'prefix' in [cluster.etcd] is '{}'", prefix.value),
                "begin it with '/' and do not end it with one, for example \"/espalier\"",
            );
        }
        let timeout = t.duration("timeout", MS(50)..SECOND * 10).unwrap_or(MS(500));
        t.finish();
        let path = |file: &super::reader::At<String>| self.path(&file.value);
        let tls = match (&ca, &cert, &key) {
            (Some(ca), Some(cert), Some(key)) => Some(EtcdTls {
                ca: path(ca),
                cert: path(cert),
                key: path(key),
            }),
            _ => None,
        };
        Some(EtcdConfig {
            endpoints: endpoints.into_iter().map(|endpoint| endpoint.value).collect(),
            tls,
            prefix: prefix.map_or_else(|| "/espalier".to_owned(), |p| p.value),
            timeout,
        })
    }
}
