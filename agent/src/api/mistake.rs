//! What is wrong in the files, or worth knowing of them, as it stands on the wire: with its place, and the
//! line that it is about, so that it can be drawn by who has not the file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use steer_core::config::{ConfigError, Place};
use zlink::introspect::CustomType;

/// Longest line of a file that is shown, bytes.
const LONGEST_LINE: usize = 1000;

/// Something about a place in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomType, JsonSchema)]
pub struct Mistake {
    /// Word for what it is: `mistake` makes the files bad as a whole, `quarantined` one policy. `steer
    /// check` has more.
    pub kind: String,
    /// The file.
    pub file: String,
    /// Line, from 1; 0 if it is about no line.
    pub line: u32,
    /// Column in characters, from 1; 0 if it is about no line.
    pub column: u32,
    /// Line of the character behind the last one that it is about.
    pub end_line: u32,
    /// Column of that character.
    pub end_column: u32,
    /// What is wrong.
    pub message: String,
    /// What is wrong with the words at the place, briefly.
    pub label: Option<String>,
    /// What to do.
    pub help: Option<String>,
    /// Text of the line. Absent if it is too long to be shown.
    pub source: Option<String>,
}

/// Makes the whole bad.
pub const MISTAKE: &str = "mistake";
/// Makes one policy bad.
pub const QUARANTINED: &str = "quarantined";

impl Mistake {
    /// A mistake that is in `texts`, files by name.
    pub fn new(kind: &str, error: &ConfigError, texts: &[(String, String)]) -> Self {
        Self {
            message: error.message.clone(),
            label: error.label.clone(),
            help: error.help.clone(),
            ..Self::at(kind, &error.place, texts)
        }
    }

    /// Something without words yet.
    pub fn at(kind: &str, place: &Place, texts: &[(String, String)]) -> Self {
        let text = texts.iter().find(|(file, _)| **file == *place.file);
        let text = text.map_or("", |(_, text)| text.as_str());
        let before = text.get(..place.start).unwrap_or_default();
        let about = text.get(place.span()).unwrap_or_default();
        let begin = before.rfind('\n').map_or(0, |at| at + 1);
        let line = text[begin..].lines().next().unwrap_or_default();
        let end_column = match about.rsplit_once('\n') {
            Some((_, last)) => last.chars().count() + 1,
            None => place.column + about.chars().count(),
        };
        Self {
            kind: kind.to_owned(),
            file: place.file.to_string(),
            line: number(place.line),
            column: number(place.column),
            end_line: number(place.line + about.matches('\n').count()),
            end_column: number(end_column),
            source: (line.len() <= LONGEST_LINE).then(|| line.to_owned()),
            ..Self::default()
        }
    }

    /// Whether it makes something bad.
    pub fn is_bad(&self) -> bool {
        [MISTAKE, QUARANTINED].contains(&self.kind.as_str())
    }
}

/// As the one line that a log wants.
impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// A file has fewer lines and columns than that.
fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
