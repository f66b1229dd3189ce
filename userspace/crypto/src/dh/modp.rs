//! MODP groups 14 to 16 (RFC 3526), generator 2, with short exponents.

use super::DhGroup;
use crate::{CryptoError, Random};
use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U256, U320, U384, U2048, U3072, U4096, Uint};
use model::SecretBytes;
use std::sync::LazyLock;
use zeroize::Zeroizing;

const P2048: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD",
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F",
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510",
    "15728E5A8AACAA68FFFFFFFFFFFFFFFF",
);

const P3072: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD",
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F",
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510",
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7",
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C",
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF",
);

const P4096: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74020BBEA63B139B22514A08798E3404DD",
    "EF9519B3CD3A431B302B0A6DF25F14374FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF0598DA48361C55D39A69163FA8FD24CF5F",
    "83655D23DCA3AD961C62F356208552BB9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF6955817183995497CEA956AE515D2261898FA0510",
    "15728E5A8AAAC42DAD33170D04507A33A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7",
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864D87602733EC86A64521F2B18177B200C",
    "BBE117577A615D6C770988C0BAD946E208E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7",
    "88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8DBBBC2DB04DE8EF92E8EFC141FBECAA6",
    "287C59474E6BC05D99B2964FA090C3A2233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9",
    "93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF",
);

static MODP_2048: LazyLock<FixedMontyParams<{ U2048::LIMBS }>> = LazyLock::new(|| params(P2048));
static MODP_3072: LazyLock<FixedMontyParams<{ U3072::LIMBS }>> = LazyLock::new(|| params(P3072));
static MODP_4096: LazyLock<FixedMontyParams<{ U4096::LIMBS }>> = LazyLock::new(|| params(P4096));

fn params<const N: usize>(prime: &str) -> FixedMontyParams<N> {
    FixedMontyParams::new_vartime(Odd::<Uint<N>>::from_be_hex(prime))
}

/// Octets of an exponent: at least twice the group's strength in bits by the higher estimate of RFC 3526 8, which is enough in
/// a group of a safe prime. A full-length one would cost ten times as much.
const fn exponent_len(group: DhGroup) -> usize {
    match group {
        DhGroup::Modp2048 => 32,
        DhGroup::Modp3072 => 40,
        _ => 48,
    }
}

pub(super) struct ModpKey {
    group: DhGroup,
    exponent: SecretBytes,
    public: Vec<u8>,
}

impl ModpKey {
    pub fn draw(group: DhGroup, random: Random<'_>) -> Result<Self, CryptoError> {
        let mut octets = vec![0; exponent_len(group)];
        random(&mut octets);
        let exponent = SecretBytes::new(octets);
        if exponent.expose().iter().all(|octet| *octet == 0) {
            return Err(CryptoError::PrivateKey);
        }
        let mut two = vec![0; group.public_len()];
        two[group.public_len() - 1] = 2;
        let public = power(group, &two, exponent.expose())?;
        Ok(Self {
            group,
            exponent,
            public: public.expose().to_vec(),
        })
    }

    /// The public value is exported too: to compute it again would cost as much as the exchange.
    pub fn restore(group: DhGroup, exported: &[u8]) -> Result<Self, CryptoError> {
        let (exponent, public) = exported
            .split_at_checked(exponent_len(group))
            .ok_or(CryptoError::PrivateKey)?;
        if public.len() != group.public_len() {
            return Err(CryptoError::PrivateKey);
        }
        Ok(Self {
            group,
            exponent: SecretBytes::new(exponent.to_vec()),
            public: public.to_vec(),
        })
    }

    pub fn public(&self) -> &[u8] {
        &self.public
    }

    pub fn export(&self) -> SecretBytes {
        SecretBytes::new([self.exponent.expose(), &self.public].concat())
    }

    /// RFC 7296 2.14: g^ir is padded with zeros to the length of the modulus.
    pub fn agree(&self, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        power(self.group, peer_public, self.exponent.expose())
    }
}

fn power(group: DhGroup, base: &[u8], exponent: &[u8]) -> Result<SecretBytes, CryptoError> {
    match group {
        DhGroup::Modp2048 => power_in::<_, { U256::LIMBS }>(&MODP_2048, base, exponent),
        DhGroup::Modp3072 => power_in::<_, { U320::LIMBS }>(&MODP_3072, base, exponent),
        DhGroup::Modp4096 => power_in::<_, { U384::LIMBS }>(&MODP_4096, base, exponent),
        _ => Err(CryptoError::Provider),
    }
}

//= rfc6989#2.1
// The recipient (of the public key) MUST check that the peer's public value is in the legal range: 1 < r < p-1.
/// In constant time as far as the exponent and the result are concerned; the base is public.
fn power_in<const N: usize, const E: usize>(
    params: &FixedMontyParams<N>,
    base: &[u8],
    exponent: &[u8],
) -> Result<SecretBytes, CryptoError> {
    let base: Uint<N> = number(base).ok_or(CryptoError::PeerPublic)?;
    let exponent = Zeroizing::new(number::<E>(exponent).ok_or(CryptoError::PrivateKey)?);
    let highest = params.modulus().as_ref().wrapping_sub(&Uint::ONE);
    if base <= Uint::ONE || base >= highest {
        return Err(CryptoError::PeerPublic);
    }
    let result = Zeroizing::new(FixedMontyForm::new(&base, params).pow(&*exponent).retrieve());
    let octets = result.as_words().iter().rev().flat_map(|word| word.to_be_bytes());
    let mut out = Vec::with_capacity(N * size_of::<crypto_bigint::Word>());
    out.extend(octets);
    Ok(SecretBytes::new(out))
}

/// Big-endian octets of exactly the number's size.
fn number<const N: usize>(octets: &[u8]) -> Option<Uint<N>> {
    (octets.len() * 8 == Uint::<N>::BITS as usize).then(|| Uint::from_be_slice(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octets<const N: usize>(number: &Uint<N>) -> Vec<u8> {
        number
            .as_words()
            .iter()
            .rev()
            .flat_map(|word| word.to_be_bytes())
            .collect()
    }

    fn edges<const N: usize>(group: DhGroup, params: &FixedMontyParams<N>) {
        let key = ModpKey::draw(group, &mut |out| out.fill(5)).unwrap();
        let p = params.modulus().as_ref();
        for below in 0u8..2 {
            let value = octets(&p.wrapping_sub(&Uint::from(below)));
            assert_eq!(
                key.agree(&value).err(),
                Some(CryptoError::PeerPublic),
                "{group:?} p - {below}"
            );
        }
        assert!(
            key.agree(&octets(&p.wrapping_sub(&Uint::from(2u8)))).is_ok(),
            "{group:?} p - 2"
        );
    }

    #[test]
    fn p_and_p_minus_1_are_outside_of_the_group() {
        edges(DhGroup::Modp2048, &MODP_2048);
        edges(DhGroup::Modp3072, &MODP_3072);
        edges(DhGroup::Modp4096, &MODP_4096);
    }
}
