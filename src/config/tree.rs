//! A configuration as a tree whose every node knows its line and column.
//!
//! Owns: reading YAML and TOML into that one tree, and the small vocabulary (`Section`, `Item`) with which `config`
//! walks it, so that each error can say key, value, what is allowed, and where. Knows no key by name.
//! Called by `config` and `config::options`.

use std::borrow::Cow;
use std::fmt;

use super::{ConfigError, quote, yaml};

/// No configuration is larger; what is, is a mistake or an attack.
pub const MAX_BYTES: u64 = 1 << 20;
/// A place in a configuration; line and column start at 1, and 0 means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// A value and where it stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

impl Node {
    /// How many nodes it consists of.
    pub(super) fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(nodes) => nodes.iter().map(Self::count).sum(),
            Value::Table(entries) => entries.iter().map(|entry| entry.node.count()).sum(),
            _ => 0,
        }
    }
}

/// What a node says.
#[derive(Clone, Debug, Default)]
pub(super) enum Value {
    #[default]
    Null,
    Bool(bool),
    /// A number or a date, as text: no key of ours wants one, some want "any value".
    Number(String),
    Text(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key of a table, and what stands under it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: At,
    pub(super) node: Node,
}

impl Value {
    /// Shows the value in an error: short, escaped, whatever it is.
    pub(super) fn show(&self) -> Cow<'static, str> {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(b) => if *b { "true" } else { "false" }.into(),
            Self::Number(n) => n.clone().into(),
            Self::Text(t) => quote(t).to_string().into(),
            Self::List(_) => "a list".into(),
            Self::Table(_) => "a table".into(),
        }
    }
}

/// A whole configuration: where it came from, and its tree.
#[derive(Debug)]
pub struct Document {
    origin: String,
    root: Node,
}

impl Document {
    /// Reads YAML; `origin` names it in errors. An empty text is an empty table.
    pub fn yaml(origin: &str, text: &str) -> Result<Self, ConfigError> {
        match yaml::parse(text) {
            Ok(root) => Ok(Self { origin: origin.to_owned(), root }),
            Err(error) => Err(ConfigError::at(origin, error.at, format!("not valid YAML: {}", error.message))),
        }
    }

    /// Reads TOML; `origin` names it in errors.
    pub fn toml(origin: &str, text: &str) -> Result<Self, ConfigError> {
        match toml::de::DeTable::parse(text) {
            Ok(table) => {
                let root = Node { at: At::default(), value: Value::table(table.into_inner(), text) };
                Ok(Self { origin: origin.to_owned(), root })
            }
            Err(error) => {
                let at = error.span().map(|span| At::offset(text, span.start)).unwrap_or_default();
                Err(ConfigError::at(origin, at, format!("not valid TOML: {}", error.message())))
            }
        }
    }

    /// The outermost table.
    pub fn root(&self) -> Result<Section<'_>, ConfigError> {
        Item { origin: &self.origin, path: String::new(), node: &self.root }.section()
    }
}

/// A table of the tree, and the path of keys that leads to it.
#[derive(Debug)]
pub struct Section<'a> {
    origin: &'a str,
    path: String,
    entries: &'a [Entry],
}

impl<'a> Section<'a> {
    /// The item under `key`, if there is one that says anything: a null (`key:`) says nothing.
    pub fn get(&self, key: &str) -> Option<Item<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(entry.node.value, Value::Null)).then(|| self.item(entry))
    }

    /// The text under `key` with its item, if there is one and it is not empty.
    pub fn text(&self, key: &str) -> Result<Option<(Item<'a>, &'a str)>, ConfigError> {
        let Some(item) = self.get(key) else {
            return Ok(None);
        };
        Ok(item.text()?.map(|text| (item, text)))
    }

    /// The table under `key`; an absent one is empty.
    pub fn section(&self, key: &str) -> Result<Section<'a>, ConfigError> {
        match self.get(key) {
            Some(item) => item.section(),
            None => Ok(Section { origin: self.origin, path: self.join(key), entries: &[] }),
        }
    }

    /// Every key with its item, nulls included, in the order of the file.
    pub fn items(&self) -> impl Iterator<Item = (&'a str, Item<'a>)> + '_ {
        self.entries.iter().map(|entry| (entry.key.as_str(), self.item(entry)))
    }

    /// Refuses a key that is not among `known`, naming the nearest that is.
    pub fn only(&self, known: &[&str]) -> Result<(), ConfigError> {
        let Some(entry) = self.entries.iter().find(|entry| !known.contains(&entry.key.as_str())) else {
            return Ok(());
        };
        let advice = match nearest(&entry.key, known) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known here: {}", known.join(", ")),
        };
        let path = self.join(quote(&entry.key).bare());
        Err(ConfigError::at(self.origin, entry.at, format!("unknown key {path}; {advice}")))
    }

    /// Keys that are not among `known` but look like a slip of one: (path, place, the known key).
    pub fn slips(&self, known: &'static [&'static str]) -> impl Iterator<Item = (String, String, &'static str)> + '_ {
        self.entries.iter().filter(|entry| !known.contains(&entry.key.as_str())).filter_map(|entry| {
            // Short words lie near each other by chance.
            let near = known.iter().find(|known| distance(&entry.key, known) <= known.len() / 4)?;
            let place = place(self.origin, entry.at);
            Some((self.join(quote(&entry.key).bare()), place, *near))
        })
    }

    fn item(&self, entry: &'a Entry) -> Item<'a> {
        Item { origin: self.origin, path: self.join(quote(&entry.key).bare()), node: &entry.node }
    }

    fn join(&self, key: impl fmt::Display) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }
}

/// One value of the tree, with the path of keys that leads to it.
#[derive(Debug)]
pub struct Item<'a> {
    origin: &'a str,
    path: String,
    node: &'a Node,
}

impl<'a> Item<'a> {
    /// The path of keys, as errors name it: `worker.pools.secure.runtime`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where the value stands: `file:line:column`.
    pub fn place(&self) -> String {
        place(self.origin, self.node.at)
    }

    /// An error about this value: `allowed` completes the sentence "… is not …".
    pub fn refuse(&self, allowed: impl fmt::Display) -> ConfigError {
        let message = format!("{}: {} is not {allowed}", self.path, self.node.value.show());
        ConfigError::at(self.origin, self.node.at, message)
    }

    /// The value as a table; null is an empty one.
    pub fn section(&self) -> Result<Section<'a>, ConfigError> {
        let entries = match &self.node.value {
            Value::Table(entries) => entries.as_slice(),
            Value::Null => &[],
            _ => return Err(self.refuse("a table of keys")),
        };
        Ok(Section { origin: self.origin, path: self.path.clone(), entries })
    }

    /// The value as text; an empty one says nothing (Beta9 writes its unset settings so).
    pub fn text(&self) -> Result<Option<&'a str>, ConfigError> {
        match &self.node.value {
            Value::Null => Ok(None),
            Value::Text(text) => Ok((!text.is_empty()).then_some(text.as_str())),
            _ => Err(self.refuse("a text")),
        }
    }

    /// Any single value as text: what is only looked at for being there.
    pub fn scalar(&self) -> Result<Option<String>, ConfigError> {
        match &self.node.value {
            Value::Number(number) => Ok(Some(number.clone())),
            Value::Bool(flag) => Ok(Some(flag.to_string())),
            _ => Ok(self.text()?.map(str::to_owned)),
        }
    }

    /// The value as a boolean.
    pub fn flag(&self) -> Result<bool, ConfigError> {
        match self.node.value {
            Value::Bool(flag) => Ok(flag),
            _ => Err(self.refuse("allowed; allowed: true, false")),
        }
    }

    /// The value as one of `choices`, an empty text being none of them.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let allowed = || self.refuse(format_args!("allowed; allowed: {}", names()));
        let Some(text) = self.text().map_err(|_| allowed())? else {
            return Ok(None);
        };
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(allowed()),
        }
    }

    /// The value as a list of items.
    pub fn list(&self) -> Result<Vec<Item<'a>>, ConfigError> {
        let Value::List(nodes) = &self.node.value else {
            return Err(self.refuse("a list"));
        };
        let item = |(i, node)| Item { origin: self.origin, path: format!("{}[{i}]", self.path), node };
        Ok(nodes.iter().enumerate().map(item).collect())
    }

    /// Whether the value is a list.
    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }
}

/// `origin:line:column`, as far as the place is known.
pub fn place(origin: &str, at: At) -> String {
    if at.line == 0 { origin.to_owned() } else { format!("{origin}:{}:{}", at.line, at.column) }
}

/// The known key that `key` was most likely meant to be; none when nothing is near.
pub fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let (far, near) = known.iter().map(|known| (distance(key, known), *known)).min()?;
    // Half of it wrong is another word; a hostile key of megabytes is never compared in full.
    (far <= key.chars().count().max(near.len()) / 2).then_some(near)
}

/// Levenshtein's distance between two keys, case aside.
fn distance(a: &str, b: &str) -> usize {
    // No known key is half as long, and the table below grows with both.
    const LONGEST: usize = 64;
    if a.len() > LONGEST || b.len() > LONGEST {
        return usize::MAX;
    }
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

impl At {
    /// The place of a byte offset in `text`.
    fn offset(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before[line_start..].chars().count() + 1;
        Self { line: line as u64, column: column as u64 }
    }
}

impl Value {
    fn table(table: toml::de::DeTable<'_>, text: &str) -> Self {
        let entry = |(key, value): (toml::Spanned<Cow<'_, str>>, toml::Spanned<toml::de::DeValue<'_>>)| Entry {
            at: At::offset(text, key.span().start),
            key: key.into_inner().into_owned(),
            node: Self::node(value, text),
        };
        Self::Table(table.into_iter().map(entry).collect())
    }

    fn node(value: toml::Spanned<toml::de::DeValue<'_>>, text: &str) -> Node {
        use toml::de::DeValue;
        let at = At::offset(text, value.span().start);
        let value = match value.into_inner() {
            DeValue::String(string) => Self::Text(string.into_owned()),
            DeValue::Boolean(flag) => Self::Bool(flag),
            DeValue::Integer(number) => Self::Number(number.as_str().to_owned()),
            DeValue::Float(number) => Self::Number(number.as_str().to_owned()),
            DeValue::Datetime(date) => Self::Number(date.to_string()),
            DeValue::Array(items) => Self::List(items.into_iter().map(|item| Self::node(item, text)).collect()),
            DeValue::Table(table) => Self::table(table, text),
        };
        Node { at, value }
    }
}
