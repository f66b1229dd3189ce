use super::*;
use std::os::unix::fs::PermissionsExt;

use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::UnixTime;

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch(name: &str, members: u8) -> Scratch {
    let dir = std::env::temp_dir().join(format!("esp-pki-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    init(&dir, "lab", members).unwrap();
    Scratch(dir)
}

fn validity() -> Validity {
    Validity::days(30).unwrap()
}

/// Whether a member that has the files of the folder accepts a certificate.
fn accepts(dir: &Path, certificate: &CertificateDer<'_>) -> Result<(), String> {
    let identity = Identity::load(dir, MemberId(1)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(
        identity.roots.clone(),
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
    )
    .with_crls(identity.revoked)
    .only_check_end_entity_revocation()
    .build()
    .unwrap();
    verifier
        .verify_client_cert(certificate, &[], UnixTime::now())
        .map(drop)
        .map_err(|error| error.to_string())
}

fn certificate(dir: &Path, member: u8) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(dir.join(certificate_file(MemberId(member)))).unwrap()
}

#[test]
fn a_member_certificate_names_one_member_of_one_cluster() {
    let dir = scratch("names", 2);
    let two = Identity::load(&dir.0, MemberId(2)).unwrap();
    let all = [MemberId(1), MemberId(2)];
    assert_eq!(member_of(&two.certificate, "lab", &all), Some(MemberId(2)));
    assert_eq!(member_of(&two.certificate, "lab", &all[..1]), None);
    assert_eq!(member_of(&two.certificate, "other", &all), None);
    assert_eq!(
        two.secrets.active.derive("a"),
        Identity::load(&dir.0, MemberId(1))
            .unwrap()
            .secrets
            .active
            .derive("a")
    );
    assert_ne!(two.secrets.active.derive("a"), two.secrets.active.derive("b"));
    assert_eq!(two.facts.subject, "member-2.lab.espalier");
    assert_eq!(two.facts.issuer, "espalier cluster lab CA 1");
}

#[test]
fn secrets_are_private_and_nothing_is_overwritten() {
    let dir = scratch("modes", 1);
    let mode = |name: &str| std::fs::metadata(dir.0.join(name)).unwrap().permissions().mode() & 0o777;
    for secret in ["ca.key", "member-1.key", "cluster.secret"] {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
    let before = std::fs::read(dir.0.join("ca.crt")).unwrap();
    let error = init(&dir.0, "lab", 1).unwrap_err().to_string();
    assert!(error.contains("exists"), "{error}");
    assert_eq!(std::fs::read(dir.0.join("ca.crt")).unwrap(), before);
    let mut authority = Authority::open(&dir.0).unwrap();
    let error = authority.add(MemberId(1), validity()).unwrap_err().to_string();
    assert!(error.contains("has a certificate"), "{error}");
    authority.rotate_ca().unwrap();
    authority.rotate_members(None, validity()).unwrap();
    for secret in ["ca.key", "ca-old.key", "member-1.key"] {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
}

#[test]
fn a_removed_member_is_refused_and_may_be_added_again() {
    let dir = scratch("remove", 3);
    let mut authority = Authority::open(&dir.0).unwrap();
    let (two, lost) = (certificate(&dir.0, 2), certificate(&dir.0, 3));
    accepts(&dir.0, &lost).unwrap();
    let change = authority.remove(MemberId(3)).unwrap();
    assert_eq!((change.revoked, change.removed.len()), (1, 2));
    assert!(accepts(&dir.0, &lost).unwrap_err().contains("Revoked"));
    accepts(&dir.0, &two).unwrap();
    assert!(
        authority.remove(MemberId(3)).is_err(),
        "there is nothing left to revoke"
    );
    authority.add(MemberId(3), validity()).unwrap();
    accepts(&dir.0, &certificate(&dir.0, 3)).unwrap();
    assert!(accepts(&dir.0, &lost).is_err(), "the lost one stays revoked");
}

#[test]
fn while_members_are_rotated_old_and_new_certificates_are_accepted_and_then_only_the_new() {
    let dir = scratch("rotate", 2);
    let mut authority = Authority::open(&dir.0).unwrap();
    let old = certificate(&dir.0, 2);
    authority.rotate_members(Some(MemberId(2)), validity()).unwrap();
    let new = certificate(&dir.0, 2);
    assert_ne!(old, new);
    accepts(&dir.0, &old).unwrap();
    accepts(&dir.0, &new).unwrap();
    assert_eq!(authority.finish().unwrap().revoked, 1);
    assert!(accepts(&dir.0, &old).is_err());
    accepts(&dir.0, &new).unwrap();
    assert!(
        authority
            .finish()
            .unwrap_err()
            .to_string()
            .contains("nothing to finish")
    );
}

#[test]
fn the_ca_is_changed_in_three_steps_and_at_each_of_them_every_mixture_of_members_fits() {
    let dir = scratch("ca", 2);
    // What a member has that was not given the new files yet.
    let late = Scratch(dir.0.with_extension("late"));
    let copy = |names: &[&str]| {
        std::fs::create_dir_all(&late.0).unwrap();
        for name in names {
            std::fs::copy(dir.0.join(name), late.0.join(name)).unwrap();
        }
    };
    copy(&[
        "ca.crt",
        "cluster.crl",
        "cluster.secret",
        "member-1.crt",
        "member-1.key",
    ]);
    let old = certificate(&dir.0, 2);
    let mut authority = Authority::open(&dir.0).unwrap();

    authority.rotate_ca().unwrap();
    assert!(authority.rotate_ca().is_err(), "one change at a time");
    assert!(
        authority
            .finish()
            .unwrap_err()
            .to_string()
            .contains("still the old CA's")
    );
    accepts(&dir.0, &old).unwrap();
    copy(&["ca.crt", "cluster.crl"]);

    authority.rotate_members(None, validity()).unwrap();
    let new = certificate(&dir.0, 2);
    for folder in [&dir.0, &late.0] {
        accepts(folder, &old).unwrap();
        accepts(folder, &new).unwrap();
    }

    authority.finish().unwrap();
    accepts(&late.0, &new).unwrap();
    accepts(&dir.0, &new).unwrap();
    assert!(accepts(&dir.0, &old).is_err(), "the old CA is no longer trusted");
    assert!(!dir.0.join("ca-old.key").exists());
    let overview = authority.show().unwrap();
    assert_eq!(overview.authorities.len(), 1);
    assert_eq!(overview.authorities[0].subject, "espalier cluster lab CA 2");
    assert!(!overview.changing);
}

#[test]
fn a_member_is_revoked_under_both_cas_in_the_middle_of_a_change() {
    let dir = scratch("middle", 2);
    let mut authority = Authority::open(&dir.0).unwrap();
    let old = certificate(&dir.0, 2);
    authority.rotate_ca().unwrap();
    authority.rotate_members(None, validity()).unwrap();
    let new = certificate(&dir.0, 2);
    assert_eq!(authority.remove(MemberId(2)).unwrap().revoked, 2);
    assert!(accepts(&dir.0, &old).unwrap_err().contains("Revoked"));
    assert!(accepts(&dir.0, &new).unwrap_err().contains("Revoked"));
    accepts(&dir.0, &certificate(&dir.0, 1)).unwrap();
}

#[test]
fn a_ca_without_its_revocation_list_is_not_believed() {
    let dir = scratch("unknown", 2);
    let list = std::fs::read(dir.0.join(CRL_FILE)).unwrap();
    let mut authority = Authority::open(&dir.0).unwrap();
    authority.rotate_ca().unwrap();
    authority.rotate_members(None, validity()).unwrap();
    // The operator forgot to copy the list that belongs to the new CA.
    std::fs::write(dir.0.join(CRL_FILE), list).unwrap();
    let error = accepts(&dir.0, &certificate(&dir.0, 2)).unwrap_err();
    assert!(error.contains("UnknownRevocationStatus"), "{error}");
}

#[test]
fn an_interrupted_rotation_does_not_revoke_the_certificate_in_use() {
    let dir = scratch("interrupted", 2);
    let mut authority = Authority::open(&dir.0).unwrap();
    let before = std::fs::read(dir.0.join("member-2.crt")).unwrap();
    authority.rotate_members(None, validity()).unwrap();
    // As if the command had died between the ledger and the certificate.
    std::fs::write(dir.0.join("member-2.crt"), before).unwrap();
    let error = authority.finish().unwrap_err().to_string();
    assert!(error.contains("rotate members --member 2"), "{error}");
    accepts(&dir.0, &certificate(&dir.0, 2)).unwrap();
}

#[test]
fn an_interrupted_change_of_the_ca_is_carried_on() {
    let dir = scratch("carried-on", 2);
    let names = ["ca.crt", "ca.key", "cluster.crl"];
    let before = names.map(|name| std::fs::read(dir.0.join(name)).unwrap());
    let old = certificate(&dir.0, 2);
    // After each of the files in the order in which they are replaced.
    for done in 0..3 {
        let mut authority = Authority::open(&dir.0).unwrap();
        authority.rotate_ca().unwrap();
        for (at, name) in [(1, "ca.key"), (0, "ca.crt"), (2, "cluster.crl")]
            .into_iter()
            .skip(done)
        {
            std::fs::write(dir.0.join(name), &before[at]).unwrap();
        }
        if done == 2 {
            // Only the list is missing; the next step makes it anew.
            assert!(authority.rotate_ca().is_err());
        } else if done == 1 {
            let error = authority.add(MemberId(3), validity()).unwrap_err().to_string();
            assert!(error.contains("interrupted"), "{error}");
        }
    }
    let mut authority = Authority::open(&dir.0).unwrap();
    authority.rotate_members(None, validity()).unwrap();
    let new = certificate(&dir.0, 2);
    accepts(&dir.0, &old).unwrap();
    accepts(&dir.0, &new).unwrap();
    authority.finish().unwrap();
    accepts(&dir.0, &new).unwrap();
    assert!(accepts(&dir.0, &old).is_err());
}

#[test]
fn two_commands_do_not_work_in_one_folder_and_a_folder_of_a_member_is_refused() {
    let dir = scratch("lock", 1);
    let first = Authority::open(&dir.0).unwrap();
    let error = Authority::open(&dir.0).err().unwrap().to_string();
    assert!(error.contains("another command"), "{error}");
    drop(first);
    std::fs::remove_file(dir.0.join("issued.json")).unwrap();
    let error = Authority::open(&dir.0).err().unwrap().to_string();
    assert!(error.contains("where the CA's key is"), "{error}");
}

#[test]
fn the_secret_is_replaced_in_three_steps_and_an_interrupted_one_is_carried_on() {
    let dir = scratch("secret", 2);
    let mut authority = Authority::open(&dir.0).unwrap();
    let first = Secrets::load(&dir.0).unwrap().active.id();
    let error = |result: Result<Change>| result.unwrap_err().to_string();
    assert!(error(authority.use_secret()).contains("rotate secret make"));
    assert!(error(authority.forget_secret(true)).contains("nothing is to be forgotten"));

    authority.make_secret().unwrap();
    assert!(error(authority.make_secret()).contains("rotate secret use"));
    let known = Secrets::load(&dir.0).unwrap();
    assert_eq!((known.active.id(), known.old.is_none()), (first, true));
    let second = known.next.unwrap().id();
    assert_ne!(first, second);

    authority.use_secret().unwrap();
    let mode = |name: &str| std::fs::metadata(dir.0.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(SECRET_FILE), mode(OLD_SECRET_FILE)), (0o600, 0o600));
    assert_eq!(Secrets::load(&dir.0).unwrap().ids(), [second, first]);
    // It was interrupted before it removed the next one: both files hold the same.
    std::fs::copy(dir.0.join(SECRET_FILE), dir.0.join(NEXT_SECRET_FILE)).unwrap();
    assert_eq!(Secrets::load(&dir.0).unwrap().ids(), [second, first]);
    authority.use_secret().unwrap();
    assert_eq!(Secrets::load(&dir.0).unwrap().ids(), [second, first]);
    assert!(error(authority.make_secret()).contains("rotate secret forget"));
    let shown = authority.show().unwrap().secrets;
    let shown: Vec<_> = shown.iter().map(|s| (s.role.as_str(), s.id.clone())).collect();
    assert_eq!(
        shown,
        [("in use", second.to_string()), ("before", first.to_string())]
    );

    assert!(error(authority.forget_secret(false)).contains("48 hours"));
    authority.forget_secret(true).unwrap();
    assert_eq!(Secrets::load(&dir.0).unwrap().ids(), [second]);
    authority.make_secret().unwrap();
}
