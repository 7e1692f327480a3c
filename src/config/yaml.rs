//! YAML, read into the tree: aliases resolved, merge keys merged, scalars told apart as YAML 1.2's core schema does.
//!
//! The parser is `granit-parser`, which yields events with their places; a serde layer on top of it would lose the places
//! that every error of a configuration names, and is larger than the parser. Bounds for hostile files are kept here.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::tree::{At, Entry, Node, Value};

/// Far deeper than any configuration of ours, far shallower than the stack.
const MAX_DEPTH: usize = 24;
/// How many nodes a file may have, what its aliases repeat included: plenty for a human, little for a "billion laughs".
const MAX_NODES: usize = 100_000;

/// What is wrong with a YAML text, and where.
pub(super) struct YamlError {
    pub(super) at: At,
    pub(super) message: String,
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        let marker = error.marker();
        Self { at: At { line: marker.line() as u64, column: marker.col() as u64 + 1 }, message: error.info() }
    }
}

/// Reads the one document of a text. An empty text is null.
pub(super) fn parse(text: &str) -> Result<Node, YamlError> {
    let mut reader = Reader { events: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let mut root = None;
    while let Some(next) = reader.events.next() {
        match next? {
            (Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
            (_, span) if root.is_some() => {
                return Err(error(&span, "there is a second document; a configuration has one"));
            }
            (event, span) => root = Some(reader.node(event, &span, 0)?),
        }
    }
    Ok(root.unwrap_or_default())
}

struct Reader<'a> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        match self.events.next() {
            Some(next) => Ok(next?),
            None => Err(YamlError { at: At::default(), message: "the file ends in the middle".into() }),
        }
    }

    /// The node that begins with `event`.
    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, YamlError> {
        if depth > MAX_DEPTH {
            return Err(error(span, &format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.count(1, span)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.core_suffix() == Some("str"));
                (if is_text { Value::Text(text.into_owned()) } else { plain(&text) }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (Value::List(self.list(depth)?), anchor),
            Event::MappingStart(_, anchor, _) => (Value::Table(self.table(depth)?), anchor),
            Event::Alias(anchor) => {
                let target = self.anchors.get(&anchor).cloned();
                let target = target.ok_or_else(|| error(span, "an alias stands inside of what it repeats"))?;
                self.count(target.count(), span)?;
                (target.value, 0)
            }
            _ => return Err(error(span, "a value is expected here")),
        };
        let node = Node { at: at(span), value };
        if anchor != 0 {
            self.count(node.count(), span)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, YamlError> {
        let mut nodes = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(nodes),
                (event, span) => nodes.push(self.node(event, &span, depth + 1)?),
            }
        }
    }

    fn table(&mut self, depth: usize) -> Result<Vec<Entry>, YamlError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut known = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, &span, depth + 1)?;
            let (value, value_span) = self.next()?;
            let node = self.node(value, &value_span, depth + 1)?;
            if is_merge {
                merged.extend(tables(node).ok_or_else(|| error(&value_span, "only tables can be merged with <<"))?);
                continue;
            }
            let name = match key.value {
                Value::Text(text) | Value::Number(text) => text,
                other => other.show().into_owned(),
            };
            if let Some(first) = known.insert(name.clone(), key.at.line) {
                return Err(error(
                    &span,
                    &format!("key {} stands here a second time; the first is in line {first}", super::quote(&name)),
                ));
            }
            entries.push(Entry { key: name, at: key.at, node });
        }
        // What the table says itself, and what was merged first, goes before.
        for entry in merged {
            if known.insert(entry.key.clone(), entry.at.line).is_none() {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn count(&mut self, nodes: usize, span: &Span) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            Err(error(span, &format!("more than {MAX_NODES} values, aliases included")))
        } else {
            Ok(())
        }
    }
}

/// The entries of a table, or of a list of tables (<https://yaml.org/type/merge.html>).
fn tables(node: Node) -> Option<Vec<Entry>> {
    match node.value {
        Value::Table(entries) => Some(entries),
        Value::List(nodes) => {
            let entries: Option<Vec<_>> = nodes
                .into_iter()
                .map(|node| match node.value {
                    Value::Table(entries) => Some(entries),
                    _ => None,
                })
                .collect();
            Some(entries?.into_iter().flatten().collect())
        }
        _ => None,
    }
}

/// A scalar without quotes (YAML 1.2.2, 10.3.2). A number stays text: no key of ours wants one.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    if let Some(hex) = text.strip_prefix("0x") {
        return digits(hex, 16);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return digits(octal, 8);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let begins = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    begins && (text.parse::<f64>().is_ok() || matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN"))
}

fn at(span: &Span) -> At {
    At { line: span.start.line() as u64, column: span.start.col() as u64 + 1 }
}

fn error(span: &Span, message: &str) -> YamlError {
    YamlError { at: at(span), message: message.to_owned() }
}
