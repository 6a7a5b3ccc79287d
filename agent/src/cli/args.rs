//! The shape of the command line, and nothing more: what a name or a path may be is the agent's
//! to judge.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{
    ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint,
};
use clap_complete::ArgValueCandidates;

use super::explain::Destination;
use super::explain_name::NameAndPort;
use super::flows::Target;
use super::{complete, examples};
use crate::api::SOCKET;
use crate::api::flows::{FlowOrder, MOST_FLOWS};
use crate::api::types::{LocalNetworks, Otherwise};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 usage, 3 agent not reachable, 4 no domain fits;
`run` gives COMMAND's own, 126 if COMMAND cannot be run, 127 if it is not found.";

/// Puts every flow of an application on the interface its policy names.
#[derive(Debug, Parser)]
#[command(name = "steer", version, after_help = EXIT_CODES, propagate_version = false)]
pub struct Cli {
    /// Socket of the agent.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = SOCKET,
        // Behind what a command has of its own.
        display_order = 900
    )]
    pub(super) socket: PathBuf,
    #[command(flatten)]
    pub(super) output: Output,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// Reads the command line. Ends the process if it is wrong, or asks for help.
pub fn parse() -> Cli {
    complete::answer_shell();
    let matches = command().try_get_matches();
    let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.unwrap_or_else(|mut error| {
        // `--via a, b`: the shell makes two words of it.
        let parted = std::env::args_os().any(|word| word.as_encoded_bytes().ends_with(b","));
        if parted && error.kind() == ErrorKind::UnknownArgument {
            let tips = vec![NO_SPACE.to_owned().into()];
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
        error.exit()
    })
}

/// The command line as it is parsed, with examples in its help.
pub fn command() -> clap::Command {
    examples::add(shape(), "")
}

/// The command line without examples.
pub(super) fn shape() -> clap::Command {
    Cli::command()
}

/// Every command for people by its path without `steer`, which itself is the empty one.
pub(super) fn paths() -> Vec<String> {
    fn add(command: &clap::Command, path: String, paths: &mut Vec<String>) {
        let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        let below: Vec<_> = shown
            .map(|sub| (sub, below(&path, sub.get_name())))
            .collect();
        paths.push(path);
        for (sub, path) in below {
            add(sub, path, paths);
        }
    }
    let mut paths = Vec::new();
    add(&shape(), String::new(), &mut paths);
    paths
}

/// The path of a command below another.
pub(super) fn below(path: &str, name: &str) -> String {
    format!("{path} {name}").trim_start().to_owned()
}

/// Whether there are commands below one.
pub(super) fn has_commands(path: &str) -> bool {
    let prefix = below(path, "");
    paths()
        .iter()
        .any(|other| other != path && other.starts_with(&prefix))
}

/// What stands for a parameter of the API on the command line.
pub(super) fn of_parameter(name: &str) -> Option<&'static str> {
    Some(match name {
        "use" | "via" => "--via",
        "name" => "NAME",
        "cgroup" => "--cgroup",
        "unit" => "--unit",
        "pid" => "--pid",
        "strict" => "--strict",
        "otherwise" => "--otherwise",
        "local_networks" => "--local-networks",
        "domain" => "NAME",
        "policy" => "--policy",
        "priority" => "--priority",
        "save" => "--save",
        "wait_ms" => "--wait",
        "destination" | "port" => "DEST[:PORT]",
        "family" => "-4, -6",
        "limit" => "--limit",
        _ => return None,
    })
}

/// What is said where a name is missing between commas.
const NO_SPACE: &str = "write the names with commas and no space between: --via wifi,lte";

/// How to answer.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Output {
    /// Print one JSON document, with sorted keys.
    #[arg(short, long)]
    pub(super) json: bool,
}

/// What to do; without it: status.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent: in the foreground, or as a notifying systemd service.
    Agent(AgentArgs),
    /// Run a command by chosen domains.
    Run(RunArgs),
    /// Steer a running process by chosen domains.
    Move(MoveArgs),
    /// Show, set and unset policies (without a command: list).
    Policy {
        #[command(flatten)]
        output: Output,
        #[command(subcommand)]
        command: Option<PolicyCommand>,
    },
    /// Show domains (without a command: list).
    Domain {
        #[command(flatten)]
        output: Output,
        #[command(subcommand)]
        command: Option<DomainCommand>,
    },
    /// Show the agent, its policies and domains, and what they came to.
    #[command(
        after_help = "Works without an agent, too: it then shows what the last one left in \
                            force, and exits with 3."
    )]
    Status(Output),
    /// Say what is wrong in the files, and what is worth knowing of them.
    #[command(after_help = "\
Reads the files as the agent does, without one and without root. Each thing it says has a word:
  mistake         makes the files bad as a whole: nothing of them would be taken
  quarantined     makes one policy bad: all else would be taken; blocked if it is strict
  replaced        a later file's section takes the place of an earlier one
  shadowed        a policy that is never in force, since others always hold where it matches
  overlapping     two policies that can hold for one cgroup: which does, and why
  unreachable     a domain or group that nothing uses; a name that comes too late in a list
  unenforceable   what this host or this version cannot do now
Exits with 1 if there is a mistake or a policy would be in quarantine, else with 0.")]
    Check {
        /// This file, and steer.d/*.toml beside it, instead of /etc/steer/steer.toml.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Have the agent read its files again.
    #[command(after_help = "\
Bad files change nothing: what is wrong is shown, and the exit code is 1. A policy
that is bad in itself is put into quarantine: all else is taken, and what it matches
is blocked if it is strict. `steer check` says the same before.")]
    Reload(Output),
    /// Show live flows: whose they are, where they leave, and how much they carry.
    Flows(Box<FlowsArgs>),
    /// Tell of every change of a domain's state and of a decision, with the reason.
    #[command(
        alias = "monitor",
        after_help = "\
First comes how everything is, then what changes, one line each, until it is ended. With
--json, one object a line."
    )]
    Watch(Output),
    /// Tell what happens to the flows of a process or cgroup, and why.
    Explain(Box<ExplainArgs>),
    /// Undo everything: rules, tables, kernel programs and cgroups that the agent made.
    #[command(
        after_help = "Stop the agent first. What the files say is in force again when the \
                            agent starts again."
    )]
    Detach(Output),
    /// Write manual pages and completion scripts below DIRECTORY, for packages.
    #[command(hide = true)]
    Generate {
        /// Where: a prefix such as /usr.
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    /// Look at this host for what stands in steer's way. Works without an agent, changes nothing.
    Doctor(super::doctor::DoctorArgs),
}

/// `steer agent`
#[derive(Args, Debug)]
#[command(
    after_help = "Stopping the agent keeps the last decisions in force; `steer detach` \
                        undoes everything.\nSTEER_LOG sets what is logged: error, warn, info \
                        (default), debug, trace."
)]
pub(super) struct AgentArgs {
    /// Read this file, and steer.d/*.toml beside it, instead of /etc/steer/steer.toml.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) config: Option<PathBuf>,
}

/// `steer run`
#[derive(Args, Debug)]
#[command(override_usage = "steer run (--via DOMAIN[,..] | --ask) [OPTIONS] [--] COMMAND..")]
#[command(after_help = "\
COMMAND never starts unsteered: if the agent is not reachable (3) or no domain
fits (4), it does not start at all. It keeps this process' id, environment,
directory and user, and its exit code is yours; 127 if it is not found, 126 if it
cannot be run.")]
pub(super) struct RunArgs {
    /// Domains or groups, in order of preference, with commas between.
    #[arg(
        long,
        value_name = "DOMAIN",
        value_delimiter = ',',
        value_parser = listed,
        add = ArgValueCandidates::new(complete::domains),
        required_unless_present = "ask"
    )]
    pub(super) via: Vec<String>,
    /// Ask which domain: of those of --via, or of all that you may use. Answered on the terminal, or
    /// anywhere by `steer domain prefer`.
    #[arg(long)]
    pub(super) ask: bool,
    /// By these domains or not at all.
    #[arg(long)]
    pub(super) strict: bool,
    /// Wait until one of them fits, at most TIME (as 500ms, 30s, 5m, 1h); without TIME, for ever.
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = time)]
    pub(super) wait: Option<Option<Duration>>,
    /// What to run, with its arguments.
    // Options of its own come behind its name; before it, they are ours, and mistakes.
    #[arg(
        required = true,
        trailing_var_arg = true,
        value_hint = ValueHint::CommandWithArguments
    )]
    pub(super) command: Vec<OsString>,
}

/// `steer move`
#[derive(Args, Debug)]
#[command(
    override_usage = "steer move PID --via DOMAIN[,..] [OPTIONS]",
    after_help = "\
The process moves to a cgroup of its own, below the one it is in, with what it
starts from then on; what it started before stays. Its running flows stay where
they are (with --strict, those that are elsewhere are dropped); new ones take the
domain. The policy ends with the last process in that cgroup."
)]
pub(super) struct MoveArgs {
    /// Number of the process.
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) pid: u32,
    /// Domains or groups, in order of preference, with commas between.
    #[arg(
        long,
        value_name = "DOMAIN",
        value_delimiter = ',',
        value_parser = listed,
        add = ArgValueCandidates::new(complete::domains),
        required = true
    )]
    pub(super) via: Vec<String>,
    /// By these domains or not at all.
    #[arg(long)]
    pub(super) strict: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `steer policy`
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Show all policies.
    List(Output),
    /// Show one policy: what it says and what it came to.
    Show {
        /// Name of the policy.
        #[arg(add = ArgValueCandidates::new(complete::policies))]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Make a policy, or replace the one of that name.
    Set(Box<PolicySetArgs>),
    /// Remove a policy.
    Unset {
        /// Name of the policy.
        #[arg(add = ArgValueCandidates::new(complete::policies))]
        name: String,
        /// Remove it from the file that keeps it, too.
        #[arg(long)]
        save: bool,
        #[command(flatten)]
        output: Output,
    },
}

/// `steer policy set`
#[derive(Args, Debug)]
#[command(
    override_usage = "steer policy set NAME (--cgroup PATH.. | --pid PID | --unit UNIT..)\n\
                      \x20                       --via DOMAIN[,..] [OPTIONS]",
    group(ArgGroup::new("match").required(true).args(["cgroup", "pid", "unit"])),
    after_help = "\
The policy is in force when the command ends."
)]
pub(super) struct PolicySetArgs {
    /// Name of the policy.
    #[arg(add = ArgValueCandidates::new(complete::policies))]
    pub(super) name: String,
    /// Cgroup, as in /proc/PID/cgroup; * matches within a level, ** across.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub(super) cgroup: Vec<String>,
    /// The cgroup of this process.
    #[arg(long)]
    pub(super) pid: Option<u32>,
    /// The cgroup of this systemd unit.
    #[arg(long, num_args = 1..)]
    pub(super) unit: Vec<String>,
    /// Domains or groups, in order of preference, with commas between.
    #[arg(
        long,
        value_name = "DOMAIN",
        value_delimiter = ',',
        value_parser = listed,
        add = ArgValueCandidates::new(complete::domains),
        required_unless_present = "otherwise"
    )]
    pub(super) via: Vec<String>,
    /// By these domains or not at all.
    #[arg(long)]
    pub(super) strict: bool,
    /// What becomes of flows when no domain fits; block, if not given.
    #[arg(long, value_name = "WHAT")]
    pub(super) otherwise: Option<OtherwiseArg>,
    /// What becomes of flows to networks of other interfaces; pass, or steer with --strict, if
    /// not given.
    #[arg(long, value_name = "WHAT")]
    pub(super) local_networks: Option<LocalNetworksArg>,
    /// Which policy wins where several match: that of the deepest cgroup, then one of the files over
    /// one of the API, then the one with the higher number [default: 0].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) priority: Option<i64>,
    /// Keep it over a restart of the host, in /etc/steer/steer.d/50-NAME.toml.
    #[arg(long)]
    pub(super) save: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `steer explain`
#[derive(Args, Debug)]
#[command(
    group(ArgGroup::new("subject").args(["pid", "cgroup", "unit"])),
    group(ArgGroup::new("flow").args(["destination", "name"])),
    after_help = "\
Shows the policy in force and why that one, every candidate, and how the flow is
put on its domain; then asks the kernel, and warns where that differs."
)]
pub(super) struct ExplainArgs {
    /// A process. Without it, --cgroup or --unit: what is started from here.
    #[arg(long)]
    pub(super) pid: Option<u32>,
    /// A cgroup, as in /proc/PID/cgroup, whether it exists or not.
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<String>,
    /// A systemd unit that has a cgroup.
    #[arg(long)]
    pub(super) unit: Option<String>,
    /// Where a flow goes: an address, perhaps with a port (192.0.2.1:443, [2001:db8::1]:443).
    #[arg(value_name = "DEST[:PORT]")]
    pub(super) destination: Option<Destination>,
    /// Where a flow goes, by its name, perhaps with a port: looked up over the domain that is chosen, by that
    /// domain's own name servers.
    #[arg(long, value_name = "NAME[:PORT]")]
    pub(super) name: Option<NameAndPort>,
    /// Transport protocol of the flow: udp, sctp, icmp or another name or number. Default: tcp.
    #[arg(long, value_name = "PROTOCOL", requires = "flow")]
    pub(super) protocol: Option<String>,
    /// Code point that the program asks for: EF, AF41 or another name or number. Default: CS0.
    #[arg(long, value_name = "CODE", requires = "flow")]
    pub(super) dscp: Option<String>,
    /// Tell too what would be chosen if this domain were not there.
    #[arg(long, value_name = "DOMAIN", add = ArgValueCandidates::new(complete::domains))]
    pub(super) without: Option<String>,
    /// IPv4 only.
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub(super) ipv4: bool,
    /// IPv6 only.
    #[arg(short = '6')]
    pub(super) ipv6: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `steer domain`
#[derive(Debug, Subcommand)]
pub(super) enum DomainCommand {
    /// Show all domains.
    List(Output),
    /// Show one domain.
    Show {
        /// Name of the domain, or of its interface.
        #[arg(add = ArgValueCandidates::new(complete::domains))]
        name: String,
        #[command(flatten)]
        output: Output,
    },
    /// Log in at a domain's portal, by that domain only.
    Login(LoginArgs),
    /// Have one domain come first for the policies that can use it.
    Prefer(PreferArgs),
}

/// `steer domain login`
#[derive(Args, Debug)]
#[command(
    override_usage = "steer domain login NAME [-- COMMAND..]",
    after_help = "\
COMMAND gets the address of the portal's page as its last argument, and leaves by this
domain or not at all. A browser that runs already and opens the page in its own process
is not steered: have it start anew (`-- firefox --no-remote -P login`). When COMMAND ends,
the domain is checked at once."
)]
pub(super) struct LoginArgs {
    /// Name of the domain, or of its interface.
    #[arg(add = ArgValueCandidates::new(complete::domains))]
    pub(super) name: String,
    /// What to run; without it: xdg-open.
    #[arg(last = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

/// `steer domain prefer`
#[derive(Args, Debug)]
#[command(
    override_usage = "steer domain prefer [NAME | --none] [--policy POLICY[,..]] [OPTIONS]",
    after_help = "\
Without NAME, the choice is offered on the terminal. A preference changes the
order of the domains that a policy names, and adds none; it holds until the
policy ends, the host restarts, or --none takes it back. Running flows stay where
they are. It also answers the question of `steer run --ask`, if --policy names the
policy of that command."
)]
pub(super) struct PreferArgs {
    /// Name of the domain, or of its interface.
    #[arg(add = ArgValueCandidates::new(complete::domains))]
    pub(super) name: Option<String>,
    /// For these policies, with commas between. Without it: for all of yours that can use it.
    #[arg(
        long,
        value_name = "POLICY",
        value_delimiter = ',',
        value_parser = listed,
        add = ArgValueCandidates::new(complete::policies)
    )]
    pub(super) policy: Vec<String>,
    /// None is preferred any more: the policies' own order holds.
    #[arg(long, conflicts_with = "name")]
    pub(super) none: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// `steer flows`
#[derive(Args, Debug)]
#[command(after_help = "\
Shows the flows of policies; without root, those of your own processes. DOMAIN is
`host` where a flow is left to the host's ordinary routing, and `wrong` where it is
not where its policy has it: the guard drops it if the policy is strict.
Bytes are what applications sent and received, without headers. TCP counts from the
beginning of a connection; for UDP and others counting begins when somebody asks for
flows, and ends a minute after nobody does; what is sent without a connection is
shown from then on alone. An age with > is that since the flow was first seen. Rows
are in the order of policy, process, protocol and destination.
--watch shows all again each second on a terminal, and what changes into a pipe.")]
pub(super) struct FlowsArgs {
    /// Only flows to this address, prefix, or address and port ([ADDRESS]:PORT for IPv6).
    #[arg(value_name = "DEST[:PORT]")]
    pub(super) destination: Option<Target>,
    /// Only flows of this policy.
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::policies))]
    pub(super) policy: Option<String>,
    /// Only flows that leave by this domain.
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(complete::domains))]
    pub(super) domain: Option<String>,
    /// Only flows of this cgroup and of those below it, as in /proc/PID/cgroup.
    #[arg(long, value_name = "PATH")]
    pub(super) cgroup: Option<String>,
    /// Only flows of this process.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) pid: Option<u32>,
    /// Only IPv4.
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub(super) ipv4: bool,
    /// Only IPv6.
    #[arg(short = '6')]
    pub(super) ipv6: bool,
    /// Also flows that no policy has.
    #[arg(short, long)]
    pub(super) all: bool,
    /// What comes first: the policy's name, most bytes, or the youngest.
    #[arg(long, value_name = "ORDER")]
    pub(super) sort: Option<SortArg>,
    /// Show this many at most; 1000 without it.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_FLOWS))
    )]
    pub(super) limit: Option<u32>,
    /// Go on until interrupted.
    #[arg(short, long)]
    pub(super) watch: bool,
    #[command(flatten)]
    pub(super) output: Output,
}

/// Values of `--sort`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SortArg {
    /// By the name of the policy.
    Policy,
    /// Most bytes first.
    Bytes,
    /// Youngest first.
    Age,
}

impl From<SortArg> for FlowOrder {
    fn from(arg: SortArg) -> Self {
        match arg {
            SortArg::Policy => Self::Policy,
            SortArg::Bytes => Self::Bytes,
            SortArg::Age => Self::Age,
        }
    }
}

/// Values of `--otherwise`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum OtherwiseArg {
    /// They are refused.
    Block,
    /// They are left to the host's ordinary routing.
    Pass,
    /// The policy decides that would apply if this one did not exist.
    Next,
}

impl From<OtherwiseArg> for Otherwise {
    fn from(arg: OtherwiseArg) -> Self {
        match arg {
            OtherwiseArg::Block => Self::Block,
            OtherwiseArg::Pass => Self::Pass,
            OtherwiseArg::Next => Self::Next,
        }
    }
}

/// Values of `--local-networks`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LocalNetworksArg {
    /// They are left to the host's ordinary routing.
    Pass,
    /// They are steered like all others.
    Steer,
}

impl From<LocalNetworksArg> for LocalNetworks {
    fn from(arg: LocalNetworksArg) -> Self {
        match arg {
            LocalNetworksArg::Pass => Self::Pass,
            LocalNetworksArg::Steer => Self::Steer,
        }
    }
}

/// Reads one of the names that stand between commas.
fn listed(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(NO_SPACE.to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a time with its unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time has a number and a unit: 500ms, 30s, 5m, 1h".to_owned()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "a time begins with a number".to_owned())?;
    let ms = number
        .checked_mul(factor)
        .filter(|&ms| i64::try_from(ms).is_ok());
    ms.map(Duration::from_millis)
        .ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    fn refused(line: &str) -> ErrorKind {
        parse(line).unwrap_err().kind()
    }

    #[test]
    fn the_shape_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nothing_means_status() {
        assert!(parse("steer").unwrap().command.is_none());
        assert!(parse("steer -j").unwrap().output.json);
        assert_eq!(parse("steer").unwrap().socket, PathBuf::from(SOCKET));
        assert_eq!(
            parse("steer status --socket /x").unwrap().socket,
            PathBuf::from("/x")
        );
    }

    #[test]
    fn run_leaves_the_arguments_of_the_command_alone() {
        for line in [
            "steer run --via wifi,lte --strict --wait=30s -- curl -4 --json x",
            "steer run --via wifi --via lte --strict --wait=30s curl -4 --json x",
        ] {
            let Some(Command::Run(run)) = parse(line).unwrap().command else {
                panic!("{line}")
            };
            assert_eq!(run.via, ["wifi", "lte"]);
            assert!(run.strict);
            assert_eq!(run.wait, Some(Some(Duration::from_secs(30))));
            assert_eq!(run.command, ["curl", "-4", "--json", "x"]);
        }
        let line = "steer run --via wifi --wait -- true";
        let Some(Command::Run(run)) = parse(line).unwrap().command else {
            panic!("{line}")
        };
        assert_eq!(run.wait, Some(None));
        let line = "steer run --via wifi true";
        let Some(Command::Run(run)) = parse(line).unwrap().command else {
            panic!("{line}")
        };
        assert_eq!(run.wait, None);
        assert_eq!(
            refused("steer run --via wifi"),
            ErrorKind::MissingRequiredArgument
        );
        assert!(parse("steer run --ask -- true").is_ok());
        assert!(parse("steer domain prefer --policy web,mail").is_ok());
        assert_eq!(
            refused("steer domain prefer wifi --none"),
            ErrorKind::ArgumentConflict
        );
        assert_eq!(
            refused("steer run -- true"),
            ErrorKind::MissingRequiredArgument
        );
        assert_eq!(
            refused("steer run --via a --wait=30 true"),
            ErrorKind::ValueValidation
        );
    }

    #[test]
    fn policy_set_wants_one_kind_of_match_and_a_wish() {
        let line = "steer policy set web --cgroup a b --via wifi,lte --otherwise next \
                    --local-networks steer --priority -3 --save -j";
        let Some(Command::Policy {
            command: Some(PolicyCommand::Set(set)),
            ..
        }) = parse(line).unwrap().command
        else {
            panic!("{line}")
        };
        assert_eq!(set.name, "web");
        assert_eq!(set.cgroup, ["a", "b"]);
        assert_eq!(set.via, ["wifi", "lte"]);
        assert!(matches!(set.otherwise, Some(OtherwiseArg::Next)));
        assert!(matches!(set.local_networks, Some(LocalNetworksArg::Steer)));
        assert_eq!(set.priority, Some(-3));
        assert!(set.save && set.output.json && !set.strict);

        assert!(parse("steer policy set web --pid 7 --otherwise block").is_ok());
        assert!(parse("steer policy set web --unit a.service b.service --via x").is_ok());
        for (line, kind) in [
            (
                "steer policy set web --via x",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "steer policy set web --pid 7",
                ErrorKind::MissingRequiredArgument,
            ),
            (
                "steer policy set web --pid 7 --unit a --via x",
                ErrorKind::ArgumentConflict,
            ),
            (
                "steer policy set web --pid -7 --via x",
                ErrorKind::UnknownArgument,
            ),
            (
                "steer policy set web --pid 7 --otherwise maybe",
                ErrorKind::InvalidValue,
            ),
            ("steer policy set", ErrorKind::MissingRequiredArgument),
        ] {
            assert_eq!(refused(line), kind, "{line}");
        }
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(time("1h"), Ok(Duration::from_secs(3600)));
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "5 s",
            "5d",
            "99999999999999999999s",
            "9223372036854776s",
        ] {
            assert!(time(bad).is_err(), "{bad}");
        }
        assert!(time("9223372036854775807ms").is_ok());
    }
}
