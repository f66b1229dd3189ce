//! The only crate that names aya: loads programs, executes map plans.
