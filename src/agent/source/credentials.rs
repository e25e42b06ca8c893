//! Who the agent is to the API server: the user of a kubeconfig goes in, a bearer token comes out, and what the client can
//! do by itself (certificates, user and password) stays.
//!
//! kube's own handling is passed by in three places. It sends a token file with the line end that editors write, which no
//! server accepts, and reads it once a minute, so that a token can be refused that has long been replaced. It runs the plugins
//! of kubeconfigs three times, without a bound on their time, and what they and their environment say goes to the log.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use serde_json::json;

use super::plugin;

/// How long a plugin may take when nobody sits at a terminal.
const PLUGIN: Duration = Duration::from_secs(20);

/// Takes the token out of the user, or the plugin that knows it, and asks the plugin. Certificates that a plugin gives are put
/// in. Until when all that is good, if that is said.
///
/// # Errors
/// Which token cannot be used and why, without the token.
pub(super) fn take(user: &mut AuthInfo) -> Result<(Option<Token>, Option<SystemTime>), String> {
    if let Some(provider) = user.auth_provider.as_ref().filter(|p| p.name != "oidc") {
        return Err(format!(
            "auth-provider \"{}\" is not supported (nor by kubectl since 1.26): use a plugin (exec)",
            provider.name
        ));
    }
    let written = serde_json::to_value(&*user).map_err(|error| error.to_string())?;
    let written = written.get("token").and_then(|token| token.as_str());
    let file = user.token_file.take().filter(|file| !file.is_empty());
    user.token = None;
    if let Some(file) = file {
        return Ok((Some(Token::in_file(file.into(), written)?), None));
    }
    if let Some(token) = written.filter(|token| !token.is_empty()) {
        let token = Token::fixed(token).map_err(|error| format!("the token of the kubeconfig {error}"))?;
        return Ok((Some(token), None));
    }
    let Some(exec) = user.exec.take() else {
        return Ok((None, None));
    };
    let told = plugin::run(&exec, PLUGIN)?;
    if let Some((certificate, key)) = told.identity {
        let base64 = |pem: String| ByteString(pem.into_bytes());
        let identity = json!({"client-certificate-data": base64(certificate), "client-key-data": base64(key)});
        let identity: AuthInfo = serde_json::from_value(identity).map_err(|error| error.to_string())?;
        user.client_certificate_data = identity.client_certificate_data;
        user.client_key_data = identity.client_key_data;
    }
    let token = told.token.as_deref().map(Token::fixed).transpose();
    let token = token.map_err(|error| format!("the token of the plugin {error}"))?;
    Ok((token, told.expires))
}

/// A bearer token; its value shows nowhere.
#[derive(Clone)]
pub(super) struct Token {
    file: Option<PathBuf>,
    /// As last read.
    header: Arc<Mutex<HeaderValue>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Token {
    fn fixed(token: &str) -> Result<Self, &'static str> {
        Ok(Token {
            file: None,
            header: Arc::new(Mutex::new(header(token)?)),
        })
    }

    /// A file that can be read, or that comes later while another token is known.
    fn in_file(file: PathBuf, written: Option<&str>) -> Result<Self, String> {
        let header = read(&file).or_else(|error| written.and_then(|token| header(token).ok()).ok_or(error))?;
        Ok(Token {
            header: Arc::new(Mutex::new(header)),
            file: Some(file),
        })
    }

    /// The value of the header `Authorization`. A file is read each time: it is small, requests are few, and whoever replaces
    /// the token may make the old one void at once. When it cannot be read (it is just being replaced), what was read last goes on.
    pub(super) fn header(&self) -> HeaderValue {
        let mut known = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(header)) = self.file.as_deref().map(read) {
            *known = header;
        }
        known.clone()
    }
}

fn read(file: &Path) -> Result<HeaderValue, String> {
    let path = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read the token in {path}: {error}"))?;
    header(&text).map_err(|error| format!("the token in {path} {error}"))
}

fn header(token: &str) -> Result<HeaderValue, &'static str> {
    let token = token.trim();
    if token.is_empty() {
        return Err("is empty");
    }
    let header = HeaderValue::try_from(format!("Bearer {token}"));
    let mut header = header.map_err(|_| "has characters that no token has")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: serde_json::Value) -> AuthInfo {
        serde_json::from_value(text).expect("a user")
    }

    fn sent(user: &mut AuthInfo) -> Result<String, String> {
        let (token, _) = take(user)?;
        let header = token.ok_or("no token")?.header();
        assert!(header.is_sensitive());
        Ok(header.to_str().map_err(|e| e.to_string())?.to_owned())
    }

    #[test]
    fn a_token_is_sent_without_the_end_of_its_line_and_as_it_is_now() {
        assert_eq!(sent(&mut user(json!({"token": "abc\n"}))), Ok("Bearer abc".to_owned()));
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "one\r\n").expect("write");
        let path = file.path().to_owned();
        // The file goes before what is written, which is for as long as there is no file.
        let mut both = user(json!({"tokenFile": path, "token": "zero"}));
        let token = take(&mut both).expect("a token").0.expect("a token");
        assert_eq!(token.header(), "Bearer one");
        for (text, sent) in [("two\n", "two"), ("", "two"), ("a\nb", "two"), ("three", "three")] {
            std::fs::write(&path, text).expect("write");
            assert_eq!(token.header(), format!("Bearer {sent}"), "{text:?}");
        }
        drop(file);
        assert_eq!(token.header(), "Bearer three");
        let mut both = user(json!({"tokenFile": path, "token": "zero"}));
        assert_eq!(sent(&mut both), Ok("Bearer zero".to_owned()));
        assert!(both.token.is_none() && both.token_file.is_none(), "kube sees neither");
        assert!(!format!("{token:?}").contains("three"));
    }

    #[test]
    fn what_cannot_be_used_is_told_without_the_secret() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let path = file.path().display().to_string();
        for (user_text, expected) in [
            (
                json!({"tokenFile": "/nonexistent/token"}),
                "cannot read the token in /nonexistent/token: No such file".to_owned(),
            ),
            (json!({"tokenFile": path}), format!("the token in {path} is empty")),
            (
                json!({"token": "se\u{1}cret"}),
                "the token of the kubeconfig has characters that no token has".to_owned(),
            ),
            (
                json!({"auth-provider": {"name": "gcp", "config": {"cmd-path": "/bin/false"}}}),
                "auth-provider \"gcp\" is not supported".to_owned(),
            ),
        ] {
            let error = take(&mut user(user_text)).expect_err("cannot be used");
            assert!(error.starts_with(&expected), "{error}");
            assert!(!error.contains("se\u{1}cret"), "{error}");
        }
    }
}
