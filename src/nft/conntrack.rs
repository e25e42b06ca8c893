//! Takes bits out of the marks of all tracked connections of this network namespace, and is sure that none is left.
//! A mask goes in; entries of connection tracking are changed, in these bits only, and counted.
//!
//! It speaks ctnetlink over a plain socket, as `generation` speaks nfnetlink: three attributes are read, and what says which
//! connection is meant goes back to the kernel byte by byte as it came. A library of typed netlink messages would have to
//! understand all of it first.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

use rustix::thread::{MembarrierCommand, membarrier};
use socket2::Socket;
use thiserror::Error;

use super::marks::MarkMask;
use super::nfnetlink::{
    Message, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, attribute, message, messages, unreadable,
};
use crate::netlink::{self, NETLINK_NETFILTER, receive};

// From linux/netlink.h and linux/netfilter/nfnetlink_conntrack.h.
const NLM_F_ACK: u16 = 4;
const IPCTNL_MSG_CT_NEW: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = (1 << 8) | 1;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_MARK: u16 = 8;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
/// The two highest bits of an attribute's type are flags.
const TYPE: u16 = 0x3fff;
const ENOENT: i32 = 2;

/// How long the kernel may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked and cleared before giving up: somebody else writes the bits, then.
const ROUNDS: usize = 5;
/// How many changes are sent at once; their answers fit in any socket's buffer.
const AT_ONCE: usize = 64;
/// The table can have as many buckets as it has; when their number changes, a look may miss entries.
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";

/// Why the bits could not be cleared.
#[derive(Debug, Error)]
pub enum ClearError {
    /// Packets under way cannot be waited for.
    #[error("this kernel cannot wait for packets under way (membarrier: {0})")]
    Wait(io::Error),
    /// No ctnetlink.
    #[error(
        "the connections' marks cannot be read or changed ({0}): the module nf_conntrack_netlink and the NET_ADMIN capability are needed"
    )]
    Netlink(#[from] io::Error),
    /// Somebody else sets them.
    #[error("{0} connections still have bits of the mask after {ROUNDS} rounds: somebody else uses these bits")]
    Left(usize),
    /// The look at the table was never a whole one.
    #[error("the table of connections changes its size all the time")]
    Unsteady,
    /// There is nothing that could do it.
    #[error("this kernel cannot clear marks")]
    Unsupported,
    /// Its thread is gone.
    #[error("the work was given up")]
    GivenUp,
}

/// Clearing, in a thread of its own: a large table takes seconds. Dropping it leaves the thread to end by itself.
#[derive(Debug)]
pub struct Clearing(Receiver<Result<usize, ClearError>>);

impl Clearing {
    /// Begins it, in the network namespace of the calling thread.
    pub fn start(mask: MarkMask) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            // Whoever started it may not care any more.
            let _ = sender.send(clear(mask));
        });
        Clearing(receiver)
    }

    /// One that ended so before it began.
    pub fn ended(result: Result<usize, ClearError>) -> Self {
        let (sender, receiver) = channel();
        let _ = sender.send(result);
        Clearing(receiver)
    }

    /// One that never ends.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        let (sender, receiver) = channel();
        std::mem::forget(sender);
        Clearing(receiver)
    }

    /// How it ended, with the number of connections that were changed; none while it is at work.
    pub fn result(&self) -> Option<Result<usize, ClearError>> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(ClearError::GivenUp)),
        }
    }

    /// Waits for so long at most.
    pub fn wait(&self, at_most: Duration) -> Option<Result<usize, ClearError>> {
        match self.0.recv_timeout(at_most) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(ClearError::GivenUp)),
        }
    }
}

/// Waits until no packet is under way with rules that were replaced before the call, and clears the bits of all connections.
/// Returns how many had any.
fn clear(mask: MarkMask) -> Result<usize, ClearError> {
    // The kernel's answer to this is to wait for an RCU grace period, and a packet walks through the rules in one RCU
    // reader. With one processor it need not wait: a packet's walk there is over before this thread runs.
    membarrier(MembarrierCommand::Global).map_err(|error| ClearError::Wait(error.into()))?;
    let mut socket = netlink::open(NETLINK_NETFILTER, PATIENCE)?;
    let (mut cleared, mut left, mut steady) = (0, 0, false);
    for _ in 0..ROUNDS {
        let before = buckets();
        let found = look(&mut socket, mask)?;
        steady = found.whole && buckets() == before;
        left = found.entries.len();
        if left == 0 && steady {
            return Ok(cleared);
        }
        for entries in found.entries.chunks(AT_ONCE) {
            change(&mut socket, mask, entries)?;
        }
        cleared += left;
    }
    Err(if steady {
        ClearError::Left(left)
    } else {
        ClearError::Unsteady
    })
}

/// What names a connection: its family, and the attributes that say which, as the kernel wrote them.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    family: u8,
    attributes: Vec<u8>,
}

#[derive(Debug)]
struct Found {
    /// Connections with any of the bits.
    entries: Vec<Entry>,
    /// Whether nothing disturbed the look.
    whole: bool,
}

fn buckets() -> Option<String> {
    // Not every namespace shows it; then the looks themselves have to do.
    std::fs::read_to_string(BUCKETS).ok()
}

/// Looks at all connections of all families and zones.
fn look(socket: &mut Socket, mask: MarkMask) -> io::Result<Found> {
    socket.write_all(&message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, 0, &[]))?;
    let mut found = Found {
        entries: Vec::new(),
        whole: true,
    };
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = receive(socket, &mut buffer)?;
        for message in messages(&buffer[..length]) {
            let message = message?;
            found.whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(message.error().unwrap_or_else(unreadable)),
                IPCTNL_MSG_CT_NEW => found.entries.extend(entry(&message, mask)?),
                _ => {}
            }
        }
    }
}

/// Takes the bits out of these entries' marks; one that is gone needs it no more.
fn change(socket: &mut Socket, mask: MarkMask, entries: &[Entry]) -> io::Result<()> {
    let mark = [attribute(CTA_MARK, 0), attribute(CTA_MARK_MASK, mask.bits())].concat();
    let request = |entry: &Entry| {
        let attributes = [entry.attributes.as_slice(), &mark].concat();
        message(IPCTNL_MSG_CT_NEW, NLM_F_ACK, entry.family, &attributes)
    };
    socket.write_all(&entries.iter().flat_map(request).collect::<Vec<u8>>())?;
    let mut answers = 0;
    let mut buffer = vec![0; 1 << 16];
    while answers < entries.len() {
        let length = receive(socket, &mut buffer)?;
        for message in messages(&buffer[..length]) {
            let message = message?;
            if message.kind == NLMSG_ERROR {
                answers += 1;
                match message.error() {
                    Some(error) if error.raw_os_error() != Some(ENOENT) => return Err(error),
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// The entry that a message tells of, if its mark has any of the bits.
fn entry(message: &Message<'_>, mask: MarkMask) -> io::Result<Option<Entry>> {
    let (&family, mut rest) = message.payload.split_first().ok_or_else(unreadable)?;
    rest = rest.get(3..).ok_or_else(unreadable)?;
    let (mut mark, mut attributes) = (0, Vec::new());
    while let [a, b, c, d, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length).ok_or_else(unreadable)?;
        let padded = length.next_multiple_of(4).min(rest.len());
        match u16::from_ne_bytes([c, d]) & TYPE {
            // No mark is told when it is 0.
            CTA_MARK => mark = u32::from_be_bytes(value.try_into().map_err(|_| unreadable())?),
            CTA_TUPLE_ORIG | CTA_ZONE => {
                attributes.extend_from_slice(&rest[..padded]);
                attributes.resize(attributes.len().next_multiple_of(4), 0);
            }
            _ => {}
        }
        rest = &rest[padded..];
    }
    Ok((mark & mask.bits() != 0).then_some(Entry { family, attributes }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mask() -> MarkMask {
        MarkMask::new(0xff00).unwrap()
    }

    /// A connection as the kernel tells of it: addresses, a status, a mark and a zone.
    fn told(mark: u32) -> Vec<u8> {
        let tuple = [
            &12u16.to_ne_bytes()[..],
            &(CTA_TUPLE_ORIG | 0x8000).to_ne_bytes(),
            &[7; 8],
        ]
        .concat();
        let zone = [&6u16.to_ne_bytes()[..], &CTA_ZONE.to_ne_bytes(), &[0, 5, 0, 0]].concat();
        let all = [
            tuple,
            attribute(3, 0x18e).to_vec(),
            attribute(CTA_MARK, mark).to_vec(),
            zone,
        ]
        .concat();
        message(IPCTNL_MSG_CT_NEW, 0, 2, &all)
    }

    fn read(datagram: &[u8]) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for message in messages(datagram) {
            entries.extend(entry(&message?, mask())?);
        }
        Ok(entries)
    }

    #[test]
    fn only_connections_with_the_bits_are_named_and_as_the_kernel_named_them() {
        let datagram = [told(0x0012_0034), told(0x0012_5634), told(0)].concat();
        let entries = read(&datagram).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].family, 2);
        let name = [
            &[12, 0, 1, 0x80, 7, 7, 7, 7, 7, 7, 7, 7][..],
            &[6, 0, 18, 0, 0, 5, 0, 0],
        ]
        .concat();
        #[cfg(target_endian = "little")]
        assert_eq!(entries[0].attributes, name);
    }

    #[test]
    fn an_answer_cut_anywhere_is_an_error_and_no_panic() {
        let whole = told(0x5600);
        for length in 1..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut to {length}");
        }
        let mut endless = whole.clone();
        endless[20] = 0;
        endless[21] = 0;
        assert!(read(&endless).is_err());
    }

    #[test]
    fn errors_are_told_from_acknowledgements() {
        let error = |code: i32| {
            let answer = [
                &36u32.to_ne_bytes()[..],
                &NLMSG_ERROR.to_ne_bytes(),
                &[0; 10],
                &code.to_ne_bytes(),
                &[0; 16],
            ]
            .concat();
            messages(&answer)
                .next()
                .unwrap()
                .unwrap()
                .error()
                .map(|e| e.raw_os_error())
        };
        assert_eq!(error(0), None);
        assert_eq!(error(-1), Some(Some(1)));
    }
}
