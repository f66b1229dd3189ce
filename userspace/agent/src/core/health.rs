//! Whether this member's data plane works: interfaces up, programs attached, maps writable. A member in trouble hands over
//! what it owns and takes nothing.

use cluster::Input;
use sad::PlanError;

use super::Core;
use crate::clock;
use crate::net::watch::LinkNews;

/// So many plans in a row that could not be written are trouble; a single one may be about a single SA that does not fit.
const FAILED_IN_A_ROW: u32 = 3;

/// What was found, and what the node was told.
#[derive(Default)]
pub struct Health {
    /// Why an interface does not work: outside, inside.
    links: [Option<String>; 2],
    attached: Option<String>,
    failed: u32,
    why_failed: String,
    told: Option<String>,
}

impl Health {
    /// A plan was executed, or not.
    pub fn wrote(&mut self, done: &Result<(), PlanError>) {
        match done {
            Ok(()) => self.failed = 0,
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                self.why_failed = error.to_string();
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        let maps =
            (self.failed >= FAILED_IN_A_ROW).then(|| format!("maps cannot be written: {}", self.why_failed));
        let all = self.links.iter().flatten().chain(&self.attached).chain(&maps);
        let all = all.cloned().collect::<Vec<_>>();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What to tell the node, if it is something new.
    fn news(&mut self) -> Option<Option<String>> {
        let trouble = self.trouble();
        (trouble != self.told).then(|| {
            self.told = trouble.clone();
            trouble
        })
    }
}

impl Core {
    /// The kernel says how an interface is.
    pub(super) fn link_news(&mut self, news: &LinkNews) {
        for (at, interface) in [&self.outside, &self.inside].into_iter().enumerate() {
            if interface.index == news.index {
                let side = ["outside", "inside"][at];
                let name = &interface.name;
                self.health.links[at] = news.trouble.map(|why| format!("{side} interface {name} {why}"));
            }
        }
        self.tell_health();
    }

    /// Once a second: whether the programs are attached still.
    pub(super) fn look_after_health(&mut self) {
        let before = self.health.attached.take();
        self.health.attached = self.plane.check_attached().err();
        if before.is_some() && self.health.attached.is_none() {
            self.log.note("attached", "the programs are attached again");
        }
        self.tell_health();
    }

    fn tell_health(&mut self) {
        if let Some(trouble) = self.health.news() {
            self.node_input(Input::Health {
                now: clock::now(),
                trouble,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Result<(), PlanError> {
        Err(PlanError {
            done: 0,
            operation: "put an entry",
            cause: "no space".to_owned(),
        })
    }

    #[test]
    fn one_plan_that_does_not_fit_is_no_trouble_and_several_in_a_row_are() {
        let mut health = Health::default();
        for _ in 0..2 {
            health.wrote(&failed());
            health.wrote(&failed());
            assert_eq!(health.news(), None);
            health.wrote(&Ok(()));
        }
        for _ in 0..FAILED_IN_A_ROW {
            health.wrote(&failed());
        }
        let trouble = health.news().expect("news").expect("trouble");
        assert!(trouble.contains("no space"), "{trouble}");
        assert_eq!(health.news(), None, "said once");
        health.wrote(&Ok(()));
        assert_eq!(health.news(), Some(None));
    }

    #[test]
    fn all_troubles_are_named_together() {
        let mut health = Health {
            attached: Some("steer is not attached".to_owned()),
            ..Health::default()
        };
        health.links[1] = Some("inside interface eth1 has no carrier".to_owned());
        let trouble = health.news().expect("news").expect("trouble");
        assert_eq!(
            trouble,
            "inside interface eth1 has no carrier; steer is not attached"
        );
    }
}
