//! Every key that a file may have, table by table. The parser refuses all others, and a test compares
//! `docs/configuration.md` with these lists.

/// A kind of table, and the keys that it may have.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// What the table is called, with `x` for a name of the user's.
    pub table: &'static str,
    /// The keys.
    pub keys: &'static [&'static str],
}

impl Keys {
    const fn new(table: &'static str, keys: &'static [&'static str]) -> Self {
        Self { table, keys }
    }
}

/// All tables, the file itself first.
pub const TABLES: [Keys; 8] = [
    FILE,
    AGENT,
    DOMAIN,
    DOMAIN_MATCH,
    GROUP,
    POLICY,
    POLICY_MATCH,
    DEFAULT_POLICY,
];

/// The file.
pub(super) const FILE: Keys = Keys::new("the file", &["agent", "domain", "group", "policy"]);

/// `[agent]`.
pub(super) const AGENT: Keys = Keys::new(
    "[agent]",
    &[
        "cgroup-root",
        "mark-mask",
        "table-base",
        "rule-base",
        "discover",
    ],
);

/// `[domain.x]`.
pub(super) const DOMAIN: Keys = Keys::new("[domain.x]", &["match", "kind", "sources", "gateways"]);

/// `match` of a domain.
pub(super) const DOMAIN_MATCH: Keys = Keys::new("[domain.x.match]", &["interface", "mac", "kind"]);

/// `[group.x]`.
pub(super) const GROUP: Keys = Keys::new("[group.x]", &["domains"]);

/// `[policy.x]`.
pub(super) const POLICY: Keys = Keys::new(
    "[policy.x]",
    &[
        "match",
        "use",
        "strict",
        "otherwise",
        "local-networks",
        "priority",
    ],
);

/// `match` of a policy.
pub(super) const POLICY_MATCH: Keys = Keys::new("[policy.x.match]", &["cgroup", "unit"]);

/// `[policy.default]`, which matches what no other does and competes with none.
pub(super) const DEFAULT_POLICY: Keys = Keys::new(
    "[policy.default]",
    &["use", "strict", "otherwise", "local-networks"],
);
