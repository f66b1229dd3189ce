//! What an engine of this world may ask of its surroundings.

use super::*;

pub struct Around {
    pub rng: Rng,
    pub member: u8,
    pub epoch: u64,
    pub next_esp: u32,
    pub allocated: BTreeSet<EspSpi>,
    /// 0xff... or 0: fills nonces so that a test decides who has the lowest one.
    pub nonce_bias: Option<u8>,
    pub out_of_spis: bool,
    /// It is certain that what the engine does not know is nowhere.
    pub may_show: bool,
    pub may_initiate: bool,
    /// SPIs left that members have reserved for their resources, and where each went.
    pub reserved: usize,
    pub on_resource: BTreeMap<EspSpi, Resource>,
    /// Outbound numbers that were raised, if that is possible here.
    pub advanced: Option<Vec<(EspSpi, u64)>>,
    /// Seconds since 1970.
    pub unix_time: Option<u64>,
    pub pool_share: Option<ike::PoolShare>,
}

impl Surroundings for Around {
    fn random(&mut self, out: &mut [u8]) {
        for octet in out.iter_mut() {
            *octet = self.rng.next() as u8;
        }
        if let (Some(bias), 32) = (self.nonce_bias, out.len()) {
            out[0] = bias;
        }
    }
    fn ike_spi(&mut self, _peer: Option<IkeSpi>, _connection: &str) -> IkeSpi {
        IkeSpi((7 << 56) | (u64::from(self.member) << 48) | (self.rng.next() >> 16))
    }
    fn successor_ike_spi(&mut self, old: IkeSpi) -> IkeSpi {
        IkeSpi((old.0 & (0xff << 56)) | (u64::from(self.member) << 48) | (self.rng.next() >> 16))
    }
    fn esp_spi(&mut self, _ike_spi: IkeSpi) -> Option<EspSpi> {
        if self.out_of_spis {
            return None;
        }
        self.next_esp += 1;
        let spi = EspSpi(self.next_esp);
        self.allocated.insert(spi);
        Some(spi)
    }
    fn resource_esp_spi(&mut self, ike_spi: IkeSpi, resource: Resource) -> Option<EspSpi> {
        self.reserved = self.reserved.checked_sub(1)?;
        let spi = self.esp_spi(ike_spi)?;
        self.on_resource.insert(spi, resource);
        Some(spi)
    }
    fn release_esp_spi(&mut self, spi: EspSpi) {
        assert!(
            self.allocated.remove(&spi),
            "SPI {spi} released twice or never allocated"
        );
    }
    fn initial_limits(&mut self) -> InitialLimits {
        InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 64,
            headroom: 64,
        }
    }
    fn iv_prefix(&self, _: IkeSpi) -> (MemberId, Epoch) {
        (MemberId(self.member), Epoch(self.epoch))
    }
    fn may_show_qcd(&self, _spi: IkeSpi) -> bool {
        self.may_show
    }
    fn advance_outbound(&mut self, spi_in: EspSpi, delta: u64) -> bool {
        match &mut self.advanced {
            Some(advanced) => advanced.push((spi_in, delta)),
            None => return false,
        }
        true
    }
    fn unix_time(&self) -> Option<u64> {
        self.unix_time
    }
    fn pool_share(&self, _ike_spi: IkeSpi) -> Option<ike::PoolShare> {
        self.pool_share
    }
    fn may_initiate(&self, _connection: &str) -> bool {
        self.may_initiate
    }
}
