//! What the kernel says of changes of its tables, as it makes them: a netlink socket that hears every transaction in this network
//! namespace goes in, the elements that came and went come out, each with its time.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use netlink_packet_core::{NlaBuffer, NlasIterator};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::server;

// From linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.
const NFNLGRP_NFTABLES: u32 = 7;
const NFT_MSG_NEWSETELEM: u16 = (10 << 8) | 12;
const NFT_MSG_DELSETELEM: u16 = (10 << 8) | 14;
const NFT_MSG_NEWGEN: u16 = (10 << 8) | 15;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;

/// The map of peers that all of the benchmark's pods are in.
const PEERS: &str = "in4_peers";

/// What has been heard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    /// Addresses that came into the map of peers (`+`) or went (`-`), and when.
    pub(crate) peers: Vec<(u64, char, IpAddr)>,
    /// When each transaction was made.
    pub(crate) transactions: Vec<u64>,
}

/// Listens until it is dropped.
pub(crate) struct Monitor {
    heard: Arc<Mutex<Heard>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    pub(crate) fn start() -> Monitor {
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100)).unwrap();
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (NFNLGRP_NFTABLES - 1))).unwrap();
        let (heard, over): (Arc<Mutex<Heard>>, Arc<AtomicBool>) = Default::default();
        let thread = std::thread::spawn({
            let (heard, over) = (heard.clone(), over.clone());
            move || listen(&socket, &heard, &over)
        });
        Monitor {
            heard,
            over,
            thread: Some(thread),
        }
    }

    /// All since the last call.
    pub(crate) fn take(&self) -> Heard {
        std::mem::take(&mut self.heard.lock().unwrap())
    }

    /// All since the last `take`, left where it is.
    pub(crate) fn look(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn listen(socket: &OwnedFd, heard: &Mutex<Heard>, over: &AtomicBool) {
    let mut buffer = vec![0; 1 << 20];
    while !over.load(Ordering::Relaxed) {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => read(&buffer[..length], &mut heard.lock().unwrap()),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => panic!("the kernel's changes cannot be heard: {error}"),
        }
    }
}

/// Messages, one behind the other: a netlink header of 16 bytes, one of nfnetlink of 4, attributes.
fn read(mut messages: &[u8], heard: &mut Heard) {
    let time = server::now();
    while let Some(header) = messages.first_chunk::<16>() {
        let length = u32::from_ne_bytes(header[..4].try_into().unwrap()) as usize;
        let kind = u16::from_ne_bytes(header[4..6].try_into().unwrap());
        let attributes = messages.get(20..length).unwrap_or_default();
        match kind {
            NFT_MSG_NEWSETELEM => peers(attributes, |address| heard.peers.push((time, '+', address))),
            NFT_MSG_DELSETELEM => peers(attributes, |address| heard.peers.push((time, '-', address))),
            NFT_MSG_NEWGEN => heard.transactions.push(time),
            _ => {}
        }
        messages = messages.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
}

fn peers(attributes: &[u8], mut tell: impl FnMut(IpAddr)) {
    let is_peers = |set: &[u8]| set.strip_suffix(&[0]) == Some(PEERS.as_bytes());
    if !find(attributes, NFTA_SET_ELEM_LIST_SET).is_some_and(is_peers) {
        return;
    }
    let Some(elements) = find(attributes, NFTA_SET_ELEM_LIST_ELEMENTS) else {
        return;
    };
    for element in NlasIterator::new(elements).map_while(Result::ok) {
        let key = find(element.value(), NFTA_SET_ELEM_KEY).and_then(|key| find(key, NFTA_DATA_VALUE));
        if let Some(address) = key.and_then(|key| <[u8; 4]>::try_from(key).ok()) {
            tell(Ipv4Addr::from(address).into());
        }
    }
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let attributes = NlasIterator::new(attributes).map_while(Result::ok);
    let mut found = attributes.filter(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == kind);
    found.next().map(|attribute| attribute.into_inner()).map(value)
}

/// Behind the length and the kind.
fn value(attribute: &[u8]) -> &[u8] {
    let length = usize::from(u16::from_ne_bytes([attribute[0], attribute[1]]));
    &attribute[4..length]
}
