//! A command without what the machine's own environment would have the program do: the same on every machine.

use std::process::Command;

/// What the program reads: the way to an API server, how much it logs, whether it writes colours where there is no terminal, and
/// how wide its help is.
const READ: [&str; 16] = [
    "ALL_PROXY",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "KUBECONFIG",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
    "NO_COLOR",
    "NO_PROXY",
    "RUST_LOG",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Takes it out of the environment of a command.
pub(crate) fn without_settings(command: &mut Command) -> &mut Command {
    READ.iter()
        .fold(command, |command, variable| command.env_remove(variable))
}
