//! Why there is no connection: an error goes in, a sentence for people comes out.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

use super::limits;

/// An error with what is behind it: "client error" alone helps nobody, and the names of TLS few.
pub(crate) fn reason(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut meaning) = (String::new(), None);
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        meaning = meaning.or_else(|| of_tls(error)).or_else(|| of_time(error));
        next = error.source();
    }
    // kube says so of everything.
    let text = text.strip_prefix("ServiceError: ").unwrap_or(&text);
    match meaning {
        Some(meaning) => limits::line(&format!("{meaning} ({text})")),
        None => limits::line(text),
    }
}

/// What a time-out means here: of requests and answers each has its own.
fn of_time(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let error = error.downcast_ref::<io::Error>()?;
    (error.kind() == io::ErrorKind::TimedOut).then_some("no connection comes about: nothing answers in time")
}

/// What a TLS error means here.
fn of_tls(mut error: &(dyn Error + 'static)) -> Option<&'static str> {
    // An I/O error does not count what it is made of among its sources.
    while let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        error = inner;
    }
    Some(match error.downcast_ref::<rustls::Error>()? {
        // Authorities of the same name, as one tool calls those of all its clusters, differ in their signatures.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the API server's certificate is not signed by the authority that the credentials name: it is another server, or \
             its authority has been replaced"
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the API server's certificate has expired, or the clock of this node is wrong"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "the API server's certificate is not valid yet, or the clock of this node is wrong",
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the API server's certificate is for other names: use one of them as the server, or as tls-server-name",
        rustls::Error::InvalidCertificate(_) => "the API server's certificate cannot be trusted",
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => "the API server refuses the client certificate",
        rustls::Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the API server wants a client certificate, and the credentials have none"
        }
        rustls::Error::InvalidMessage(_) => "what answers there does not speak TLS",
        _ => return None,
    })
}
