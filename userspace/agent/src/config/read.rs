//! From the text to a [`Config`].

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ike::proposal::{ProposalError, default_ike};
use ike::{Proposal, Retransmit};
use toml::de::DeTable;

use super::check::{self, Files, Policy};
use super::read_child::ChildOf;
use super::read_policy::Path as PathRules;
use super::reader::{At, Problem, Problems, Reader};
use super::{
    AddressConfig, AttachMode, ClusterConfig, Config, ConnectionConfig, ControlConfig, DataPlaneConfig,
    InterfaceConfig, PolicyConfig, PoolConfig, PpkConfig, Remote, selector,
};

pub(super) const MS: fn(u64) -> Duration = Duration::from_millis;
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// Connections that have a counter index (`maps_schema::steer::MAX_CONNECTIONS`, less the "none" index).
const MAX_CONNECTIONS: usize = maps_schema::steer::MAX_CONNECTIONS - 1;

pub(super) struct Context<'a> {
    pub(super) problems: Problems,
    base: &'a Path,
    pub(super) files: Files,
    /// An external engine settles ownership.
    pub(super) fenced: Cell<bool>,
}

impl Context<'_> {
    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.base.join(text)
    }
}

pub(super) fn read(source: &str, base: &Path, files: Files) -> Result<Config, Vec<Problem>> {
    let problems = Problems::new(source);
    let (document, errors) = DeTable::parse_recoverable(source);
    let mut lines = std::collections::HashSet::new();
    let mut broken = false;
    for error in errors {
        // More on the same line is but a consequence.
        let at = error.span().map_or(0, |span| span.start);
        broken = true;
        if !lines.insert(problems.line_of(at)) {
            continue;
        }
        problems.add(
            error.span().unwrap_or(0..0),
            format!("this is no TOML ({})", error.message()),
            "correct the syntax",
        );
    }
    if broken {
        // What a file lacks is not known before it can be read.
        return Err(problems.take());
    }
    let context = Context {
        problems: problems.clone(),
        base,
        files,
        fenced: Cell::new(false),
    };
    let config = {
        let mut root = Reader::new(document.get_ref(), "file", 0..0, &problems);
        let config = context.file(&mut root);
        if let (Some(config), true) = (&config, problems.is_empty()) {
            check::rules(&problems, root.span(), config);
        }
        root.finish();
        config
    };
    let found = problems.take();
    match config {
        Some(config) if found.is_empty() => Ok(config),
        _ => Err(found),
    }
}

impl Context<'_> {
    fn file(&self, root: &mut Reader<'_>) -> Option<Config> {
        let cluster = match root.table("cluster", "cluster") {
            Some(table) => self.cluster(table),
            None => {
                root.missing("cluster", "a section [cluster]");
                None
            }
        };
        // Where that section has a mistake, nothing more follows from it.
        self.fenced.set(cluster.as_ref().is_none_or(|c| c.etcd.is_some()));
        let interfaces = match root.table("interfaces", "interfaces") {
            Some(table) => self.interfaces(table, cluster.as_ref().map_or("", |c| &c.name)),
            None => {
                root.missing("interfaces", "a section [interfaces] with outside and inside");
                None
            }
        };
        let addresses = match root.table("addresses", "addresses") {
            Some(table) => self.addresses(table),
            None => {
                root.missing("addresses", "a section [addresses] with outside and inside");
                None
            }
        };
        let name = cluster
            .as_ref()
            .map_or("espalier", |c| c.name.as_str())
            .to_owned();
        let data_plane = match root.table("data_plane", "data_plane") {
            Some(table) => self.data_plane(table),
            None => {
                root.missing("data_plane", "a section [data_plane] with object");
                None
            }
        };
        let control = match root.table("control", "control") {
            Some(table) => self.control(table, &name),
            None => Some(ControlConfig {
                socket: default_socket(&name),
                metrics: None,
            }),
        };
        let pools = self.pools(root);
        let (connections, policies) = self.connections(root, addresses.as_ref(), &pools);
        if let (Some(cluster), Some(addresses)) = (&cluster, &addresses) {
            self.member_addresses(root, cluster, addresses);
        }
        Some(Config {
            cluster: cluster?,
            interfaces: interfaces?,
            addresses: addresses?,
            data_plane: data_plane?,
            control: control?,
            pools,
            connections,
            policies,
        })
    }

    fn interfaces(&self, mut t: Reader<'_>, cluster: &str) -> Option<InterfaceConfig> {
        let mut side = |key: &'static str, hint: &str| {
            if !t.has(key) {
                t.missing(key, hint);
                return None;
            }
            let list = t.string_or_strings(key)?;
            if list.value.is_empty() || list.value.len() > maps_schema::steer::PORTS_PER_SIDE {
                self.problems.add(
                    list.span,
                    format!("'{key}' names {} interfaces", list.value.len()),
                    format!("name 1 to {}", maps_schema::steer::PORTS_PER_SIDE),
                );
            }
            Some(list.value)
        };
        let outside = side(
            "outside",
            "the interface, or the list of interfaces, towards the peers",
        );
        let inside = side(
            "inside",
            "the interface, or the list of interfaces, towards the protected networks",
        );
        let virtual_mac = t
            .string("virtual_mac")
            .and_then(|text| match virtual_mac(&text.value, cluster) {
                Ok(mac) => Some(mac),
                Err(why) => {
                    self.problems.add(
                        text.span,
                        format!("virtual_mac '{}' {why}", text.value),
                        "give \"auto\", or for example \"02:00:5e:10:20:00\"",
                    );
                    None
                }
            });
        let tun = t.string("tun");
        let named = outside
            .iter()
            .chain(&inside)
            .flatten()
            .chain(&tun)
            .cloned()
            .collect::<Vec<_>>();
        for name in &named {
            // As the kernel has it (dev_valid_name).
            let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
            let name_of_folder = [".", ".."].contains(&name.value.as_str());
            if name.value.is_empty() || name.value.len() > 15 || name.value.contains(odd) || name_of_folder {
                self.problems.add(
                    name.span.clone(),
                    format!("'{}' is no interface name", name.value),
                    "give 1 to 15 characters without '/', ':' and spaces",
                );
            }
        }
        check::unique(&self.problems, "interface", &named);
        t.finish();
        let names = |list: Vec<At<String>>| list.into_iter().map(|n| n.value).collect();
        Some(InterfaceConfig {
            outside: names(outside?),
            inside: names(inside?),
            virtual_mac,
            tun: tun.map_or_else(|| "esp0".to_owned(), |t| t.value),
        })
    }

    fn address_list(&self, t: &mut Reader<'_>, key: &'static str) -> Vec<At<IpAddr>> {
        let Some(list) = t.strings(key) else {
            if !t.has(key) {
                t.missing(key, "a list of addresses");
            }
            return Vec::new();
        };
        if list.value.is_empty() {
            self.problems.add(
                list.span,
                format!("'{key}' is empty"),
                "give at least one address",
            );
        }
        let mut out = Vec::new();
        for text in list.value {
            match text.value.parse::<IpAddr>() {
                Ok(a) if !is_unicast(a) => {
                    self.problems.add(
                        text.span,
                        format!("{a} cannot be a cluster address"),
                        "give a unicast address",
                    );
                }
                Ok(value) => out.push(At {
                    value,
                    span: text.span,
                }),
                Err(_) => self.problems.add(
                    text.span,
                    format!("'{}' is no IP address", text.value),
                    "give an address without prefix length",
                ),
            }
        }
        out
    }

    fn addresses(&self, mut t: Reader<'_>) -> Option<AddressConfig> {
        let outside = self.address_list(&mut t, "outside");
        let inside = self.address_list(&mut t, "inside");
        let all = outside.iter().chain(&inside).cloned().collect::<Vec<_>>();
        check::unique(&self.problems, "cluster address", &all);
        t.finish();
        Some(AddressConfig {
            outside: outside.into_iter().map(|a| a.value).collect(),
            inside: inside.into_iter().map(|a| a.value).collect(),
        })
    }

    /// A member's own address must stay on that member: a cluster address moves.
    fn member_addresses(&self, root: &Reader<'_>, cluster: &ClusterConfig, addresses: &AddressConfig) {
        for member in &cluster.members {
            for endpoint in std::iter::once(member.synch).chain(member.outside) {
                let clash = addresses
                    .outside
                    .iter()
                    .chain(&addresses.inside)
                    .any(|a| *a == endpoint.ip());
                if clash {
                    self.problems.add(
                        root.span(),
                        format!(
                            "{} of member {} is a cluster address, which moves at a takeover",
                            endpoint.ip(),
                            member.id
                        ),
                        "give the member an address of its own",
                    );
                }
            }
        }
    }

    fn data_plane(&self, mut t: Reader<'_>) -> Option<DataPlaneConfig> {
        let object = t.required_string("object", "the path of the BPF object");
        let pin_dir = t.string("pin_dir");
        let slots = t
            .integer("slots", 256..=(1 << 20))
            .map_or(16_384, |s| s.value as u32);
        if !slots.is_power_of_two() {
            self.problems.add(
                t.span(),
                format!("slots = {slots} is no power of two"),
                "give for example 16384",
            );
        }
        let mode = t
            .word(
                "mode",
                &[
                    ("native", AttachMode::Native),
                    ("generic", AttachMode::Generic),
                    ("auto", AttachMode::Auto),
                ],
            )
            .unwrap_or(AttachMode::Auto);
        let cpus = t.integer("cpus", 1..=512).map(|c| c.value as u32);
        if let (Some(object), Files::Check) = (&object, self.files) {
            let remedy = "build it (cargo xtask build), or correct the path";
            check::plain_file(
                &self.problems,
                &object.span,
                &self.path(&object.value),
                "BPF object",
                remedy,
            );
        }
        t.finish();
        Some(DataPlaneConfig {
            object: self.path(&object?.value),
            pin_dir: pin_dir.map_or_else(|| PathBuf::from("/sys/fs/bpf/espalier"), |p| self.path(&p.value)),
            slots,
            mode,
            cpus,
        })
    }

    fn control(&self, mut t: Reader<'_>, name: &str) -> Option<ControlConfig> {
        let socket = t
            .string("socket")
            .map_or_else(|| default_socket(name), |s| self.path(&s.value));
        let metrics = t.parsed::<SocketAddr>("metrics", "address and port, for example \"127.0.0.1:9469\"");
        t.finish();
        Some(ControlConfig {
            socket,
            metrics: metrics.map(|m| m.value),
        })
    }

    fn connections(
        &self,
        root: &mut Reader<'_>,
        addresses: Option<&AddressConfig>,
        pools: &[PoolConfig],
    ) -> (Vec<ConnectionConfig>, Vec<PolicyConfig>) {
        let tables = root.tables("connections", "connections");
        if tables.len() > MAX_CONNECTIONS {
            self.problems.add(
                tables[MAX_CONNECTIONS].span(),
                format!("more than {MAX_CONNECTIONS} connections"),
                "use one connection with remote = \"any\" for peers that differ in nothing else",
            );
        }
        let mut names = Vec::new();
        let mut policies = Vec::new();
        let of_their_own = self.policies(root, &mut policies);
        let mut out = Vec::new();
        for table in tables {
            if let Some(connection) = self.connection(table, addresses, pools, &mut names, &mut policies) {
                out.push(connection);
            }
        }
        check::unique(&self.problems, "connection name", &names);
        check::policies(&self.problems, &policies);
        (out, of_their_own)
    }

    fn connection(
        &self,
        mut t: Reader<'_>,
        addresses: Option<&AddressConfig>,
        pools: &[PoolConfig],
        names: &mut Vec<At<String>>,
        policies: &mut Vec<Policy>,
    ) -> Option<ConnectionConfig> {
        let name = t.name("a name");
        names.extend(name.clone());
        let mut locals = self.locals(&mut t, addresses).into_iter();
        let local = locals.next();
        let remotes = self.remotes(&mut t);
        let remote = remotes.iter().flatten().find_map(Remote::address);
        if let (Some(local), Some(remote)) = (&local, remote)
            && local.value.is_ipv4() != remote.is_ipv4()
        {
            self.problems.add(
                local.span.clone(),
                format!("local {} and remote {remote} are not of one family", local.value),
                "give two IPv4 or two IPv6 addresses",
            );
        }
        let auth = self.auth(&mut t, name.as_ref().map_or("?", |n| &n.value));
        let ike = self.proposals(&mut t, "ike", Proposal::parse_ike);
        let dial = self.dial(&mut t, remotes.as_deref());
        let rekey_time = t.duration("rekey_time", SECOND..DAY * 365);
        // A handshake with its repetitions has to fit in.
        let reauth_time = t.duration("reauth_time", SECOND * 10..DAY * 365);
        let rekey_jitter = t.duration("rekey_jitter", MS(0)..DAY).unwrap_or(SECOND * 60);
        let usual = Retransmit::default();
        let retransmit = Retransmit {
            initial: t
                .duration("retransmit_initial", MS(10)..SECOND * 60)
                .unwrap_or(usual.initial),
            tries: t
                .integer("retransmit_tries", 0..=30)
                .map_or(usual.tries, |n| n.value as u32),
            ..usual
        };
        let force_encap = t.boolean("force_encap").unwrap_or(false);
        let ppk = self.ppk(&mut t);
        let extensions = self.extensions(&mut t);
        let fragmentation = t.boolean("fragmentation").unwrap_or(true);
        let fragment_size = t
            .integer("fragment_size", 576..=9000)
            .map_or(ike::config::FRAGMENT_SIZE, |n| n.value as u16);
        let v6 = remote.or_else(|| Some(local.as_ref()?.value));
        let path = PathRules::read(&mut t, v6.is_some_and(|address| address.is_ipv6()));
        let mobike = t.boolean("mobike").unwrap_or(true);
        let given = self.given(&mut t, pools);
        let pool_ts = given.selectors();
        let tables = t.tables("children", "connections.children");
        if tables.is_empty() {
            t.missing("children", "at least one [[connections.children]]");
        }
        let mut child_names = Vec::new();
        let mut children = Vec::new();
        let local = local.map(|l| l.value).or_else(|| {
            // Where it is not given: the first that can reach the peer.
            let family = |a: &&IpAddr| remote.is_none_or(|r| r.is_ipv4() == a.is_ipv4());
            addresses?.outside.iter().find(family).copied()
        });
        let of = ChildOf {
            connection: name.as_ref().map_or("?", |n| &n.value),
            path,
            pool_ts: &pool_ts,
            // Transport mode is about the two of them, so there must be no choice.
            ends: local
                .zip(remote)
                .filter(|_| locals.len() == 0 && remotes.as_ref().is_some_and(|all| all.len() == 1)),
        };
        for table in tables {
            children.extend(self.child(table, &of, &mut child_names, policies));
        }
        check::unique(&self.problems, "child name", &child_names);
        t.finish();
        Some(ConnectionConfig {
            name: name?.value,
            local: local?,
            further_locals: locals.map(|address| address.value).collect(),
            remotes: remotes?,
            local_auth: auth.local,
            remote_auth: auth.remote,
            local_id: auth.local_id,
            remote_id: auth.remote_id?,
            psk_file: auth.psk_file,
            certificate: auth.certificate,
            authorities: auth.authorities,
            eap_users: auth.eap_users,
            ike: if ike.is_empty() { default_ike() } else { ike },
            dial,
            rekey_time,
            reauth_time,
            rekey_jitter,
            retransmit,
            force_encap,
            ppk,
            extensions,
            fragmentation,
            fragment_size,
            mobike,
            pools: given.pools,
            dns: given.dns,
            dns_domains: given.dns_domains,
            children,
        })
    }

    /// A post-quantum pre-shared key: name and file, or neither.
    fn ppk(&self, t: &mut Reader<'_>) -> Option<PpkConfig> {
        let both = t.has("ppk_id") && t.has("ppk_file");
        let (id, file) = (t.string("ppk_id"), t.string("ppk_file"));
        let required = t.boolean("ppk_required");
        if let (Some(file), Files::Check) = (&file, self.files) {
            check::secret_file(&self.problems, &file.span, &self.path(&file.value), "ppk_file");
        }
        match (id, file) {
            (Some(id), Some(file)) => Some(PpkConfig {
                id: id.value,
                file: self.path(&file.value),
                required: required.unwrap_or(false),
            }),
            (None, None) if required.is_none() => None,
            (None, None) => {
                self.problems.add(
                    t.span(),
                    "ppk_required without a post-quantum pre-shared key",
                    "add ppk_id and ppk_file",
                );
                None
            }
            // One of them is no text, which is told already.
            _ if both => None,
            (Some(given), None) | (None, Some(given)) => {
                self.problems.add(
                    given.span,
                    "ppk_id and ppk_file belong together",
                    "give both: the key's name, which the peer knows, and a file with the key",
                );
                None
            }
        }
    }

    pub(super) fn selectors(&self, t: &mut Reader<'_>, key: &'static str) -> Vec<model::TrafficSelector> {
        let Some(list) = t.strings(key) else {
            if !t.has(key) {
                t.missing(key, "a list of networks, for example [\"10.2.0.0/16\"]");
            }
            return Vec::new();
        };
        if list.value.is_empty() || list.value.len() > maps_schema::sad::SELECTORS_PER_SA {
            self.problems.add(
                list.span,
                format!("'{key}' has {} selectors", list.value.len()),
                format!("give 1 to {}", maps_schema::sad::SELECTORS_PER_SA),
            );
        }
        let mut out = Vec::new();
        for text in list.value {
            match selector::parse(&text.value) {
                Ok(selector) => out.push(selector),
                Err(why) => self.problems.add(
                    text.span,
                    format!("'{}' is no traffic selector: {why}", text.value),
                    "write \"10.2.0.0/16\", \"10.2.0.0/16[tcp/443]\" or \"10.2.0.5[udp]\"",
                ),
            }
        }
        out
    }

    pub(super) fn proposals(
        &self,
        t: &mut Reader<'_>,
        key: &'static str,
        parse: fn(&str) -> Result<Proposal, ProposalError>,
    ) -> Vec<Proposal> {
        let Some(list) = t.strings(key) else {
            return Vec::new();
        };
        if list.value.is_empty() {
            self.problems.add(
                list.span,
                format!("'{key}' is empty"),
                "leave it out for the default, or name a proposal",
            );
        }
        let mut out = Vec::new();
        for text in list.value {
            match parse(&text.value) {
                Ok(proposal) => out.push(proposal),
                Err(why) => self.problems.add(
                    text.span,
                    format!(
                        "'{}' is no {key} proposal that this version carries ({why})",
                        text.value
                    ),
                    format!(
                        "name algorithms with '-' between, for example \"{}\"",
                        example(key)
                    ),
                ),
            }
        }
        out
    }
}

/// Whether an address can be that of one host and reach beyond a link.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    let odd = match address {
        IpAddr::V4(v4) => v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    !(odd || address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

/// A virtual MAC address: "auto", from the cluster's name, or one that is locally administered and of one host. Its last octet
/// gives way to the segment of the address.
fn virtual_mac(text: &str, cluster: &str) -> Result<[u8; 6], &'static str> {
    if text == "auto" {
        // FNV-1a: clusters of other names on one network are told apart, nothing else.
        let hash = cluster.bytes().fold(0x811c_9dc5_u32, |hash, octet| {
            (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)
        });
        let [a, b, c, d] = hash.to_be_bytes();
        return Ok([2, a, b, c, d, 0]);
    }
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut mac {
        let part = parts.next().filter(|p| p.len() == 2);
        *octet = part
            .and_then(|p| u8::from_str_radix(p, 16).ok())
            .ok_or("is no MAC address")?;
    }
    if parts.next().is_some() {
        return Err("is no MAC address");
    }
    if mac[0] & 3 != 2 {
        return Err(
            "is not a locally administered address of one host (its second digit is none of 2, 6, a, e)",
        );
    }
    mac[5] = 0;
    Ok(mac)
}

fn example(key: &str) -> &'static str {
    if key == "ike" {
        "aes256gcm16-prfsha256-x25519"
    } else {
        "chacha20poly1305-x25519"
    }
}

fn default_socket(name: &str) -> PathBuf {
    PathBuf::from(format!("/run/espalier/{name}.sock"))
}
