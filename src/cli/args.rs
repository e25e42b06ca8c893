//! The flags of every command: all of clap stands here. Values of our own syntax are parsed by the types they become.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use policy_compiler::diagnostics::Code;

use super::endpoint::EndpointSpec;
use super::lint::parse_code;
use super::ports::PortSpec;
use crate::agent::HTTP_ADDRESS;
use crate::nft::MarkMask;

const EXIT_CODES: &str = "\
Exit codes: 0 fine; 1 findings (a failed assertion, a difference, a warning of lint); 2 bad usage or input.
Colours are for terminals only, and never with NO_COLOR set.";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Kubernetes NetworkPolicy: compiled, explained, tested offline, and enforced with nftables.
#[derive(Debug, Parser)]
#[command(name = "palisade", version, styles = STYLES, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show who may reach every pod, and whom it may reach, on which ports
    Compile(CompileArgs),
    /// Say whether one end may reach another, and why
    Explain(ExplainArgs),
    /// Show who reaches whom on a port
    Matrix(MatrixArgs),
    /// Find what is legal in policies and hardly meant: what selects nothing, changes nothing, or cannot come about
    Lint(LintArgs),
    /// Check connectivity tests; every case is proven over all pairs and ports that it speaks of
    Test(TestArgs),
    /// Show what a change opens and closes: connections, not lines of text
    Diff(DiffArgs),
    /// Enforce policy on this node (needs root, or the capability NET_ADMIN)
    Agent(AgentArgs),
    /// Show what policy has denied on this node: who tried to reach whom, how often, and why it was denied
    Denied(DeniedArgs),
    /// Look whether this node is fit for the agent, and say what to do where it is not
    Preflight(PreflightArgs),
    /// Show what this node enforces, as its agent says
    Status(StatusArgs),
    /// Remove everything that the agent put into this node's kernel
    Cleanup(CleanupArgs),
    /// Enforce policy in a sandbox of network namespaces on this machine, and probe it with real packets
    Demo(DemoArgs),
}

/// Where the cluster is described: manifests or, in their place, the one that runs.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("cluster").args(["manifests", "live"]).required(true))]
pub(crate) struct Manifests {
    /// Manifests: files, folders (with all that is in them), or - for standard input; YAML or JSON
    // A requirement that conflicts with what is there is none to clap, hence the conflicts beside `requires`.
    #[arg(value_name = "PATH", id = "manifests", conflicts_with_all = ["context", "kubeconfig"])]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) live: Live,
}

/// The cluster that runs.
#[derive(Debug, Args)]
pub(crate) struct Live {
    /// The cluster that runs, in the place of manifests: that of kubectl's current context. It is read, and nothing is changed
    #[arg(long)]
    pub(crate) live: bool,
    /// With --live, the context of the kubeconfig, if not its current one
    #[arg(long, value_name = "NAME", requires = "live")]
    pub(crate) context: Option<String>,
    /// With --live, the kubeconfig, if not that of $KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE", requires = "live")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// `palisade compile`
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// Only the pods of this node; with -o nft, the node whose rules to print
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// The form of the answer: for people, for programs, or as the node's nftables rules
    #[arg(short, long, value_enum, default_value_t = CompileOutput::Text)]
    pub(crate) output: CompileOutput,
}

/// `palisade explain`
#[derive(Debug, Args)]
#[command(after_help = ENDPOINTS)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// Where connections come from
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) from: EndpointSpec,
    /// Where connections go
    #[arg(long, value_name = "ENDPOINT")]
    pub(crate) to: EndpointSpec,
    /// The destination's port
    #[arg(long, value_name = "PORT")]
    pub(crate) port: PortSpec,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
    pub(crate) output: TextOrJson,
}

const ENDPOINTS: &str = "\
ENDPOINT is namespace/pod, namespace/kind/name (shop/deployment/api), an IP address (a pod's address means that pod, \
through that address) or a CIDR (all of its addresses, and the pods among them).
PORT is 8080/TCP, 8000-8080/UDP, http/TCP (a port by name, on the destination) or all; without a protocol it is TCP.";

const PORTS: &str = "\
PORT is 8080/TCP, 8000-8080/UDP, http/TCP (a port by name, on the destination) or all; without a protocol it is TCP.";

/// `palisade matrix`
#[derive(Debug, Args)]
#[command(after_help = PORTS)]
pub(crate) struct MatrixArgs {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// The destination's port
    #[arg(long, value_name = "PORT", required_unless_present = "all_ports")]
    pub(crate) port: Option<PortSpec>,
    /// Show which ports pass, of all there are
    #[arg(long, conflicts_with = "port")]
    pub(crate) all_ports: bool,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = MatrixOutput::Text)]
    pub(crate) output: MatrixOutput,
}

/// `palisade lint`
#[derive(Debug, Args)]
#[command(after_help = super::lint::help())]
pub(crate) struct LintArgs {
    #[command(flatten)]
    pub(crate) manifests: Manifests,
    /// Only the findings of these rules
    #[arg(long, value_name = "RULE", value_delimiter = ',', value_parser = parse_code)]
    pub(crate) only: Vec<Code>,
    /// Not the findings of these rules
    #[arg(long, value_name = "RULE", value_delimiter = ',', value_parser = parse_code)]
    pub(crate) ignore: Vec<Code>,
    /// The least severity that is told
    #[arg(long, value_enum, default_value_t = LintSeverity::Note, value_name = "SEVERITY")]
    pub(crate) min_severity: LintSeverity,
    /// End with exit code 1 for notes too
    #[arg(long)]
    pub(crate) strict: bool,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = LintOutput::Text)]
    pub(crate) output: LintOutput,
}

/// `palisade test`
#[derive(Debug, Args)]
#[command(after_help = super::test_file::FORM)]
pub(crate) struct TestArgs {
    /// Test files, or folders with test files (documents of other kinds are passed over)
    #[arg(value_name = "TEST", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) live: Live,
    /// The form of the report
    #[arg(short, long, value_enum, default_value_t = TestOutput::Text)]
    pub(crate) output: TestOutput,
}

const PRUNE: &str = "\
With --overlay or --live, NEW stands for the cluster after `kubectl apply -f NEW`: objects of the same kind, namespace and name are \
replaced, a workload's template goes onto the pods that it has, a namespace keeps the labels that NEW does not speak of, and everything else stays.
Exit codes: 0 no difference; 1 differences; 2 bad usage or input. Objects that changed without effect are no difference.";

/// `palisade diff`
#[derive(Debug, Args)]
#[command(after_help = PRUNE, override_usage = "palisade diff [OPTIONS] OLD NEW\n       palisade diff [OPTIONS] --live NEW")]
pub(crate) struct DiffArgs {
    /// Manifests of the cluster before, then of the cluster after: each a file, a folder (with all that is in it), or - for standard
    /// input (one of them); with --live, only what is to be applied
    #[arg(value_name = "PATH", required = true, num_args = 1..=2)]
    pub(crate) paths: Vec<PathBuf>,
    /// NEW is put over OLD, as kubectl apply would
    #[arg(long)]
    pub(crate) overlay: bool,
    /// Also remove the NetworkPolicies that NEW does not have, in the namespaces for which it has any
    #[arg(long)]
    pub(crate) prune: bool,
    #[command(flatten)]
    pub(crate) live: Live,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = DiffOutput::Text)]
    pub(crate) output: DiffOutput,
}

/// `palisade agent`
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// This node's name, as in spec.nodeName of its pods
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) node_name: String,
    /// Enforce from a folder of manifests, pods included, and follow changes to it
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub(crate) manifests: Option<PathBuf>,
    /// Watch the API server that this file names; without either flag, the one of the pod's service account
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one
    // `requires` alone lets it pass beside a folder, which excludes what is required.
    #[arg(long, value_name = "NAME", requires = "kubeconfig", conflicts_with = "manifests")]
    pub(crate) context: Option<String>,
    /// Where /healthz, /readyz, /status and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value_t = HTTP_ADDRESS, value_parser = parse_address)]
    pub(crate) http_addr: SocketAddr,
    /// Drop what policy denies, or only record it
    #[arg(long, value_enum, default_value_t = Mode::Enforce)]
    pub(crate) mode: Mode,
    /// Where pods are on a bridge whose packets do not meet the rules: switch that on, or only be unready, or do not look
    #[arg(long, value_enum, default_value_t = BridgeNetfilter::Auto, value_name = "MODE")]
    pub(crate) bridge_netfilter: BridgeNetfilter,
    /// What the sender of a denied packet hears: nothing, or a TCP reset (an ICMP error for other protocols)
    #[arg(long, value_enum, default_value_t = DenyAction::Drop, value_name = "ACTION")]
    pub(crate) deny_action: DenyAction,
    /// What becomes of packets from or to an address of this node's podCIDRs that no pod in the API has (yet)
    #[arg(long, value_enum, default_value_t = UnknownPods::Allow, value_name = "ACTION")]
    pub(crate) unknown_pods: UnknownPods,
    /// Bits of the connection mark (ct mark) that nobody else uses, such as 0xffff0000: packets of connections that have been
    /// judged pass by them at once
    #[arg(long, value_name = "MASK")]
    pub(crate) verified_mark: Option<MarkMask>,
}

const NAMES: &str = "\
The kernel knows addresses. Names, and the reason of each denial, come from the cluster: --live, or its manifests.
Counts are those of a sample of at most 100 packets a second; the agent's metrics count every packet, by pod.";

/// `palisade denied`
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("cluster").args(["manifests", "live"]))]
#[command(after_help = NAMES)]
pub(crate) struct DeniedArgs {
    /// The cluster, to tell names and reasons: files, folders, or - for standard input
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["context", "kubeconfig"])]
    pub(crate) manifests: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) live: Live,
    /// Go on, and show what is denied as it comes
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Only what has an end in this namespace
    #[arg(short, long, value_name = "NAME", requires = "cluster")]
    pub(crate) namespace: Option<String>,
    /// Only what has this pod at an end
    #[arg(long, value_name = "NAMESPACE/POD", requires = "cluster", value_parser = parse_pod)]
    pub(crate) pod: Option<String>,
    /// The form of the answer; with --watch, json is a document a line
    #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
    pub(crate) output: TextOrJson,
}

/// `palisade cleanup`
#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    /// Also clear these bits in the marks of all connections: those that the agent was given
    #[arg(long, value_name = "MASK")]
    pub(crate) verified_mark: Option<MarkMask>,
}

/// `palisade preflight`
#[derive(Debug, Args)]
pub(crate) struct PreflightArgs {
    /// Ask the API server that this file names about the rights of its user; in a pod, its service account's are asked about
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig, if not its current one
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    pub(crate) context: Option<String>,
    /// Where the node's file system is, if mounted elsewhere: its /etc/cni is read, and its /proc
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub(crate) root: PathBuf,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
    pub(crate) output: TextOrJson,
}

/// `palisade status`
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Where the agent serves: its own --http-addr
    #[arg(long, value_name = "ADDRESS", default_value_t = HTTP_ADDRESS, value_parser = parse_address)]
    pub(crate) http_addr: SocketAddr,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
    pub(crate) output: TextOrJson,
}

/// `palisade demo`
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Your own manifests in place of the built-in shop
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// The form of the report
    #[arg(short, long, value_enum, default_value_t = TextOrJson::Text)]
    pub(crate) output: TextOrJson,
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, such as 127.0.0.1:9440 or [::1]:9440; a name is none".to_owned())
}

fn parse_pod(text: &str) -> Result<String, &'static str> {
    match text.split('/').collect::<Vec<_>>().as_slice() {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("write the pod's namespace and its name, such as shop/web-0"),
    }
}

/// What the agent does with a denied packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// It is dropped
    Enforce,
    /// It passes, and is recorded
    Audit,
}

/// What the agent does about bridges whose packets do not meet the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BridgeNetfilter {
    /// It switches them on, and is not ready where it cannot
    Auto,
    /// It changes nothing, and is not ready
    Require,
    /// It does not look
    Ignore,
}

/// What the sender of a denied packet hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DenyAction {
    /// Nothing
    Drop,
    /// A TCP reset, or ICMP "administratively prohibited"
    Reject,
}

/// What becomes of packets of pods that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UnknownPods {
    /// They are judged like those of any other address
    Allow,
    /// They are dropped
    Drop,
}

/// The forms of `compile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompileOutput {
    Text,
    Json,
    Nft,
}

/// The forms of most commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TextOrJson {
    /// For people; may change
    Text,
    /// For programs; stable
    Json,
}

/// The forms of `matrix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MatrixOutput {
    Text,
    Json,
    Csv,
    Markdown,
}

/// How much a finding of `lint` matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LintSeverity {
    /// The policies may not do what is meant
    Warning,
    /// Worth knowing
    Note,
}

/// The forms of `lint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LintOutput {
    /// For people, by file; may change
    Text,
    /// For programs; stable
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// Annotations of a GitHub workflow
    Github,
}

/// The forms of `diff`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiffOutput {
    /// For people; may change
    Text,
    /// For programs; stable
    Json,
    /// A comment on a pull request, as tables of GitHub's markdown; bounded
    Markdown,
}

/// The forms of `test`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TestOutput {
    /// For people; may change
    Text,
    /// For programs; stable
    Json,
    /// JUnit's XML, for CI systems
    Junit,
    /// The Test Anything Protocol, version 14
    Tap,
    /// Annotations of a GitHub workflow, beside the cases that fail
    Github,
}
