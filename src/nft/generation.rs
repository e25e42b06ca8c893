//! The generation number of nftables in this network namespace: the kernel raises it with every transaction, whosever
//! it is. When it is what it was, nobody has changed anything, and the table need not be read back to know.

use std::io::Write;
use std::time::Duration;

use super::nfnetlink::{HEADERS, message};
use crate::netlink::{self, NETLINK_NETFILTER};

// From linux/netlink.h, linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
pub(super) const NFT_MSG_NEWGEN: u16 = (10 << 8) | 15;
const NFT_MSG_GETGEN: u16 = (10 << 8) | 16;
pub(super) const NFTA_GEN_ID: u16 = 1;

/// Asks the kernel; none when it does not answer, and then the table must be read to know.
pub(super) fn generation() -> Option<u32> {
    let mut socket = netlink::open(NETLINK_NETFILTER, Duration::from_secs(1)).ok()?;
    socket.write_all(&request()).ok()?;
    let mut answer = [0; 512];
    let length = netlink::receive(&mut socket, &mut answer).ok()?;
    parse(answer.get(..length)?)
}

fn request() -> Vec<u8> {
    message(NFT_MSG_GETGEN, 0, 0, &[])
}

fn parse(message: &[u8]) -> Option<u32> {
    if u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?) != NFT_MSG_NEWGEN {
        return None;
    }
    let mut attributes = message.get(HEADERS..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        if kind == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(attributes.get(4..8)?.try_into().ok()?));
        }
        // Attributes start at multiples of four; a length below its own header would never end.
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_anything_else_is_none() {
        let mut message = request();
        message[4..6].copy_from_slice(&NFT_MSG_NEWGEN.to_ne_bytes());
        // A process name of three bytes, padded, and then the number.
        message.extend([7u16, 3].map(u16::to_ne_bytes).concat());
        message.extend(*b"nft\0");
        message.extend([8u16, NFTA_GEN_ID].map(u16::to_ne_bytes).concat());
        message.extend(260u32.to_be_bytes());
        assert_eq!(parse(&message), Some(260));
        for length in 0..message.len() {
            assert_eq!(parse(&message[..length]), None, "cut to {length}");
        }
        assert_eq!(parse(&request()), None);
    }
}
