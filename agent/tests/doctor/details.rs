//! Where the same facts mean one thing here and another there.

use steer::datapath::Sharing;
use steer::doctor::{
    Code, Unchecked, firewalld_filters, judge, networkd_spares_others, socket_controllers,
};

use super::codes::has;
use super::facts::{at_cgroup, healthy, marked, rule, wg_quick, with, with_rule};

fn text_of(report: &steer::doctor::Report, code: Code) -> String {
    let found = report.findings.iter().find(|finding| finding.code == code);
    found
        .unwrap_or_else(|| panic!("{code}: {report:#?}"))
        .text
        .clone()
}

#[test]
fn a_rule_is_told_as_ip_writes_it_and_with_its_owner() {
    let report = judge(&with_rule(wg_quick()));
    let text = text_of(&report, Code::R05);
    let expected =
        "IPv4 rule 32764: not fwmark 0xca6c lookup 51820 (wg-quick) catches what has no policy";
    assert_eq!(text, expected);
}

#[test]
fn a_mark_meets_steers_by_its_bits_and_not_by_its_mask_alone() {
    // Tailscale's.
    let report = judge(&with_rule(marked(5210, 0x8_0000, 0xff_0000, 254)));
    assert!(!has(&report, Code::R01) && !has(&report, Code::R02));
    assert!(has(&report, Code::R11));
    // Mullvad's.
    let report = judge(&with_rule(marked(100, 0x6d6f_6c65, u32::MAX, 254)));
    assert!(has(&report, Code::R01) && has(&report, Code::R12));
    // The same rules beside another mask.
    let mut facts = with_rule(marked(100, 0x0100_0000, 0x0f00_0000, 7));
    let text = "[agent]\nmark-mask = 0x00f00000\n";
    facts.config = steer_core::config::parse(&[("a.toml", text)]).unwrap();
    assert!(!has(&judge(&facts), Code::R01));
}

#[test]
fn priorities_and_tables_are_those_of_the_configuration() {
    for (priority, inside) in [(3999, false), (4000, true), (4599, true), (4600, false)] {
        let report = judge(&with_rule(rule(priority, 7)));
        assert_eq!(has(&report, Code::R03), inside, "{priority}");
    }
}

#[test]
fn a_strict_reverse_path_filter_alone_is_no_finding() {
    let report = judge(&with(|facts| facts.settings.rp_filter = 1));
    assert!(report.findings.is_empty(), "{report:#?}");
}

#[test]
fn flags_of_a_program_mean_something_by_where_it_is() {
    for (directory, sharing, code) in [
        ("/sys/fs/cgroup", Sharing::Alone, Code::C06),
        ("/sys/fs/cgroup", Sharing::Overridden, Code::C07),
        ("/sys/fs/cgroup", Sharing::Stacked, Code::B01),
        ("/sys/fs/cgroup/managed", Sharing::Alone, Code::C06),
        ("/sys/fs/cgroup/managed", Sharing::Overridden, Code::C06),
        ("/sys/fs/cgroup/managed", Sharing::Stacked, Code::B01),
        ("/sys/fs/cgroup/managed/a", Sharing::Alone, Code::C08),
        ("/sys/fs/cgroup/managed/a", Sharing::Overridden, Code::C08),
        ("/sys/fs/cgroup/managed/a", Sharing::Stacked, Code::B01),
    ] {
        let report = judge(&at_cgroup(directory, sharing));
        let codes: Vec<Code> = report.findings.iter().map(|f| f.code).collect();
        assert_eq!(codes, [code], "{directory} {sharing:?}");
        assert!(text_of(&report, code).contains("sd_fw_egress"));
        assert!(text_of(&report, code).contains(directory));
    }
    let report = judge(&at_cgroup("/sys/fs/cgroup/managed", Sharing::Alone));
    let mend = report.findings[0].mend.clone().unwrap();
    assert!(
        mend.starts_with("bpftool cgroup detach /sys/fs/cgroup/managed cgroup_inet4_connect id 42"),
        "{mend}"
    );
}

#[test]
fn what_a_plain_user_cannot_see_is_named_and_nothing_is_made_of_it() {
    let report = judge(&with(|facts| {
        facts.kernel.programs = Err(Unchecked::needs_root("programs"));
        facts.kernel.netlink = Err(Unchecked::needs_root("programs"));
        facts.programs.cgroups = Err(Unchecked::needs_root("cgroups"));
        facts.programs.interfaces = Err(Unchecked::needs_root("interfaces"));
        facts.leftovers.pins = Err(Unchecked::needs_root("pins"));
        facts.survey = Err(Unchecked::failed("rules", "no socket"));
    }));
    assert!(report.findings.is_empty(), "{report:#?}");
    let what: Vec<&str> = report.unchecked.iter().map(|u| u.what.as_str()).collect();
    assert_eq!(what, ["cgroups", "interfaces", "pins", "programs", "rules"]);
    assert_eq!(report.summary.unchecked, 5);
}

#[test]
fn rules_without_an_agent_are_not_called_lost_where_pins_cannot_be_seen() {
    let mut facts = healthy();
    facts.agent.running = None;
    facts.agent.answer = steer::doctor::Answer::Nobody;
    facts.leftovers.pins = Err(Unchecked::needs_root("pins"));
    if let Ok(survey) = &mut facts.survey {
        survey.routes.clear();
    }
    assert!(!has(&judge(&facts), Code::L03));
}

#[test]
fn networkd_removes_rules_of_others_unless_it_is_told_not_to() {
    let spares = |texts: &[&str]| {
        let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
        networkd_spares_others(&texts)
    };
    assert_eq!(spares(&[]), (false, false));
    let main = "[Network]\n#ManageForeignRoutes=no\nManageForeignRoutingPolicyRules = no\n";
    assert_eq!(spares(&[main]), (true, false));
    let other = "[DHCPv4]\nManageForeignRoutes=no\n[Network]\nManageForeignRoutes=false\n";
    assert_eq!(spares(&[main, other]), (true, true));
    let last = "[Network]\nManageForeignRoutingPolicyRules=yes\n";
    assert_eq!(spares(&[main, other, last]), (false, true));
}

#[test]
fn firewalld_filters_unless_it_is_told_not_to() {
    assert!(firewalld_filters(""));
    assert!(firewalld_filters("# IPv6_rpfilter\nIPv6_rpfilter=yes\n"));
    assert!(firewalld_filters("IPv6_rpfilter=strict\n"));
    for off in ["no", "loose", "loose-forward"] {
        assert!(
            !firewalld_filters(&format!("IPv6_rpfilter = {off}\n")),
            "{off}"
        );
    }
}

#[test]
fn socket_controllers_are_in_use_where_they_have_cgroups_of_their_own() {
    let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
                 cpu\t1\t9\t1\nnet_cls\t4\t3\t1\nnet_prio\t4\t1\t1\n";
    assert_eq!(socket_controllers(table), ["net_cls"]);
    let unified = "net_cls\t0\t90\t1\nnet_prio\t0\t90\t1\n";
    assert!(socket_controllers(unified).is_empty());
}
