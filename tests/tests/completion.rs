//! Names are completed by what the agent knows.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use steer_tests::{Lab, steer_binary};

/// What bash offers for the last word of a line.
fn completed(lab: &Lab, line: &str) -> Result<Vec<String>> {
    const BASH: &str = r#"
        source /run/assets/share/bash-completion/completions/steer
        read -ra COMP_WORDS <<< "$1"
        [[ $1 == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
        _clap_complete_steer steer "${COMP_WORDS[COMP_CWORD]}" "" 2>/dev/null
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let steer = steer_binary()?;
    let directory = steer.parent().context("the program's directory")?;
    let mut bash: Command = lab.host().command("bash");
    let output = bash
        .args(["-c", BASH, "bash", line])
        .env("PATH", format!("{}:/usr/bin:/bin", directory.display()))
        .output()
        .context("start bash")?;
    ensure!(output.status.success(), "{line}: {output:?}");
    let words = String::from_utf8(output.stdout)?;
    let words = words.lines().map(|word| word.trim_end().to_owned());
    Ok(words.filter(|word| !word.is_empty()).collect())
}

#[test]
fn names_of_domains_and_policies_are_completed() -> Result<()> {
    let lab = Lab::new()?;
    lab.steer(&["generate", "/run/assets"])?.success()?;
    let mut agent = lab.start_agent()?;
    for name in ["web", "watch", "mail"] {
        let cgroup = lab.cgroup().child(name)?;
        lab.set_policy(name, &cgroup, "wlan0", &[])?;
    }
    for (line, words) in [
        ("steer domain show ", &["eth0", "wlan0", "wwan0"][..]),
        ("steer domain show w", &["wlan0", "wwan0"]),
        ("steer policy show w", &["watch", "web"]),
        ("steer policy unset m", &["mail"]),
        ("steer run --via eth0,ww", &["eth0,wwan0"]),
        ("steer policy set x --pid 1 --via e", &["eth0"]),
    ] {
        let found = completed(&lab, line)?;
        // Where nothing is typed yet, options follow.
        let found: Vec<_> = found.iter().filter(|word| !word.starts_with('-')).collect();
        ensure!(found == words, "{line}: {found:?}");
    }
    // Without an agent there is nothing to offer, and nothing is said.
    agent.stop()?;
    ensure!(completed(&lab, "steer policy show w")?.is_empty());
    ensure!(completed(&lab, "steer pol")? == ["policy"]);
    Ok(())
}
