//! Puts the table into a document, between two marks. Everything else in it is somebody's writing and stays.

use std::{fs, path::Path};

const BEGIN: &str = "<!-- measured -->";
const END: &str = "<!-- /measured -->";

/// Replaces what stands between the marks.
pub fn write(document: &Path, markdown: &str) {
    let name = document.display();
    let text = fs::read_to_string(document).unwrap_or_else(|error| panic!("{name}: {error}"));
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.unwrap_or_else(|| panic!("{name} has no {BEGIN} … {END}"));
    fs::write(document, format!("{before}{BEGIN}\n{markdown}\n{END}{after}")).unwrap();
}
