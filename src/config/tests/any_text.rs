//! Nothing that is written panics, and what is taken comes back.

use super::table::{every_key, file_with};
use super::*;
use crate::config::key::Key;
use crate::config::keys::SECTIONS;
use proptest::prelude::*;

/// Lines that are nearly right, so that more is reached than the parser.
fn line() -> impl Strategy<Value = String> {
    let keys: Vec<String> = every_key().map(|(_, key)| key.name.to_owned()).collect();
    let headers: Vec<String> = SECTIONS.iter().map(|section| section.name.replace("<name>", "a")).collect();
    let values =
        ["0", "-1", "\"\"", "\"${A}\"", "\"/{a}/*\"", "[]", "[\"*.a\"]", "{}", "{ a = \"b\" }", "\"10s\"", "true"];
    prop_oneof![
        (prop::sample::select(keys), prop::sample::select(values.to_vec()))
            .prop_map(|(key, value)| format!("{key} = {value}")),
        (prop::sample::select(headers.clone())).prop_map(|name| format!("[{name}]")),
        prop::sample::select(headers).prop_map(|name| format!("[[{name}]]")),
        ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn nothing_that_is_written_panics(text: String, value: String) {
        let _ = resolve(Some((Path::new("f"), &text)), &env(&[("PORT", &value), ("SHARDGATE_TRUST_PROXIES", &value)]));
    }

    #[test]
    fn nothing_nearly_right_panics_and_what_is_taken_comes_back(lines in prop::collection::vec(line(), 0..12), a: String) {
        let text = lines.join("\n");
        if let Ok(config) = resolve(Some((Path::new("f"), &text)), &env(&[("A", &a)])) {
            let again = good(&config.to_toml());
            prop_assert_eq!(Config { warnings: config.warnings.clone(), ..again }, config);
        }
    }

    #[test]
    fn values_of_any_text_never_panic(value: String, key in prop::sample::select(every_key().collect::<Vec<_>>())) {
        let (section, key) = key;
        let written = toml::Value::String(value.replace('$', "$$")).to_string();
        let list = format!("[{written}]");
        for value in [written, list] {
            let changed = Key { example: Box::leak(value.into_boxed_str()), ..*key };
            let _ = resolve_text(&file_with(section, &changed));
        }
    }
}
