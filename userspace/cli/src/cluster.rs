//! `espalier cluster ...`: the cluster's certificates. Works on a folder; no agent is asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use agent::pki::{Authority, Change, DAYS_DEFAULT, DAYS_MAX, Overview, Validity};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use model::MemberId;

use crate::tables;

/// Subcommands of `espalier cluster`.
#[derive(Subcommand)]
pub enum ClusterCommand {
    /// Make the cluster's certificate authority and a certificate for each member. Overwrites nothing.
    Init {
        #[command(flatten)]
        folder: Folder,
        /// Number of members, 2 to 16.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=16))]
        members: u8,
        /// Name of the cluster.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        validity: Days,
    },
    /// Issue a certificate for one more member.
    Add {
        #[command(flatten)]
        folder: Folder,
        /// The new member's id.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
        member: u8,
        #[command(flatten)]
        validity: Days,
    },
    /// Revoke every certificate of a member: the others refuse it once they have the new cluster.crl.
    Remove {
        #[command(flatten)]
        folder: Folder,
        /// The member's id.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
        member: u8,
    },
    /// Replace certificates, the authority or the cluster secret without an outage, step by step.
    Rotate {
        #[command(subcommand)]
        step: RotateStep,
    },
    /// Authorities, and every certificate with its expiry.
    Show {
        #[command(flatten)]
        folder: Folder,
    },
}

/// Subcommands of `espalier cluster rotate`.
#[derive(Subcommand)]
pub enum RotateStep {
    /// A new authority, trusted beside the old one until `finish`. Then `members`, then `finish`.
    Ca {
        #[command(flatten)]
        folder: Folder,
    },
    /// New certificates and keys in place of the members' present ones, which are accepted until `finish`.
    Members {
        #[command(flatten)]
        folder: Folder,
        /// Only this member's.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
        member: Option<u8>,
        #[command(flatten)]
        validity: Days,
    },
    /// Replace the cluster secret: `make`, then `use`, later `forget`.
    Secret {
        #[command(subcommand)]
        step: SecretStep,
    },
    /// Revoke what was replaced, and trust only the newest authority.
    Finish {
        #[command(flatten)]
        folder: Folder,
    },
}

/// Subcommands of `espalier cluster rotate secret`.
#[derive(Subcommand)]
pub enum SecretStep {
    /// Make the next secret. Members that have it honour what others make with it, and go over to it with them.
    Make {
        #[command(flatten)]
        folder: Folder,
    },
    /// Put it in place of the present one, which members go on honouring.
    Use {
        #[command(flatten)]
        folder: Folder,
    },
    /// Forget the one before.
    Forget {
        #[command(flatten)]
        folder: Folder,
        /// Although peers may still hold tickets and tokens that were made with it: they have to authenticate anew.
        #[arg(long)]
        now: bool,
    },
}

/// The folder to work on.
#[derive(Args)]
pub struct Folder {
    /// Folder with the authority's key.
    #[arg(long)]
    dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How long new certificates are valid.
#[derive(Args)]
pub struct Days {
    /// Days for which the certificates are valid.
    #[arg(long, default_value_t = DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
}

/// Runs the command to its end.
pub fn execute(command: ClusterCommand) -> Result<ExitCode> {
    match command {
        ClusterCommand::Init {
            folder,
            members,
            name,
            validity,
        } => {
            let change = Authority::init(&folder.dir, &name, members, Validity::days(validity.days)?)?;
            changed(&folder, &change)
        }
        ClusterCommand::Add {
            folder,
            member,
            validity,
        } => {
            let validity = Validity::days(validity.days)?;
            let change = Authority::open(&folder.dir)?.add(MemberId(member), validity)?;
            changed(&folder, &change)
        }
        ClusterCommand::Remove { folder, member } => {
            let change = Authority::open(&folder.dir)?.remove(MemberId(member))?;
            changed(&folder, &change)
        }
        ClusterCommand::Rotate { step } => match step {
            RotateStep::Ca { folder } => changed(&folder, &Authority::open(&folder.dir)?.rotate_ca()?),
            RotateStep::Members {
                folder,
                member,
                validity,
            } => {
                let validity = Validity::days(validity.days)?;
                let change = Authority::open(&folder.dir)?.rotate_members(member.map(MemberId), validity)?;
                changed(&folder, &change)
            }
            RotateStep::Secret { step } => match step {
                SecretStep::Make { folder } => {
                    changed(&folder, &Authority::open(&folder.dir)?.make_secret()?)
                }
                SecretStep::Use { folder } => changed(&folder, &Authority::open(&folder.dir)?.use_secret()?),
                SecretStep::Forget { folder, now } => {
                    changed(&folder, &Authority::open(&folder.dir)?.forget_secret(now)?)
                }
            },
            RotateStep::Finish { folder } => changed(&folder, &Authority::open(&folder.dir)?.finish()?),
        },
        ClusterCommand::Show { folder } => {
            let overview = Authority::open(&folder.dir)?.show()?;
            if folder.json {
                return print(&serde_json::to_string_pretty(&overview)?);
            }
            print(&shown(&overview))
        }
    }
}

fn changed(folder: &Folder, change: &Change) -> Result<ExitCode> {
    if folder.json {
        return print(&serde_json::to_string_pretty(change)?);
    }
    let mut text = String::new();
    for path in &change.written {
        let _ = writeln!(text, "wrote {}", path.display());
    }
    for path in &change.removed {
        let _ = writeln!(text, "removed {}", path.display());
    }
    if change.revoked > 0 {
        let _ = writeln!(text, "revoked {} certificate(s)", change.revoked);
    }
    text.push_str(&change.next);
    print(&text)
}

fn shown(overview: &Overview) -> String {
    let mut out = format!(
        "cluster {}, revocation list {}",
        overview.cluster, overview.crl_number
    );
    if overview.changing {
        out.push_str(", the authority is being changed (next: rotate members, then rotate finish)");
    }
    out.push('\n');
    let mut authorities = tables::table(&["authority", "serial", "until"]);
    for authority in &overview.authorities {
        authorities.add_row([
            authority.subject.clone(),
            authority.serial.clone(),
            tables::date(authority.not_after),
        ]);
    }
    let _ = writeln!(out, "{authorities}");
    for secret in &overview.secrets {
        let _ = writeln!(out, "cluster secret {} ({})", secret.id, secret.role);
    }
    let mut members = tables::table(&[
        "member",
        "certificate",
        "serial",
        "authority",
        "until",
        "days left",
    ]);
    for member in &overview.members {
        members.add_row([
            member.member.to_string(),
            format!("{:?}", member.standing).to_lowercase(),
            member.serial.clone(),
            if member.newest_ca { "newest" } else { "older" }.to_owned(),
            tables::date(member.not_after),
            member.days_left.to_string(),
        ]);
    }
    let _ = write!(out, "{members}");
    out
}

/// Prints a text. A reader that went away (`| head`) is no error.
fn print(text: &str) -> Result<ExitCode> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: ClusterCommand,
    }

    fn run(line: &str) -> Result<ExitCode> {
        execute(Line::try_parse_from(std::iter::once("cluster").chain(line.split(' ')))?.command)
    }

    #[test]
    fn the_commands_work_on_one_folder_and_wrong_usage_is_refused() {
        let dir = std::env::temp_dir().join(format!("esp-cli-cluster-{}", std::process::id()));
        let at = dir.display();
        run(&format!("init --dir {at} --members 2 --name lab")).expect("a new folder");
        assert!(
            run(&format!("init --dir {at} --name lab")).is_err(),
            "nothing is overwritten"
        );
        run(&format!("add --dir {at} --member 3 --days 10 --json")).expect("a third member");
        run(&format!("rotate ca --dir {at}")).expect("a new authority");
        run(&format!("rotate members --dir {at}")).expect("new certificates");
        run(&format!("rotate finish --dir {at}")).expect("the end of it");
        run(&format!("remove --dir {at} --member 3")).expect("it was there");
        run(&format!("rotate secret use --dir {at}")).expect_err("there is none to be used");
        run(&format!("rotate secret make --dir {at}")).expect("the next secret");
        run(&format!("rotate secret use --dir {at} --json")).expect("it is used");
        run(&format!("rotate secret forget --dir {at}")).expect_err("too early");
        run(&format!("rotate secret forget --dir {at} --now")).expect("all the same");
        for wrong in [
            "--member 0",
            "--member 17",
            "--member 4 --days 0",
            "--member 4 --days 3651",
        ] {
            assert!(run(&format!("add --dir {at} {wrong}")).is_err(), "{wrong}");
        }
        let overview = Authority::open(&dir)
            .expect("the folder")
            .show()
            .expect("readable");
        let text = shown(&overview);
        assert!(
            text.contains("espalier cluster lab CA 2") && text.contains("revoked"),
            "{text}"
        );
        run(&format!("show --dir {at} --json")).expect("readable");
        std::fs::remove_dir_all(dir).expect("it was just made");
    }
}
