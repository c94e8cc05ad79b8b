//! What an answer to an insert means: the rows are there, the rows are to blame, or the server cannot take any now.

use memchr::memmem;

/// What stands before the number, on a line of its own.
const CODE: &[u8] = b"\nCode: ";

/// What is to be done about an insert that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All its rows are in the table.
    Taken,
    /// One of its rows is refused, and none is in the table; the server's code for it.
    Rows(u32),
    /// No row is in the table. The code is none that tells whether its rows are to blame.
    Unsure(u32),
    /// No rows can be taken now, whatever they are; why, as a class.
    Away(&'static str),
}

/// A server's answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The code of the server's exception, out of its field.
    pub(super) code: Option<u32>,
    /// The beginning of its body.
    pub(super) text: Vec<u8>,
}

impl Answer {
    /// The code of the server's exception: older ones have it in the text only, and so has one that came after the head.
    pub(super) fn code(&self) -> Option<u32> {
        self.code.filter(|code| *code != 0).or_else(|| {
            let text = self.exception()?;
            let length = text.iter().take(9).take_while(|byte| byte.is_ascii_digit()).count();
            str::from_utf8(text.get(..length)?).ok()?.parse().ok()
        })
    }

    /// The text of an exception, from its code on. Of one that came late newer servers say in the body where it begins.
    fn exception(&self) -> Option<&[u8]> {
        self.text.strip_prefix(b"Code: ").or_else(|| {
            let late = self.text.get(memmem::find(&self.text, b"__exception__")?..)?;
            let (_, text) = late.split_at_checked(memmem::find(late, CODE)? + CODE.len())?;
            Some(text)
        })
    }

    /// What it means for the rows that were sent.
    pub(super) fn verdict(&self) -> Verdict {
        match (self.code(), self.status) {
            (None, 200) if self.text.is_empty() => Verdict::Taken,
            (Some(code), _) => of_code(code),
            // Of whoever stands before the server.
            (None, 401 | 403 | 407) => Verdict::Away("authentication"),
            (None, 413) => Verdict::Rows(413),
            (None, 429 | 503) => Verdict::Away("overloaded"),
            // Not even 200 is an answer of ClickHouse's then.
            (None, _) => Verdict::Away("unexpected"),
        }
    }
}

/// What the server's codes mean (ClickHouse, `ErrorCodes.cpp`; the numbers have not changed since 18.16).
fn of_code(code: u32) -> Verdict {
    match code {
        // It cannot be read, does not fit, or breaks a constraint of the table.
        6
        | 25..=27
        | 33
        | 38
        | 41
        | 53
        | 69
        | 70
        | 72
        | 117
        | 130
        | 131
        | 349
        | 376
        | 441
        | 467
        | 469
        | 610
        | 611
        | 632
        | 675
        | 676 => Verdict::Rows(code),
        60 | 81 | 16 | 47 | 218 => Verdict::Away("not_migrated"),
        115 | 62 | 44 | 48 => Verdict::Away("unsupported"),
        164 | 242 => Verdict::Away("read_only"),
        192..=195 | 291 | 497 | 516 => Verdict::Away("authentication"),
        159 | 209 => Verdict::Away("timeout"),
        202 | 252 | 201 | 439 => Verdict::Away("overloaded"),
        241 | 173 => Verdict::Away("out_of_memory"),
        243 => Verdict::Away("disk_full"),
        _ => Verdict::Unsure(code),
    }
}

/// What to do about a class, for the log.
pub(super) fn advice(class: &str) -> &'static str {
    match class {
        "not_migrated" => "run `shardgate migrate` with this configuration",
        "unsupported" => "the server does not know what is asked of it: 18.16 or newer is needed",
        "read_only" => "give clickhouse.user the right to insert, and look at the server's replicas",
        "authentication" => "check clickhouse.user and its password, and that it may insert into the table",
        "overloaded" => "the server refuses more work: a larger clickhouse.batch_interval makes fewer parts",
        "out_of_memory" | "disk_full" => "the server has no room",
        "rejected" => "the table refuses all rows: compare it with what `shardgate migrate` makes",
        "unexpected" => "what answers at clickhouse.url is no ClickHouse, or something in front of it",
        "tls" => "check the server's certificate, clickhouse.ca_file and clickhouse.url",
        "unresolved" => "the name in clickhouse.url has no address",
        _ => "check that it runs and clickhouse.url leads to its HTTP port",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_old_and_new_servers() {
        let check = |status, code, text: &str, expected| {
            let answer = Answer { status, code, text: text.as_bytes().to_vec() };
            assert_eq!(answer.verdict(), expected, "{status} {code:?} {text}");
        };
        check(200, None, "", Verdict::Taken);
        check(200, Some(0), "", Verdict::Taken);
        check(200, None, "<html>log in</html>", Verdict::Away("unexpected"));
        check(200, None, "Code: 27, e.displayText() = DB::Exception: Cannot parse", Verdict::Rows(27));
        // After the head had gone out: by its field it went well.
        check(200, Some(0), "Code: 241, e.displayText() = DB::Exception: Memory", Verdict::Away("out_of_memory"));
        let late = "\r\n__exception__\r\nvxkrduqjqngvxabc\r\nCode: 27. DB::Exception: Cannot parse\r\n";
        check(200, None, late, Verdict::Rows(27));
        check(200, None, "__exception__", Verdict::Away("unexpected"));
        check(500, None, "Code: 33, e.displayText() = DB::Exception: Unexpected end", Verdict::Rows(33));
        check(400, Some(27), "Code: 27. DB::Exception: Cannot parse input", Verdict::Rows(27));
        check(404, None, "Code: 60, e.displayText() = DB::Exception: Table", Verdict::Away("not_migrated"));
        check(401, None, "Code: 193, e.displayText() = DB::Exception: Wrong", Verdict::Away("authentication"));
        check(403, None, "no", Verdict::Away("authentication"));
        check(413, None, "too large", Verdict::Rows(413));
        check(502, None, "bad gateway", Verdict::Away("unexpected"));
        check(503, None, "", Verdict::Away("overloaded"));
        check(500, Some(1002), "", Verdict::Unsure(1002));
        check(500, None, "Code: 99999999999999, x", Verdict::Unsure(999_999_999));
        check(500, None, "Code: , x", Verdict::Away("unexpected"));
        check(500, None, "Code: ", Verdict::Away("unexpected"));
    }
}
