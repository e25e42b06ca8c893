//! Cuts the address space at the boundaries of every CIDR in use: within one cell all addresses are in the same blocks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::policy::IpBlock;

/// A range of addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The first address.
    pub first: IpAddr,
    /// The last address.
    pub last: IpAddr,
}

impl AddressRange {
    /// The whole of IPv4.
    pub const V4: AddressRange = AddressRange {
        first: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        last: IpAddr::V4(Ipv4Addr::BROADCAST),
    };
    /// The whole of IPv6.
    pub const V6: AddressRange = AddressRange {
        first: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        last: IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
    };

    /// The addresses of a CIDR.
    pub fn of(net: &IpNet) -> Self {
        // `broadcast` is the last address of the block in either family.
        AddressRange {
            first: net.network(),
            last: net.broadcast(),
        }
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first <= address && address <= self.last
    }

    /// The part that two ranges have in common.
    pub fn intersection(&self, other: &AddressRange) -> Option<AddressRange> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(AddressRange { first, last })
    }

    /// The fewest CIDRs that make up the range.
    pub fn cidrs(&self) -> Vec<IpNet> {
        match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => ipnet::Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect(),
            (IpAddr::V6(a), IpAddr::V6(b)) => ipnet::Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect(),
            _ => Vec::new(),
        }
    }
}

/// The next address, unless it was the last one of its family.
pub fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_add(1).map(|b| Ipv4Addr::from_bits(b).into()),
        IpAddr::V6(a) => a.to_bits().checked_add(1).map(|b| Ipv6Addr::from_bits(b).into()),
    }
}

/// The previous address, unless it was the first one of its family.
pub fn predecessor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => a.to_bits().checked_sub(1).map(|b| Ipv4Addr::from_bits(b).into()),
        IpAddr::V6(a) => a.to_bits().checked_sub(1).map(|b| Ipv6Addr::from_bits(b).into()),
    }
}

/// The addresses of a block as sorted, disjoint ranges; none when its exceptions cover it.
pub(crate) fn block_ranges(block: &IpBlock) -> Vec<AddressRange> {
    let whole = AddressRange::of(&block.cidr);
    let mut out = Vec::new();
    let mut next = Some(whole.first);
    // Exceptions are sorted by their first address; nested ones are skipped by the comparison with `next`.
    for hole in block.except.iter().map(AddressRange::of) {
        let Some(start) = next else { break };
        if hole.last < start || !whole.contains(hole.first) {
            continue;
        }
        if hole.first > start
            && let Some(last) = predecessor(hole.first)
        {
            out.push(AddressRange { first: start, last });
        }
        next = successor(hole.last).filter(|n| *n <= whole.last);
    }
    if let Some(first) = next {
        out.push(AddressRange {
            first,
            last: whole.last,
        });
    }
    out
}

/// One cell with the blocks that hold it, sorted by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockCell {
    pub(crate) range: AddressRange,
    pub(crate) blocks: Arc<[u32]>,
}

/// The cells of both families: sorted, disjoint, without a gap.
pub(crate) fn cut<'a>(blocks: impl IntoIterator<Item = (&'a IpBlock, u32)>) -> Vec<BlockCell> {
    // At each address: which blocks begin (true) or have just ended (false).
    let mut events: Vec<(IpAddr, bool, u32)> = Vec::new();
    for (block, id) in blocks {
        for range in block_ranges(block) {
            events.push((range.first, true, id));
            if let Some(after) = successor(range.last) {
                events.push((after, false, id));
            }
        }
    }
    events.sort_unstable();
    let mut cells = Vec::new();
    for whole in [AddressRange::V4, AddressRange::V6] {
        let mut active = BTreeSet::new();
        let mut first = whole.first;
        let mut close = |first: IpAddr, last: IpAddr, active: &BTreeSet<u32>| {
            let blocks = active.iter().copied().collect();
            cells.push(BlockCell {
                range: AddressRange { first, last },
                blocks,
            });
        };
        for (at, begins, id) in events.iter().filter(|(at, ..)| whole.contains(*at)) {
            if *at > first
                && let Some(last) = predecessor(*at)
            {
                close(first, last, &active);
                first = *at;
            }
            if *begins {
                active.insert(*id);
            } else {
                active.remove(id);
            }
        }
        close(first, whole.last, &active);
    }
    cells
}

/// Where the cell stands that holds an address.
pub(crate) fn position(cells: &[BlockCell], address: IpAddr) -> usize {
    cells.partition_point(|c| c.range.last < address).min(cells.len() - 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "literals in tests")]
mod tests {
    use super::*;

    fn block(cidr: &str, except: &[&str]) -> IpBlock {
        IpBlock::new(cidr.parse().unwrap(), except.iter().map(|e| e.parse().unwrap()))
    }

    #[track_caller]
    fn check(cidr: &str, except: &[&str], expected: &[&str]) {
        let cidrs: Vec<String> = block_ranges(&block(cidr, except))
            .iter()
            .flat_map(AddressRange::cidrs)
            .map(|c| c.to_string())
            .collect();
        assert_eq!(cidrs, expected);
    }

    #[test]
    fn exceptions_are_cut_out() {
        check("10.0.0.0/30", &[], &["10.0.0.0/30"]);
        check("10.0.0.0/30", &["10.0.0.0/32"], &["10.0.0.1/32", "10.0.0.2/31"]);
        check("10.0.0.0/30", &["10.0.0.2/31"], &["10.0.0.0/31"]);
        check("10.0.0.0/30", &["10.0.0.0/31", "10.0.0.1/32", "10.0.0.2/31"], &[]);
        check("10.0.0.0/29", &["10.0.0.0/30", "10.0.0.1/32"], &["10.0.0.4/30"]);
        check("0.0.0.0/0", &["128.0.0.0/1"], &["0.0.0.0/1"]);
        check("::/0", &["::/1"], &["8000::/1"]);
    }

    #[test]
    fn cells_cover_everything_and_agree_with_the_blocks() {
        let blocks = [
            block("0.0.0.0/0", &["10.0.0.0/8"]),
            block("10.1.0.0/16", &["10.1.2.0/24"]),
            block("10.1.0.0/16", &["10.1.2.0/24"]),
            block("255.255.255.255/32", &[]),
            block("::/0", &[]),
            block("fd00::/8", &["fd00:1::/32"]),
        ];
        let cells = cut(blocks.iter().zip(0..));
        assert_eq!(cells[0].range.first, AddressRange::V4.first);
        assert_eq!(cells.last().unwrap().range.last, AddressRange::V6.last);
        for pair in cells.windows(2) {
            let next = successor(pair[0].range.last).unwrap_or(AddressRange::V6.first);
            assert_eq!(next, pair[1].range.first);
        }
        for cell in &cells {
            for address in [cell.range.first, cell.range.last] {
                let expected: Vec<u32> = (0..)
                    .zip(&blocks)
                    .filter(|(_, b)| b.contains(address))
                    .map(|(i, _)| i)
                    .collect();
                assert_eq!(*cell.blocks, expected, "{address}");
                assert_eq!(&cells[position(&cells, address)], cell);
            }
        }
    }
}
