//! Authorities and certificates made by openssl, so that neither side of a test made them.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with keys, certificates and two authorities: `root`, and `middle` below it; `other` is a stranger.
#[derive(Debug)]
pub struct Pki {
    /// The folder.
    pub folder: PathBuf,
}

/// How keys are made.
const SCRIPT: &str = r#"
set -e
key() {
  case $2 in
    ecdsa256) openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $1.key ;;
    ecdsa384) openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out $1.key ;;
    rsa*) [ -f rsa.pool ] || openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pool
       cp rsa.pool $1.key ;;
    ed25519) openssl genpkey -algorithm ED25519 -out $1.key ;;
  esac
  chmod 600 $1.key
}
authority() {
  mkdir -p $1.db; : > $1.db/index; echo 1000 > $1.db/serial; echo 01 > $1.db/crlnumber
  cat > $1.cnf <<END
[ca]
default_ca = d
[d]
database = $1.db/index
serial = $1.db/serial
crlnumber = $1.db/crlnumber
new_certs_dir = $1.db
certificate = $1.crt
private_key = $1.key
default_md = sha256
default_days = 90
default_crl_days = 30
policy = p
unique_subject = no
[p]
organizationName = optional
commonName = supplied
END
}
cat > ca.ext <<END
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
END
root() {
  authority $1; key $1 ecdsa256
  openssl req -new -key $1.key -subj "/O=Example/CN=$1" -out $1.csr
  openssl x509 -req -in $1.csr -signkey $1.key -days 900 -extfile ca.ext -out $1.crt
}
leaf() { # name kind issuer san [more arguments of openssl ca]
  name=$1; key $name $2; issuer=$3
  printf 'subjectAltName = %s\nkeyUsage = digitalSignature\n' "$4" > $name.ext
  shift 4
  openssl req -new -key $name.key -subj "/O=Example/CN=$name" -out $name.csr
  openssl ca -config $issuer.cnf -batch -notext -in $name.csr -extfile $name.ext "$@" -out $name.crt
}
"#;

impl Pki {
    /// Runs the commands of `what` (functions of the script above) in a new folder.
    pub fn new(folder: &Path, what: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let output = Command::new("bash")
            .arg("-c")
            .arg(format!("{SCRIPT}\n{what}"))
            .current_dir(folder)
            .output()
            .context("bash")?;
        anyhow::ensure!(
            output.status.success(),
            "openssl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What is in a file of it.
    pub fn text(&self, name: &str) -> Result<String> {
        std::fs::read_to_string(self.path(name)).with_context(|| name.to_owned())
    }
}
