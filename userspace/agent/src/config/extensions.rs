//! Keys of `[[connections]]` about extensions of IKEv2.

use ike::{Childless, MidSync};

use super::read::Context;
use super::reader::Reader;
use super::{Extensions, PerResource};

impl Context<'_> {
    pub(super) fn extensions(&self, t: &mut Reader<'_>) -> Extensions {
        let usual = Extensions::default();
        let mut flag = |key, usual| t.boolean(key).unwrap_or(usual);
        let crash_detection = flag("crash_detection", usual.crash_detection);
        let resumption = flag("resumption", usual.resumption);
        let cluster_sync = flag("cluster_sync", usual.cluster_sync);
        let per_cpu = t.boolean("per_cpu");
        let per_resource = self.per_resource(t, per_cpu);
        let words = [("never", MidSync::Never), ("on-fork", MidSync::OnFork)];
        let mid_sync = t.word("mid_sync", &words).unwrap_or(usual.mid_sync);
        if mid_sync == MidSync::OnFork && !cluster_sync {
            self.problems.add(
                t.span_of("mid_sync"),
                "mid_sync = \"on-fork\" needs what cluster_sync = false forbids",
                "remove one of the two",
            );
        }
        let words = [
            ("allow", Childless::Allow),
            ("force", Childless::Force),
            ("never", Childless::Never),
        ];
        let childless = t.word("childless", &words).unwrap_or(usual.childless);
        let redirect = t.parsed("redirect", "the address of another gateway");
        let redirect = redirect.map(|address| address.value);
        let follow_redirects = t.boolean("follow_redirects").unwrap_or(usual.follow_redirects);
        let window = t
            .integer("window", 1..=64)
            .map_or(usual.window, |n| n.value as u32);
        Extensions {
            crash_detection,
            resumption,
            cluster_sync,
            mid_sync,
            per_resource,
            childless,
            window,
            redirect,
            follow_redirects,
        }
    }

    /// `per_cpu = true` is the older way of saying `per_resource = "cpu"`.
    fn per_resource(&self, t: &mut Reader<'_>, per_cpu: Option<bool>) -> PerResource {
        let words = [
            ("none", PerResource::None),
            ("cpu", PerResource::Cpu),
            ("member", PerResource::Member),
            ("both", PerResource::Both),
        ];
        let found = t.word("per_resource", &words);
        if let (Some(cpus), Some(found)) = (per_cpu, found)
            && cpus != found.has_cpus()
        {
            self.problems.add(
                t.span_of("per_resource"),
                format!("per_cpu = {cpus} and per_resource say different things"),
                "remove per_cpu",
            );
        }
        if found.is_some_and(PerResource::has_members) && !self.fenced.get() {
            self.problems.add(
                t.span_of("per_resource"),
                "Child SAs per member need an ownership engine, but the members settle ownership among themselves",
                "set engine = \"etcd\" in [cluster], or per_resource = \"cpu\"",
            );
        }
        let usual = if per_cpu == Some(true) {
            PerResource::Cpu
        } else {
            PerResource::None
        };
        found.unwrap_or(usual)
    }
}

impl Extensions {
    /// What members compare: nothing where all is as usual. Members that are still to be upgraded know the first five keys only, and
    /// how those are written must not change.
    pub fn compared(&self) -> String {
        let usual = Self::default();
        let known = Self {
            childless: usual.childless,
            window: usual.window,
            redirect: usual.redirect,
            follow_redirects: usual.follow_redirects,
            ..*self
        };
        let mut text = String::new();
        if known != usual {
            text.push_str(&format!(
                " Extensions {{ crash_detection: {}, resumption: {}, cluster_sync: {}, mid_sync: {:?}, per_resource: {:?} }}",
                self.crash_detection, self.resumption, self.cluster_sync, self.mid_sync, self.per_resource
            ));
        }
        let further = |e: &Self| (e.childless, e.window, e.redirect, e.follow_redirects);
        if further(self) != further(&usual) {
            text.push_str(&format!(" {:?}", further(self)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_know_fewer_keys_compare_the_same_text() {
        let usual = Extensions::default();
        assert_eq!(usual.compared(), "");
        let old = Extensions {
            per_resource: PerResource::Cpu,
            ..usual
        };
        assert_eq!(
            old.compared(),
            " Extensions { crash_detection: true, resumption: true, cluster_sync: true, mid_sync: Never, per_resource: Cpu }"
        );
        let new = Extensions { window: 4, ..old };
        assert!(new.compared().starts_with(&old.compared()) && new.compared() != old.compared());
    }
}
