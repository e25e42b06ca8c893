//! Plugins of kubeconfigs (`exec`): a command goes in, a token or a certificate comes out, within a time, or why not.
//!
//! Neither what a plugin prints nor the environment that it is given is ever told: there are secrets in both. Of its standard
//! error the last line is.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::config::{ExecConfig, ExecInteractiveMode};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::json;

use super::limits;

/// The most that a plugin may print.
const OUTPUT: usize = 1 << 20;

/// How long somebody at a terminal may take to log in.
const AT_A_TERMINAL: Duration = Duration::from_secs(300);

/// How long the rest of the output may take once the plugin has ended: something that it has started may hold on to it.
const REST: Duration = Duration::from_secs(1);

/// How often it is looked whether the plugin has written something, or ended.
const LOOK: Duration = Duration::from_millis(10);

/// What a plugin has told.
#[derive(Default)]
pub(super) struct Told {
    pub(super) token: Option<String>,
    /// Certificate and key, PEM.
    pub(super) identity: Option<(String, String)>,
    pub(super) expires: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Credential {
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    expiration_timestamp: Option<Time>,
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Runs the plugin; blocks for no longer than the given time, or five minutes when somebody sits at a terminal and the plugin
/// may ask.
///
/// # Errors
/// What went wrong, as half a sentence with the name of the plugin.
pub(super) fn run(exec: &ExecConfig, within: Duration) -> Result<Told, String> {
    let name = exec.command.as_deref().unwrap_or_default();
    let failed = |what: String| format!("the plugin \"{name}\" {what}");
    let asks = exec.interactive_mode != Some(ExecInteractiveMode::Never) && io::stdin().is_terminal();
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) && !asks {
        return Err(failed(
            "wants a terminal (interactiveMode: Always), and there is none".to_owned(),
        ));
    }
    let mut child = command(exec, asks).spawn().map_err(|error| {
        let hint = exec.install_hint.as_deref().unwrap_or_default();
        failed(limits::line(&format!("cannot be started: {error} {hint}")))
    })?;
    let within = if asks { AT_A_TERMINAL } else { within };
    let mut output = child.stdout.take().map(|pipe| Pipe::new(pipe.into()));
    let mut complaints = child.stderr.take().map(|pipe| Pipe::new(pipe.into()));
    let status = wait(&mut child, &mut output, &mut complaints, within).map_err(|error| failed(error.to_string()))?;
    let Some(status) = status else {
        end(&mut child, asks);
        return Err(failed(format!(
            "did not end within {} s, and was killed",
            within.as_secs_f32()
        )));
    };
    let text = |pipe: Option<Pipe>| pipe.map_or_else(Vec::new, |pipe| pipe.text);
    if !status.success() {
        let complaints = text(complaints);
        let said = String::from_utf8_lossy(&complaints);
        let last = said.trim_end().lines().last().unwrap_or_default();
        let colon = if last.is_empty() { "" } else { ": " };
        return Err(failed(limits::line(&format!("failed with {status}{colon}{last}"))));
    }
    read(&text(output)).map_err(failed)
}

fn command(exec: &ExecConfig, asks: bool) -> Command {
    let mut command = Command::new(exec.command.as_deref().unwrap_or_default());
    command.args(exec.args.iter().flatten());
    let variables = exec.env.iter().flatten();
    command.envs(variables.filter_map(|variable| Some((variable.get("name")?, variable.get("value")?))));
    let info = json!({
        "apiVersion": exec.api_version, "kind": "ExecCredential",
        "spec": {"interactive": asks, "cluster": exec.cluster},
    });
    command
        .env("KUBERNETES_EXEC_INFO", info.to_string())
        .stdout(Stdio::piped());
    if asks {
        // What it asks is for whoever sits there.
        command.stdin(Stdio::inherit()).stderr(Stdio::inherit());
    } else {
        // A group of its own, so that what it starts ends with it.
        command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    }
    command
}

/// Reads what the plugin writes until it has ended; none when it does not end in time.
fn wait(
    child: &mut Child,
    output: &mut Option<Pipe>,
    complaints: &mut Option<Pipe>,
    within: Duration,
) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        // First the time, then the end, then the pipes: whatever has ended has done so in time, and has written what it had to,
        // however late this thread comes to look.
        let late = start.elapsed() >= within;
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        let mut open = output.as_mut().is_some_and(Pipe::read);
        let complains = complaints.as_mut().is_some_and(Pipe::read);
        match ended {
            Some((status, at)) => {
                open |= complains && !status.success();
                if !open || at.elapsed() >= REST {
                    return Ok(Some(status));
                }
            }
            None if late => return Ok(None),
            None => {}
        }
        thread::sleep(LOOK);
    }
}

/// Kills the plugin, and all that it has started unless it shares the terminal.
fn end(child: &mut Child, asks: bool) {
    if let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) {
        let kill = if asks { kill } else { killpg };
        // It may just have ended by itself.
        let _ = kill(pid, Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// What is written to a pipe, which can be held open for ever by what the plugin has started.
struct Pipe {
    /// Until its end, or until that is too much.
    from: Option<File>,
    text: Vec<u8>,
}

impl Pipe {
    fn new(pipe: OwnedFd) -> Self {
        // One that cannot be read without waiting is not read.
        let nonblocking = fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        Pipe {
            from: nonblocking.is_ok().then(|| pipe.into()),
            text: Vec::new(),
        }
    }

    /// Reads all that is there; whether there may be more.
    fn read(&mut self) -> bool {
        let mut piece = [0; 4096];
        while let Some(from) = &mut self.from {
            match from.read(&mut piece) {
                Ok(count @ 1..) if self.text.len() + count <= OUTPUT => self.text.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => self.from = None,
            }
        }
        false
    }
}

fn read(output: &[u8]) -> Result<Told, String> {
    // The error of serde_json would quote what it found.
    let credential: Credential = serde_json::from_slice(output).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("printed something that is no ExecCredential in JSON (line {line}, column {column})")
    })?;
    let status = credential.status.ok_or("printed an ExecCredential without a status")?;
    let told = Told {
        token: status.token.filter(|token| !token.is_empty()),
        identity: status.client_certificate_data.zip(status.client_key_data),
        expires: status.expiration_timestamp.map(|Time(at)| SystemTime::from(at)),
    };
    if told.token.is_none() && told.identity.is_none() {
        return Err("printed an ExecCredential with neither a token nor a certificate and its key".to_owned());
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plugin that runs this script of a shell.
    fn plugin(script: &str, within: Duration) -> Result<Told, String> {
        let exec = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
            "env": [{"name": "MY_SECRET", "value": "hunter2"}], "interactiveMode": "Never", "installHint": "install it",
        });
        run(&serde_json::from_value(exec).expect("a plugin"), within)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_a_plugin_prints_is_read() {
        let script = r#"echo '{"kind": "ExecCredential", "status": {"token": "t", "expirationTimestamp": "2030-01-01T00:00:00Z"}}'"#;
        let told = plugin(script, LONG).expect("a token");
        assert_eq!(told.token.as_deref(), Some("t"));
        let expires = told.expires.expect("a time").duration_since(SystemTime::UNIX_EPOCH);
        assert_eq!(expires.map(|d| d.as_secs()).ok(), Some(1_893_456_000));
        let script = r#"printf '{"status": {"clientCertificateData": "c", "clientKeyData": "%s"}}' "$MY_SECRET""#;
        let told = plugin(script, LONG).expect("a certificate");
        assert_eq!(told.identity, Some(("c".to_owned(), "hunter2".to_owned())));
        // More than a pipe holds at a time.
        let script = r#"printf '{"status": {"token": "%s"}}' "$(head -c 300000 /dev/zero | tr '\0' t)""#;
        let told = plugin(script, LONG).expect("a token");
        assert_eq!(told.token.map(|token| token.len()), Some(300_000));
        // It learns what for, and has nobody to ask.
        let script =
            r#"read line; echo "{\"status\": {\"token\": \"$(echo "$KUBERNETES_EXEC_INFO" | tr -dc a-zA-Z0-9./)\"}}""#;
        let told = plugin(script, LONG).expect("a token");
        let info = told.token.expect("the variable");
        assert!(
            info.contains("client.authentication.k8s.io/v1") && info.contains("interactivefalse"),
            "{info}"
        );
    }

    #[test]
    fn what_goes_wrong_is_told_without_secrets() {
        for (script, expected) in [
            (
                "echo one >&2; echo 'log \x1b[31min first' >&2; echo hunter2; exit 3",
                "failed with exit status: 3: log \\u{1b}[31min first",
            ),
            ("kill -9 $$", "failed with signal: 9 (SIGKILL)"),
            (
                "echo hunter2",
                "printed something that is no ExecCredential in JSON (line 1, column 1)",
            ),
            (
                r#"echo '{"status": "hunter2"}'"#,
                "printed something that is no ExecCredential in JSON (line 1, column 20)",
            ),
            ("echo '{}'", "printed an ExecCredential without a status"),
            (
                r#"echo '{"status": {"clientKeyData": "hunter2"}}'"#,
                "printed an ExecCredential with neither",
            ),
            // It is cut off at a megabyte.
            ("exec yes", "failed with signal: 13 (SIGPIPE)"),
        ] {
            let error = plugin(script, LONG).map(|told| told.token).expect_err(script);
            assert!(!error.contains("hunter2"), "{error}");
            let expected = format!("the plugin \"sh\" {expected}");
            assert!(error.starts_with(&expected), "{error}\n{expected}");
        }
        let absent = json!({"command": "/nonexistent/login", "installHint": "get it at example.org"});
        let absent = run(&serde_json::from_value(absent).expect("a plugin"), LONG).map(drop);
        let expected = "the plugin \"/nonexistent/login\" cannot be started: No such file or directory (os error 2) get it at example.org";
        assert_eq!(absent, Err(expected.to_owned()));
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_all_that_it_started() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > '{}'; wait", file.display());
        let start = Instant::now();
        let error = plugin(&script, Duration::from_secs(5)).map(drop);
        assert_eq!(
            error,
            Err("the plugin \"sh\" did not end within 5 s, and was killed".to_owned())
        );
        assert!(start.elapsed() < LONG);
        let pid = std::fs::read_to_string(&file).expect("its child").trim().to_owned();
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !gone() {
            assert!(start.elapsed() < LONG, "process {pid} is still there");
            thread::sleep(LOOK);
        }
        // One that leaves something behind which holds its output is not waited for either.
        let script = r#"sleep 20 & echo '{"status": {"token": "t"}}'"#;
        assert_eq!(plugin(script, LONG).map(|told| told.token), Ok(Some("t".to_owned())));
    }
}
