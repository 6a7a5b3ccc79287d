//! The schema of the files: every key that they may have, table by table, with its type, its default and
//! what it means. The parser refuses all others, and the tables of `docs/configuration.md` are made of it.

/// A key that a table may have.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The key.
    pub name: &'static str,
    /// What its value is, in words.
    pub kind: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// What it says, in one line.
    pub about: &'static str,
}

/// A kind of table, and the keys that it may have.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// What the table is called, with `x` for a name of the user's.
    pub table: &'static str,
    /// The keys.
    pub keys: &'static [Key],
}

impl Keys {
    const fn new(table: &'static str, keys: &'static [Key]) -> Self {
        Self { table, keys }
    }

    /// The keys alone.
    pub fn names(self) -> impl Iterator<Item = &'static str> + Clone {
        self.keys.iter().map(|key| key.name)
    }

    /// The table of `docs/configuration.md`.
    pub fn to_markdown(self) -> String {
        let cell = |text: &str| text.replace('|', "\\|");
        let rows = self.keys.iter().map(|key| {
            let Key {
                name,
                kind,
                default,
                about,
            } = key;
            format!(
                "| `{name}` | {} | {} | {} |\n",
                cell(kind),
                cell(default),
                cell(about)
            )
        });
        let head = "| key | value | without it | says |\n|---|---|---|---|\n";
        std::iter::once(head.to_owned()).chain(rows).collect()
    }
}

const fn key(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    about: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        about,
    }
}

/// All tables, the file itself first.
pub const TABLES: [Keys; 14] = [
    FILE,
    AGENT,
    DOMAIN,
    DOMAIN_MATCH,
    DNS,
    CHECK,
    GROUP,
    POLICY,
    POLICY_MATCH,
    REQUIRE,
    SESSIONS,
    RULE,
    DEFAULT_POLICY,
    PERMIT,
];

const KIND: &str = "`\"wired\"`, `\"wlan\"`, `\"cellular\"`, `\"vpn\"` or `\"other\"`";
const OTHERWISE: &str = "`\"block\"`, `\"pass\"` or `\"next\"`";
const LOCAL_NETWORKS: &str = "`\"pass\"` or `\"steer\"`";
const HOST_MODEL: &str = "`\"kernel\"`, `\"weak\"`, `\"strong\"` or `\"count\"`";
const SESSION: &str = "`\"keep\"`, `\"move\"` or `\"reset\"`";
const TIME: &str = "time such as `\"30s\"`, at most a day";
const CHECKS: &str = "table, or `\"none\"`";
const BANDWIDTH: &str = "bit/s such as `\"50M\"`";
const SECURITY: &str = "`\"open\"`, `\"protected\"` or `\"encrypted\"`";
const TRUTH: &str = "`true` or `false`";

/// The file.
pub(super) const FILE: Keys = Keys::new(
    "the file",
    &[
        key("agent", "table", "defaults", "how the agent works"),
        key(
            "domain",
            "table of tables",
            "none",
            "domains by name: `[domain.x]`",
        ),
        key(
            "group",
            "table of tables",
            "none",
            "groups by name: `[group.x]`",
        ),
        key(
            "policy",
            "table of tables",
            "none",
            "policies by name: `[policy.x]`, `[policy.default]`",
        ),
        key(
            "permit",
            "table of tables",
            "everybody may use what was found",
            "what plain users may do, by name: `[permit.x]`",
        ),
    ],
);

/// `[agent]`.
pub(super) const AGENT: Keys = Keys::new(
    "[agent]",
    &[
        key(
            "cgroup-root",
            "absolute path",
            "the whole hierarchy",
            "the cgroup below which policies hold",
        ),
        key(
            "mark-mask",
            "integer, or string such as `\"0x00ff0000\"`",
            "`\"0x77000000\"`",
            "the bits of marks that are steer's",
        ),
        key(
            "table-base",
            "integer from 256 to 4294967039",
            "`40000`",
            "the routing table of the domain with index N is this plus N",
        ),
        key(
            "rule-base",
            "integer from 1 to 32165",
            "`4000`",
            "the priority of the first of steer's 600 rules",
        ),
        key(
            "discover",
            "`true`, `false` or list of patterns",
            "`true`",
            "which interfaces are domains without being named in a file",
        ),
        key(
            "host-model",
            HOST_MODEL,
            "`\"kernel\"`",
            "which packets interfaces take and send as the host's own, where a domain does not say its own",
        ),
        key(
            "linger",
            TIME,
            "`\"30s\"`",
            "how long flows may stay on a domain that is lost, where a policy does not say its own",
        ),
        key(
            "check",
            CHECKS,
            "an echo from the gateway, once it has answered one",
            "how domains are checked that do not say their own",
        ),
        key(
            "order",
            "list of kinds",
            "`[\"wired\", \"wlan\", \"cellular\"]`",
            "in which order `any` and the like have domains; other kinds come last",
        ),
        key(
            "primary",
            "list of names",
            "none",
            "domains that come before all others there",
        ),
    ],
);

/// `[domain.x]`.
pub(super) const DOMAIN: Keys = Keys::new(
    "[domain.x]",
    &[
        key(
            "match",
            "table",
            "the interface of the domain's name",
            "which interface it is on",
        ),
        key(
            "kind",
            KIND,
            "the interface's",
            "what it is, where the interface does not tell",
        ),
        key(
            "sources",
            "list of addresses and prefixes",
            "all global addresses",
            "its addresses, preferred first",
        ),
        key(
            "gateways",
            "list of addresses",
            "the host's routes",
            "its default routes, preferred first",
        ),
        key(
            "cost",
            "integer from 0 to 1000000",
            "`0`",
            "what it costs to use it, as a number without unit: the lower, the cheaper",
        ),
        key(
            "metered",
            TRUTH,
            "`false`",
            "whether what is sent by it is paid for or limited",
        ),
        key(
            "weight",
            "integer from 0 to 1000",
            "`1`",
            "its part of flows that are shared (`share` of a policy); 0: only when no other is left",
        ),
        key(
            "host-model",
            HOST_MODEL,
            "as `[agent]` says",
            "which packets its interface takes and sends as the host's own",
        ),
        key(
            "check",
            CHECKS,
            "as `[agent]` says",
            "how it is checked: `[domain.x.check]`",
        ),
        key(
            "bandwidth",
            BANDWIDTH,
            "what it was seen to carry",
            "what it carries, in the narrower direction",
        ),
        key(
            "security",
            SECURITY,
            "wired, cellular, and a WLAN that encrypts: `\"protected\"`; vpn: `\"encrypted\"`; else `\"open\"`",
            "how far what is sent over it is protected",
        ),
        key(
            "profile",
            "string",
            "none",
            "a name by which policies may require it",
        ),
        key(
            "attach-timeout",
            "time such as `\"30s\"`, from 100ms to 1h",
            "`\"20s\"`",
            "how long it may take from carrier to working, before its network counts as failed",
        ),
        key(
            "dns",
            "table",
            "what the network announces",
            "its name servers: `[domain.x.dns]`",
        ),
    ],
);

/// `dns` of a domain.
pub(super) const DNS: Keys = Keys::new(
    "[domain.x.dns]",
    &[key(
        "servers",
        "list of addresses",
        "what routers announce, and of /etc/resolv.conf what is on its own link",
        "its name servers, preferred first",
    )],
);

/// `check` of `[agent]` or of a domain.
pub(super) const CHECK: Keys = Keys::new(
    "[domain.x.check]",
    &[
        key(
            "http",
            "list of addresses such as `\"http://host/path\"`",
            "not asked",
            "plain HTTP: shows portals too",
        ),
        key(
            "dns",
            "list of names such as `\"host.example\"`, or `\"host.example=192.0.2.1\"`",
            "not asked",
            "what its name servers must know; another address than the one given is a portal's",
        ),
        key(
            "tcp",
            "list such as `\"192.0.2.1:443\"`",
            "not asked",
            "where a connection must come about",
        ),
        key(
            "icmp",
            "list of hosts, or `\"gateway\"`",
            "not asked",
            "who must answer an echo request",
        ),
        key(
            "expect",
            "status such as `\"204\"`, or text",
            "`\"204\"`",
            "what proves an answer to `http`: this status, or 200 and a body that begins so",
        ),
        key(
            "interval",
            "time such as `\"5s\"`, from 100ms to 1h",
            "`\"5s\"`",
            "time between checks of a domain that is well",
        ),
        key(
            "fall",
            "integer from 1 to 100",
            "`3`",
            "it is given up after this many failures in a row",
        ),
        key(
            "rise",
            "integer from 1 to 100",
            "`2`",
            "it is trusted again after this many successes in a row",
        ),
    ],
);

/// `match` of a domain.
pub(super) const DOMAIN_MATCH: Keys = Keys::new(
    "[domain.x.match]",
    &[
        key(
            "interface",
            "string of 1 to 15 characters",
            "any",
            "the interface's name",
        ),
        key(
            "mac",
            "string such as `\"02:00:5e:10:00:01\"`",
            "any",
            "the interface's hardware address",
        ),
        key("kind", KIND, "any", "what the interface is"),
        key(
            "ssid",
            "string of 1 to 32 bytes",
            "any",
            "the WLAN that the interface is connected to",
        ),
        key(
            "connection",
            "string of 1 to 255 bytes",
            "any",
            "the connection of NetworkManager that is up on the interface, or a modem's operator",
        ),
    ],
);

/// `[group.x]`.
pub(super) const GROUP: Keys = Keys::new(
    "[group.x]",
    &[key(
        "domains",
        "list of names",
        "an error",
        "its domains, first choice first",
    )],
);

// Keys that both kinds of policy have.
const USE_OF_POLICY: Key = key(
    "use",
    "list of names",
    "no domain: `otherwise` says all",
    "domains and groups, first choice first",
);

const STRICT_OF_POLICY: Key = key(
    "strict",
    TRUTH,
    "`false`",
    "whether flows leave by these domains or not at all",
);

const OTHERWISE_OF_POLICY: Key = key(
    "otherwise",
    OTHERWISE,
    "`\"block\"`",
    "what to do with a flow when no domain fits",
);

const LOCAL_NETWORKS_OF_POLICY: Key = key(
    "local-networks",
    LOCAL_NETWORKS,
    "`\"pass\"`; strict: `\"steer\"`",
    "what to do with destinations on-link at other interfaces",
);

const REPAIR_OF_POLICY: Key = key(
    "repair",
    TRUTH,
    "`false`",
    "whether flows that were there before the policy, and others that no socket program could decide, are put right packet by packet",
);

const SHARE_OF_POLICY: Key = key(
    "share",
    "`\"flow\"` or `\"destination\"`",
    "the first that fits has all flows",
    "how flows are spread over the domains of the first entry of `use` that has one which fits",
);

const REBIND_OF_POLICY: Key = key(
    "rebind",
    "`\"flow\"` or `\"datagram\"`",
    "`\"flow\"`",
    "whether a decision for an unconnected socket holds for all its datagrams, or for one",
);

const SESSIONS_OF_POLICY: Key = key(
    "sessions",
    "table",
    "`{ on-better = \"keep\", on-loss = \"reset\" }`",
    "what becomes of live flows when the decision changes",
);

const LINGER_OF_POLICY: Key = key(
    "linger",
    TIME,
    "as `[agent]` says",
    "how long flows may stay on a domain that is lost",
);

const REQUIRE_OF_POLICY: Key = key(
    "require",
    "table",
    "nothing",
    "what a domain must be: `[policy.x.require]`",
);

const PREFER_OF_POLICY: Key = key(
    "prefer",
    "list of `\"cost\"`, `\"latency\"`, `\"loss\"`, `\"bandwidth\"`, `\"stability\"`, `\"security\"`, \
     `\"metric\"`, `\"last-good\"`, `\"first-good\"`",
    "the order of `use`",
    "what makes one domain better than another, most important first",
);

const MARGIN_OF_POLICY: Key = key(
    "margin",
    "part such as `\"20%\"`, at most `\"90%\"`",
    "`\"20%\"`",
    "how much better another domain must be in what is measured before a change pays",
);

const FAMILY_OF_POLICY: Key = key(
    "family",
    "`\"ipv4\"` or `\"ipv6\"`",
    "either",
    "a family that a domain must have",
);

const PREFER_FAMILY_OF_POLICY: Key = key(
    "prefer-family",
    "`\"ipv4\"` or `\"ipv6\"`",
    "as programs do by themselves",
    "a family that programs are to prefer on domains that have both",
);

const RULE_OF_POLICY: Key = key(
    "rule",
    "list of tables",
    "none",
    "what comes before all this for some of the flows: `[[policy.x.rule]]`",
);

/// A rule of a policy.
pub(super) const RULE: Keys = Keys::new(
    "[[policy.x.rule]]",
    &[
        key(
            "source",
            "list of addresses and prefixes",
            "any or none",
            "sources that the program chose itself",
        ),
        key(
            "source-ports",
            "list of ports and ranges such as `\"8000-8100\"`",
            "any or none",
            "source ports that the program chose itself",
        ),
        key(
            "destination",
            "list of addresses and prefixes",
            "any",
            "where flows go",
        ),
        key(
            "ports",
            "list of ports and ranges such as `\"8000-8100\"`",
            "any or none",
            "destination ports",
        ),
        key(
            "protocol",
            "list of names such as `\"tcp\"`, and numbers",
            "any",
            "protocols",
        ),
        key(
            "dscp",
            "list of names such as `\"EF\"`, and numbers from 0 to 63",
            "any",
            "code points that the program asked for",
        ),
        key(
            "use",
            "list of names",
            "no domain: `otherwise` says all",
            "domains and groups, first choice first",
        ),
        key(
            "otherwise",
            OTHERWISE,
            "as the policy says",
            "what to do with a flow when no domain of the rule fits; `\"next\"`: as if no rule had fitted",
        ),
    ],
);

/// `require` of a policy.
pub(super) const REQUIRE: Keys = Keys::new(
    "[policy.x.require]",
    &[
        key("kind", "list of kinds", "any", "one of these kinds"),
        key(
            "min-bandwidth",
            BANDWIDTH,
            "any",
            "at least this `bandwidth`",
        ),
        key(
            "max-latency",
            "time such as `\"100ms\"`",
            "any",
            "at most this round-trip time",
        ),
        key(
            "max-loss",
            "part such as `\"5%\"`",
            "any",
            "at most this part of what its checks ask is lost",
        ),
        key(
            "max-cost",
            "integer from 0 to 1000000",
            "any",
            "at most this `cost`",
        ),
        key("metered", TRUTH, "either", "metered, or not"),
        key("security", SECURITY, "any", "at least this secure"),
        key("profile", "string", "any", "this `profile`"),
    ],
);

/// `sessions` of a policy.
pub(super) const SESSIONS: Keys = Keys::new(
    "[policy.x.sessions]",
    &[
        key(
            "on-better",
            SESSION,
            "`\"keep\"`",
            "when another domain is better, and theirs lives",
        ),
        key("on-loss", SESSION, "`\"reset\"`", "when theirs is lost"),
    ],
);

/// `[policy.x]`.
pub(super) const POLICY: Keys = Keys::new(
    "[policy.x]",
    &[
        key("match", "table", "an error", "which cgroups it is for"),
        USE_OF_POLICY,
        STRICT_OF_POLICY,
        OTHERWISE_OF_POLICY,
        LOCAL_NETWORKS_OF_POLICY,
        REPAIR_OF_POLICY,
        SHARE_OF_POLICY,
        REBIND_OF_POLICY,
        SESSIONS_OF_POLICY,
        LINGER_OF_POLICY,
        REQUIRE_OF_POLICY,
        PREFER_OF_POLICY,
        MARGIN_OF_POLICY,
        FAMILY_OF_POLICY,
        PREFER_FAMILY_OF_POLICY,
        key(
            "priority",
            "integer from -2147483648 to 2147483647",
            "`0`",
            "which of two policies of one origin holds on one cgroup: the higher",
        ),
        RULE_OF_POLICY,
    ],
);

/// `match` of a policy.
pub(super) const POLICY_MATCH: Keys = Keys::new(
    "[policy.x.match]",
    &[
        key(
            "cgroup",
            "list of paths and patterns",
            "none",
            "cgroups by path; `*` within a level, `**` across",
        ),
        key("unit", "list of names", "none", "cgroups of systemd units"),
    ],
);

/// `[policy.default]`, which matches what no other does and competes with none.
pub(super) const DEFAULT_POLICY: Keys = Keys::new(
    "[policy.default]",
    &[
        USE_OF_POLICY,
        STRICT_OF_POLICY,
        OTHERWISE_OF_POLICY,
        LOCAL_NETWORKS_OF_POLICY,
        REPAIR_OF_POLICY,
        SHARE_OF_POLICY,
        REBIND_OF_POLICY,
        SESSIONS_OF_POLICY,
        LINGER_OF_POLICY,
        REQUIRE_OF_POLICY,
        PREFER_OF_POLICY,
        MARGIN_OF_POLICY,
        FAMILY_OF_POLICY,
        PREFER_FAMILY_OF_POLICY,
        RULE_OF_POLICY,
    ],
);

/// `[permit.x]`.
pub(super) const PERMIT: Keys = Keys::new(
    "[permit.x]",
    &[
        key(
            "users",
            "list of names and numbers; `\"*\"`: everybody",
            "nobody",
            "users whom it is for",
        ),
        key(
            "groups",
            "list of names and numbers",
            "nobody",
            "groups whose members it is for",
        ),
        key(
            "domains",
            "list of names",
            "every domain that was found",
            "domains and groups of domains that they may use",
        ),
        key(
            "cgroups",
            "list of paths and patterns",
            "their own",
            "cgroups of others that they may give policies to",
        ),
        key(
            "destinations",
            "list of addresses and prefixes",
            "everywhere",
            "reserved: a permit with it gives nothing yet",
        ),
        key(
            "strict",
            TRUTH,
            "`true`",
            "whether their policies may be strict",
        ),
    ],
);
