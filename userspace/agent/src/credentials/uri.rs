//! Names of private keys in tokens: `pkcs11:token=gateways;object=gw` (RFC 7512).

use anyhow::{Context, Result, bail, ensure};

/// Which private key of which token. What is not given may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyUri {
    /// Label of the token.
    pub token: Option<String>,
    /// Serial number of the token.
    pub serial: Option<String>,
    /// Label of the key (CKA_LABEL).
    pub object: Option<String>,
    /// CKA_ID of the key.
    pub id: Option<Vec<u8>>,
}

impl KeyUri {
    /// Reads `pkcs11:` and attributes `token`, `serial`, `object`, `id` and `type=private`, with `;` between them.
    ///
    /// # Errors
    /// It is something else, or does not say which token or which key.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(attributes) = text.strip_prefix("pkcs11:") else {
            bail!("'{text}' does not begin with 'pkcs11:'");
        };
        ensure!(
            !attributes.contains('?'),
            "'{text}' has attributes behind a '?': write them as pkcs11_module and pin_file instead"
        );
        let mut uri = Self::default();
        for attribute in attributes.split(';') {
            let (name, value) = attribute
                .split_once('=')
                .with_context(|| format!("'{attribute}' is no name=value"))?;
            let value = decode(value)?;
            let text =
                || String::from_utf8(value.clone()).with_context(|| format!("{name} is no text in UTF-8"));
            let again = match name {
                "token" => uri.token.replace(text()?).is_some(),
                "serial" => uri.serial.replace(text()?).is_some(),
                "object" => uri.object.replace(text()?).is_some(),
                "id" => uri.id.replace(value).is_some(),
                "type" => {
                    ensure!(value == b"private", "type must be 'private'");
                    false
                }
                other => bail!("attribute '{other}' is not known: token, serial, object, id and type are"),
            };
            ensure!(!again, "attribute '{name}' is there twice");
        }
        ensure!(
            uri.token.is_some() || uri.serial.is_some(),
            "'{text}' names no token: add token=LABEL or serial=NUMBER"
        );
        ensure!(
            uri.object.is_some() || uri.id.is_some(),
            "'{text}' names no key: add object=LABEL or id=%01"
        );
        Ok(uri)
    }

    /// The token, for logs.
    pub fn token_text(&self) -> String {
        match (&self.token, &self.serial) {
            (Some(label), None) => format!("'{label}'"),
            (Some(label), Some(serial)) => format!("'{label}' with serial number {serial}"),
            (None, serial) => format!("with serial number {}", serial.as_deref().unwrap_or_default()),
        }
    }

    /// The key, for logs.
    pub fn key_text(&self) -> String {
        let id = |id: &Vec<u8>| id.iter().map(|octet| format!("%{octet:02x}")).collect::<String>();
        match (&self.object, &self.id) {
            (Some(label), None) => format!("'{label}'"),
            (Some(label), Some(octets)) => format!("'{label}' with id={}", id(octets)),
            (None, octets) => format!("with id={}", octets.as_ref().map(id).unwrap_or_default()),
        }
    }
}

fn decode(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut octets = text.bytes();
    while let Some(octet) = octets.next() {
        if octet != b'%' {
            out.push(octet);
            continue;
        }
        let mut digit = || char::from(octets.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            bail!("'{text}' has a '%' without two hexadecimal digits behind it");
        };
        out.push((high * 16 + low) as u8);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_token_and_which_key() {
        let uri = KeyUri::parse("pkcs11:token=My%20token;object=gw;id=%01%fF;type=private").unwrap();
        let expected = KeyUri {
            token: Some("My token".to_owned()),
            serial: None,
            object: Some("gw".to_owned()),
            id: Some(vec![1, 255]),
        };
        assert_eq!(uri, expected);
        assert_eq!(uri.token_text(), "'My token'");
        assert_eq!(uri.key_text(), "'gw' with id=%01%ff");
        for (text, word) in [
            ("gw.key", "does not begin"),
            ("pkcs11:object=gw", "names no token"),
            ("pkcs11:token=a", "names no key"),
            ("pkcs11:token=a;token=b;object=c", "twice"),
            ("pkcs11:token=a;object=%4", "two hexadecimal digits"),
            ("pkcs11:token=%ff;object=a", "UTF-8"),
            ("pkcs11:token=a;object=b;slot-id=1", "'slot-id' is not known"),
            ("pkcs11:token=a;object=b;type=cert", "'private'"),
            ("pkcs11:token=a;object=b?pin-value=1", "pin_file"),
            ("pkcs11:token", "no name=value"),
        ] {
            let why = format!("{:#}", KeyUri::parse(text).unwrap_err());
            assert!(why.contains(word), "{word:?} is not in {why}");
        }
    }
}
