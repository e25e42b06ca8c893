//! The opening of an SCTP association (RFC 9260), spoken over raw sockets.
//!
//! Many kernels come without an SCTP stack and still filter and track SCTP. INIT and its answer are all that a probe
//! needs, so the sandbox says them itself where the kernel cannot. Text in, packets out.

/// A chunk that a probe or a listener understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Somebody opens an association; the tag is to be repeated in the answer.
    Init { tag: u32 },
    /// The listener takes it, and sends a cookie along.
    InitAck { cookie: Vec<u8> },
    /// Nobody listens on that port, or the association is over.
    Abort,
}

/// A packet with one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: u16,
    pub(super) destination: u16,
    /// The tag that the receiver asked for; 0 in an INIT.
    pub(super) verification: u32,
    pub(super) chunk: Chunk,
}

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: u16 = 7;
const HEADER: usize = 12;

impl Packet {
    /// The bytes on the wire, checksum included: connection tracking drops a packet whose checksum is wrong.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.verification.to_be_bytes());
        bytes.extend([0; 4]);
        let (kind, body) = match &self.chunk {
            Chunk::Init { tag } => (INIT, init(*tag)),
            Chunk::InitAck { cookie } => {
                let mut body = init(1);
                body.extend(STATE_COOKIE.to_be_bytes());
                body.extend((cookie.len() as u16 + 4).to_be_bytes());
                body.extend(cookie);
                (INIT_ACK, body)
            }
            Chunk::Abort => (ABORT, Vec::new()),
        };
        bytes.extend([kind, 0]);
        bytes.extend((body.len() as u16 + 4).to_be_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..HEADER].copy_from_slice(&sum);
        bytes
    }

    /// Reads the first chunk; none when the bytes are no packet of this small vocabulary.
    pub(super) fn decode(bytes: &[u8]) -> Option<Packet> {
        let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let long = |at: usize| Some(u32::from(number(at)?) << 16 | u32::from(number(at + 2)?));
        let chunk = match *bytes.get(HEADER)? {
            INIT => Chunk::Init { tag: long(HEADER + 4)? },
            INIT_ACK => Chunk::InitAck {
                cookie: cookie(bytes.get(HEADER + 20..)?).unwrap_or_default(),
            },
            ABORT => Chunk::Abort,
            _ => return None,
        };
        Some(Packet {
            source: number(0)?,
            destination: number(2)?,
            verification: long(4)?,
            chunk,
        })
    }
}

/// The fixed part of INIT and INIT ACK: tag, window, one stream each way, first sequence number.
fn init(tag: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(tag.to_be_bytes());
    body.extend(65_536u32.to_be_bytes());
    body.extend([0, 1, 0, 1]);
    body.extend(tag.to_be_bytes());
    body
}

/// The cookie among the parameters of an INIT ACK.
fn cookie(mut parameters: &[u8]) -> Option<Vec<u8>> {
    loop {
        let kind = u16::from_be_bytes([*parameters.first()?, *parameters.get(1)?]);
        let length = usize::from(u16::from_be_bytes([*parameters.get(2)?, *parameters.get(3)?]));
        if kind == STATE_COOKIE {
            return parameters.get(4..length).map(<[u8]>::to_vec);
        }
        parameters = parameters.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// CRC-32C (Castagnoli), bit by bit: a probe's packet is some forty bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // The check value that catalogues of CRCs list for CRC-32/ISCSI.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        let chunks = [
            Chunk::Init { tag: 0xdead_beef },
            Chunk::InitAck {
                cookie: b"shop/db-0".to_vec(),
            },
            Chunk::Abort,
        ];
        for chunk in chunks {
            let packet = Packet {
                source: 40_000,
                destination: 3868,
                verification: 7,
                chunk,
            };
            assert_eq!(Packet::decode(&packet.encode()), Some(packet));
        }
    }

    #[test]
    fn a_broken_packet_is_no_packet() {
        let packet = Packet {
            source: 1,
            destination: 2,
            verification: 0,
            chunk: Chunk::Init { tag: 9 },
        };
        assert_eq!(Packet::decode(&packet.encode()[..15]), None);
        assert_eq!(Packet::decode(&[]), None);
    }
}
