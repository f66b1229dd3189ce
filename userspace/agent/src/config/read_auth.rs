//! How both sides of a connection prove who they are: keys `auth`, `local_auth`, `remote_auth` and the files that they need.

use std::path::PathBuf;

use ike::auth::pattern::WrittenId;

use super::check::{self, Files};
use super::read::Context;
use super::reader::{At, Reader};
use super::{AuthKind, AuthorityFiles, CertificateFiles, KeySource, TokenKeyConfig};
use crate::credentials::uri::KeyUri;
use crate::{clock, credentials};

/// What the keys come to.
pub(super) struct Auth {
    pub local: AuthKind,
    pub remote: AuthKind,
    pub local_id: Option<String>,
    pub remote_id: Option<String>,
    pub psk_file: Option<PathBuf>,
    pub certificate: Option<CertificateFiles>,
    pub authorities: Option<AuthorityFiles>,
    pub eap_users: Option<PathBuf>,
}

impl Context<'_> {
    pub(super) fn auth(&self, t: &mut Reader<'_>, connection: &str) -> Auth {
        let words = [("psk", AuthKind::Psk), ("cert", AuthKind::Certificate)];
        let both = t.word("auth", &words);
        let local = t.word("local_auth", &words).or(both).unwrap_or(AuthKind::Psk);
        let all = [
            words[0],
            words[1],
            ("eap-mschapv2", AuthKind::EapMsChapV2),
            ("eap-tls", AuthKind::EapTls),
        ];
        let remote = t.word("remote_auth", &all).or(both).unwrap_or(AuthKind::Psk);
        let local_id = match local {
            // The certificate's subject.
            AuthKind::Certificate => t.string("local_id"),
            _ => t.required_string("local_id", "our identity"),
        };
        let remote_id = t.required_string("remote_id", "the peer's identity");
        if let Some(id) = &remote_id
            && let Err(why) = WrittenId::parse(&id.value)
        {
            self.problems.add(
                id.span.clone(),
                format!("remote_id '{}' is no distinguished name: {why}", id.value),
                "write for example \"C=DE, O=Example, CN=*\"",
            );
        }
        let psk_file = if local == AuthKind::Psk || remote == AuthKind::Psk {
            t.required_string("psk_file", "the path of a file with the pre-shared key")
        } else {
            self.useless(t, "psk_file", "no side uses a pre-shared key");
            None
        };
        if let (Some(psk), Files::Check) = (&psk_file, self.files) {
            check::secret_file(
                &self.problems,
                &psk.span,
                &self.path(&psk.value),
                "pre-shared key file",
            );
        }
        let certificate = match local {
            AuthKind::Psk | AuthKind::EapMsChapV2 | AuthKind::EapTls => {
                for key in [
                    "cert_file",
                    "key_file",
                    "key",
                    "pkcs11_module",
                    "pin_file",
                    "rsa_padding",
                    "cert_ocsp_file",
                ] {
                    self.useless(t, key, "we do not prove ourselves by a certificate");
                }
                None
            }
            AuthKind::Certificate => self.certificate(t, connection, local_id.as_ref()),
        };
        let authorities = match remote {
            AuthKind::Psk | AuthKind::EapMsChapV2 => {
                for key in ["ca_files", "crl_files", "ocsp_files", "revocation"] {
                    self.useless(t, key, "the peer does not prove itself by a certificate");
                }
                None
            }
            AuthKind::Certificate | AuthKind::EapTls => self.authorities(t),
        };
        let eap_users = match remote {
            AuthKind::EapMsChapV2 => {
                let file = t.required_string(
                    "eap_users_file",
                    "the path of a file with lines \"name:password\"",
                );
                if let (Some(file), Files::Check) = (&file, self.files) {
                    let path = self.path(&file.value);
                    check::secret_file(&self.problems, &file.span, &path, "file of EAP users");
                    if let Err(error) = credentials::users(&path) {
                        self.problems.add(
                            file.span.clone(),
                            format!("{error:#}"),
                            "write one \"name:password\" a line",
                        );
                    }
                }
                file
            }
            _ => {
                self.useless(t, "eap_users_file", "the peer does not prove itself by EAP");
                None
            }
        };
        if remote == AuthKind::EapTls
            && local != AuthKind::Certificate
            && let Some(span) = t.place("remote_auth")
        {
            self.problems.add(
                span,
                "EAP-TLS needs a certificate of ours, in TLS as well as in IKE",
                "set local_auth = \"cert\", with cert_file and key_file",
            );
        }
        if remote == AuthKind::EapMsChapV2
            && local != AuthKind::Certificate
            && let Some(span) = t.place("remote_auth")
        {
            self.problems.add(
                span,
                "EAP-MSCHAPv2 is safe only behind a certificate of ours: anybody could pose as the gateway otherwise",
                "set local_auth = \"cert\", with cert_file and key_file",
            );
        }
        Auth {
            local,
            remote,
            local_id: local_id.map(|id| id.value),
            remote_id: remote_id.map(|id| id.value),
            psk_file: psk_file.map(|file| self.path(&file.value)),
            certificate,
            authorities,
            eap_users: eap_users.map(|file| self.path(&file.value)),
        }
    }

    /// Reports a key that says nothing here.
    fn useless(&self, t: &mut Reader<'_>, key: &'static str, why: &str) {
        if let Some(span) = t.place(key) {
            self.problems.add(
                span,
                format!("'{key}' is given, but {why}"),
                "remove it, or set auth = \"cert\" or \"psk\" accordingly",
            );
        }
    }

    fn certificate(
        &self,
        t: &mut Reader<'_>,
        connection: &str,
        local_id: Option<&At<String>>,
    ) -> Option<CertificateFiles> {
        let cert = t.required_string(
            "cert_file",
            "the path of our certificate (PEM, issuers behind it)",
        );
        let source = self.private_key(t);
        let rsa_pkcs1 = t
            .word("rsa_padding", &[("pss", false), ("pkcs1", true)])
            .unwrap_or(false);
        let ocsp = t.string("cert_ocsp_file");
        let (cert, key) = (cert?, source?);
        let files = CertificateFiles {
            cert: self.path(&cert.value),
            key,
            rsa_pkcs1,
            ocsp: ocsp.map(|file| self.path(&file.value)),
        };
        if self.files == Files::Check {
            match credentials::own(connection, &files) {
                Err(error) => self.problems.add(
                    cert.span,
                    format!("{error:#}"),
                    "name a certificate, its private key (key_file, or key with pkcs11_module and pin_file), and an OCSP response only if it is about it",
                ),
                Ok(own) => {
                    let now = clock::wall_ns() / 1_000_000_000;
                    if let Err(error) = credentials::check_dates(&own.facts, now) {
                        self.problems
                            .add(cert.span.clone(), error.to_string(), "have another one issued");
                    }
                    let id = local_id.map(|id| id.value.as_str());
                    if let Err(error) = credentials::own_id(id, Some(&own.facts)) {
                        let span = local_id.map_or(cert.span, |id| id.span.clone());
                        self.problems.add(
                            span,
                            format!("{error:#}"),
                            "or leave local_id out: then it is the certificate's subject",
                        );
                    }
                }
            }
        }
        Some(files)
    }

    /// Keys `key_file`, or `key` with `pkcs11_module` and `pin_file`.
    fn private_key(&self, t: &mut Reader<'_>) -> Option<KeySource> {
        let uri = t.string("key");
        let Some(uri) = uri else {
            for key in ["pkcs11_module", "pin_file"] {
                self.useless(t, key, "no 'key' names a private key in a token");
            }
            let key = t.required_string(
                "key_file",
                "the path of the certificate's private key (PEM), or key = \"pkcs11:token=LABEL;object=LABEL\"",
            )?;
            let path = self.path(&key.value);
            if self.files == Files::Check {
                check::secret_file(&self.problems, &key.span, &path, "private key file");
            }
            return Some(KeySource::File(path));
        };
        self.useless(t, "key_file", "'key' names a private key in a token");
        let module = t.required_string(
            "pkcs11_module",
            "the path of the library that comes with the token, for example /usr/lib/softhsm/libsofthsm2.so",
        );
        let pin = t.required_string("pin_file", "the path of a file with the token's PIN");
        let parsed = KeyUri::parse(&uri.value)
            .map_err(|error| {
                self.problems.add(
                    uri.span.clone(),
                    format!("{error:#}"),
                    "write for example \"pkcs11:token=gateways;object=gw\"",
                );
            })
            .ok();
        let (module, pin) = (module?, pin?);
        let pin_file = self.path(&pin.value);
        if self.files == Files::Check {
            check::secret_file(&self.problems, &pin.span, &pin_file, "PIN file");
        }
        Some(KeySource::Token(TokenKeyConfig {
            module: self.path(&module.value),
            uri: parsed?,
            pin_file,
        }))
    }

    fn authorities(&self, t: &mut Reader<'_>) -> Option<AuthorityFiles> {
        let hint =
            "the list of files with certificates of authorities that the peer's certificate is issued by";
        if !t.has("ca_files") {
            t.missing("ca_files", hint);
        }
        let ca = t.string_or_strings("ca_files");
        let crl = t.string_or_strings("crl_files");
        let ocsp = t.string_or_strings("ocsp_files");
        let strict = t
            .word("revocation", &[("relaxed", false), ("strict", true)])
            .unwrap_or(false);
        let ca = ca?;
        let paths = |list: Vec<At<String>>| list.iter().map(|path| self.path(&path.value)).collect();
        let files = AuthorityFiles {
            ca: paths(ca.value),
            crl: crl.map(|list| paths(list.value)).unwrap_or_default(),
            ocsp: ocsp.map(|list| paths(list.value)).unwrap_or_default(),
            strict,
        };
        if self.files == Files::Check
            && let Err(error) = credentials::trust(&files)
        {
            self.problems.add(
                ca.span,
                format!("{error:#}"),
                "name files with certificates (ca_files) and revocation lists (crl_files) in PEM or DER, and OCSP responses \
                 (ocsp_files) in DER",
            );
        }
        Some(files)
    }
}
