//! The TOML as written: a tree of values that know where they stand. `${VAR}` is filled in here; what the values mean is
//! for `read` and `resolve`.

use super::report::{Location, Report};
use super::secret::trimmed;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use toml::de::{DeTable, DeValue};

/// A table as written.
pub(super) type Table = BTreeMap<String, Node>;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Location,
    pub(super) value: Value,
}

impl Node {
    /// The value is wrong, and this would be right.
    pub(super) fn wrong(&self, report: &mut Report, key: &str, right: &str) {
        report.wrong_at(self.place.clone(), key, &self.value.shown(), right);
    }
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(Text),
    Integer(i64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// A float, a date or a number past 64 bits, which no key takes: as written.
    Other(String),
    /// Its mistake is reported already; readers pass it over.
    Broken,
}

/// A text, which stands for another type where it came out of a variable: `port = "${PORT}"`.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) from_variable: bool,
}

impl Value {
    /// The value for a message: quoted, in one line, not too long.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(text) => quoted(&text.text),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(boolean) => boolean.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(written) => written.clone(),
            Self::Broken => "unreadable".to_owned(),
        }
    }
}

/// The text in quotes, in one line, not too long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let mut shown = String::from("\"");
    for (count, character) in text.chars().enumerate() {
        if count == SHOWN_MAX {
            shown.push('…');
            break;
        }
        match character {
            '"' | '\\' => shown.extend(['\\', character]),
            _ if character.is_control() => drop(write!(shown, "{}", character.escape_default())),
            _ => shown.push(character),
        }
    }
    shown.push('"');
    shown
}

/// Reads a file's text. Where it is no TOML at all, that is reported and nothing comes back.
pub(super) fn parse(text: &str, env: &BTreeMap<String, String>, report: &mut Report) -> Option<Table> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = LineStarts::of(text);
    for error in &errors {
        let place = error.span().map_or(Location::File, |span| Location::Line(lines.line_at(span.start)));
        report.not_toml(place, error.message());
    }
    let mut reader = TreeReader { lines: Some(lines), env, report };
    errors.is_empty().then(|| reader.table(table.get_ref(), ""))
}

/// Reads one value of our own, which has no variables in it.
pub(super) fn parse_value(text: &str) -> Node {
    let parsed = DeValue::parse(text).expect("our own values are TOML");
    let mut reader = TreeReader { lines: None, env: &BTreeMap::new(), report: &mut Report::new(None) };
    let value = reader.value(parsed.get_ref(), "");
    Node { place: Location::File, value }
}

/// The offsets at which lines begin.
struct LineStarts(Vec<usize>);

impl LineStarts {
    fn of(text: &str) -> Self {
        Self(memchr::memchr_iter(b'\n', text.as_bytes()).collect())
    }

    fn line_at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

/// Turns the parser's tree into ours. The parser bounds how deep it can be.
struct TreeReader<'a> {
    /// `None` for our own values, which stand in no file.
    lines: Option<LineStarts>,
    env: &'a BTreeMap<String, String>,
    report: &'a mut Report,
}

impl TreeReader<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &str) -> Table {
        let mut read = Table::new();
        for (key, value) in table {
            let place = self.place_at(key.span().start);
            let name = key.get_ref().as_ref();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let value = self.placed(&place, value.get_ref(), &path);
            read.insert(name.to_owned(), Node { place, value });
        }
        read
    }

    fn place_at(&self, offset: usize) -> Location {
        self.lines.as_ref().map_or(Location::File, |lines| Location::Line(lines.line_at(offset)))
    }

    fn placed(&mut self, place: &Location, value: &DeValue<'_>, path: &str) -> Value {
        let DeValue::String(text) = value else { return self.value(value, path) };
        match interpolate(text, self.env) {
            Ok(Text { text, from_variable }) => Value::Text(Text { text: trimmed(&text).to_owned(), from_variable }),
            Err(wrong) => {
                self.report.wrong_at(place.clone(), path, &quoted(text), &wrong);
                Value::Broken
            }
        }
    }

    fn value(&mut self, value: &DeValue<'_>, path: &str) -> Value {
        match value {
            DeValue::String(text) => Value::Text(Text { text: text.clone().into_owned(), from_variable: false }),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| Value::Other(number.to_string()), Value::Integer),
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Float(number) => Value::Other(number.as_str().to_owned()),
            DeValue::Datetime(date) => Value::Other(date.to_string()),
            DeValue::Array(array) => Value::List(
                array
                    .iter()
                    .enumerate()
                    .map(|(index, element)| {
                        let place = self.place_at(element.span().start);
                        let value = self.placed(&place, element.get_ref(), &format!("{path}[{index}]"));
                        Node { place, value }
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Value::Table(self.table(table, path)),
        }
    }
}

/// Fills in `${VAR}` and `${VAR:-default}`; `$$` is a dollar.
fn interpolate(text: &str, env: &BTreeMap<String, String>) -> Result<Text, String> {
    let mut filled = String::with_capacity(text.len());
    let mut from_variable = false;
    let mut left = text;
    while let Some(dollar) = left.find('$') {
        filled.push_str(&left[..dollar]);
        left = &left[dollar + 1..];
        if let Some(after) = left.strip_prefix('$') {
            filled.push('$');
            left = after;
            continue;
        }
        let inner = left.strip_prefix('{').ok_or("write $$ for a dollar, or ${NAME} for a variable")?;
        let (inner, after) = inner.split_once('}').ok_or("a ${ has no }")?;
        let (name, default) = inner.split_once(":-").map_or((inner, None), |(name, default)| (name, Some(default)));
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("the name of a variable has letters, digits and _: ${NAME} or ${NAME:-default}".to_owned());
        }
        if default.is_some_and(|default| default.contains('$')) {
            return Err("a default is plain text; it holds no other variable".to_owned());
        }
        match (env.get(name), default) {
            // As in a shell, `:-` is also for a variable that is set to nothing.
            (Some(value), Some(default)) => {
                filled.push_str(Some(trimmed(value)).filter(|value| !value.is_empty()).unwrap_or(default));
            }
            (Some(value), None) => filled.push_str(trimmed(value)),
            (None, Some(default)) => filled.push_str(default),
            (None, None) => return Err(format!("{name} is not set; set it, or write ${{{name}:-default}}")),
        }
        from_variable = true;
        left = after;
    }
    filled.push_str(left);
    Ok(Text { text: filled, from_variable })
}

#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn variables_are_filled_in() {
        let env = [("HOST", "db"), ("EMPTY", ""), ("A1_b", "x"), ("DOLLAR", "${HOST}$$"), ("LINE", " x\n")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut outcome = String::new();
        for text in [
            "plain",
            "${HOST}:80",
            "${HOST}${A1_b}",
            "${NONE:-localhost}:80",
            "${EMPTY:-localhost}",
            "[${EMPTY}]",
            "${NONE:-}",
            "${NONE:-a:-b}",
            "costs $$5",
            "$${HOST}",
            "${DOLLAR}",
            "<${LINE}>",
            "${NONE}",
            "$HOST",
            "5$",
            "${HOST",
            "${}",
            "${A-b}",
            "${NONE:-${HOST}}",
        ] {
            let filled = interpolate(text, &env).map_or_else(|wrong| format!("! {wrong}"), |text| text.text);
            outcome.extend([format!("{text} -> {filled}\n")]);
        }
        expect![[r#"
            plain -> plain
            ${HOST}:80 -> db:80
            ${HOST}${A1_b} -> dbx
            ${NONE:-localhost}:80 -> localhost:80
            ${EMPTY:-localhost} -> localhost
            [${EMPTY}] -> []
            ${NONE:-} -> 
            ${NONE:-a:-b} -> a:-b
            costs $$5 -> costs $5
            $${HOST} -> ${HOST}
            ${DOLLAR} -> ${HOST}$$
            <${LINE}> -> <x>
            ${NONE} -> ! NONE is not set; set it, or write ${NONE:-default}
            $HOST -> ! write $$ for a dollar, or ${NAME} for a variable
            5$ -> ! write $$ for a dollar, or ${NAME} for a variable
            ${HOST -> ! a ${ has no }
            ${} -> ! the name of a variable has letters, digits and _: ${NAME} or ${NAME:-default}
            ${A-b} -> ! the name of a variable has letters, digits and _: ${NAME} or ${NAME:-default}
            ${NONE:-${HOST}} -> ! a default is plain text; it holds no other variable
        "#]]
        .assert_eq(&outcome);
    }

    #[test]
    fn values_know_their_lines() {
        let text = "\n[http]\nfields_max = 3\n\n[[routes]]\nhosts = [\n  \"a\",\n  \"b\",\n]\n[[routes]]\na.b = 1\n[routes.x]\ny = 1";
        let mut report = Report::new(None);
        let table = parse(text, &BTreeMap::new(), &mut report).expect("it is TOML");
        let mut outcome = String::new();
        lines(&Node { place: Location::File, value: Value::Table(table) }, "", &mut outcome);
        expect![[r#"
             File
            .http Line(2)
            .http.fields_max Line(3)
            .routes Line(5)
            .routes[0] Line(5)
            .routes[0].hosts Line(6)
            .routes[0].hosts[0] Line(7)
            .routes[0].hosts[1] Line(8)
            .routes[1] Line(10)
            .routes[1].a Line(11)
            .routes[1].a.b Line(11)
            .routes[1].x Line(12)
            .routes[1].x.y Line(13)
        "#]]
        .assert_eq(&outcome);
    }

    fn lines(node: &Node, path: &str, outcome: &mut String) {
        outcome.extend([format!("{path} {:?}\n", node.place)]);
        match &node.value {
            Value::Table(table) => table.iter().for_each(|(key, node)| lines(node, &format!("{path}.{key}"), outcome)),
            Value::List(list) => {
                list.iter().enumerate().for_each(|(i, node)| lines(node, &format!("{path}[{i}]"), outcome));
            }
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn a_text_with_its_dollars_doubled_comes_out_as_it_was(text: String) {
            let filled = interpolate(&text.replace('$', "$$"), &BTreeMap::new()).expect("no variable in it");
            prop_assert_eq!(filled.text, text);
        }
    }
}
