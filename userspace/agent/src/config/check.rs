//! Checks that look at more than one value, or at the files that the configuration names.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use model::TrafficSelector;

use super::reader::{At, Problems};
use super::selector;

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

/// Two children whose policies match the same packet leave it to chance which SA carries it.
pub(super) fn policies(problems: &Problems, policies: &[Policy]) {
    let any = |a: &[TrafficSelector], b: &[TrafficSelector]| {
        a.iter().any(|x| b.iter().any(|y| selector::overlap(x, y)))
    };
    for (i, later) in policies.iter().enumerate() {
        for earlier in &policies[..i] {
            // A policy matches an outbound packet whose source is in local_ts and whose destination is in remote_ts.
            let ports_apart = |s: &TrafficSelector| TrafficSelector {
                first_port: 0,
                last_port: u16::MAX,
                ..s.clone()
            };
            let local = |p: &Policy| p.local.iter().map(ports_apart).collect::<Vec<_>>();
            if any(&local(later), &local(earlier)) && any(&later.remote, &earlier.remote) {
                problems.add(
                    later.span.clone(),
                    format!(
                        "the selectors of child '{}' overlap those of '{}'",
                        later.name, earlier.name
                    ),
                    "make local_ts or remote_ts of one of them narrower",
                );
            }
        }
    }
}
