//! Durations and sizes as a configuration writes them: `"10s"`, `"32KiB"`. What range is sensible is for each key to say.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Reads `"10s"`, `"250ms"`, `"5m"`, `"1h"`, `"30d"`: one whole number and one unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    scaled(text, &DURATION_UNITS).map(Duration::from_millis)
}

/// Reads `"512B"`, `"32KiB"`, `"1MiB"`, `"2GiB"`, `"1TiB"`: one whole number and one unit.
pub fn parse_size(text: &str) -> Option<u64> {
    scaled(text, &SIZE_UNITS)
}

/// The duration in the largest unit that holds it whole. Milliseconds are the finest that a configuration can write.
pub fn written_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    // Zero divides by every unit; seconds read best.
    let (unit, scale) = if millis == 0 { ("s", 1_000) } else { largest(millis, &DURATION_UNITS) };
    format!("{}{unit}", millis / scale)
}

/// The size in the largest unit that holds it whole.
pub fn written_size(bytes: u64) -> String {
    let (unit, scale) = if bytes == 0 { ("B", 1) } else { largest(bytes, &SIZE_UNITS) };
    format!("{}{unit}", bytes / scale)
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

fn largest<'a>(value: u64, units: &[(&'a str, u64)]) -> (&'a str, u64) {
    units.iter().copied().find(|(_, scale)| value.is_multiple_of(*scale)).unwrap_or(("", 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_one_number_and_one_unit() {
        for (text, millis) in [
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("30d", Some(2_592_000_000)),
            ("0s", Some(0)),
            ("10", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1.5s", None),
            ("10 s", None),
            ("1m30s", None),
            ("10S", None),
            ("999999999999999999d", None),
            ("99999999999999999999999s", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn sizes_are_one_number_and_one_unit() {
        for (text, bytes) in [
            ("512B", Some(512)),
            ("32KiB", Some(32_768)),
            ("1MiB", Some(1_048_576)),
            ("2GiB", Some(2_147_483_648)),
            ("32KB", None),
            ("32k", None),
            ("32", None),
            ("1TiB", Some(1 << 40)),
            ("99999999999999GiB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 0_u64..u64::MAX, bytes: u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&written_duration(duration)), Some(duration));
            prop_assert_eq!(parse_size(&written_size(bytes)), Some(bytes));
        }
    }
}
