//! The text of the interface's description, in Varlink's definition language.
//!
//! `zlink` prints one too, with every comment at the end of the line before.

use std::fmt::{self, Display, Write};

use zlink::idl::{Comment, CustomType, Field, Interface};

/// Writes a description, one member a line.
pub(super) fn render(interface: &Interface<'_>) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _: fmt::Result = write_interface(&mut text, interface);
    text
}

fn write_interface(out: &mut String, interface: &Interface<'_>) -> fmt::Result {
    comments(out, "", interface.comments())?;
    writeln!(out, "interface {}", interface.name())?;
    for custom in interface.custom_types() {
        out.push('\n');
        match custom {
            CustomType::Object(object) => {
                comments(out, "", object.comments())?;
                write!(out, "type {} ", object.name())?;
                fields(out, object.fields())?;
            }
            CustomType::Enum(custom) => {
                comments(out, "", custom.comments())?;
                write!(out, "type {} ", custom.name())?;
                members(out, custom.variants().map(|v| (v.comments(), v.name())))?;
            }
        }
        out.push('\n');
    }
    for method in interface.methods() {
        out.push('\n');
        comments(out, "", method.comments())?;
        write!(out, "method {}", method.name())?;
        fields(out, method.inputs())?;
        out.push_str(" -> ");
        fields(out, method.outputs())?;
        out.push('\n');
    }
    for error in interface.errors() {
        out.push('\n');
        comments(out, "", error.comments())?;
        write!(out, "error {} ", error.name())?;
        fields(out, error.fields())?;
        out.push('\n');
    }
    Ok(())
}

fn fields<'f, 'a: 'f>(
    out: &mut String,
    fields: impl Iterator<Item = &'f Field<'a>>,
) -> fmt::Result {
    members(
        out,
        fields.map(|f| (f.comments(), format!("{}: {}", f.name(), f.ty()))),
    )
}

fn members<'f, 'a: 'f, C, M>(out: &mut String, members: impl Iterator<Item = (C, M)>) -> fmt::Result
where
    C: Iterator<Item = &'f Comment<'a>>,
    M: Display,
{
    out.push('(');
    let mut before = "\n";
    let mut empty = true;
    for (about, member) in members {
        out.push_str(before);
        comments(out, "  ", about)?;
        write!(out, "  {member}")?;
        before = ",\n";
        empty = false;
    }
    out.push_str(if empty { ")" } else { "\n)" });
    Ok(())
}

fn comments<'f, 'a: 'f>(
    out: &mut String,
    indent: &str,
    comments: impl Iterator<Item = &'f Comment<'a>>,
) -> fmt::Result {
    for comment in comments {
        writeln!(
            out,
            "{}",
            format!("{indent}# {}", comment.text().trim()).trim_end()
        )?;
    }
    Ok(())
}
