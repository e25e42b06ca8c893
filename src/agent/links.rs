//! Bridges of this network namespace and the way to an address, asked of the kernel by netlink (rtnetlink). Not by
//! `/sys/class/net`, which shows the namespace that sysfs was mounted in, and that is not always the agent's.

use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::link::{InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::netlink::{self, NETLINK_ROUTE};

/// The kernel puts at most so much into one answer.
const BUFFER: usize = 64 * 1024;

/// A Linux bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// The number of the device.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it hands the IPv4 packets that it forwards to netfilter, whatever the sysctl says.
    pub ipv4: bool,
    /// The same for IPv6.
    pub ipv6: bool,
}

/// What the agent must know of the devices of its network namespace, and may change.
pub trait Links: std::fmt::Debug + Send {
    /// All bridges.
    fn bridges(&self) -> io::Result<Vec<Bridge>>;

    /// The number of the device that packets to this address leave by; none when there is no way.
    fn way_to(&self, address: IpAddr) -> io::Result<Option<u32>>;

    /// Has a bridge hand its packets to netfilter. Without br_netfilter the kernel accepts it and nothing follows.
    fn filter(&self, bridge: &Bridge) -> io::Result<()>;
}

/// The kernel's.
#[derive(Clone, Copy, Debug)]
pub struct Netlink;

impl Links for Netlink {
    fn bridges(&self) -> io::Result<Vec<Bridge>> {
        let mut only = LinkMessage::default();
        only.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)])];
        let answers = ask(RouteNetlinkMessage::GetLink(only), NLM_F_DUMP)?;
        Ok(answers.into_iter().filter_map(bridge).collect())
    }

    fn way_to(&self, address: IpAddr) -> io::Result<Option<u32>> {
        let mut to = RouteMessage::default();
        (to.header.address_family, to.header.destination_prefix_length) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        to.attributes = vec![RouteAttribute::Destination(address.into())];
        let device = |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => {
                route.attributes.into_iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(device) => Some(device),
                    _ => None,
                })
            }
            _ => None,
        };
        match ask(RouteNetlinkMessage::GetRoute(to), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(device)),
            Err(error) if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn filter(&self, bridge: &Bridge) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = bridge.index;
        let on = vec![InfoBridge::NfCallIpTables(true), InfoBridge::NfCallIp6Tables(true)];
        link.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(on)),
        ])];
        // Without NLM_F_CREATE: a bridge that has gone in the meantime is not made anew.
        ask(RouteNetlinkMessage::NewLink(link), NLM_F_ACK).map(|_| ())
    }
}

/// A bridge, if that is what the kernel tells of.
fn bridge(answer: RouteNetlinkMessage) -> Option<Bridge> {
    let RouteNetlinkMessage::NewLink(link) = answer else {
        return None;
    };
    let mut bridge = Bridge {
        index: link.header.index,
        name: String::new(),
        ipv4: false,
        ipv6: false,
    };
    let mut options = None;
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => bridge.name = name,
            LinkAttribute::LinkInfo(infos) => {
                options = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Bridge(options)) => Some(options),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    for option in options? {
        match option {
            InfoBridge::NfCallIpTables(on) => bridge.ipv4 = on,
            InfoBridge::NfCallIp6Tables(on) => bridge.ipv6 = on,
            _ => {}
        }
    }
    Some(bridge)
}

/// Sends one request and returns what comes until the end: of a dump, or of one answer, or an acknowledgement.
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = netlink::open(NETLINK_ROUTE, Duration::from_secs(1))?;
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.write_all(&bytes)?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = netlink::receive(&mut socket, &mut buffer)?;
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let strange = |error| io::Error::new(ErrorKind::InvalidData, error);
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(strange)?;
            // Messages start at multiples of four.
            let next = (answer.header.length as usize).max(1).next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
        }
        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 && !answers.is_empty() {
            return Ok(answers);
        }
    }
}
