//! Keys of `[[connections]]` about extensions of IKEv2.

use ike::{Childless, MidSync};

use super::Extensions;
use super::read::Context;
use super::reader::Reader;

impl Context<'_> {
    pub(super) fn extensions(&self, t: &mut Reader<'_>) -> Extensions {
        let usual = Extensions::default();
        let mut flag = |key, usual| t.boolean(key).unwrap_or(usual);
        let crash_detection = flag("crash_detection", usual.crash_detection);
        let resumption = flag("resumption", usual.resumption);
        let cluster_sync = flag("cluster_sync", usual.cluster_sync);
        let per_cpu = flag("per_cpu", usual.per_cpu);
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
        let window = t
            .integer("window", 1..=64)
            .map_or(usual.window, |n| n.value as u32);
        Extensions {
            crash_detection,
            resumption,
            cluster_sync,
            mid_sync,
            per_cpu,
            childless,
            window,
        }
    }
}
