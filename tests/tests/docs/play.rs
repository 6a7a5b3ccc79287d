//! Plays a page: its files are written, its commands run.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use steer_tests::{Agent, Lab, steer_binary};

use super::page::{Block, Page};

/// What is done with a command.
pub(crate) enum What {
    /// It is run.
    Run,
    /// It is not, for this reason.
    Elsewhere(&'static str),
}

/// Commands that are not run here: how they begin, without `sudo`, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "cargo xtask ",
        "builds and tests; a test of xtask knows its commands",
    ),
    ("install ", "writes into the machine's own directories"),
    ("cp -r target/assets/share ", "likewise"),
    ("systemctl ", "there is no systemd in the laboratory"),
    ("journalctl ", "likewise"),
    (
        "bpftool ",
        "not on every machine; the maps have tests of their own",
    ),
    (
        "varlinkctl ",
        "not on every machine; the API's tests speak to the same socket",
    ),
    ("printf '{\"method\":", "wants socat, likewise"),
];

/// Commands of others that only show something, and are run.
const SHOWING: &[&str] = &["ip ", "ls ", "cat "];

/// What becomes of a command.
pub(crate) fn what(command: &str) -> Result<What> {
    let plain = command.strip_prefix("sudo ").unwrap_or(command);
    if plain == "steer" || plain.starts_with("steer ") {
        return Ok(What::Run);
    }
    if SHOWING.iter().any(|begin| plain.starts_with(begin)) {
        return Ok(What::Run);
    }
    let mut known = ELSEWHERE.iter();
    match known.find(|(begin, _)| plain.starts_with(begin)) {
        Some((_, why)) => Ok(What::Elsewhere(why)),
        None => {
            bail!("`{command}` is not run by a test: see ELSEWHERE in tests/tests/docs/play.rs")
        }
    }
}

/// Stand-ins for what the pages have a user run: who the user is, and what needs the world.
const STUBS: &[(&str, &str)] = &[
    (
        "sudo",
        "if [ \"$1\" = -u ]; then user=$2; shift 2; exec setpriv --reuid \"$user\" --clear-groups -- \"$@\"; fi\n\
         exec \"$@\"",
    ),
    ("curl", "exit 0"),
];

/// Where the stand-ins are, as the laboratory's host sees it.
const STUBS_AT: &str = "/run/stubs";

/// Plays a page, and tells how many commands of steer there were.
pub(crate) fn page(page: &Page) -> Result<usize> {
    let commands = page.blocks.iter().filter(|block| block.language == "sh");
    let ours = commands.flat_map(Block::commands);
    let ours = ours.filter(|(_, command)| matches!(what(command), Ok(What::Run)));
    if ours.count() == 0 {
        return Ok(0);
    }
    let lab = Lab::new()?;
    stubs(&lab)?;
    let mut agent = lab.start_agent()?;
    let mut running = true;
    let mut count = 0;
    for (number, block) in page.blocks.iter().enumerate() {
        if block.language == "toml" && page.name == "README.md" {
            let file = format!("/etc/steer/steer.d/{number:02}-page.toml");
            lab.write_file(&file, &placed(&lab, &block.text))?;
        }
        if block.language != "sh" {
            continue;
        }
        let commands = block.commands();
        // What one command prints may stand below it.
        let shown = page.blocks.get(number + 1);
        let shown = shown.filter(|next| commands.len() == 1 && block.is_before(next));
        for ((line, command), code) in commands.into_iter().zip(block.exit_codes()) {
            let mut play = || -> Result<()> {
                if let What::Elsewhere(why) = what(&command)? {
                    println!("{}:{line}: not run: {why}", page.name);
                    return Ok(());
                }
                count += 1;
                // The pages say to stop the agent before.
                let detaches = command.ends_with("steer detach");
                if detaches == running {
                    toggle(&mut agent, &mut running)?;
                }
                let printed = run(&lab, &command, code)?;
                shown.map_or(Ok(()), |shown| compare(&lab, shown, &printed))
            };
            play().with_context(|| format!("{}:{line}: {command}", page.name))?;
        }
    }
    Ok(count)
}

fn toggle(agent: &mut Agent<'_>, running: &mut bool) -> Result<()> {
    if *running {
        ensure!(agent.stop()? == 0, "the agent failed: {}", agent.log());
    } else {
        agent.start()?;
    }
    *running = !*running;
    Ok(())
}

fn run(lab: &Lab, command: &str, code: i32) -> Result<String> {
    let steer = steer_binary()?;
    let directory = steer.parent().context("the program's directory")?;
    let shell = lab.cgroup().child("shell")?;
    let mut bash = lab.command("bash", &shell)?;
    let output = bash
        .args(["-c", &placed(lab, command)])
        .env(
            "PATH",
            format!(
                "{STUBS_AT}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
                directory.display()
            ),
        )
        .env("USER", "nobody")
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .context("start bash")?;
    ensure!(
        output.status.code() == Some(code),
        "should end with code {code}: {output:?}"
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Compares what the page shows with what was printed; `...` stands for any lines.
fn compare(lab: &Lab, shown: &Block, printed: &str) -> Result<()> {
    let shown = placed(lab, &shown.text);
    let mut lines = printed.lines().map(str::trim_end);
    let mut any = false;
    for wanted in shown.lines().map(str::trim_end) {
        if wanted == "..." {
            any = true;
            continue;
        }
        let found = if any {
            lines.any(|line| line == wanted)
        } else {
            lines.next() == Some(wanted)
        };
        ensure!(
            found,
            "the page shows `{wanted}`, but printed was:\n{printed}"
        );
        any = false;
    }
    let more = lines.next();
    ensure!(any || more.is_none(), "the page does not show {more:?}");
    Ok(())
}

/// The text with its cgroups below the laboratory's, which alone is managed there.
fn placed(lab: &Lab, text: &str) -> String {
    let mut text = text.to_owned();
    for top in ["app.slice/", "system.slice/", "user.slice/"] {
        text = text.replace(top, &format!("{}/{top}", lab.cgroup().name()));
    }
    text
}

fn stubs(lab: &Lab) -> Result<()> {
    lab.host().run(|| {
        std::fs::create_dir_all(STUBS_AT).context("make a directory for stand-ins")?;
        std::fs::create_dir_all("/etc/steer/steer.d").context("make steer.d")?;
        for (name, script) in STUBS {
            let file = format!("{STUBS_AT}/{name}");
            std::fs::write(&file, format!("#!/bin/bash\n{script}\n"))
                .context("write a stand-in")?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    })
}
