//! R12: SPIs never collide between members, and none is given out that is in use.

use crate::around::Drawn;
use model::MemberId;
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Spis {
    esp: HashMap<u32, (MemberId, u64)>,
    ike: HashMap<u64, MemberId>,
}

impl Spis {
    pub(super) fn drawn(&mut self, me: MemberId, life: u64, spi: Drawn, live: bool) -> Result<(), String> {
        // Cut by owner: the member's number is part of each SPI.
        let named = match spi {
            Drawn::Esp(spi) => (spi.0 >> 20 & 0xf) as u8 + 1,
            Drawn::Ike(spi) => (spi.0 >> 48) as u8,
        };
        if named != me.0 {
            return Err(format!("{spi:?}, drawn by member {me}, names member {named}"));
        }
        match spi {
            Drawn::Ike(spi) => match self.ike.insert(spi.0, me) {
                Some(who) => Err(format!(
                    "IKE SPI {spi} drawn by member {me}, and before by member {who}"
                )),
                None => Ok(()),
            },
            Drawn::Esp(spi) => {
                let before = self.esp.insert(spi.0, (me, life));
                match before {
                    Some((who, _)) if who != me => Err(format!(
                        "ESP SPI {spi} drawn by member {me}, and before by member {who}"
                    )),
                    _ if live => Err(format!("ESP SPI {spi} drawn by member {me}, but it is in use")),
                    _ => Ok(()),
                }
            }
        }
    }
}
