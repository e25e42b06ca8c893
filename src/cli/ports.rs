//! The port syntax of the command line and of test files: text in, the ports of one destination out.

use std::fmt;
use std::str::FromStr;

use policy_compiler::cluster::Endpoint;
use policy_compiler::convert;
use policy_compiler::policy::PortMatch;
use policy_compiler::ports::{PortRange, PortSet, Protocol};

/// A port P: `8080/TCP`, `8000-8080/UDP`, `http/TCP`, or `all`. Without a protocol it is TCP, as in kubectl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortSpec {
    /// Every port of every protocol, ICMP included.
    All,
    /// A range, or a name that each destination resolves.
    One(PortMatch),
}

/// Why a text is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PortError {
    /// Not of the form at all.
    #[error("`{0}` is not a port: write a number (8080/TCP), a range (8000-8080/UDP), a port name (http/TCP) or all")]
    Syntax(String),
    /// A number that no port has.
    #[error("`{text}`: {number} is not a port number: write one from 1 to 65535")]
    Number {
        /// The whole text.
        text: String,
        /// The number in it.
        number: String,
    },
    /// A range that ends before it begins.
    #[error("`{0}` is an empty range: write the lower port first")]
    EmptyRange(String),
    /// Neither TCP, UDP nor SCTP.
    #[error("`{text}`: `{protocol}` is not a protocol with ports: write TCP, UDP or SCTP (ICMP is part of all)")]
    Protocol {
        /// The whole text.
        text: String,
        /// The protocol in it.
        protocol: String,
    },
}

impl FromStr for PortSpec {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        if text == "all" {
            return Ok(PortSpec::All);
        }
        let (port, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((port, protocol)) => {
                let parsed = protocol.parse().map_err(|()| PortError::Protocol {
                    text: text.to_owned(),
                    protocol: protocol.to_owned(),
                })?;
                (port, parsed)
            }
        };
        let number = |part: &str| match part.parse::<u16>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(PortError::Number {
                text: text.to_owned(),
                number: part.to_owned(),
            }),
        };
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if digits(port) {
            let range = PortRange::one(number(port)?);
            return Ok(PortSpec::One(PortMatch::Range(protocol, range)));
        }
        if let Some((first, last)) = port.split_once('-')
            && digits(first)
            && digits(last)
        {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(PortError::EmptyRange(text.to_owned()));
            }
            return Ok(PortSpec::One(PortMatch::Range(protocol, PortRange { first, last })));
        }
        if convert::port_name(port).is_ok() {
            return Ok(PortSpec::One(PortMatch::Named(protocol, port.into())));
        }
        Err(PortError::Syntax(text.to_owned()))
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortSpec::All => f.write_str("all"),
            PortSpec::One(port) => port.fmt(f),
        }
    }
}

impl PortSpec {
    /// The port in a sentence.
    pub(crate) fn words(&self) -> String {
        match self {
            PortSpec::All => "all ports".to_owned(),
            PortSpec::One(port) => port.to_string(),
        }
    }

    /// The ports that it stands for on a destination: none for a name that the destination does not declare.
    pub(crate) fn on(&self, destination: &Endpoint) -> PortSet {
        match self {
            PortSpec::All => PortSet::all(),
            PortSpec::One(PortMatch::Range(protocol, range)) => PortSet::of(*protocol, *range),
            PortSpec::One(PortMatch::Named(protocol, name)) => match destination {
                Endpoint::Pod(pod, _) => pod.named_port(*protocol, name),
                Endpoint::Address(_) => PortSet::none(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        crate::cli::check_syntax::<PortSpec>(text, expected);
    }

    #[test]
    fn ports_are_read() {
        check("8080/TCP", Ok("8080/TCP"));
        check("8080", Ok("8080/TCP"));
        check("8000-8080/UDP", Ok("8000-8080/UDP"));
        check("1-65535/SCTP", Ok("1-65535/SCTP"));
        check("http/TCP", Ok("http/TCP"));
        check("http", Ok("http/TCP"));
        check("8080-tcp/TCP", Ok("8080-tcp/TCP"));
        check("all", Ok("all"));
    }

    #[test]
    fn what_is_no_port_says_what_to_write() {
        check("", Err("write a number (8080/TCP)"));
        check("0/TCP", Err("0 is not a port number"));
        check("65536/TCP", Err("65536 is not a port number"));
        check("80-70/TCP", Err("lower port first"));
        check("80/tcp", Err("write TCP, UDP or SCTP"));
        check("80/ICMP", Err("ICMP is part of all"));
        check("80/", Err("write TCP, UDP or SCTP"));
        check("HTTP/TCP", Err("write a number"));
        check("-80/TCP", Err("write a number"));
        check("a-name-that-is-too-long/TCP", Err("write a number"));
        check("*", Err("write a number"));
    }
}
