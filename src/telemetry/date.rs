//! The time of an answer as its `Date` has it (RFC 9110 §5.6.7): formatted once a second, however many answers there are.

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
pub const DATE_LENGTH: usize = 29;

/// Writes HTTP dates. One per shard.
#[derive(Clone, Debug)]
pub struct DateCache {
    second: u64,
    text: [u8; DATE_LENGTH],
}

impl Default for DateCache {
    fn default() -> Self {
        Self { second: 0, text: *b"Thu, 01 Jan 1970 00:00:00 GMT" }
    }
}

impl DateCache {
    /// The date of this second since 1970; past the last days of 9999, which four digits cannot say, that of 1970.
    #[inline]
    pub fn at(&mut self, second: u64) -> &[u8; DATE_LENGTH] {
        if second != self.second {
            self.begin_second(second);
        }
        &self.text
    }

    #[cold]
    fn begin_second(&mut self, second: u64) {
        const DAYS: &[u8; 21] = b"MonTueWedThuFriSatSun";
        const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
        let timestamp = i64::try_from(second).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
        let date = jiff::tz::Offset::UTC.to_datetime(timestamp.unwrap_or_default());
        let place = |value: i8| usize::from(value.unsigned_abs());
        let digit = |value: usize| b"0123456789"[value % 10];
        let pair = |value: usize| [digit(value / 10), digit(value)];
        let year = usize::from(date.year().unsigned_abs());
        self.second = second;
        self.text[0..3].copy_from_slice(&DAYS[place(date.weekday().to_monday_zero_offset()) * 3..][..3]);
        self.text[5..7].copy_from_slice(&pair(place(date.day())));
        self.text[8..11].copy_from_slice(&MONTHS[(place(date.month()) - 1) * 3..][..3]);
        self.text[12..14].copy_from_slice(&pair(year / 100));
        self.text[14..16].copy_from_slice(&pair(year));
        self.text[17..19].copy_from_slice(&pair(place(date.hour())));
        self.text[20..22].copy_from_slice(&pair(place(date.minute())));
        self.text[23..25].copy_from_slice(&pair(place(date.second())));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_as_http_writes_them() {
        let mut dates = DateCache::default();
        for (second, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_709_164_799, "Wed, 28 Feb 2024 23:59:59 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
            (253_402_207_199, "Thu, 30 Dec 9999 21:59:59 GMT"),
            (u64::MAX, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ] {
            assert_eq!(dates.at(second).escape_ascii().to_string(), text, "{second}");
        }
    }

    proptest! {
        #[test]
        fn dates_agree_with_jiff(second in 0_u64..253_402_207_200) {
            let timestamp = jiff::Timestamp::from_second(i64::try_from(second).expect("it fits")).expect("in range");
            let written = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&timestamp);
            let mut dates = DateCache::default();
            prop_assert_eq!(dates.at(second).escape_ascii().to_string(), written.expect("in range"));
        }
    }
}
