//! In which of two formats metrics are told, by what a scraper says that it takes.

/// A format of the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's text, 0.0.4: what whoever asks for nothing gets.
    #[default]
    Text,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
}

impl Format {
    /// Both, in the order of [`Self::index`].
    pub const ALL: [Self; 2] = [Self::Text, Self::OpenMetrics];

    /// The place among all.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The `Content-Type` of the text.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What the values of `Accept` ask for (RFC 9110 §12.5.1). `OpenMetrics` has to be named, and preferred to text.
    pub fn wanted<'a>(accept: impl Iterator<Item = &'a [u8]>) -> Self {
        // The weight of the most specific range that has text, and how specific it is.
        let (mut text, mut open) = ((0, 0), 0);
        let ranges = accept.filter_map(|value| std::str::from_utf8(value).ok());
        for range in ranges.flat_map(|value| value.split(',')).take(RANGES_MAX) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut version, mut weight) = (None, 1000);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                let (name, value) = (name.trim(), value.trim().trim_matches('"'));
                if name.eq_ignore_ascii_case("version") {
                    version = Some(value);
                } else if name.eq_ignore_ascii_case("q") {
                    weight = parse_weight(value);
                }
            }
            let is = |name: &str| kind.eq_ignore_ascii_case(name);
            if is("application/openmetrics-text") && version.is_none_or(|version| version == "1.0.0") {
                open = open.max(weight);
            }
            let specific = match () {
                () if is("text/plain") && version.is_none_or(|version| version == "0.0.4") => 3,
                () if is("text/*") => 2,
                () if is("*/*") => 1,
                () => continue,
            };
            text = text.max((specific, weight));
        }
        if open > text.1 { Self::OpenMetrics } else { Self::Text }
    }
}

/// More ranges than anybody sends.
const RANGES_MAX: usize = 64;

/// Thousandths (RFC 9110 §12.4.2). What is no weight is 0: whoever writes so gets the usual.
fn parse_weight(text: &str) -> u32 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_good = matches!(whole, "0" | "1") && part.len() <= 3 && part.bytes().all(|digit| digit.is_ascii_digit());
    if !is_good {
        return 0;
    }
    match (whole, format!("{part:0<3}").parse().unwrap_or(0)) {
        ("1", 0) => 1000,
        ("1", _) => 0,
        (_, thousandths) => thousandths,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_prefer_it() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
                            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let many = "a/b,".repeat(RANGES_MAX);
        for (accept, is_open) in [
            (&[][..], false),
            (&[""], false),
            (&["*/*"], false),
            (&["text/html,application/xhtml+xml,*/*;q=0.8"], false),
            (&[prometheus_2], true),
            (&[prometheus_3], true),
            (&["text/plain", "application/openmetrics-text"], false),
            (&["text/plain;q=0.9", "application/openmetrics-text"], true),
            (&["text/plain;q=0.1, text/plain;version=0.0.4;q=0.8, Application/OpenMetrics-Text ; Q=0.7"], false),
            (&["application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.5"], false),
            (&["application/openmetrics-text;q=0.4,text/plain;q=0.3,*/*"], true),
            (&["application/openmetrics-text; version=\"1.0.0\""], true),
            (&["application/openmetrics-text;version=0.0.1"], false),
            (&["application/openmetrics-text;q=0"], false),
            (&["application/openmetrics-text;q=1.5"], false),
            (&["application/openmetrics-text;q=nan"], false),
            (&["application/openmetrics-text;q=0.001"], true),
            (&["application/*"], false),
            (&["\u{fffd};=;q=;,,;"], false),
            (&["application/openmetrics-text;q=1;q=0"], false),
            (&["application/openmetrics-text;version=\"1,0\";q=1"], false),
            (&["application/openmetrics-text;q=1,text/plain;q=\"1"], false),
            (&["application/openmetrics-text\0,application /openmetrics-text"], false),
            (&[many.as_str(), "application/openmetrics-text"], false),
        ] {
            let wanted = Format::wanted(accept.iter().map(|value| value.as_bytes()));
            assert_eq!(wanted == Format::OpenMetrics, is_open, "{accept:?}");
        }
        assert_eq!(Format::wanted([&b"\xff"[..]].into_iter()), Format::Text);
    }

    #[test]
    fn weights_are_thousandths() {
        let weights = ["1", "1.000", "0", "0.", "0.5", "0.125", "0.007", "0.0001", "2", "1.5", "-1", "", ".5", "1.0.0"];
        let read = weights.map(parse_weight);
        assert_eq!(read, [1000, 1000, 0, 0, 500, 125, 7, 0, 0, 0, 0, 0, 0, 0]);
    }
}
