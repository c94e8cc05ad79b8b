//! A file that lists instances: `instances`, as upstreams have it, in TOML or JSON. It is taken whole or not at all.

use super::instance::{Instance, ServerAddress, Zone};
use super::raw::quoted;
use super::upstreams::INSTANCES_MAX;
use serde_json::{Map, Value};
use std::path::Path;

/// Longer files are none.
pub const LISTING_BYTES_MAX: usize = 1 << 20;

/// What a file of instances is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListingFormat {
    /// `.json`
    Json,
    /// `.toml`
    Toml,
}

impl ListingFormat {
    /// By the end of a file's name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "json" => Some(Self::Json),
            "toml" => Some(Self::Toml),
            _ => None,
        }
    }
}

/// The instances that a file lists, each once and at least one; or what is wrong with it.
pub fn parse_listing(bytes: &[u8], format: ListingFormat) -> Result<Vec<Instance>, String> {
    if bytes.len() > LISTING_BYTES_MAX {
        return Err("it is longer than 1 MiB".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let root: Value = match format {
        ListingFormat::Json => serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?,
        ListingFormat::Toml => toml::from_str(text).map_err(|error: toml::de::Error| {
            // With the place, which its message alone does not have.
            let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count());
            format!("it is not TOML: line {}: {}", line + 1, error.message())
        })?,
    };
    let Value::Object(table) = &root else { return Err("it is no table with instances".to_owned()) };
    refuse_others(table, &["instances"])?;
    let Some(list) = table.get("instances") else { return Err("instances is missing".to_owned()) };
    let Value::Array(list) = list else { return Err("instances is no list".to_owned()) };
    match list.len() {
        0 => return Err("instances is empty; an upstream has one instance or more".to_owned()),
        count if count > INSTANCES_MAX => {
            return Err(format!("instances has {count} entries; an upstream has at most {INSTANCES_MAX}"));
        }
        _ => {}
    }
    let read = |(index, entry)| read_entry(entry).map_err(|wrong| format!("instances[{index}]{wrong}"));
    let instances = list.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let mut addresses: Vec<&ServerAddress> = instances.iter().map(|instance| &instance.address).collect();
    addresses.sort_unstable();
    if let Some((twice, _)) = addresses.iter().zip(addresses.iter().skip(1)).find(|(one, next)| one == next) {
        return Err(format!("instances has {twice} twice"));
    }
    if instances.iter().all(|instance| instance.weight == 0) {
        return Err("instances have no weight but 0; one or more gets requests".to_owned());
    }
    Ok(instances)
}

/// Any bytes, in both forms, give a whole list or why there is none.
#[cfg(any(test, fuzzing))]
pub fn fuzz_listing(bytes: &[u8]) {
    for format in [ListingFormat::Json, ListingFormat::Toml] {
        if let Ok(instances) = parse_listing(bytes, format) {
            assert!((1..=INSTANCES_MAX).contains(&instances.len()));
            for instance in &instances {
                assert_eq!(instance.to_string().parse::<ServerAddress>().as_ref(), Ok(&instance.address));
            }
        }
    }
}

fn read_entry(entry: &Value) -> Result<Instance, String> {
    let table = match entry {
        Value::String(text) => return text.parse().map_err(|right| format!(" is {}; {right}", quoted(text))),
        Value::Object(table) => table,
        _ => return Err(" is neither an address nor a table".to_owned()),
    };
    refuse_others(table, &["address", "weight", "priority", "zone"]).map_err(|wrong| format!(": {wrong}"))?;
    let text = |name: &str| match table.get(name) {
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!(".{name} is no text")),
        None => Ok(None),
    };
    let number = |name: &str| match table.get(name) {
        Some(value) => value
            .as_u64()
            .and_then(|number| u16::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| format!(".{name} is no whole number from 0 to 65535")),
        None => Ok(None),
    };
    let address = text("address")?.ok_or(".address is missing")?;
    let address: ServerAddress =
        address.parse().map_err(|right| format!(".address is {}; {right}", quoted(address)))?;
    let mut instance = Instance::from(address);
    instance.weight = number("weight")?.unwrap_or(instance.weight);
    instance.priority = number("priority")?.unwrap_or(instance.priority);
    let zone = |zone: &str| zone.parse::<Zone>().map_err(|right| format!(".zone is {}; {right}", quoted(zone)));
    instance.zone = text("zone")?.map(zone).transpose()?;
    Ok(instance)
}

/// What nobody knows may be what somebody relies on.
fn refuse_others(table: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(other) => Err(format!("{} is not a key; there are {}", quoted(other), known.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ListingFormat::{Json, Toml};
    use expect_test::expect;
    use proptest::prelude::*;

    fn shown(text: &str, format: ListingFormat) -> String {
        match parse_listing(text.as_bytes(), format) {
            Ok(instances) => {
                let shown = |Instance { address, weight, priority, zone }: &Instance| {
                    let zone = zone.as_ref().map(ToString::to_string).unwrap_or_default();
                    format!("{address} {weight} {priority} {zone}").trim_end().to_owned()
                };
                instances.iter().map(shown).collect::<Vec<_>>().join(", ")
            }
            Err(wrong) => format!("! {wrong}"),
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let toml = "# who serves\ninstances = [\"10.0.0.7:8080\", \"unix:/run/shop.sock\"]\n";
        assert_eq!(shown(toml, Toml), "10.0.0.7:8080 1 0, unix:/run/shop.sock 1 0");
        let toml = "[[instances]]\naddress = \"shop.internal:80\"\nweight = 2\npriority = 1\nzone = \"a\"\n\
                    [[instances]]\naddress = \"[::1]:80\"\n";
        let json =
            r#"{"instances": [{"address": "shop.internal:80", "weight": 2, "priority": 1, "zone": "a"}, "[::1]:80"]}"#;
        assert_eq!(shown(toml, Toml), "shop.internal:80 2 1 a, [::1]:80 1 0");
        assert_eq!(shown(json, Json), shown(toml, Toml));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let mut told = String::new();
        for (text, format) in [
            ("", Toml),
            ("", Json),
            ("[]", Json),
            ("instances = []", Toml),
            ("instances = \"10.0.0.1:80\"", Toml),
            ("instances = [\"10.0.0.1:80\",\n \"10.0.0", Toml),
            ("{\"instances\": [\"10.0.0.1:80\", ", Json),
            ("instances = [\"10.0.0.1:80\", \"10.0.0.2\"]", Toml),
            ("instances = [\"10.0.0.1:80\", 7]", Toml),
            ("instances = [\"10.0.0.1:80\", \"10.0.0.1:80\"]", Toml),
            ("instances = [\"10.0.0.1:80\"]\nother = 1", Toml),
            ("instances = [{ address = \"10.0.0.1:80\", wieght = 1 }]", Toml),
            ("instances = [{ weight = 1 }]", Toml),
            ("instances = [{ address = \"10.0.0.1:80\", weight = 0 }]", Toml),
            ("instances = [{ address = \"10.0.0.1:80\", weight = 65536 }]", Toml),
            ("instances = [{ address = \"10.0.0.1:80\", weight = \"1\" }]", Toml),
            ("instances = [{ address = \"10.0.0.1:80\", zone = \"a b\" }]", Toml),
            ("instances = [{ address = 80 }]", Toml),
        ] {
            told.extend([shown(text, format), "\n".to_owned()]);
        }
        expect![[r#"
            ! instances is missing
            ! it is not JSON: EOF while parsing a value at line 1 column 0
            ! it is no table with instances
            ! instances is empty; an upstream has one instance or more
            ! instances is no list
            ! it is not TOML: line 2: unclosed array, expected `]`
            ! it is not JSON: EOF while parsing a value at line 1 column 30
            ! instances[1] is "10.0.0.2"; write an instance as "host:port", like "127.0.0.1:4001" or "[::1]:4001"
            ! instances[1] is neither an address nor a table
            ! instances has 10.0.0.1:80 twice
            ! "other" is not a key; there are instances
            ! instances[0]: "wieght" is not a key; there are address, weight, priority, zone
            ! instances[0].address is missing
            ! instances have no weight but 0; one or more gets requests
            ! instances[0].weight is no whole number from 0 to 65535
            ! instances[0].weight is no whole number from 0 to 65535
            ! instances[0].zone is "a b"; it is up to 64 of A-Za-z0-9._-
            ! instances[0].address is no text
        "#]]
        .assert_eq(&told);
        let many: Vec<_> = (0..=INSTANCES_MAX).map(|port| format!("10.0.0.1:{}", port + 1)).collect();
        let all = serde_json::json!({ "instances": many }).to_string();
        assert_eq!(shown(&all, Json), "! instances has 1025 entries; an upstream has at most 1024");
        let fits = serde_json::json!({ "instances": many[1..] }).to_string();
        assert!(parse_listing(fits.as_bytes(), Json).is_ok());
        assert_eq!(shown(&" ".repeat(LISTING_BYTES_MAX + 1), Json), "! it is longer than 1 MiB");
        assert!(shown(&"[".repeat(LISTING_BYTES_MAX), Json).starts_with("! it is not JSON"));
        assert!(
            shown(&("instances = ".to_owned() + &"[".repeat(LISTING_BYTES_MAX / 2)), Toml).starts_with("! it is not")
        );
    }

    proptest! {
        /// Cut off anywhere, a list is refused, or it is a whole one; whatever the bytes, nothing panics.
        #[test]
        fn any_bytes_are_a_list_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..80) {
            fuzz_listing(&bytes);
            let json = br#"{"instances": ["10.0.0.1:80", {"address": "10.0.0.2:80", "weight": 3}]}"#;
            let cut = cut.min(json.len());
            prop_assert_eq!(parse_listing(&json[..cut], Json).is_ok(), cut == json.len());
        }
    }
}
