//! Keys of `[[connections]]` about extensions of IKEv2.

use ike::MidSync;

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
        Extensions {
            crash_detection,
            resumption,
            cluster_sync,
            mid_sync,
            per_resource,
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
