//! Whose tables have been changed: the kernel tells every transaction of this network namespace, object by object, and then its
//! number. So a change of somebody else's table need not be taken for one of ours, and ours need not be read back to know.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::sync::{Mutex, PoisonError};

use netlink_packet_core::NlasIterator;
use socket2::Socket;

use super::generation::{NFT_MSG_NEWGEN, NFTA_GEN_ID, generation};
use super::names::TABLE;
use crate::netlink::{self, NETLINK_NETFILTER};

// From linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h and linux/netfilter.h.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNLGRP_NFTABLES: u32 = 7;
pub(super) const NFPROTO_INET: u8 = 1;
/// The table's name has this number in messages of every kind.
const NFTA_TABLE: u16 = 1;

/// What waits to be read, at most. Our own transactions of a whole table are beyond it; what else is must be taken for one of ours.
const BUFFER: usize = 4 << 20;

/// Transactions after some other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The number of the last.
    pub newest: u32,
    /// How many of them were about our table, or may have been.
    pub ours: usize,
}

/// So many transactions about our table are remembered.
const REMEMBERED: usize = 64;

/// Listens from the first time that anybody asks. A clone listens for itself: it may be used in another network namespace.
#[derive(Debug, Default)]
pub struct Listening(Mutex<Option<Monitor>>);

impl Clone for Listening {
    fn clone(&self) -> Self {
        Listening::default()
    }
}

impl Listening {
    /// What was heard after this transaction; none when not all was.
    pub(super) fn heard(&self, since: u32) -> Option<Heard> {
        let mut monitor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(heard)) = monitor.as_mut().map(|monitor| monitor.heard(since)) {
            return heard;
        }
        // Nobody has listened yet, or more was told than there was room for.
        *monitor = Monitor::open().ok();
        monitor.as_mut()?.heard(since).ok()?
    }
}

/// A socket on which the kernel tells, and what it has told.
#[derive(Debug)]
struct Monitor {
    socket: Socket,
    told: Told,
}

#[derive(Debug)]
struct Told {
    /// The newest transaction that was told to its end.
    newest: u32,
    /// The last ones about our table.
    ours: VecDeque<u32>,
    /// The newest that may have been, and is not among them.
    forgotten: u32,
    /// Whether the one that is being told is.
    is_ours: bool,
}

impl Monitor {
    /// Begins to listen. What was before counts as about our table.
    fn open() -> io::Result<Self> {
        let socket = netlink::open_group(NETLINK_NETFILTER, NFNLGRP_NFTABLES, BUFFER)?;
        // Asked once the socket listens: nothing can happen unheard after it.
        let now = generation().ok_or(ErrorKind::TimedOut)?;
        Ok(Monitor {
            socket,
            told: Told {
                newest: now,
                ours: VecDeque::new(),
                forgotten: now,
                is_ours: false,
            },
        })
    }

    /// As [`Listening::heard`]. An error means that some were not heard: listen anew.
    fn heard(&mut self, since: u32) -> io::Result<Option<Heard>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(length) => self.told.hear(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(self.told.since(since))
    }
}

impl Told {
    fn since(&self, since: u32) -> Option<Heard> {
        (self.forgotten <= since).then(|| Heard {
            newest: self.newest,
            ours: self.ours.iter().filter(|number| **number > since).count(),
        })
    }

    /// Messages, one behind the other: a netlink header (length, type, ...), one of nfnetlink (family, ...), attributes.
    fn hear(&mut self, mut messages: &[u8]) {
        while let Some(header) = messages.first_chunk::<HEADERS>() {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let attributes = messages.get(HEADERS..length);
            if kind == NFT_MSG_NEWGEN {
                self.end(attributes.and_then(number));
            } else if header[HEADER] == NFPROTO_INET {
                // What cannot be read may be about anything.
                self.is_ours |= attributes.and_then(|a| value(a, NFTA_TABLE)).is_none_or(is_ours);
            }
            messages = messages
                .get(length.max(HEADERS).next_multiple_of(4)..)
                .unwrap_or_default();
        }
    }

    /// A transaction has been told to its end.
    fn end(&mut self, number: Option<u32>) {
        // Without its number, the next one stands for it.
        let Some(number) = number else {
            self.is_ours = true;
            return;
        };
        // Of those that were under way when the socket began to listen the number is known already.
        self.newest = self.newest.max(number);
        if std::mem::take(&mut self.is_ours) {
            self.ours.push_back(number);
            if self.ours.len() > REMEMBERED
                && let Some(oldest) = self.ours.pop_front()
            {
                self.forgotten = self.forgotten.max(oldest);
            }
        }
    }
}

fn is_ours(name: &[u8]) -> bool {
    name.strip_suffix(&[0]).unwrap_or(name) == TABLE.as_bytes()
}

fn number(attributes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value(attributes, NFTA_GEN_ID)?.try_into().ok()?))
}

/// The first attribute of a kind; what stands behind one that is malformed is not looked at.
pub(super) fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut attributes = NlasIterator::new(attributes).map_while(Result::ok);
    let found = attributes.find(|attribute| attribute.kind() == kind)?;
    let whole = found.into_inner();
    whole.get(4..usize::from(u16::from_ne_bytes([*whole.first()?, *whole.get(1)?])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, family: u8, attribute: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADERS];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER] = family;
        message.extend((attribute.len() as u16 + 4).to_ne_bytes());
        message.extend(1u16.to_ne_bytes());
        message.extend(attribute);
        let length = message.len() as u32;
        message[0..4].copy_from_slice(&length.to_ne_bytes());
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn about(table: &[u8]) -> Vec<u8> {
        message((NFNL_SUBSYS_NFTABLES << 8) | 12, NFPROTO_INET, table)
    }

    fn end(number: u32) -> Vec<u8> {
        message(NFT_MSG_NEWGEN, 0, &number.to_be_bytes())
    }

    #[track_caller]
    fn check(messages: &[Vec<u8>], since: u32, expected: Option<(u32, usize)>) {
        let fresh = || Told {
            newest: 7,
            ours: VecDeque::new(),
            forgotten: 7,
            is_ours: false,
        };
        // In one datagram, and each message in one of its own.
        let (mut together, mut apart) = (fresh(), fresh());
        together.hear(&messages.concat());
        messages.iter().for_each(|message| apart.hear(message));
        let expected = expected.map(|(newest, ours)| Heard { newest, ours });
        assert_eq!((together.since(since), apart.since(since)), (expected, expected));
    }

    #[test]
    fn other_tables_are_none_of_our_business() {
        check(&[], 7, Some((7, 0)));
        check(&[], 6, None);
        let other = || about(b"kube-proxy\0");
        check(&[other(), other(), end(8), other(), end(9)], 7, Some((9, 0)));
        // The same name in another family.
        let elsewhere = message((NFNL_SUBSYS_NFTABLES << 8) | 12, 2, b"palisade\0");
        check(&[elsewhere, end(8)], 7, Some((8, 0)));
    }

    #[test]
    fn ours_counts_until_it_is_known() {
        let ours = || about(b"palisade\0");
        let messages = [
            about(b"other\0"),
            ours(),
            end(8),
            about(b"other\0"),
            end(9),
            ours(),
            ours(),
            end(10),
        ];
        check(&messages, 7, Some((10, 2)));
        check(&messages, 8, Some((10, 1)));
        check(&messages, 10, Some((10, 0)));
        // Not told to its end.
        check(&messages[..2], 7, Some((7, 0)));
    }

    #[test]
    fn what_is_long_ago_may_have_been_ours() {
        let messages: Vec<Vec<u8>> = (8..8 + REMEMBERED as u32 + 2)
            .flat_map(|n| [about(b"palisade\0"), end(n)])
            .collect();
        check(&messages, 8, None);
        check(&messages, 9, Some((9 + REMEMBERED as u32, REMEMBERED)));
    }

    #[test]
    fn what_cannot_be_read_may_be_ours() {
        let mut cut = about(b"other\0");
        cut.truncate(HEADERS + 2);
        let length = cut.len() as u32;
        cut[0..4].copy_from_slice(&length.to_ne_bytes());
        cut.resize(cut.len().next_multiple_of(4), 0);
        check(&[cut, end(8)], 7, Some((8, 1)));
        check(&[message(NFT_MSG_NEWGEN, 0, b"x"), end(9)], 7, Some((9, 1)));
    }
}
