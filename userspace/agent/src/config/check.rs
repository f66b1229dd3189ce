//! Checks that look at more than one value, or at the files that the configuration names.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use model::TrafficSelector;

use crate::core::convert;

use super::Config;
use super::reader::{At, Problems};

/// Whether files that the configuration names are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    Check,
    Trust,
}

/// Reports every value that appears twice.
pub(super) fn unique<T: Ord + Hash + Clone + std::fmt::Display>(
    problems: &Problems,
    what: &str,
    values: &[At<T>],
) {
    let mut seen: BTreeMap<T, Range<usize>> = BTreeMap::new();
    for value in values {
        if seen.contains_key(&value.value) {
            problems.add(
                value.span.clone(),
                format!("{what} {} is used twice", value.value),
                "give each its own value".to_owned(),
            );
        } else {
            seen.insert(value.value.clone(), value.span.clone());
        }
    }
}

/// A secret file must exist, hold something, and be readable by its owner only.
pub(super) fn secret_file(problems: &Problems, span: &Range<usize>, path: &Path, what: &str) {
    match std::fs::metadata(path) {
        Err(error) => problems.add(
            span.clone(),
            format!("the {what} {} cannot be read ({error})", path.display()),
            "create it, owned by the user of the agent, with mode 0600",
        ),
        Ok(meta) if !meta.is_file() => {
            problems.add(
                span.clone(),
                format!("the {what} {} is no file", path.display()),
                "name a regular file",
            );
        }
        Ok(meta) if meta.permissions().mode() & 0o077 != 0 => problems.add(
            span.clone(),
            format!(
                "the {what} {} has mode {:04o}: others can read it",
                path.display(),
                meta.permissions().mode() & 0o7777
            ),
            format!("run: chmod 0600 {}", path.display()),
        ),
        Ok(meta) if meta.len() == 0 => {
            problems.add(
                span.clone(),
                format!("the {what} {} is empty", path.display()),
                "write the secret into it",
            );
        }
        Ok(_) => {}
    }
}

/// A file that must exist.
pub(super) fn plain_file(problems: &Problems, span: &Range<usize>, path: &Path, what: &str, remedy: &str) {
    if let Err(error) = std::fs::metadata(path) {
        problems.add(
            span.clone(),
            format!("the {what} {} cannot be read ({error})", path.display()),
            remedy,
        );
    }
}

/// A child's selectors with its place and full name.
pub(super) struct Policy {
    pub name: String,
    pub span: Range<usize>,
    pub local: Vec<TrafficSelector>,
    pub remote: Vec<TrafficSelector>,
}

/// Policies that overlap are told apart by longer prefixes, protocol and ports; two that say the same leave only their place
/// in the file, and one of them without use.
pub(super) fn policies(problems: &Problems, policies: &[Policy]) {
    // A policy matches an outbound packet whose source is in `local` and whose destination is in `remote`.
    let same = |a: &Policy, b: &Policy| {
        let both = |x: &[TrafficSelector], y: &[TrafficSelector]| x.iter().any(|x| y.contains(x));
        both(&a.local, &b.local) && both(&a.remote, &b.remote)
    };
    for (i, later) in policies.iter().enumerate() {
        for earlier in &policies[..i] {
            if same(later, earlier) {
                problems.add(
                    later.span.clone(),
                    format!(
                        "the selectors of '{}' are those of '{}', which comes first: no packet gets to the later one",
                        later.name, earlier.name
                    ),
                    "make one of them narrower, or remove it",
                );
            }
        }
    }
}

/// Whether the rules fit into the maps (at most [`maps_schema::spd::RULES_PER_PREFIX`] that can match one destination prefix).
pub(super) fn rules(problems: &Problems, span: Range<usize>, config: &Config) {
    let mut sad = sad::Sad::new(sad::Settings {
        member: config.cluster.member,
        max_slots: config.data_plane.slots,
        first_generation: 1,
        outside_mtu: 1500,
        cpus: config.data_plane.cpus.unwrap_or(1),
        detection: config.cluster.suspicion_floor,
        lifetimes: sad::lifetime::Lifetimes::default(),
    });
    if let Err(error) = sad.configure(convert::policies(config)) {
        problems.add(
            span,
            error.to_string(),
            "let wide policies be fewer, or split the destinations so that fewer of them apply to one",
        );
    }
}
