//! CIDRs of `ipBlock`, in every form that the API server has ever stored.
//!
//! Kubernetes 1.36 refuses some forms in new objects (leading zeros, host bits, IPv4-mapped IPv6) and keeps them in
//! objects that have them already, so they are read as the API server reads them, each with a warning.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Reads a CIDR, host bits masked off. The second value says in what way the form is legacy, if it is.
pub(super) fn parse(value: &str) -> Result<(IpNet, Option<String>), String> {
    let malformed = || {
        let hint = match value.parse::<IpAddr>() {
            Ok(address) => format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }),
            Err(_) => "one such as 10.9.8.0/24 or 2001:db8::/64".to_owned(),
        };
        format!("\"{value}\" is not a CIDR: write {hint}")
    };
    let (text, length) = value.split_once('/').ok_or_else(malformed)?;
    let address = parse_address(text).ok_or_else(malformed)?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let prefix: u8 = length.parse().map_err(|_| malformed())?;
    let given = IpNet::new(address, prefix).map_err(|_| malformed())?;
    let net = unmapped(given);
    let masked = net.trunc();
    if masked != net {
        let alone = IpNet::from(net.addr());
        return Ok((
            masked,
            Some(format!(
                "\"{value}\" has bits set after its prefix length, which are ignored and which newer Kubernetes refuses: write {masked}, or {alone} for \
                 that one address"
            )),
        ));
    }
    // Equal values in an equal spelling of the number; the spelling of an IPv6 address is left to taste.
    let standard = text.parse() == Ok(net.addr()) && length == prefix.to_string();
    let warning = (!standard).then(|| format!("\"{value}\" is a form that newer Kubernetes refuses: write {net}"));
    Ok((masked, warning))
}

/// An address; leading zeros in IPv4 are decimal, as the API server reads them.
fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// `::ffff:10.0.0.0/104` is 10.0.0.0/8: packets of such an address are IPv4.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else {
        return net;
    };
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
    match (mapped(v6.addr()), v6.prefix_len().checked_sub(96)) {
        (Some(address), Some(prefix)) => Ipv4Net::new(address, prefix).map_or(net, IpNet::V4),
        _ => net,
    }
}
