//! Messages of nfnetlink, which nftables and connection tracking speak: the frame around their attributes, written and read.

use std::io::{self, ErrorKind};

// From linux/netlink.h.
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// A netlink header, and an nfnetlink header behind it.
pub(super) const HEADERS: usize = 20;

/// A message, padded to a multiple of four as its attributes are.
pub(super) fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADERS + attributes.len()) as u32;
    let mut message = Vec::with_capacity(HEADERS + attributes.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence and port: answers come in order, and the kernel fills in the port.
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(attributes);
    message
}

/// An attribute of 32 bits, in network order.
pub(super) fn attribute(kind: u16, value: u32) -> [u8; 8] {
    let [a, b] = 8u16.to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    let [e, f, g, h] = value.to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    /// What follows the netlink header.
    pub(super) payload: &'a [u8],
}

impl Message<'_> {
    /// The error that it reports; none when it acknowledges.
    pub(super) fn error(&self) -> Option<io::Error> {
        let code = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
        match code.map(i32::from_ne_bytes) {
            Some(0) => None,
            Some(code) => Some(io::Error::from_raw_os_error(code.wrapping_neg())),
            None => Some(unreadable()),
        }
    }
}

pub(super) fn unreadable() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the kernel's answer cannot be read")
}

/// The messages of a datagram.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let read = || {
            let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
            let message = Message {
                kind: u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?),
                flags: u16::from_ne_bytes(datagram.get(6..8)?.try_into().ok()?),
                payload: datagram.get(16..length)?,
            };
            Some((message, length))
        };
        let read = read();
        let next = read
            .as_ref()
            .map_or(datagram.len(), |(_, length)| length.next_multiple_of(4));
        datagram = datagram.get(next..).unwrap_or_default();
        Some(read.map(|(message, _)| message).ok_or_else(unreadable))
    })
}
