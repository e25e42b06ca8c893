//! What the rules of the table look like in the kernel: asked over netlink, in about a millisecond, where nft would start, and fetch every
//! element as well. A digest of each chain's rules comes out, to be compared with an earlier one.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::time::Duration;

use netlink_packet_core::NlasIterator;

use super::monitor::{NFNL_SUBSYS_NFTABLES, NFPROTO_INET, value};
use super::names::TABLE;
use super::nfnetlink::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, message, messages, unreadable};
use crate::netlink::{self, NETLINK_NETFILTER};

// From linux/netfilter/nf_tables.h.
const NFT_MSG_NEWRULE: u16 = (NFNL_SUBSYS_NFTABLES << 8) | 6;
const NFT_MSG_GETRULE: u16 = (NFNL_SUBSYS_NFTABLES << 8) | 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

/// The header of nfnetlink.
const HEADER: usize = 4;

/// A look that is disturbed, for somebody changes rules meanwhile, is begun again so often.
const LOOKS: usize = 3;

/// Of each chain that has rules; none when the looks were all disturbed.
pub type Digests = Option<BTreeMap<String, u64>>;

/// Asks the kernel.
pub(super) fn digests() -> io::Result<Digests> {
    for _ in 0..LOOKS {
        if let Some(digests) = look()? {
            return Ok(Some(digests));
        }
    }
    Ok(None)
}

fn look() -> io::Result<Digests> {
    let mut socket = netlink::open(NETLINK_NETFILTER, Duration::from_secs(5))?;
    let name = [TABLE.as_bytes(), &[0]].concat();
    let mut table = [(name.len() as u16 + 4).to_ne_bytes(), NFTA_RULE_TABLE.to_ne_bytes()].concat();
    table.extend(name);
    table.resize(table.len().next_multiple_of(4), 0);
    socket.write_all(&message(NFT_MSG_GETRULE, NLM_F_DUMP, NFPROTO_INET, &table))?;
    let mut chains: BTreeMap<String, DefaultHasher> = BTreeMap::new();
    let mut whole = true;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = netlink::receive(&mut socket, &mut buffer)?;
        for message in messages(&buffer[..length]) {
            let message = message?;
            whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => {
                    let digests = chains.into_iter().map(|(chain, hasher)| (chain, hasher.finish()));
                    return Ok(whole.then(|| digests.collect()));
                }
                NLMSG_ERROR => return Err(message.error().unwrap_or_else(unreadable)),
                NFT_MSG_NEWRULE => {
                    let attributes = message.payload.get(HEADER..).ok_or_else(unreadable)?;
                    // No other was asked for; it costs nothing to be sure.
                    if value(attributes, NFTA_RULE_TABLE).and_then(|name| name.strip_suffix(&[0]))
                        == Some(TABLE.as_bytes())
                    {
                        let chain = value(attributes, NFTA_RULE_CHAIN).ok_or_else(unreadable)?;
                        let chain = String::from_utf8_lossy(chain).trim_end_matches('\0').to_owned();
                        hash(attributes, chains.entry(chain).or_default());
                    }
                }
                _ => {}
            }
        }
    }
}

/// A rule without what changes by itself: where it stands follows from the order, and packets are counted.
fn hash(rule: &[u8], hasher: &mut DefaultHasher) {
    value(rule, NFTA_RULE_HANDLE).hash(hasher);
    value(rule, NFTA_RULE_USERDATA).hash(hasher);
    let expressions = value(rule, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    for expression in NlasIterator::new(expressions).map_while(Result::ok) {
        let name = value(expression.value(), NFTA_EXPR_NAME);
        name.hash(hasher);
        if name != Some(b"counter\0") {
            value(expression.value(), NFTA_EXPR_DATA).hash(hasher);
        }
    }
}
