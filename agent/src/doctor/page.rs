//! docs/troubleshooting.md, from the table of codes.

use super::code::{Code, TABLE};

const HEAD: &str = "\
# Troubleshooting

`steer doctor` looks at the host and says what stands in steer's way. It needs no agent and changes nothing;
what only root may see it names when it is run by another user. Each finding has a code, which never
changes its meaning; this page has a section for each, and `steer doctor --code CODE` prints it.

- A **problem** keeps steer from its work, or from a part of it; `steer doctor` then exits with 1.
- A **warning** is something that works otherwise than one may expect.
- A **note** is worth knowing; nothing is wrong.

With warnings and notes alone it exits with 0. `steer doctor --json` prints one object: `findings` (a list of
`severity`, `code`, `text` and `mend`, which is null where there is nothing to do; the worst first), `unchecked`
(a list of `what` and `why`), and `summary` (the number of `problems`, `warnings`, `notes` and `unchecked`).

";

const TOPICS: [(&str, &str); 8] = [
    ("K", "Kernel"),
    ("C", "Cgroups"),
    ("B", "Programs of others"),
    ("R", "Rules and routes of others"),
    ("S", "Settings"),
    ("L", "Leftovers"),
    ("T", "Time"),
    ("A", "Agent"),
];

/// The whole page. Made anew by `STEER_WRITE_DOCS=1 cargo test -p steer --test doctor`.
pub fn troubleshooting() -> String {
    let mut page = HEAD.to_owned();
    let topics: Vec<String> = TOPICS
        .iter()
        .map(|(letter, topic)| {
            let anchor = topic.to_lowercase().replace(' ', "-");
            format!("{letter}: [{topic}](#{anchor})")
        })
        .collect();
    page += &topics.join(", ");
    page += ".\n";
    for (letter, topic) in TOPICS {
        page += &format!("\n## {topic}\n");
        for entry in TABLE {
            if entry.code.name().starts_with(letter) {
                page += &format!("\n### {}: {}\n\n", entry.code, entry.title);
                page += &section(entry.code);
            }
        }
    }
    page
}

fn section(code: Code) -> String {
    let entry = code.entry();
    format!(
        "A {}. {}\n\n**Cause.** {}\n\n**Mend.** {}\n",
        entry.severity, entry.symptom, entry.cause, entry.mend
    )
}
