//! Every code that `steer doctor` may say, and what it means. A code never changes its meaning and is
//! never given twice; docs/troubleshooting.md says the same, which a test checks.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Steer cannot do its work, or not all of it.
    Problem,
    /// Something works otherwise than one may expect.
    Warning,
    /// Worth knowing; nothing is wrong.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// What a code means.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What one sees.
    pub symptom: &'static str,
    /// Why it is so.
    pub cause: &'static str,
    /// What to do.
    pub mend: &'static str,
}

macro_rules! codes {
    ($($code:ident $severity:ident $title:literal, $symptom:literal, $cause:literal, $mend:literal;)*) => {
        /// A finding's code: a letter for the topic (K kernel, C cgroups, B programs of others, R rules
        /// and routes of others, S settings, L leftovers, T time, A agent) and a number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $title] $code,)*
        }

        /// All codes, in their order.
        pub const TABLE: &[Entry] = &[$(Entry {
            code: Code::$code,
            severity: Severity::$severity,
            title: $title,
            symptom: $symptom,
            cause: $cause,
            mend: $mend,
        },)*];

        impl Code {
            /// The code as it is written.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$code => stringify!($code),)*
                }
            }
        }
    };
}

impl Code {
    /// What it means.
    pub fn entry(self) -> &'static Entry {
        &TABLE[self as usize]
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl JsonSchema for Code {
    fn schema_name() -> Cow<'static, str> {
        "Code".into()
    }

    // Codes may be added, so that they are not listed.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A letter for the topic and two digits; see docs/troubleshooting.md.",
        })
    }
}

/// There is no such code.
#[derive(Debug, thiserror::Error)]
#[error("there is no code {0:?}: a letter of K C B R S L T A and two digits, as in K01")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let found = TABLE
            .iter()
            .find(|entry| entry.code.name().eq_ignore_ascii_case(text));
        found
            .map(|entry| entry.code)
            .ok_or_else(|| UnknownCode(text.to_owned()))
    }
}

codes! {
    K01 Problem "the kernel is older than Linux 6.1",
        "The agent does not start, or some flows are not steered.",
        "Steer is made for Linux 6.1 and newer. It is tested on 6.12 and 6.18; the 6.1 of Debian 12 does not take its programs yet. Older kernels lack hooks and helpers that its programs use.",
        "Run a kernel of 6.1 or newer.";
    K02 Problem "root may not use bpf",
        "The agent ends at its start with `Operation not permitted`.",
        "The bpf system call is refused: by kernel lockdown in confidentiality mode, by a container without CAP_BPF and CAP_NET_ADMIN, or by a seccomp filter.",
        "Run the agent on the host itself or give its container CAP_SYS_ADMIN, CAP_BPF and CAP_NET_ADMIN; boot without `lockdown=confidentiality`.";
    K03 Problem "the kernel has no type information",
        "The agent ends at its start and names /sys/kernel/btf/vmlinux.",
        "The kernel was built without CONFIG_DEBUG_INFO_BTF. Steer reads the places of a few members of kernel structures there.",
        "Run a kernel that was built with CONFIG_DEBUG_INFO_BTF=y, as those of the distributions are.";
    K04 Problem "the kernel refuses a program of steer",
        "The agent ends at its start and names the program.",
        "The kernel's verifier does not take the program, or its program type was left out of the kernel.",
        "Run the newest patch release of your kernel; if it stays, report the kernel's version and the words of this finding.";
    K05 Note "the kernel cannot have the hook at egress",
        "An interface that appears while no agent runs is not guarded until one does.",
        "Before Linux 6.18 a program at cgroup egress may not ask for the packet's network namespace.",
        "Nothing to do; a newer kernel has it. Keep the agent running while policies are strict.";
    K06 Note "the kernel has no tcx",
        "Guards are filters of a clsact qdisc, as `tc filter show` shows them.",
        "tcx came with Linux 6.6. A filter that another program puts before steer's can take packets past the guard.",
        "Nothing to do; Linux 6.6 and newer have it.";
    K07 Problem "the kernel refuses a kind of rule",
        "Policies are refused with the kernel's words about a rule.",
        "The kernel was built without policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES), or is too old for a selector.",
        "Run a kernel with both options.";
    K08 Problem "the kernel does not list sockets by their mark",
        "A domain that no policy uses any more keeps its rules and its table.",
        "The kernel lacks CONFIG_INET_DIAG or CONFIG_INET_UDP_DIAG, or the modules inet_diag, tcp_diag and udp_diag cannot be loaded.",
        "`modprobe tcp_diag udp_diag`, or run a kernel that has them.";
    K09 Note "the kernel does not close sockets on request",
        "Connections by a domain that was lost end by their own time-outs.",
        "The kernel was built without CONFIG_INET_DIAG_DESTROY.",
        "Nothing to do; a kernel with that option lets flows be ended at once.";
    K10 Note "callers of the API are known by process id alone",
        "Nothing, but for a process id that is given to another process at just the wrong moment.",
        "SO_PEERPIDFD came with Linux 6.5.",
        "Nothing to do; Linux 6.5 and newer have it.";
    K11 Note "no BPF file system is mounted at /sys/fs/bpf",
        "Programs and maps could not outlive the agent.",
        "Nothing mounted it at boot, or this is a container.",
        "Nothing to do: the agent mounts one. `mount -t bpf bpf /sys/fs/bpf` does it now.";
    K12 Warning "kernel programs are interpreted",
        "Every packet and every connection costs more.",
        "`net.core.bpf_jit_enable` is 0.",
        "`sysctl net.core.bpf_jit_enable=1`";

    C01 Problem "no unified cgroup hierarchy is mounted",
        "The agent ends at its start.",
        "Policies are about cgroups of the unified hierarchy (v2), and none is mounted.",
        "`mount -t cgroup2 none /sys/fs/cgroup`, or boot with `systemd.unified_cgroup_hierarchy=1`.";
    C02 Note "the host has a hybrid cgroup hierarchy",
        "Cgroups of services are below another directory than /sys/fs/cgroup.",
        "Controllers of version 1 are mounted beside the unified hierarchy. Only the unified one counts for policies: names are as in the line of /proc/PID/cgroup that begins with `0::`.",
        "Nothing to do; `systemd.unified_cgroup_hierarchy=1` on the kernel's command line gives one hierarchy.";
    C03 Note "the unified hierarchy is mounted more than once",
        "Paths of cgroups may look different in different places.",
        "It is one hierarchy, seen at several directories. The agent uses the first that shows all of it.",
        "Nothing to do.";
    C04 Warning "only a part of the cgroup hierarchy is seen from here",
        "Policies for services of the host find nothing.",
        "This is a cgroup namespace, as containers have: what is outside is neither seen nor steered.",
        "Run the agent in the host's cgroup namespace (`docker run --cgroupns host`).";
    C05 Problem "the managed cgroup is not there",
        "The agent ends at its start and names `cgroup-root`.",
        "`cgroup-root` in the file names a cgroup that does not exist.",
        "Make the cgroup, or set `cgroup-root` in [agent] to one that is there.";
    C06 Problem "a program of others lets no other be attached",
        "Policies are refused; the kernel says `Operation not permitted` when a program is attached.",
        "A program was attached to the managed cgroup or above it with flags that allow no other: to the very same place none beside it, and with flags 0 none below it (as `ip vrf exec` does).",
        "Have its owner attach it by a link or with `BPF_F_ALLOW_MULTI`, detach it with `bpftool cgroup detach`, or set `cgroup-root` to a cgroup elsewhere.";
    C07 Warning "steer's programs put another's out of force",
        "What a program of others did for processes below the managed cgroup no longer happens while a policy is in force.",
        "It was attached above the managed cgroup with `BPF_F_ALLOW_OVERRIDE`: what is attached below runs in its place.",
        "Have its owner attach it by a link or with `BPF_F_ALLOW_MULTI`.";
    C08 Note "a program below lets no other be attached beside it",
        "Nothing: it and steer's programs both run for that cgroup, its own first.",
        "It was attached below the managed cgroup without `BPF_F_ALLOW_MULTI`. Steer attaches nothing there.",
        "Nothing to do.";
    C09 Note "net_cls or net_prio is in use",
        "Nothing on Linux 5.15 and newer.",
        "A version 1 hierarchy with net_cls or net_prio has cgroups of its own. Before Linux 5.15 these took the place in a socket where its cgroup is kept, and policies were passed by.",
        "Nothing to do on a kernel that steer is made for; unmount the hierarchy if nobody needs it.";

    B01 Note "programs of others are at hooks that steer uses",
        "A connection is refused or redirected although steer let it pass.",
        "They run for the same calls: systemd for IPAddressDeny= and BPFProgram=, Cilium, or another steer. Programs of deeper cgroups run first; each may refuse.",
        "Nothing to do, unless a flow is refused: `bpftool cgroup tree` shows them all.";
    B02 Warning "a packet program of others runs before the guard",
        "A packet of a strict policy may leave by another interface than its domain's.",
        "It was attached by tcx before steer's guard and ends the chain when it says so (TC_ACT_OK, redirect).",
        "Start the agent if it does not run: it puts its own programs first again, within 30 seconds. If this comes back, keep that program's owner from putting its own first.";
    B03 Note "packet programs of others are at an interface",
        "Packets are changed, redirected or dropped after steer chose their way.",
        "They run after steer's guard, or at an interface where steer has none at the moment.",
        "Nothing to do.";

    R01 Warning "a rule of others matches bits of `mark-mask`",
        "Flows of one tool are taken for the other's.",
        "The mark that the rule looks for has bits in steer's mask.",
        "Move steer's bits: stop the agent, `steer detach`, set `mark-mask` in [agent] to bits that nobody uses, start the agent.";
    R02 Note "a rule of others compares steer's bits too",
        "A process that has that tool's mark and a policy of steer is no longer taken for that tool's.",
        "The rule compares the whole mark, or bits that are steer's, and expects 0 there. A steered flow has some of them.",
        "Nothing to do, unless that tool's own processes have a policy: leave these without one.";
    R03 Warning "a rule of others is among steer's priorities",
        "Flows may be taken away in the middle of steer's rules.",
        "Its priority lies in the range that begins at `rule-base`.",
        "Set `rule-base` in [agent] to a priority with 600 free behind it, and restart the agent.";
    R04 Warning "routes of others are in steer's tables",
        "A domain's table has routes that the host does not have for it.",
        "Somebody else uses tables of the range that begins at `table-base`.",
        "Set `table-base` in [agent] to a number with as many free behind it as there are domains, and restart the agent.";
    R05 Warning "a rule of others catches unmarked traffic",
        "A process without a policy that is bound to a domain's address is answered by that rule's table.",
        "Such a rule is for a tunnel that everything is to go through. Steer leaves its rules for unmarked traffic out beside it, so that nothing slips past the tunnel.",
        "Nothing to do; stop that tool if unmarked servers should answer by the way they were asked.";
    R10 Note "wg-quick has rules here",
        "What has no policy goes through the tunnel; what has one leaves by its domain, past the tunnel.",
        "`wg-quick up` sends everything without WireGuard's mark (51820 = 0xca6c, if not set) to the tunnel's table.",
        "Nothing to do; to steer into the tunnel, make its interface the policy's domain.";
    R11 Note "Tailscale is here",
        "Addresses of the tailnet are routed by table 52 for what has no policy.",
        "Tailscale uses the mark bits 0xff0000, table 52 and priorities 5210 to 5270.",
        "Nothing to do as long as `mark-mask` has none of its bits.";
    R12 Note "Mullvad is here",
        "What has no policy goes through the tunnel; a steered flow may be dropped by Mullvad's firewall.",
        "Mullvad uses the mark 0x6d6f6c65 and the table of that number, and blocks what leaves past its tunnel.",
        "Let Mullvad's split tunnelling exclude the program, or use `mark-mask` bits outside 0x6d6f6c65, as 0x00300000.";
    R13 Note "mwan3 is here",
        "Traffic without a policy is spread over uplinks by mwan3.",
        "mwan3 uses the mark bits 0x3f00 and priorities from 1000, 2000 and 3000 on, which come before steer's; they look at its own bits, which steered flows do not have until its firewall rules mark them.",
        "Leave steered processes out of mwan3 (a rule with `use_policy default`), or set `rule-base` to less than 1000.";
    R14 Note "pbr is here",
        "Traffic without a policy is spread over uplinks by pbr.",
        "OpenWrt's pbr uses the mark bits 0xff0000 and tables of its own.",
        "Nothing to do as long as `mark-mask` has none of its bits.";
    R15 Note "NetworkManager runs",
        "Addresses and routes come and go as it decides.",
        "Steer reads what the kernel has, whoever makes it. Of NetworkManager it reads only which connections are up, for `match.connection`.",
        "Nothing to do.";
    R16 Note "systemd-networkd runs",
        "Addresses and routes come and go as it decides.",
        "Steer reads what the kernel has, whoever makes it, and does not talk to networkd.",
        "Nothing to do.";
    R17 Warning "systemd-networkd removes rules and routes of others",
        "Whenever networkd starts or is reloaded, steer's rules are gone for up to a second.",
        "ManageForeignRoutingPolicyRules= and ManageForeignRoutes= are `yes` unless set. Steer puts back what was removed as long as the agent runs.",
        "Write `[Network]`, `ManageForeignRoutingPolicyRules=no` and `ManageForeignRoutes=no` into /etc/systemd/networkd.conf.d/steer.conf and restart systemd-networkd.";
    R18 Note "Cilium is here",
        "Packets of pods are redirected by programs at interfaces.",
        "Cilium uses marks in 0x0f00, rules of priority 9 and 10 with the tables 2004 and 2005, and programs at cgroups and interfaces.",
        "Nothing to do as long as `mark-mask` has none of its bits.";
    R19 Warning "Calico is here",
        "Marks of steer are changed by Calico's firewall rules.",
        "Felix takes its marks from the bits 0xffff0000 unless told otherwise, and steer's default mask lies in them.",
        "Set Felix' `iptablesMarkMask` (`nftablesMarkMask`) and steer's `mark-mask` to bits that do not meet.";
    R20 Note "rules like Android's are here",
        "Sockets are bound to networks by the lower bits of their mark.",
        "Android's netd uses the lower 21 bits of marks and priorities from 10000 to 32000.",
        "Nothing to do as long as `mark-mask` has none of its bits.";
    R21 Note "two halves of a default route lead into a tunnel",
        "What has no policy goes through the tunnel; a domain is not the host's default although it has the default route.",
        "OpenVPN (`redirect-gateway def1`) and others add 0.0.0.0/1 and 128.0.0.0/1, which are nearer than any default route.",
        "Nothing to do; to steer into the tunnel, make its interface the policy's domain.";
    R22 Note "firewalld filters IPv6 by the way back",
        "Answers to IPv6 flows by a domain that is not the host's default may be dropped, where R05 is found for IPv6 too.",
        "`IPv6_rpfilter` in firewalld.conf drops what arrives by an interface that the way back does not lead to. Steer's rules by source lead it there; beside a rule that catches unmarked traffic they are left out.",
        "Nothing to do unless R05 is found, too; then `IPv6_rpfilter=no` or `loose` in /etc/firewalld/firewalld.conf, and `firewall-cmd --reload`.";

    S01 Warning "a strict reverse path filter drops answers",
        "IPv4 flows by a domain are sent, and their answers never arrive.",
        "`rp_filter` is 1 at the domain's interface, and a rule of others (R05) leads the way back elsewhere. Without such a rule steer's rules by source make the filter pass.",
        "`sysctl net.ipv4.conf.IF.rp_filter=2`, with the interface's name for IF.";
    S02 Note "overlapping addresses need three settings",
        "`src_valid_mark` of the interfaces, `tcp_fwmark_accept` and `fwmark_reflect` are 1 while the agent runs.",
        "Two domains of the file may hold the same IPv4 address, which only marks can tell apart.",
        "Nothing to do: `steer detach` gives the settings their old values.";
    S03 Warning "a setting for overlapping addresses is off",
        "Connections by a domain with an overlapping address time out.",
        "The agent set it to 1, and somebody else set it back.",
        "Find who sets it (`grep -r fwmark /etc/sysctl.d`), and set it to 1 with `sysctl`.";
    S04 Note "IPv6 is off at an interface that has a default route",
        "IPv6 flows by this domain are refused with `Network is unreachable`.",
        "`disable_ipv6` is 1 there.",
        "`sysctl net.ipv6.conf.IF.disable_ipv6=0`, if the network has IPv6.";
    S05 Warning "router advertisements are ignored",
        "A domain has no IPv6 default route, or loses it.",
        "The host forwards IPv6, and `accept_ra` is 1, which means: not while forwarding.",
        "`sysctl net.ipv6.conf.IF.accept_ra=2`, unless NetworkManager or networkd reads them itself.";
    S06 Note "the host forwards packets of others",
        "Containers and virtual machines behind a bridge are not steered.",
        "Their packets have no socket on this host, and policies are about sockets.",
        "Nothing to do; a container that shares the host's network (`--network host`) is steered by its cgroup.";

    L01 Note "the last agent's decisions are in force",
        "Policies hold although no agent runs, and do not follow the network.",
        "An agent that ends leaves what it decided, so that nothing leaks in between.",
        "`systemctl start steer` goes on from there; `steer detach` undoes everything.";
    L02 Warning "another version of steer left its decisions in force",
        "`steer status` cannot read them.",
        "The pins of that version have another layout.",
        "Start the agent, which takes them over, or `steer detach`.";
    L03 Warning "rules or routes of steer are left without what they belong to",
        "Some traffic is routed by tables that nobody keeps up to date.",
        "They bear steer's protocol number (83), and neither an agent nor its pins are there: the pins were removed by hand, or another tool uses that number.",
        "`steer detach`";
    L04 Warning "rules or routes of steer are outside its ranges",
        "Old rules take flows that the new ones should have.",
        "They bear steer's protocol number and are neither in `rule-base` nor `table-base`: the file was changed while they were there.",
        "Stop the agent, `steer detach`, start it again.";
    L05 Note "cgroups of steer are left",
        "Directories below steer/ in the managed cgroup.",
        "`steer run` made them, and a process lives in them still, or no agent was there to remove them.",
        "Nothing to do: the next agent or `steer detach` removes those that are empty.";
    L06 Problem "the state file is damaged",
        "The agent does not start while strict policies are in force; else it starts without the policies that were set by command.",
        "The file was changed by hand, the disk was full, or another version wrote it.",
        "`steer detach` (which cannot put changed settings back without the file), then start the agent and set the policies again.";
    L07 Warning "the state file is from before this boot",
        "Numbers of domains from another boot are taken for those of this one.",
        "/run is kept over a restart of the host here; it should be a tmpfs.",
        "Stop the agent and remove /run/steer/state.json.";
    L08 Note "the socket of an agent that has ended is left",
        "Commands say that the agent is not running.",
        "The agent was killed. The next one makes its socket anew.",
        "Nothing to do.";
    L09 Note "pins that were never finished are left",
        "A directory `new-PID` below /sys/fs/bpf/steer.",
        "An agent was killed while it made its maps.",
        "Nothing to do: the next agent removes them.";
    L10 Warning "settings that steer changed are still changed",
        "`src_valid_mark`, `tcp_fwmark_accept` or `fwmark_reflect` are 1 although no agent runs.",
        "The last agent set them for overlapping addresses and ended; its decisions are in force.",
        "Start the agent, or `steer detach` to have the old values back.";

    T01 Warning "the clock is wrong",
        "TLS connections fail; times in `steer status` make no sense.",
        "The clock shows a time before this program was built.",
        "`timedatectl set-ntp true`, or `date -s` with the right time.";
    T02 Note "the clock is not synchronised",
        "Times in logs may be off.",
        "No time service has told the kernel that the clock is right.",
        "`timedatectl set-ntp true`, or start chronyd; a virtual machine whose host keeps the time needs neither.";

    A01 Note "no agent runs",
        "Commands end with the exit code 3.",
        "It was not started, or has ended.",
        "`systemctl start steer`, or `steer agent` in a terminal.";
    A02 Warning "the agent is of another version than this command",
        "Commands may not understand the agent's answers.",
        "Steer was upgraded, and the agent not yet restarted.",
        "`systemctl restart steer`";
    A03 Problem "an agent runs and does not answer",
        "Every command fails, although an agent holds its lock.",
        "It listens at another socket, its socket was removed, or it hangs.",
        "Use `--socket` with the path that the finding names, or `systemctl restart steer`.";
    A04 Warning "the agent has warnings",
        "`steer status` shows them.",
        "The agent found something that its administrator should know.",
        "`steer status`";
    A05 Problem "the configuration is wrong",
        "The agent does not start, or goes on with the configuration it had.",
        "A file has a mistake.",
        "`steer check` shows each mistake in its place.";
    A06 Warning "a policy is not in force as written",
        "Its flows are refused, or go as if it were not there.",
        "The kernel or the agent refused it; if it is strict, it is closed.",
        "`steer policy show NAME` says why.";
    A07 Warning "several agents run in this network namespace",
        "Rules and programs are made and removed in turns.",
        "Each has a lock of its own, as in containers with a /run of their own that share the host's network.",
        "Stop all but one.";
}
